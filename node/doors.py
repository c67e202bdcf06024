"""The doors of one process: all that stands between its sockets and the store."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Self

from node.api.app import application, serving
from node.api.health import MetricsText
from node.api.identity import Identity
from node.errors import Unavailable
from node.guardian import Guardian
from node.house import House
from node.leases import end_left_streams
from node.orchestrator import Orchestrator, Slots
from node.registry import Registry
from node.situation import News
from node.store import Store


class Doors:
    """Serves while entered. Streams that an earlier life of this process left are ended from `begin` on."""

    def __init__(
        self,
        house: House,
        sockets: Sequence[socket.socket],
        *,
        store: Store,
        registry: Registry,
        slots: Slots,
        news: News,
        metrics_text: MetricsText,
    ) -> None:
        self._ending: asyncio.Task[None] | None = None
        self._house = house
        self._sockets = sockets
        self._store = store
        self._metrics_text = metrics_text
        specs = {spec.id: spec for spec in house.config.containers}
        self._orchestrator = Orchestrator(
            store=store,
            guardian=Guardian(specs, max_chain=house.config.server.max_chain),
            registry=registry,
            slots=slots,
            news=news,
        )

    async def __aenter__(self) -> Self:
        settings, store = self._house.door_settings, self._store
        self._group = await asyncio.TaskGroup().__aenter__()
        async with AsyncExitStack() as stack:
            store.access.remember(self._house.data_dir / "keyed")
            identity = Identity(await stack.enter_async_context(store.access), settings)
            rate = settings.rate_limit
            limit = await stack.enter_async_context(store.limit(rate)) if rate else None
            app = application(self._orchestrator, settings, self._metrics_text, identity, limit)
            await stack.enter_async_context(serving(app, settings, self._house.tls, self._sockets))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ending:
            self._ending.cancel()
        try:
            await self._stack.aclose()
        finally:
            await self._group.__aexit__(None, None, None)

    async def recover(self) -> None:
        """Once. Whoever calls makes sure that nobody else works under this process's name."""
        await end_left_streams(self._store, self._store.name)
        self._ending = self._group.create_task(self._end_left(), name="left-streams")

    async def _end_left(self) -> None:
        while True:
            await asyncio.sleep(self._house.config.runner.reclaim_s)
            with suppress(Unavailable):  # told by the store, once
                await end_left_streams(self._store, self._store.name)
