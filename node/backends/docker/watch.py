"""When and why containers stop.

The engine's event stream only says *look*; what is true is always asked from the engine, with one list of the node's
containers and an inspection of those that no longer run. So an event that was lost, doubled or late does no harm.
When the stream ends (the daemon restarted, the socket was lost, or nothing happened for `SILENCE_S`), it is opened
again and everything is looked at; while the engine does not answer, nothing is concluded: unknown is not dead.
"""

import asyncio
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

ALIVE = frozenset({"created", "running", "paused", "restarting"})


class Watch:
    """The containers of one node that are waited for."""

    def __init__(self, engine: Engine, mark: Mark) -> None:
        self._engine = engine
        self._mark = mark
        self._exits: dict[str, asyncio.Future[str]] = {}
        self._wanted = asyncio.Event()
        self._look_now = asyncio.Event()
        self._out_of_memory: set[str] = set()

    def add(self, container: str) -> asyncio.Future[str]:
        """The exit of a running container, by engine id: a reason in words, once it has stopped."""
        self._wanted.set()
        self._look_now.set()
        return self._exits.setdefault(container, asyncio.get_running_loop().create_future())

    def forget(self, container: str, reason: str) -> None:
        """It is gone, and no longer of interest; whoever still waits for it is told `reason`."""
        self._out_of_memory.discard(container)
        exit_ = self._exits.pop(container, None)
        if exit_ is not None and not exit_.done():
            exit_.set_result(reason)

    async def listen(self) -> None:
        """Follow the event stream, for ever, from the first container on."""
        await self._wanted.wait()
        loop = asyncio.get_running_loop()
        while True:
            since = int(time.time()) - 5

            def read(client: APIClient, since: int = since) -> None:
                loop.call_soon_threadsafe(self._look_now.set)
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
                self._look_now.set()

    def _filters(self) -> dict[str, Any]:
        return {"type": "container", "event": ["die", "oom", "destroy"], "label": f"{NODE}={self._mark.node_id}"}

    def _heard(self, action: str, container: str) -> None:
        if action == "oom" and container in self._exits:
            self._out_of_memory.add(container)
        self._look_now.set()

    async def _look(self) -> None:
        waited_for = {container for container, exit_ in self._exits.items() if not exit_.done()}
        label = f"{NODE}={self._mark.node_id}"
        listed = await self._engine.call(lambda client: client.containers(all=True, filters={"label": label}))
        alive = {each["Id"] for each in listed if each["State"] in ALIVE}
        for container in waited_for - alive:
            if reason := await self._reason(container):
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
        if container in self._out_of_memory:
            state = state | {"OOMKilled": True}
        return describe(state, found["HostConfig"]["Memory"])


def describe(state: dict[str, Any], memory_bytes: int) -> str:
    """The engine's `State` of a stopped container in words."""
    code = state["ExitCode"]
    if state["OOMKilled"] and code != 0:
        return f"out of memory (limit {memory_bytes / MIB:g} MiB)"
    words = f"exited with code {code}"
    if code > 128 and code - 128 in set(signal.Signals):
        words = f"killed by {signal.Signals(code - 128).name} (exit code {code})"
    return f"{words}: {state['Error']}" if state["Error"] else words
