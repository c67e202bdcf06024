"""Services that run elsewhere: nothing is started, watched or stopped here."""

import asyncio
from collections.abc import Collection
from types import TracebackType
from typing import Self

from node.backends.contract import Instance, Progress
from node.config import ContainerSpec
from node.errors import BackendError


class RemoteBackend:
    """A `Backend` that only knows addresses: `url`, or `port` on `host` (Infernet with `manage_containers: false`)."""

    def __init__(self, *, host: str = "127.0.0.1") -> None:
        self._host = host

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def start(self, spec: ContainerSpec, progress: Progress) -> Instance:
        if spec.url:
            return RemoteInstance(url=spec.url.rstrip("/"))
        if spec.port:
            return RemoteInstance(url=f"http://{self._host}:{spec.port}")
        raise BackendError(f"container {spec.id} runs elsewhere: set `url`, or `port` on {self._host}", retry=False)

    async def sweep(self, known: Collection[str]) -> list[str]:
        return []


class RemoteInstance:
    """Whether it runs is seen only by asking its service, which is the `registry`'s business."""

    def __init__(self, *, url: str) -> None:
        self._url = url
        self._stopped = asyncio.Event()

    @property
    def url(self) -> str:
        return self._url

    @property
    def loosened(self) -> tuple[str, ...]:
        """Not ours to know."""
        return ()

    async def exited(self) -> str:
        """Waits until `stop`: it is not ours to know."""
        await self._stopped.wait()
        return "no longer used"

    async def mishap(self) -> str:
        return ""

    async def log_tail(self, lines: int) -> list[str]:
        return []

    async def stop(self, grace_s: float) -> None:
        """Runs on: it is not ours to stop."""
        self._stopped.set()
