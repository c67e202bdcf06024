"""When and why containers stop.

The engine's event stream only says *look at this one*; what is true is always asked from the engine, by inspection. So
an event that was lost, doubled or late does no harm. When the stream ends (the daemon restarted, the socket was lost,
or nothing happened for `SILENCE_S`), it is opened again and everything is looked at, by one list of the node's
containers; while the engine does not answer, nothing is concluded: unknown is not dead.
"""

import asyncio
import contextlib
import math
import signal
import time
from typing import Any

from docker import APIClient
from docker.errors import APIError, NotFound

from node.backends.docker.engine import Engine
from node.backends.docker.plan import NODE, Mark
from node.errors import BackendError

MIB = 1024 * 1024

SILENCE_S = 30
"""The stream is opened again after so long without an event, and everything is looked at: a bound for any lost news."""

PAUSE_S = 1.0
"""Between attempts to reach an engine that does not answer."""

NEWS_S = 0.3
"""Longest wait for the news that a process was killed, after what it did was seen."""

LATELY_S = 5.0
"""News that are older explain nothing of now."""

ALIVE = frozenset({"created", "running", "paused", "restarting"})


class Watch:
    """The containers of one node that are waited for."""

    def __init__(self, engine: Engine, mark: Mark) -> None:
        self._engine = engine
        self._mark = mark
        self._exits: dict[str, asyncio.Future[str]] = {}
        self._wanted = asyncio.Event()
        self._look_now = asyncio.Event()
        self._suspects: set[str] = set()
        self._suspect_all = False
        self._out_of_memory: dict[str, float] = {}  # by container, when it was heard last
        self._heard_of_memory = asyncio.Event()

    def add(self, container: str) -> asyncio.Future[str]:
        """The exit of a running container, by engine id: a reason in words, once it has stopped."""
        self._wanted.set()
        self._look_at_all()
        return self._exits.setdefault(container, asyncio.get_running_loop().create_future())

    def forget(self, container: str, reason: str) -> None:
        """It is gone, and no longer of interest; whoever still waits for it is told `reason`."""
        self._resolve(container, reason)
        self._exits.pop(container, None)
        self._out_of_memory.pop(container, None)

    async def was_out_of_memory(self, container: str) -> bool:
        """Whether a process in it was killed for want of memory just now. Waits a little for the news."""
        until = time.monotonic() + NEWS_S
        while (left_s := until - time.monotonic()) > 0:
            if self._out_of_memory.get(container, -math.inf) > until - NEWS_S - LATELY_S:
                return True
            self._heard_of_memory.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._heard_of_memory.wait()
        return False

    async def listen(self) -> None:
        """Follow the event stream, for ever, from the first container on."""
        await self._wanted.wait()
        loop = asyncio.get_running_loop()
        while True:
            since = int(time.time()) - 5

            def read(client: APIClient, since: int = since) -> None:
                loop.call_soon_threadsafe(self._look_at_all)
                for event in client.events(since=since, filters=self._filters(), decode=True):
                    loop.call_soon_threadsafe(self._heard, event.get("Action", ""), event.get("id", ""))

            try:
                await self._engine.follow("events", read, silence_s=SILENCE_S)
            except (BackendError, APIError):
                await asyncio.sleep(PAUSE_S)

    async def look(self) -> None:
        """Look whenever there is reason to, for ever."""
        while True:
            await self._look_now.wait()
            self._look_now.clear()
            try:
                await self._look()
            except (BackendError, APIError):
                await asyncio.sleep(PAUSE_S)
                self._look_at_all()

    def _filters(self) -> dict[str, Any]:
        return {"type": "container", "event": ["die", "oom", "destroy"], "label": f"{NODE}={self._mark.node_id}"}

    def _look_at_all(self) -> None:
        self._suspect_all = True
        self._look_now.set()

    def _heard(self, action: str, container: str) -> None:
        if container in self._exits:
            if action == "oom":
                self._out_of_memory[container] = time.monotonic()
                self._heard_of_memory.set()
            self._suspects.add(container)
            self._look_now.set()

    async def _look(self) -> None:
        suspects, self._suspects = self._suspects, set()
        if self._suspect_all:
            self._suspect_all = False
            suspects |= await self._not_listed_as_alive()
        for container in suspects:
            exit_ = self._exits.get(container)
            if exit_ is not None and not exit_.done() and (reason := await self._reason(container)):
                self._resolve(container, reason)

    async def _not_listed_as_alive(self) -> set[str]:
        """Only who was waited for before the question may be missing in the answer. The list lags behind the events."""
        waited_for = set(self._exits)
        label = f"{NODE}={self._mark.node_id}"
        listed = await self._engine.call(lambda client: client.containers(all=True, filters={"label": label}))
        return waited_for - {each["Id"] for each in listed if each["State"] in ALIVE}

    def _resolve(self, container: str, reason: str) -> None:
        exit_ = self._exits.get(container)
        if exit_ is not None and not exit_.done():
            exit_.set_result(reason)

    async def _reason(self, container: str) -> str:
        """Why it stopped; nothing if it runs after all."""
        try:
            found = await self._engine.call(lambda client: client.inspect_container(container))
        except NotFound:
            return "removed by somebody else"
        state = found["State"]
        if state["Status"] in ALIVE:
            return ""
        if state["Status"] == "removing":
            return "removed by somebody else"
        # The engine keeps its mark for the container's life, also when a process that it could do without was killed.
        killed = state["OOMKilled"] and state["ExitCode"] == 128 + signal.SIGKILL
        lately = self._out_of_memory.get(container, -math.inf) > time.monotonic() - LATELY_S
        return describe(state | {"OOMKilled": killed or lately}, found["HostConfig"]["Memory"])


def describe(state: dict[str, Any], memory_bytes: int) -> str:
    """The engine's `State` of a stopped container in words."""
    code = state["ExitCode"]
    if state["OOMKilled"] and code != 0:
        return out_of_memory(memory_bytes)
    words = f"exited with code {code}"
    if code > 128 and code - 128 in set(signal.Signals):
        words = f"killed by {signal.Signals(code - 128).name} (exit code {code})"
    return f"{words}: {state['Error']}" if state["Error"] else words


def out_of_memory(limit_bytes: int) -> str:
    return f"out of memory (limit {limit_bytes / MIB:g} MiB, hardening.memory_bytes)"
