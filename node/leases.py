"""Work taken back from whoever does not do it any more: steps, which are queued again, and streams, which end."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

from node.config import Runner as Settings
from node.errors import Unavailable
from node.jobs import ContainerError, State
from node.metrics import Metrics
from node.store import Store

log = structlog.get_logger()

RECOVER_PAUSE_S = 1.0


async def recovered(steps: Sequence[Callable[[], Awaitable[None]]], stop: asyncio.Event) -> bool:
    """Wait until the store answers and what an earlier life left is put right; False when stopped before."""
    while not stop.is_set():
        try:
            for recover in steps:
                await recover()
            return True
        except Unavailable:  # told by the store, once
            with suppress(TimeoutError):
                async with asyncio.timeout(RECOVER_PAUSE_S):
                    await stop.wait()
    return False


async def end_left_streams(store: Store, name: str) -> None:
    """Streams under a name that nobody runs cannot go on: their clients are gone."""
    error = ContainerError(container="", error="the node or its job store stopped while it streamed")
    for job_id in await store.left_streams(name):
        await store.end(job_id, State.FAILED, error)
        log.warning("stream_ended", job_id=job_id, state=State.FAILED.value)


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
