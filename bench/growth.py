"""`python -m bench.growth`: does the node stay as fast when there are many jobs in its store? Exit code 1 when an
answer was wrong.

Two nodes stand beside each other: one keeps a thousand jobs that have ended, the other ever more, up to a million. At
each size both get the same loads in turns, so that a machine that is slower for a while is slower on both sides.
"""

import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Group

from bench import client, jobs, load, machine, measures, plot, printed, rounds, subjects
from bench.client import Batches
from bench.jobs import Wrong
from bench.kept import Kept
from bench.load import LOCAL, Connection
from bench.measures import Figures, Running
from bench.subjects import CONTAINERS, Subject

FEW = 1_000
SIZES = (FEW, 10_000, 100_000, 1_000_000)
CALLERS = [f"127.0.1.{last}" for last in range(1, 11)]  # each has a tenth of the jobs
PAGE = 100
TIMES = 9  # a thing that is timed alone
SAMPLE = 20_000  # of the jobs, to be asked for
REWRITTEN_S = 300.0
MIB = 1 << 20
LIST = load.get("/api/jobs")

Load = Callable[[Running, str], Figures]


@dataclass(slots=True)
class Stock:
    """A node, and the jobs of its first caller that it keeps: their numbers by their ids."""

    subject: Subject
    kept: Kept
    size: int = 0
    sent: dict[str, int] = field(default_factory=dict)

    def grow(self, size: int) -> float:
        """Keep so many jobs; bytes of the store for each of those that were added."""
        before, count = self.kept.used_bytes(), size - self.size
        for job_id, (number, caller) in self.kept.add(count, CALLERS).items():
            if caller == CALLERS[0]:
                self.sent[job_id] = number
        self.size = size
        return (self.kept.used_bytes() - before) / count

    def until_written(self) -> None:
        """Writing the append-only file anew takes a core of the machine; it has nothing to do with the rates."""
        deadline = time.monotonic() + REWRITTEN_S
        while self.kept.rewriting():
            if time.monotonic() > deadline:
                raise Wrong(f"the append-only file was not written anew after {REWRITTEN_S:g} s")
            time.sleep(0.05)

    def resident_bytes(self) -> int:
        """Memory of the node's processes, without its server."""
        own = [pid for kind, pid in self.subject.processes() if kind == "node"]
        return sum(_resident_kib(pid) for pid in own) * 1024

    def reading_ms(self) -> dict[str, float]:
        """What reading takes on an idle node: all ids of the first caller, a part of them, results of a hundred."""
        with Connection(self.subject.port, CALLERS[0]) as connection:
            listed = _ids(connection.ask(LIST))
            if set(listed) != set(self.sent) or len(listed) != len(self.sent):
                raise Wrong(f"the list of {CALLERS[0]} is not what it sent")
            return {
                "list_ms": _timed(connection, [LIST] * TIMES)[0],
                "part_ms": self._part_ms(connection, listed),
                "results_ms": self._results_ms(connection),
            }

    def _part_ms(self, connection: Connection, listed: Sequence[str]) -> float:
        """Parts of the list, from anywhere in it."""
        starts = [random.randrange(len(listed)) for _ in range(TIMES)]
        asked = [load.get(f"/api/jobs?limit={PAGE}&after={listed[start]}") for start in starts]
        part_ms, replies = _timed(connection, asked)
        for start, reply in zip(starts, replies, strict=True):
            if _ids(reply) != listed[start + 1 :][:PAGE]:
                raise Wrong(f"a part of the list of {CALLERS[0]} is not what stands in the whole one")
        return part_ms

    def _results_ms(self, connection: Connection) -> float:
        pages = [random.sample(list(self.sent), min(PAGE, len(self.sent))) for _ in range(TIMES)]
        results_ms, replies = _timed(connection, [client.query(page, intermediate="true") for page in pages])
        for page, reply in zip(pages, replies, strict=True):
            jobs.check_done(reply, page, self.sent, CONTAINERS[:1])
        return results_ms


def _ids(reply: bytes) -> list[str]:
    return msgspec.json.decode(reply, type=list[str])


def _timed(connection: Connection, requests: Sequence[bytes]) -> tuple[float, list[bytes]]:
    """Median of the times of one request after the other, in milliseconds; the answers."""
    times, replies = [], []
    for request in requests:
        began = time.perf_counter()
        replies.append(connection.ask(request))
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times), replies


def _resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


# The run


