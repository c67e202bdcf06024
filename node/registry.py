"""The containers of this node as each of its processes sees them: spec, how each one is now, and its `Service`.

How they are kept running is not here: the `keeper` does that in the main process, and tells.

A container that is not ready loses no jobs: its lane waits.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Protocol, Self

from node.config import ContainerSpec
from node.service import Service


class Phase(StrEnum):
    PULLING = "pulling"  # its image is pulled or built, or its environment installed; `reason` says how far
    STARTING = "starting"  # it was started, and has not answered yet
    READY = "ready"
    UNHEALTHY = "unhealthy"  # runs, but does not answer
    RESTARTING = "restarting"  # ended; started again after a pause
    FAILED = "failed"  # could not be brought up; tried again after a pause
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a container is. `reason` is in words, `since` in Unix seconds.

    last_error: why it last went down. log_tail: its last lines when it last went down, or failed a step.
    """

    phase: Phase
    reason: str
    since: float
    restarts: int = 0
    last_error: str = ""
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """All that changes of a container, in one value: what its keeper tells.

    url: where it is reached, "" before it was up. backend: the name of what keeps it running. loosened: what it may do
    although its profile says otherwise, in words.
    """

    backend: str
    url: str
    ready: bool
    health: Health
    loosened: tuple[str, ...] = ()


class Care(Protocol):
    """Whoever keeps a container, as those who use it see him."""

    def note_failed_step(self) -> None:
        """Its last log lines are of interest now; they are fetched soon, and shown with its health."""
        ...

    async def why_down(self) -> str:
        """A connection to it broke: how it ended, or what befell it though it runs on; "" when nobody can tell soon."""
        ...


class Container:
    """One container for those who use it. Who keeps it sets `care`, and tells each change by `stands`."""

    def __init__(self, spec: ContainerSpec) -> None:
        self.spec = spec
        self.service = Service(spec, self._why_down)
        self.care: Care | None = None
        health = Health(phase=Phase.STARTING, reason="not begun yet", since=time.time())
        self.standing = Standing(backend="", url="", ready=False, health=health)
        self._ready = asyncio.Event()
        self._on_ready: list[Callable[[], None]] = []
        self._on_change: list[Callable[[], None]] = []

    def stands(self, standing: Standing) -> None:
        if standing.url != self.service.url:
            self.service.url = standing.url
        was_ready, self.standing = self.ready, standing
        if not standing.ready:
            self._ready.clear()
        elif not was_ready:
            self._ready.set()
            _tell(self._on_ready)
        _tell(self._on_change)

    @property
    def health(self) -> Health:
        return self.standing.health

    @property
    def ready(self) -> bool:
        return self.standing.ready

    async def until_ready(self) -> None:
        await self._ready.wait()

    def on_ready(self, told: Callable[[], None]) -> None:
        """Have `told` called each time it becomes ready."""
        self._on_ready.append(told)

    def on_change(self, told: Callable[[], None]) -> None:
        """Have `told` called each time it stands otherwise."""
        self._on_change.append(told)

    def note_failed_step(self) -> None:
        if self.care:
            self.care.note_failed_step()

    async def _why_down(self) -> str:
        return await self.care.why_down() if self.care else ""


def _tell(listeners: Sequence[Callable[[], None]]) -> None:
    for told in listeners:
        told()


class Registry:
    """All containers, by id in the order of the configuration. Entered for as long as their services are called."""

    def __init__(self, specs: Sequence[ContainerSpec]) -> None:
        self._containers = {spec.id: Container(spec) for spec in specs}

    @property
    def containers(self) -> Mapping[str, Container]:
        return self._containers

    def __getitem__(self, container: str) -> Container:
        return self._containers[container]

    async def __aenter__(self) -> Self:
        self._stack = contextlib.AsyncExitStack()
        for container in self._containers.values():
            await self._stack.enter_async_context(container.service)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def resources(self, model_id: str | None) -> dict[str, Any]:
        """What each ready container says of its resources; those that say nothing are left out."""
        ready = {name: each.service for name, each in self._containers.items() if each.ready}
        answers = await asyncio.gather(*(service.resources(model_id) for service in ready.values()))
        return {name: answer for name, answer in zip(ready, answers, strict=True) if answer is not None}
