"""Work taken back from whoever does not do it any more: steps, which are queued again, and streams, which end."""

import structlog

from node.config import Runner as Settings
from node.jobs import ContainerError, State
from node.metrics import Metrics
from node.store import Store

log = structlog.get_logger()


class Leases:
    def __init__(self, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics

    async def expire(self, container: str) -> None:
        """Queue the steps of a lane again that nobody renewed in time; fail those whose worker died too often."""
        await self._take_back(container, self._settings.lease_s, "")

    async def recover(self, container: str, name: str) -> None:
        """The same, at once, for all that a name holds. Only when it is certain that nobody works under it."""
        await self._take_back(container, 0, name)

    async def _take_back(self, container: str, idle_s: float, name: str) -> None:
        most = self._settings.max_deliveries
        while changed := await self._store.reclaim(container, idle_s=idle_s, max_deliveries=most, held_by=name):
            for job_id, state in changed:
                self._metrics.reclaimed.labels(container).inc()
                if state is State.FAILED:
                    self._metrics.dead_letters.labels(container).inc()
                log.warning("step_reclaimed", job_id=job_id, lane=container, state=state.value)

    async def end_streams(self, name: str) -> None:
        """Streams under a name that nobody runs cannot go on: their clients are gone."""
        error = ContainerError(container="", error="the node or its job store stopped while it streamed")
        for job_id in await self._store.left_streams(name):
            await self._store.end(job_id, State.FAILED, error)
            log.warning("stream_ended", job_id=job_id, state=State.FAILED.value)
