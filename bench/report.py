"""The tables that a run prints, and the same as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.measures import BATCH, CONNECTIONS
from bench.rounds import Round, Spread, difference, figure, ratio

Machine = Mapping[str, str | float]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the main table: which measure stands in which column, and which one the node is compared with."""

    title: str
    node: str
    against: str
    figure: str = "per_s"
    bare: str = ""
    echo: str = ""


ROWS = (
    Row("POST/s, no container running", "node.post_waiting", "bare.post", bare="bare.post"),
    Row("POST/s, jobs running", "node.post_running", "bare.post", bare="bare.post"),
    Row(f"jobs accepted/s, batches of {BATCH:,}", "node.batches", "bare.post", bare="bare.post"),
    Row("end to end jobs/s, chain of 1", "node.chain1", "echo.post", echo="echo.post"),
    Row("end to end jobs/s, chain of 3", "node.chain3", "echo.post", echo="echo.post"),
    Row("one job, chain of 1, p50 ms", "node.one1", "direct.chain1", "p50_ms", echo="direct.chain1"),
    Row("one job, chain of 1, p99 ms", "node.one1", "direct.chain1", "p99_ms", echo="direct.chain1"),
    Row("one job, chain of 3, p50 ms", "node.one3", "direct.chain3", "p50_ms", echo="direct.chain3"),
    Row("one job, chain of 3, p99 ms", "node.one3", "direct.chain3", "p99_ms", echo="direct.chain3"),
)

CPU = {
    "bare.post": "POST, bare handler",
    "echo.post": "call of the echo container",
    "node.post_waiting": "POST, no container running",
    "node.batches": "job of a batch, accepted",
    "node.chain1": "end to end, chain of 1",
    "node.chain3": "end to end, chain of 3",
}


def tables(rounds: Sequence[Round], machine: Machine) -> RenderableType:
    return Group(_machine(machine), "", _comparison(rounds), "", _cpu(rounds))


def document(rounds: Sequence[Round], machine: Machine, seconds: float) -> dict[str, Any]:
    """`rounds` is raw; the rest follows from it."""
    return {
        "machine": dict(machine),
        "seconds": seconds,
        "medians": {
            measure: {name: figure(rounds, measure, name).median for name in figures}
            for measure, figures in rounds[0].items()
        },
        "ratios": {f"{row.node}.{row.figure}": _ratio(rounds, row) for row in ROWS},
        "rounds": list(rounds),
    }


def _ratio(rounds: Sequence[Round], row: Row) -> dict[str, Any]:
    return {"to": row.against, **asdict(ratio(rounds, row.node, row.against, row.figure))}


def _machine(machine: Machine) -> Text:
    return Text(
        "{cores} cores ({processor}), Python {python}, {libraries}\n"
        "{server}; one sync takes {sync_ms} ms on this {file_system}; "
        "load of the machine before the run: {load_before}".format_map(machine)
    )


def _comparison(rounds: Sequence[Round]) -> Table:
    title = f"{CONNECTIONS} connections, median of {len(rounds)} rounds (lowest to highest)"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("measure", no_wrap=True)
    for column in ("bare handler", "echo container", "node", "node is", "generator"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in ROWS:
        cells = [_cell(rounds, measure, row.figure) for measure in (row.bare, row.echo, row.node)]
        table.add_row(row.title, *cells, _compared(rounds, row), _generator(rounds, row))
    return table


def _cell(rounds: Sequence[Round], measure: str, name: str) -> str:
    return _shown(figure(rounds, measure, name), 2 if name.endswith("_ms") else 0) if measure else ""


def _compared(rounds: Sequence[Round], row: Row) -> str:
    times = ratio(rounds, row.node, row.against, row.figure)
    if row.figure.endswith("_ms"):
        more = difference(rounds, row.node, row.against, row.figure)
        return f"{times.median:.0f} x, +{_shown(more, 2)}"
    return f"{_shown(times, 2)} of {'bare' if row.bare else 'echo'}"


def _generator(rounds: Sequence[Round], row: Row) -> str:
    """The generator's share of one core: loading the node, and loading what the node is compared with."""
    if row.figure.endswith("_ms"):
        return ""
    node, other = (figure(rounds, measure, "generator_share").median for measure in (row.node, row.against))
    return f"{node:.0%} / {other:.0%}"


def _cpu(rounds: Sequence[Round]) -> Table:
    table = Table(title="CPU time per job, microseconds", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("load")
    kinds = ("bare", "echo", "node", "server")
    for column in ("bare handler", "echo containers", "node", "Valkey"):
        table.add_column(column, justify="right")
    for measure, title in CPU.items():
        table.add_row(title, *(_micros(figure(rounds, measure, f"cpu_{kind}_us")) for kind in kinds))
    return table


def _micros(of: Spread) -> str:
    return _shown(of, 0) if of.median else ""


def _shown(of: Spread, digits: int) -> str:
    median, low, high = (f"{value:,.{digits}f}" for value in (of.median, of.low, of.high))
    return median if of.low == of.high else f"{median} ({low}-{high})"
