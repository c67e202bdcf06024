"""One round of all measures, and what several rounds come to."""

import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import latency, measures, rivals, subjects
from bench.measures import Figures, Measure, Running
from bench.subjects import CONTAINERS, SINGLE, SINGLE_S, SLOW, SLOW_S, Subject

BARE: Mapping[str, Measure] = {"bare": measures.post}
PEERS: Mapping[str, Measure] = {
    name if workers == 1 else f"{name}-{workers}": rivals.chain(name, workers)
    for name in rivals.installed()
    for workers in (1, 2)
}


def _nodes(measure: Measure, *others: str) -> dict[str, Measure]:
    """The same measure of the smallest node and of the real one, with one process and with all workers."""
    return dict.fromkeys(("smallest", "node", "workers", *others), measure)


# A group is one load, put on one subject after the other. In the order in which they run: what needs an idle node comes
# first, what leaves jobs waiting comes last.
GROUPS: Mapping[str, Mapping[str, Measure]] = {
    "one1": {"direct": latency.direct(1), **_nodes(latency.one_job(1))},
    "one3": {"direct": latency.direct(3), **_nodes(latency.one_job(3))},
    "slow": _nodes(latency.slow_jobs),
    "single": {"node": latency.single_jobs, "workers": latency.single_jobs},
    "chain1": {"echo": measures.call, **_nodes(measures.chain_of(1), "everysec"), **PEERS},
    "chain3": {"echo": measures.call, **_nodes(measures.chain_of(3))},
    "poll1": {**BARE, **_nodes(measures.poll(1))},
    "poll100": {**BARE, **_nodes(measures.poll(100))},
    "post_running": {**BARE, **_nodes(measures.post_running)},
    "batch_alone": _nodes(measures.batch_alone),
    "post_waiting": {**BARE, "committed": measures.post_committed, **_nodes(measures.post_waiting, "everysec")},
    "batches": {**BARE, **_nodes(measures.batches)},
    "enqueue": {name: rivals.enqueue(name) for name in rivals.installed()},
}

Round = Mapping[str, Mapping[str, Figures]]
"""Group, subject -> figures."""

Tell = Callable[[str, str, Figures], None]


def run(groups: Collection[str], seconds: float, directory: Path, tell: Tell, *, backwards: bool) -> tuple[Round, str]:
    """Start everything afresh, take the measures one after the other, and stop everything.

    backwards: within each group the last subject comes first. The round, and what the node's server says of itself.
    """
    wanted = {subject for group in groups for subject in GROUPS[group]}
    with _running(wanted, seconds, directory) as running:
        figures: dict[str, dict[str, Figures]] = {}
        for group in groups:
            figures[group] = {}
            order = list(GROUPS[group].items())
            for subject, measure in reversed(order) if backwards else order:
                figures[group][subject] = measure(running, subject)
                tell(group, subject, figures[group][subject])
        store = next((running.subjects[name].store for name in ("node", "workers") if name in wanted), None)
        return figures, subjects.described(store) if store else "no node was measured"


@contextmanager
def _running(wanted: Collection[str], seconds: float, directory: Path) -> Iterator[Running]:
    with ExitStack() as stack:
        echoes = {name: stack.enter_context(subjects.echo(directory)) for name in CONTAINERS}
        slow = stack.enter_context(subjects.slow(directory, SLOW_S))
        single = stack.enter_context(subjects.slow(directory, SINGLE_S))
        containers = {**echoes, SLOW: slow, SINGLE: single}
        started: dict[str, Subject] = {"echo": echoes[CONTAINERS[0]]}
        if "bare" in wanted:
            started["bare"] = stack.enter_context(subjects.bare(directory))
        if "committed" in wanted:
            started["committed"] = stack.enter_context(subjects.committed(directory))
        if "smallest" in wanted:
            started["smallest"] = stack.enter_context(subjects.smallest(directory, containers))
        for name, settings in subjects.NODES.items():
            if name in wanted:
                started[name] = stack.enter_context(subjects.node(directory / name, settings, containers))
        yield Running(subjects=started, containers=containers, directory=directory, seconds=seconds)


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over all rounds."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread | None:
    """None when there are no values: it was not measured."""
    of = list(values)
    return Spread(statistics.median(of), min(of), max(of)) if of else None


def figure(rounds: Sequence[Round], group: str, subject: str, name: str) -> Spread | None:
    return spread(_values(rounds, group, subject, name))


def _values(rounds: Sequence[Round], group: str, subject: str, name: str) -> list[float]:
    found = (each.get(group, {}).get(subject, {}).get(name) for each in rounds)
    return [value for value in found if value is not None]
