"""The tables that a run prints, and the same as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from bench.client import BATCH, CONNECTIONS
from bench.goals import GOALS
from bench.printed import machine_text, new_table, spread_text
from bench.rounds import PEERS, Round, Spread, figure
from bench.subjects import SLOTS

Machine = Mapping[str, str | float]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the main table: a figure of a group, for every subject that has it."""

    title: str
    group: str
    figure: str = "per_s"

    @property
    def digits(self) -> int:
        return 0 if self.figure == "per_s" else 2


ROWS = (
    Row("POST/s, no container running", "post_waiting"),
    Row("POST/s, jobs running", "post_running"),
    Row("  of them ended by then", "post_running", "ended_share"),
    Row(f"jobs accepted/s, batches of {BATCH:,}", "batches"),
    Row(f"a batch of {BATCH:,} alone, ms", "batch_alone", "p50_ms"),
    Row("end to end jobs/s, chain of 1", "chain1"),
    Row("end to end jobs/s, chain of 3", "chain3"),
    Row("one job, chain of 1, p50 ms", "one1", "p50_ms"),
    Row("one job, chain of 1, p99 ms", "one1", "p99_ms"),
    Row("one job, chain of 3, p50 ms", "one3", "p50_ms"),
    Row("one job, chain of 3, p99 ms", "one3", "p99_ms"),
    Row("polls/s, 1 id", "poll1"),
    Row("polls/s, 100 ids", "poll100"),
    Row("500 jobs of 50 ms on 64 slots, s", "slow", "s"),
    Row("200 jobs of 2 ms one at a time, s", "single", "s"),
)

COLUMNS: Mapping[str, Sequence[str]] = {
    "bare": ("bare",),
    "committed": ("committed",),
    "container": ("echo", "direct"),
    "smallest": ("smallest",),
    "node, one process": ("node",),
    "node, all workers": ("workers",),
    "everysec": ("everysec",),
}
"""Heading -> the subjects that stand there; no group has two of one column."""

CPU = {
    "post_waiting": "POST, no container running",
    "batches": "job of a batch, accepted",
    "chain1": "end to end, chain of 1",
    "chain3": "end to end, chain of 3",
    "poll1": "poll of 1 id",
    "poll100": "poll of 100 ids",
}
CPU_SUBJECTS = ("bare", "committed", "smallest", "node", "workers")

COUNTS = {
    "reads": "reads of the server, so at most so many round trips",
    "scripts": "scripts called",
    "commands": "commands run, within scripts too",
}


def tables(rounds: Sequence[Round], machine: Machine) -> RenderableType:
    parts = [machine_text(machine), _comparison(rounds), _goals(rounds), _cpu(rounds), _counts(rounds), _peers(rounds)]
    return Group(*(part for each in parts if each for part in (each, "")))


def document(rounds: Sequence[Round], machine: Machine, seconds: float) -> dict[str, Any]:
    """`rounds` is raw; the rest follows from it."""
    return {
        "machine": dict(machine),
        "seconds": seconds,
        "medians": {
            group: {
                subject: {name: spread.median for name in figures if (spread := figure(rounds, group, subject, name))}
                for subject, figures in subjects.items()
            }
            for group, subjects in rounds[0].items()
        },
        "goals": [
            {"title": goal.title, "wanted": goal.wanted, "most": goal.most, **asdict(found)}
            for goal in GOALS
            if (found := goal.over(rounds))
        ],
        "rounds": list(rounds),
    }


def _comparison(rounds: Sequence[Round]) -> Table | None:
    title = f"{CONNECTIONS} connections, {SLOTS} slots, median of {len(rounds)} rounds (lowest to highest)"
    shown = {heading: subjects for heading, subjects in COLUMNS.items() if _measured(rounds, subjects)}
    table = new_table(title, "measure", *shown)
    for row in ROWS:
        spreads = [
            next((found for each in subjects if (found := figure(rounds, row.group, each, row.figure))), None)
            for subjects in shown.values()
        ]
        _add(table, row.title, spreads, row.digits)
    return table if table.row_count else None


def _measured(rounds: Sequence[Round], subjects: Sequence[str]) -> bool:
    return any(subject in group for group in rounds[0].values() for subject in subjects)


def _goals(rounds: Sequence[Round]) -> Table | None:
    table = new_table("What should be reached; each figure is from within one round", "", "figure", "wanted", "")
    for goal in GOALS:
        if found := goal.over(rounds):
            wanted = f"{'at most' if goal.most else 'at least'} {goal.wanted:g}"
            table.add_row(
                goal.title, spread_text(found, goal.digits), wanted, "yes" if goal.reached(found.median) else "NO"
            )
    return table if table.row_count else None


def _cpu(rounds: Sequence[Round]) -> Table | None:
    """Of the subject itself, and of its server."""
    shown = [subject for subject in CPU_SUBJECTS if _measured(rounds, [subject])]
    table = new_table("CPU time per job or poll, microseconds: all processes (of it Valkey)", "load", *shown)
    for group, title in CPU.items():
        cells = [_own(rounds, group, subject) for subject in shown]
        if any(cells):
            table.add_row(title, *cells)
    return table if table.row_count else None


def _own(rounds: Sequence[Round], group: str, subject: str) -> str:
    kind = "node" if subject == "workers" else subject
    program = figure(rounds, group, subject, f"cpu_{kind}_us")
    server = figure(rounds, group, subject, "cpu_server_us")
    if program is None:
        return ""
    return f"{program.median + server.median:,.0f} ({server.median:,.0f})" if server else f"{program.median:,.0f}"


def _counts(rounds: Sequence[Round]) -> Table | None:
    headings = {"node": "node, one process", "workers": "node, all workers"}
    table = new_table(
        "What a job of a chain of 3 costs the store under load", "per job, all included", *headings.values()
    )
    for name, title in COUNTS.items():
        _add(table, title, [figure(rounds, "chain3", subject, f"{name}_per_job") for subject in headings], 2)
    return table if table.row_count else None


def _peers(rounds: Sequence[Round]) -> Table | None:
    """The other job queues, where they are installed."""
    table = new_table("Other job queues, their store in memory only", "", "sent/s", "end to end jobs/s, chain of 1")
    for peer in PEERS:
        queue, _, workers = peer.partition("-")
        spreads = [figure(rounds, "enqueue", peer, "per_s"), figure(rounds, "chain1", peer, "per_s")]
        _add(table, f"{queue}, {workers or 1} process{'es' if workers else ''}", spreads, 0)
    return table if table.row_count else None


def _add(table: Table, title: str, spreads: Sequence[Spread | None], digits: int) -> None:
    if any(spreads):
        table.add_row(title, *(spread_text(each, digits) if each else "" for each in spreads))
