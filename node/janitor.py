"""Puts right what a crash leaves behind: steps whose node died, and streams that died with their node."""

import asyncio
from types import TracebackType
from typing import Self

import structlog

from node.config import Runner as Settings
from node.errors import Unavailable
from node.jobs import ContainerError, State
from node.metrics import Metrics
from node.store import Store

log = structlog.get_logger()


class Janitor:
    """Works on the lanes of the containers that this node serves, whoever claimed from them, while entered."""

    def __init__(self, store: Store, containers: list[str], settings: Settings, metrics: Metrics) -> None:
        self._store = store
        self._containers = containers
        self._settings = settings
        self._metrics = metrics

    async def recover(self) -> None:
        """Once at the node's start: what its earlier life had claimed is free at once, not when its lease ends.

        The data directory's lock makes sure that no other process works under this node's name.
        """
        for container in self._containers:
            await self._reclaim(container, idle_s=0, own=True)
        for job_id in await self._store.streams():
            await self._end_stream(job_id)

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        self._cleaning = self._group.create_task(self._serve(), name="janitor")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleaning.cancel()
        await self._group.__aexit__(None, None, None)

    async def _serve(self) -> None:
        while True:
            await asyncio.sleep(self._settings.reclaim_s)
            try:
                await self.run_once()
            except Unavailable as error:
                log.warning("janitor_waits", error=str(error))

    async def run_once(self) -> None:
        for container in self._containers:
            await self._reclaim(container, idle_s=self._settings.lease_s)

    async def _reclaim(self, container: str, *, idle_s: float, own: bool = False) -> None:
        while True:
            changed = await self._store.reclaim(
                container, idle_s=idle_s, max_deliveries=self._settings.max_deliveries, own=own
            )
            for job_id, state in changed:
                self._metrics.reclaimed.labels(container).inc()
                if state is State.FAILED:
                    self._metrics.dead_letters.labels(container).inc()
                log.warning("step_reclaimed", job_id=job_id, lane=container, state=state.value)
            if not changed:
                return

    async def _end_stream(self, job_id: str) -> None:
        """A stream that this node ran cannot go on: its client is gone."""
        error = ContainerError(container="", error="the node stopped while it streamed")
        await self._store.end(job_id, State.FAILED, error)
        log.warning("stream_ended", job_id=job_id, state=State.FAILED.value)