def main(
    seconds: Annotated[float, typer.Option(min=0.1, max=10, help="Length of each load.")] = 1.0,
    turns: Annotated[int, typer.Option(min=1, max=20, help="Loads of each kind, node and size.")] = 3,
    most: Annotated[int, typer.Option(min=FEW, help="Largest number of jobs.")] = SIZES[-1],
    workers: Annotated[bool, typer.Option(help="Nodes with all their workers, instead of one process.")] = False,
    json: Annotated[Path | None, typer.Option(help="Also write everything, with each load, to this file.")] = None,
    draw: Annotated[Path | None, typer.Option("--plot", help="Also draw it, to this SVG file.")] = None,
) -> None:
    """Measure the node with ever more jobs that have ended in its store."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended and cleared away
    sizes = [size for size in SIZES if size <= most]
    try:
        with tempfile.TemporaryDirectory(prefix="stoker-growth-", dir=machine.durable_directory()) as directory:
            document = _take(sizes, seconds, turns, "workers" if workers else "node", Path(directory))
    except (Wrong, subjects.Broken) as error:
        typer.echo("\n".join((f"growth: {error}", *getattr(error, "__notes__", ()))), err=True)
        raise typer.Exit(1) from None
    printed.show(_tables(document))
    if json:
        printed.write(document, json)
    if draw:
        plot.draw("growth", document, draw)


def _take(sizes: Sequence[int], seconds: float, turns: int, kind: str, directory: Path) -> dict[str, Any]:
    facts = machine.describe(directory)
    taken = []
    with ExitStack() as stack:
        echoes = {name: stack.enter_context(subjects.echo(directory)) for name in CONTAINERS}
        few, many = (stack.enter_context(_stock(name, kind, seconds, directory, echoes)) for name in ("few", "many"))
        running = Running(
            subjects={"few": few.subject, "many": many.subject},
            containers=echoes,
            directory=directory,
            seconds=seconds,
        )
        copy_bytes, real_bytes = _checked(running, many)
        few.grow(FEW)
        for size in sizes:
            taken.append(_at(size, running, few, many, turns))
            typer.echo(f"{size:,} jobs: {_brief(taken[-1])}", err=True)
        facts["server"] = subjects.described(many.subject.store) if many.subject.store else ""
    bytes_ = {"record_bytes_copied": copy_bytes, "record_bytes_real": real_bytes}
    return {"machine": facts, "seconds": seconds, "node": kind, **bytes_, "sizes": taken}


@contextmanager
def _stock(name: str, kind: str, seconds: float, directory: Path, echoes: Mapping[str, Subject]) -> Any:
    """A node, and in its store a job that ran, to make copies from."""
    with subjects.node(directory / name, subjects.NODES[kind], echoes) as subject:
        assert subject.store
        kept = Kept(subject.store, *_ran(subject))
        try:
            yield Stock(subject, kept)
        finally:
            kept.close()


def _ran(subject: Subject) -> tuple[str, int, str]:
    """A job that the node has run: its id, its number, its caller."""
    with Connection(subject.port) as connection:
        sent = Batches(CONTAINERS[:1], 1, 1).send(subject.port)
        client.collect(connection, list(sent))
        client.check_done(connection, sent, CONTAINERS[:1])
    ((job_id, number),) = sent.items()
    return job_id, number, LOCAL


def _checked(running: Running, stock: Stock) -> tuple[int, int]:
    return stock.kept.check(*_ran(stock.subject))


def _at(size: int, running: Running, few: Stock, many: Stock, turns: int) -> dict[str, Any]:
    bytes_per_job = many.grow(size)
    loads: dict[str, Load] = {
        "submit": measures.post_waiting,
        "poll": _polls(few, many),
        "run": measures.chain_of(1),
    }
    rates: dict[str, dict[str, list[float]]] = {name: {"few": [], "many": []} for name in loads}
    for turn in range(turns):
        for name, apply in loads.items():
            for subject in ("few", "many") if turn % 2 == 0 else ("many", "few"):
                few.until_written()
                many.until_written()
                rates[name][subject].append(apply(running, subject)["per_s"])
    resident_bytes = many.resident_bytes()
    return {
        "jobs": size,
        "rates": rates,
        "bytes_per_job": bytes_per_job,
        "listed": len(many.sent),
        **many.reading_ms(),
        "resident_bytes": resident_bytes,
        "resident_after_lists_bytes": many.resident_bytes(),
        "store_bytes": many.kept.used_bytes(),
    }


def _polls(few: Stock, many: Stock) -> Load:
    stocks = {"few": few, "many": many}

    def measure(running: Running, name: str) -> Figures:
        ids = random.sample(list(stocks[name].sent), min(SAMPLE, len(stocks[name].sent)))
        sent = {job_id: stocks[name].sent[job_id] for job_id in ids}
        return measures.polls(running, name, sent, 1, CALLERS[0])

    return measure


# What is told


def _kept_share(at: Mapping[str, Any], name: str) -> rounds.Spread:
    """Of the rate of the node with few jobs: each load through the one beside it in time."""
    rates = at["rates"][name]
    found = rounds.spread(many / few for few, many in zip(rates["few"], rates["many"], strict=True))
    assert found
    return found


def _brief(at: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{name} {_kept_share(at, name).median:.2f}" for name in at["rates"])
    return f"{shares} of the rates with {FEW:,}, {at['bytes_per_job']:,.0f} bytes per job"


def _tables(document: Mapping[str, Any]) -> Group:
    table = printed.new_table(
        "Rates, also as shares of those of a node beside it with 1,000 jobs (lowest to highest)",
        "jobs kept", "submit/s", "share", "poll/s", "share", "end to end/s", "share",
        "bytes/job", "RSS MiB", "after lists",
    )  # fmt: skip
    reads = printed.new_table(
        "Reading on an idle node, ms",
        "jobs kept", "ids of the caller", "list of all", "per 1,000 ids", f"list of {PAGE}", f"results of {PAGE}",
    )  # fmt: skip
    for at in document["sizes"]:
        cells = [f"{at['jobs']:,}"]
        for name in ("submit", "poll", "run"):
            cells.append(f"{statistics.median(at['rates'][name]['many']):,.0f}")
            cells.append(printed.spread_text(_kept_share(at, name), 2))
        resident = (f"{at[name] / MIB:,.1f}" for name in ("resident_bytes", "resident_after_lists_bytes"))
        table.add_row(*cells, f"{at['bytes_per_job']:,.0f}", *resident)
        per_1000 = at["list_ms"] / at["listed"] * 1000
        times = (f"{each:.2f}" for each in (at["list_ms"], per_1000, at["part_ms"], at["results_ms"]))
        reads.add_row(f"{at['jobs']:,}", f"{at['listed']:,}", *times)
    records = "the record of a job that ran has {record_bytes_real:,} bytes, that of a copy {record_bytes_copied:,}"
    return Group(printed.machine_text(document["machine"]), "", table, "", reads, records.format_map(document))


if __name__ == "__main__":
    typer.run(main)
