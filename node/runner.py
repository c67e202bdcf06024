"""Runs steps on this node: one lane per container, the renewal of what runs, and the drain at the end."""

import asyncio
from collections.abc import Collection, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Self

import structlog

from node.config import Runner as Settings
from node.errors import Unavailable
from node.lane import Lane
from node.metrics import Metrics
from node.registry import Registry
from node.store import Store

log = structlog.get_logger()

RENEWALS_PER_LEASE = 3
STOPPING_RETRY_S = 1.0
HAND_BACK_S = 10.0  # for what outlasts the drain to be handed back; a store that is away must not keep the node


class Runner:
    """Serves the lanes while entered; leaving drains: takes nothing more, waits, hands back what is left."""

    def __init__(self, registry: Registry, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._store = store
        self._settings = settings
        self._lanes = {container: Lane(keeper, store, metrics) for container, keeper in registry.keepers.items()}

    @property
    def lanes(self) -> Mapping[str, Lane]:
        return self._lanes

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
                        for lane in self._lanes.values():
                            lane.abort([job_id])
            except Unavailable as error:
                log.debug("stopping_waits", error=str(error))
                await asyncio.sleep(STOPPING_RETRY_S)

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

    def entries(self, container: str) -> Collection[str]:
        """What runs in a container's lane, by its entries."""
        return {claim.entry for claim in self._lanes[container].claims}
