"""One round of all measures, and what several rounds come to."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import measures, subjects
from bench.measures import Figures, Measure, Running

# In the order in which they run: what needs an idle node comes first, what leaves jobs waiting comes last.
MEASURES: Mapping[str, Measure] = {
    "bare.post": measures.post_bare,
    "echo.post": measures.post_echo,
    "direct.chain1": measures.direct(1),
    "node.one1": measures.one_job(1),
    "direct.chain3": measures.direct(3),
    "node.one3": measures.one_job(3),
    "node.chain1": measures.chain_of(1),
    "node.chain3": measures.chain_of(3),
    "node.post_running": measures.post_running,
    "node.post_waiting": measures.post_waiting,
    "node.batches": measures.batches,
}

Round = Mapping[str, Figures]  # measure -> its figures


def run(seconds: float, directory: Path, tell: Callable[[str, Figures], None]) -> tuple[Round, str]:
    """Start everything afresh, take all measures one after the other, and stop everything.

    The round, and what the node's server says of itself.
    """
    with ExitStack() as stack:
        echoes = [stack.enter_context(subjects.echo(directory)) for _ in subjects.CONTAINERS]
        running = Running(
            bare=stack.enter_context(subjects.bare(directory)),
            echoes=echoes,
            node=stack.enter_context(subjects.node(directory, echoes)),
            seconds=seconds,
        )
        figures = {}
        for name, measure in MEASURES.items():
            figures[name] = measure(running)
            tell(name, figures[name])
        return figures, subjects.server(directory)


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over all rounds."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    of = list(values)
    return Spread(statistics.median(of), min(of), max(of))


def figure(rounds: Sequence[Round], measure: str, name: str) -> Spread:
    return spread(each[measure].get(name, 0.0) for each in rounds)


def ratio(rounds: Sequence[Round], measure: str, to: str, name: str) -> Spread:
    """Within each round, so that a machine that is slower for a while is slower on both sides."""
    return spread(each[measure][name] / each[to][name] for each in rounds)


def difference(rounds: Sequence[Round], measure: str, to: str, name: str) -> Spread:
    return spread(each[measure][name] - each[to][name] for each in rounds)
