"""Keeps an eye on the server of a running node's store: it may be changed, restarted or filled under it."""

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from node.errors import Unavailable
from node.findings import Finding, Level
from node.store.server import findings
from node.store.store import Store

log = structlog.get_logger()

LOOK_S = 10.0


class Inspector:
    """Looks at a store's server while entered: now and then, and at once when it came back.

    Each thing that is wrong is told once, and once more when it is right again.
    """

    def __init__(self, store: Store, told: Callable[[list[Finding]], None] = lambda wrong: None) -> None:
        """told: called with all that is wrong whenever that changes."""
        self._store = store
        self._told = told
        self._known: frozenset[Finding] = frozenset()
        self._back = asyncio.Event()
        store.on_return(self._back.set)

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        self._looking = self._group.create_task(self._serve(), name="store-inspector")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._looking.cancel()
        await self._group.__aexit__(None, None, None)

    async def _serve(self) -> None:
        while True:
            self._back.clear()
            with contextlib.suppress(Unavailable):  # told by whoever sends
                server = await self._store.facts()
                self._tell(frozenset(each for each in findings(server) if each.level is not Level.OK))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._back.wait()

    def _tell(self, found: frozenset[Finding]) -> None:
        for each in found - self._known:
            if not any(_same(each, other) for other in self._known):
                log.warning("store_unsafe", check=each.check, found=each.found, do=each.do)
        for each in self._known - found:
            if not any(each.check == other.check for other in found):
                log.info("store_safe_again", check=each.check, before=each.found)
        self._known = found
        self._told(sorted(found, key=str))


def _same(one: Finding, other: Finding) -> bool:
    """Apart from numbers, which change with each look."""
    return (one.check, one.do) == (other.check, other.do)
