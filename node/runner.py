"""Runs steps on this node: one lane per container, the renewal of what runs, and the drain at the end."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Self

import structlog

from node.config import Runner as Settings
from node.errors import Unavailable
from node.jobs import State
from node.lane import Lane
from node.leases import Leases
from node.metrics import Metrics
from node.registry import Registry
from node.store import Store

log = structlog.get_logger()

RENEWALS_PER_LEASE = 3
STOPPING_RETRY_S = 1.0
HEARS_S = 2.0  # longest wait of a stream for the store to tell what is stopped
UNHEARD_S = 1.0  # a claim is known here sooner: its answer comes before that of a renewal sent later
HAND_BACK_S = 10.0  # for what outlasts the drain to be handed back; a store that is away must not keep the node


class Runner:
    """Serves the lanes while entered; leaving drains: takes nothing more, waits, hands back what is left."""

    def __init__(
        self, registry: Registry, slots: Mapping[str, int], store: Store, settings: Settings, metrics: Metrics
    ) -> None:
        """slots: how many steps of a container run in this process at a time; it serves no lane of those without."""
        self._store = store
        self._settings = settings
        self._leases = Leases(store, settings, metrics)
        self._containers = list(registry.containers)
        self._lanes = {name: Lane(registry[name], count, store, metrics) for name, count in slots.items() if count}
        self._serving: list[asyncio.Task[None]] = []
        self._hears = asyncio.Event()  # of jobs that are stopped

    async def recover(self) -> None:
        """Once, before it is entered: what an earlier life of this process had claimed is free at once.

        It may have served other containers. Whoever calls makes sure that nobody else works under this name.
        """
        for container in self._containers:
            await self._leases.recover(container, self._store.name)

    @asynccontextmanager
    async def slot(self, container: str, job_id: str, *, held: bool = False) -> AsyncIterator[None]:
        """A slot of a container for a job that is in no lane; from the moment on that it could be stopped.

        Raises `Unavailable` when that does not come, because the store is away.
        """
        if not held:
            try:
                async with asyncio.timeout(HEARS_S):
                    await self._hears.wait()
            except TimeoutError:
                raise Unavailable(
                    "The job store does not answer", retry_after_s=1, reason="no answer in time"
                ) from None
        async with self._lanes[container].slot(job_id, held=held):
            yield

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        self._serving = [
            self._group.create_task(lane.serve(), name=f"lane-{container}") for container, lane in self._lanes.items()
        ]
        self._keeping = [
            self._group.create_task(self._renew(), name="renewal"),
            self._group.create_task(self._stop_ended(), name="stopping"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self._lanes.values():
            lane.close()
        self._hears.set()  # who waits is refused
        if self._serving:
            await asyncio.wait(self._serving, timeout=self._settings.drain_s)
            for lane in self._lanes.values():
                lane.abort()
            await asyncio.wait(self._serving, timeout=HAND_BACK_S)
        for task in [*self._serving, *self._keeping]:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    async def _stop_ended(self) -> None:
        """Abort the container calls of jobs that were cancelled, whichever node was asked to."""
        while True:
            try:
                async with aclosing(self._store.stopped()) as ended:
                    async for job_id in ended:
                        self._abort([job_id] if job_id else await self._ended_streams())
                        self._hears.set()
            except Unavailable as error:
                log.debug("stopping_waits", error=str(error))
                await asyncio.sleep(STOPPING_RETRY_S)

    def _abort(self, job_ids: Collection[str]) -> None:
        for lane in self._lanes.values():
            lane.abort(job_ids)

    async def _ended_streams(self) -> list[str]:
        """Those that were stopped while nobody here could hear it. Steps have the renewal of their leases for that."""
        ids = [job_id for lane in self._lanes.values() for job_id in lane.streams]
        return [job.id for job in await self._store.get(ids) if job and job.state.terminal]

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_s / RENEWALS_PER_LEASE)
            try:
                await self.renew()
            except Unavailable as error:
                log.warning("renewal_failed", error=str(error))

    async def renew(self) -> None:
        """Keep the leases of running steps; stop those that this node lost, by a cancel or a take-over.

        Raises `Unavailable` when it could not be done for all; it is tried for each lane.
        """
        failure: Unavailable | None = None
        for lane in self._lanes.values():
            claims = lane.claims
            try:
                lost = await self._store.renew(claims) if claims else []
            except Unavailable as error:
                failure = error
            else:
                lane.drop(lost)
        if failure:
            raise failure

    async def tidy(self) -> None:
        """Before somebody judges leases: all that runs here is renewed, so that nothing of it looks idle, even when the
        server's clock has jumped. What this name holds and does not run is free again. Raises `Unavailable`."""
        await self.renew()
        for container in self._lanes:
            await self._free_unheard(container)

    async def _free_unheard(self, container: str) -> None:
        """Steps that were claimed for this name, but the answer was lost with the connection: they were not begun.

        Answers come in order, so a claim that was answered is known here before the list of what is held.
        """
        held = await self._store.held(container, UNHEARD_S)
        runs = {claim.entry for claim in self._lanes[container].claims}
        unheard = [entry for entry in held if entry not in runs]
        if unheard:
            for job_id, _ in await self._store.reclaim(container, entries=unheard):
                log.info("step_unheard", job_id=job_id, lane=container, state=State.QUEUED.value)
