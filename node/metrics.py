"""What this node counts, for Prometheus: `GET /metrics` shows it. Each metric is made here and nowhere else.

One `Metrics` per node, made in `main` and passed down. It has a registry of its own, so two of them never meet.
Counters only grow and start at 0 with the process. Whoever adds one: the unit stands in its name (`_seconds`,
`_bytes`), and a label has few values (a container's id, never a job's).
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Info
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from node import __version__

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """A node's counters: `metrics.reclaimed.labels(container).inc()`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
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

    def _counter(self, name: str, meaning: str) -> Counter:
        return Counter(name, meaning, registry=self._registry)

    def _of_container(self, name: str, meaning: str) -> Counter:
        return Counter(name, meaning, ["container"], registry=self._registry)
