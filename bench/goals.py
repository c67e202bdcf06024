"""What the node should reach, each as one number from one round: a ratio to a yardstick that ran beside it, mostly.

Within a round a machine that is slower for a while is slower on both sides, so ratios are taken there.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.latency import IDEAL_S
from bench.measures import Figures
from bench.rounds import PEERS, Round, Spread, spread

Group = Mapping[str, Figures]


@dataclass(frozen=True, slots=True)
class Goal:
    """value: of a round's group; a KeyError means that it was not measured."""

    title: str
    group: str
    value: Callable[[Group], float]
    wanted: float
    most: bool = False  # at most what is wanted, else at least
    digits: int = 2

    def reached(self, value: float) -> bool:
        return operator.le(value, self.wanted) if self.most else operator.ge(value, self.wanted)

    def over(self, rounds: Sequence[Round]) -> Spread | None:
        return spread(self._values(rounds))

    def _values(self, rounds: Sequence[Round]) -> list[float]:
        values = []
        for each in rounds:
            try:
                values.append(self.value(each[self.group]))
            except (KeyError, ValueError):
                return []
        return values


def _ratio(of: str, to: str, name: str = "per_s") -> Callable[[Group], float]:
    return lambda group: group[of][name] / group[to][name]


def _more(of: str, to: str) -> Callable[[Group], float]:
    return lambda group: group[of]["p50_ms"] - group[to]["p50_ms"]


def _figure(of: str, name: str, unit: float = 1) -> Callable[[Group], float]:
    return lambda group: group[of][name] / unit


def _best_peer(of: str) -> Callable[[Group], float]:
    return lambda group: group[of]["per_s"] / max(group[peer]["per_s"] for peer in PEERS)


GOALS = (
    Goal("POST waiting, one process / bare", "post_waiting", _ratio("node", "bare"), 0.5),
    Goal("POST waiting, all workers / bare", "post_waiting", _ratio("workers", "bare"), 0.5),
    Goal("POST running, one process / smallest", "post_running", _ratio("node", "smallest"), 1.0),
    Goal("POST running, all workers / smallest", "post_running", _ratio("workers", "smallest"), 1.0),
    Goal("batches, one process, jobs / bare requests", "batches", _ratio("node", "bare"), 1.0),
    Goal("batches, all workers, jobs / bare requests", "batches", _ratio("workers", "bare"), 1.0),
    Goal("a batch alone, one process, ms", "batch_alone", _figure("node", "p50_ms"), 60, most=True, digits=1),
    Goal("a batch alone, all workers, ms", "batch_alone", _figure("workers", "p50_ms"), 60, most=True, digits=1),
    Goal("chain of 1, one process / smallest", "chain1", _ratio("node", "smallest"), 0.75),
    Goal("chain of 3, one process / smallest", "chain3", _ratio("node", "smallest"), 0.75),
    Goal("chain of 1, all workers / smallest", "chain1", _ratio("workers", "smallest"), 1.2),
    Goal("chain of 3, all workers / smallest", "chain3", _ratio("workers", "smallest"), 1.1),
    Goal("chain of 1, one process / best peer", "chain1", _best_peer("node"), 2),
    Goal("chain of 1, all workers / best peer", "chain1", _best_peer("workers"), 2),
    Goal("one job over direct calls, chain of 1, ms", "one1", _more("node", "direct"), 1.8, most=True),
    Goal("the same, all workers", "one1", _more("workers", "direct"), 1.8, most=True),
    Goal("one job over direct calls, chain of 3, ms", "one3", _more("node", "direct"), 3.5, most=True),
    Goal("the same, all workers", "one3", _more("workers", "direct"), 3.5, most=True),
    Goal("poll of 1 id, one process / bare", "poll1", _ratio("node", "bare"), 0.6),
    Goal("poll of 100 ids, one process / bare", "poll100", _ratio("node", "bare"), 0.05, digits=3),
    Goal("500 jobs of 50 ms, one process / ideal time", "slow", _figure("node", "s", IDEAL_S), 1.25, most=True),
    Goal("500 jobs of 50 ms, all workers / ideal time", "slow", _figure("workers", "s", IDEAL_S), 1.25, most=True),
    Goal("POST waiting, always / everysec", "post_waiting", _ratio("node", "everysec"), 0.85),
    Goal("chain of 1, always / everysec", "chain1", _ratio("node", "everysec"), 0.85),
    Goal("round trips per job, chain of 3", "chain3", _figure("node", "reads_per_job"), 0.3, most=True),
    Goal("the same, all workers", "chain3", _figure("workers", "reads_per_job"), 0.3, most=True),
)
