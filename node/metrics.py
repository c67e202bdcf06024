"""What this node counts, for Prometheus: `GET /metrics` shows it. Each metric is made here and nowhere else.

One `Metrics` per process, made at its top and passed down. It has a registry of its own, so two of them never meet.
Workers tell the main process by how much theirs have grown, so those of the main process are the node's.
Counters only grow and start at 0 with the node. Whoever adds one: the unit stands in its name (`_seconds`,
`_bytes`), and a label has few values (a container's id, never a job's).
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Info
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from node import __version__

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """A node's counters: `metrics.reclaimed.labels(container).inc()`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._told: dict[tuple[str, str], float] = {}
        Info("stoker_build", "This node.", registry=self._registry).info({"version": __version__})
        self.reclaimed = self._of_container(
            "stoker_jobs_reclaimed", "Jobs whose step was queued again because its node died or froze."
        )
        self.dead_letters = self._of_container(
            "stoker_dead_letters", "Jobs and entries given up: the worker died too often, or nobody can read it."
        )
        self.retries = self._of_container("stoker_step_retries", "Container calls that were repeated.")
        self.drift = self._counter(
            "stoker_container_drift", "Containers found otherwise than configured, and replaced or ended."
        )
        self.store_emptied = self._counter("stoker_store_emptied", "Times the store was found without what it held.")
        self.scripts_loaded = self._counter("stoker_store_scripts_loaded", "Scripts given to a server without them.")
        self.store_away_s = self._counter("stoker_store_unavailable_seconds", "Time for which the store was away.")
        self.store_up = Gauge("stoker_store_up", "1 while the store answers, else 0.", registry=self._registry)

    def text(self) -> bytes:
        """All of them, as `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def grown(self) -> dict[str, dict[str, float]]:
        """By how much counters have grown since this was last asked: by name, by container ("": it has none).

        How long the store was away is not among them: one process of a node counts that.
        """
        grown: dict[str, dict[str, float]] = {}
        for name, counter in self._counters.items():
            for sample in next(iter(counter.collect())).samples:
                container = sample.labels.get("container", "")
                more = sample.value - self._told.get((name, container), 0)
                if sample.name.endswith("_total") and more and counter is not self.store_away_s:
                    self._told[name, container] = sample.value
                    grown.setdefault(name, {})[container] = more
        return grown

    def add(self, grown: Mapping[str, Mapping[str, float]]) -> None:
        """What another process has counted."""
        for name, by_container in grown.items():
            counter = self._counters[name]
            for container, more in by_container.items():
                (counter.labels(container) if container else counter).inc(more)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        counter = self._counters[name] = Counter(name, meaning, labels, registry=self._registry)
        return counter

    def _of_container(self, name: str, meaning: str) -> Counter:
        return self._counter(name, meaning, "container")
