"""What a backend is: the one way in which the node brings a container up, watches it and takes it down.

A backend brings one container up once. Deciding when to start again, how long to wait and whether the service answers
is not its business: the `registry` does that, in the same way for all backends.
"""

from collections.abc import Callable, Collection
from types import TracebackType
from typing import Protocol, Self

from node.config import ContainerSpec

Progress = Callable[[str], None]
"""Told what a slow start is doing, in words for an operator: `pulling image x: 12 of 40 MB`.

Called in the loop's thread."""

LINE_CHARACTERS = 500
"""Longest line of `log_tail`; a longer one is cut, and ends with `…`."""


class Instance(Protocol):
    """One container that was brought up."""

    @property
    def url(self) -> str:
        """Base URL of its service, without a slash at the end: `http://172.18.0.2:3000`."""
        ...

    @property
    def loosened(self) -> tuple[str, ...]:
        """What it may do although its profile says otherwise, in words for an operator; empty when nothing."""
        ...

    async def exited(self) -> str:
        """Wait until it no longer runs; say why, in words: `exited with code 1`, `out of memory (limit 512 MiB, ..)`.

        Not knowing is not an exit: while the engine cannot be reached this keeps waiting. After `stop` it returns too.
        """
        ...

    async def mishap(self) -> str:
        """What befell it in the last seconds although it runs on, in words; nothing if nothing is known.

        Asked when a connection to it broke: perhaps one of several processes in it was killed.
        """
        ...

    async def log_tail(self, lines: int) -> list[str]:
        """Its last output lines, oldest first, at most `lines` of them and each at most `LINE_CHARACTERS` long.

        Empty when nobody can tell them now.
        """
        ...

    async def stop(self, grace_s: float) -> None:
        """Ask it to stop, kill it after `grace_s` seconds, and leave nothing of it behind. Safe to call twice."""
        ...


class Backend(Protocol):
    """Brings containers up. An async context manager: leaving it frees what it holds itself (threads, sockets)."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def start(self, spec: ContainerSpec, progress: Progress) -> Instance:
        """Bring `spec` up and return it, without waiting until its service answers.

        What this node left running in an earlier life with the same configuration is adopted, or was ended by `sweep`
        where nothing can be adopted; with another configuration it is replaced; what somebody else owns is never
        touched. Raises `BackendError`, and leaves nothing half-made behind.
        """
        ...

    async def sweep(self, known: Collection[str]) -> list[str]:
        """End what an earlier life of this node left running under container ids that are not in `known`.

        Called once, before the first `start`. Returns what was ended, in words for an operator.
        """
        ...
