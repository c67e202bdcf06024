"""Puts right what a crash, a lost key or a forgotten client leaves behind, and removes what was kept for long enough.

It starts from the set of live jobs, not from leases or lanes: whatever else is lost, a job is found.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection
from types import TracebackType
from typing import Self

import structlog

from node.config import Retention
from node.config import Runner as Settings
from node.errors import Unavailable
from node.jobs import State
from node.leases import Leases, end_left_streams
from node.metrics import Metrics
from node.store import Store

log = structlog.get_logger()

PAGES = 20  # of live jobs looked at in one turn; the others' turn comes with the next


class Janitor:
    """Works while entered: on the leases of the containers that this node has, and on the live jobs of all nodes."""

    def __init__(
        self,
        store: Store,
        containers: Collection[str],
        settings: Settings,
        retention: Retention,
        metrics: Metrics,
        tidy: Callable[[], Awaitable[None]],
        *,
        doors: Collection[str],
        runners: Collection[str],
        owner: str = "",
    ) -> None:
        """tidy: renew the leases of all that runs here; raises `Unavailable`. doors, runners: the names under which
        processes of this node have streams, and those under which they run steps. owner: tells this node from others of
        its name; the same over its lives.
        """
        self._store = store
        self._leases = Leases(store, settings, metrics)
        self._containers = list(containers)
        self._settings = settings
        self._kept_s = {
            State.SUCCEEDED: retention.succeeded,
            State.FAILED: retention.failed,
            State.CANCELLED: retention.cancelled,
        }
        self._metrics = metrics
        self._tidy = tidy
        self._doors = set(doors)
        self._runners = set(runners)
        self._owner = owner
        self._mark = ""
        self._named = True

    async def recover(self) -> None:
        """Once at the node's start: make sure that its name is its own, and free what an earlier life had claimed, and
        end its streams, under names that no process has for that now. The others are for their processes to put right.

        The data directory's lock, and the name's owner in the store, make sure that nobody else works under them.
        """
        await self._tell_alive()
        known = {self._store.name, *await self._store.names(self._store.name)}
        for name in known - self._runners:
            for container in self._containers:
                await self._leases.recover(container, name)
        for name in known - self._doors:
            await end_left_streams(self._store, name)

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
        await self._tell_alive()
        await self._tidy()
        for container in self._containers:
            await self._leases.expire(container)
        await self._look()
        for state, kept_s in self._kept_s.items():
            await self._purge(state, kept_s)

    async def _tell_alive(self) -> None:
        """And find out whether the store lost what it had, jobs and all. Raises `Unavailable` when another node has
        this one's name: each would take back what the other runs."""
        mark = await self._store.alive(
            self._containers,
            uuid.uuid4().hex,
            self._settings.gone_s,
            names=sorted(self._doors | self._runners),
            owner=self._owner,
            owned_s=self._settings.lease_s,
        )
        if bool(mark) != self._named:
            self._named = bool(mark)
            level = log.info if mark else log.error
            level("node_name_free" if mark else "node_name_taken", do="give each node a node_id of its own")
        if not mark:
            raise Unavailable("Another node has this node's name")
        if self._mark and mark != self._mark:
            self._metrics.store_emptied.inc()
            log.error("store_emptied", effect="it is not the store that this node knew; the jobs in it are lost")
        self._mark = mark

    async def _look(self) -> None:
        for _ in range(PAGES):
            changes, more = await self._store.look(
                queue_timeout_s=self._settings.queue_timeout_s,
                timeout_s=self._settings.job_timeout_s,
                gone_s=self._settings.gone_s,
            )
            for each in changes:
                log.warning("job_put_right", job_id=each.job_id, change=each.change, reason=each.reason)
            if not more:
                return

    async def _purge(self, state: State, kept_s: float) -> None:
        removed = 0
        while part := await self._store.purge(state, kept_s):
            removed += part
        if removed:
            log.info("jobs_purged", state=state.value, count=removed)
