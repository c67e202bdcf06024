"""Group commit: calls made while a round trip is under way leave together in the next one.

One connection, one round trip at a time. With `appendfsync always` the server syncs once per round trip, however many
calls it carries, so durability costs one sync per group and not one per job.
"""

import asyncio
import hashlib
from collections import deque
from dataclasses import dataclass
from importlib import resources
from typing import Any

import redis.asyncio
import structlog
from redis import exceptions

from node.errors import Unavailable

log = structlog.get_logger()

MAX_CALLS = 2000  # of one round trip
MAX_BYTES = 8 * 1024 * 1024  # of one round trip; a single larger call travels alone


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua file of `scripts/`; its head says keys, arguments, reply, and the state before and after."""

    sha: str
    text: str


def script(name: str) -> Script:
    text = resources.files("node.store").joinpath("scripts", f"{name}.lua").read_text()
    return Script(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text)


@dataclass(slots=True)
class _Call:
    words: tuple[Any, ...]
    size: int
    reply: asyncio.Future[Any]
    script: Script | None


class Commit:
    """The queue of calls and the connection that they leave by."""

    def __init__(self, client: redis.asyncio.Redis, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._waiting: deque[_Call] = deque()
        self._wanted = asyncio.Event()
        self.round_trips = 0

    def call(self, *words: Any) -> asyncio.Future[Any]:
        """Send one command with the next group. The future's error is `Unavailable` when the server did not do it.

        A call that was under way when the connection broke may have been done all the same.
        """
        return self._enter(words, None)

    def run(self, script: Script, keys: tuple[str, ...], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Send one script call with the next group."""
        return self._enter(("EVALSHA", script.sha, len(keys), *keys, *args), script)

    def _enter(self, words: tuple[Any, ...], script: Script | None) -> asyncio.Future[Any]:
        size = sum(len(word) for word in words if isinstance(word, bytes))
        call = _Call(words, size, asyncio.get_running_loop().create_future(), script)
        self._waiting.append(call)
        self._wanted.set()
        return call.reply

    async def serve(self) -> None:
        """Send groups for ever."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(0)  # whoever runs in this turn of the loop still joins
            group = self._take()
            if group:
                await self._round_trip(group)

    def _take(self) -> list[_Call]:
        group: list[_Call] = []
        size = 0
        while self._waiting and len(group) < MAX_CALLS and (not group or size < MAX_BYTES):
            call = self._waiting.popleft()
            if not call.reply.done():
                group.append(call)
                size += call.size
        if not self._waiting:
            self._wanted.clear()
        return group

    async def _round_trip(self, group: list[_Call]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                replies = await self._send(group)
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            self._fail([*group, *self._waiting], error)
            return
        unknown = []
        for call, reply in zip(group, replies, strict=True):
            if isinstance(reply, exceptions.NoScriptError) and call.script:
                unknown.append(call)
            else:
                _settle(call.reply, reply)
        if unknown:
            await self._load({call.script for call in unknown if call.script})
            self._waiting.extendleft(reversed(unknown))
            self._wanted.set()

    async def _send(self, group: list[_Call]) -> list[Any]:
        self.round_trips += 1
        pipeline = self._client.pipeline(transaction=False)
        for call in group:
            pipeline.execute_command(*call.words)
        return await pipeline.execute(raise_on_error=False)

    async def _load(self, scripts: set[Script]) -> None:
        """Give the server scripts that it lacks: it was restarted, or somebody flushed them."""
        try:
            async with asyncio.timeout(self._timeout_s):
                for missing in scripts:
                    await self._client.script_load(missing.text)
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            self._fail(list(self._waiting), error)

    def _fail(self, calls: list[_Call], error: Exception) -> None:
        """All that wait fail together: nobody waits longer than one time-out for a server that does not answer."""
        log.warning("store_unavailable", error=_words(error), calls=len(calls))
        self._waiting.clear()
        self._wanted.clear()
        for call in calls:
            _settle(call.reply, error)


def _settle(reply: asyncio.Future[Any], value: Any) -> None:
    if reply.done():
        return
    if isinstance(value, Exception):
        reply.set_exception(unavailable(value))
    else:
        reply.set_result(value)


def unavailable(error: Exception) -> Unavailable:
    """The refusal for an error of the server or of the way to it."""
    words = _words(error)
    if isinstance(error, exceptions.OutOfMemoryError):
        message = "The job store is full"
    elif isinstance(error, exceptions.ResponseError):
        message = "The job store refused the operation"
    else:
        message = "The job store does not answer"
    return Unavailable(message, retry_after_s=1, reason=words)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
