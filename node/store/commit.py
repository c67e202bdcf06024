"""Group commit: operations asked for while a round trip is under way leave together in the next one.

One connection, one round trip at a time. With `appendfsync always` the server syncs once per round trip, however many
operations it carries, so durability costs one sync per group and not one per job. Operations of one kind leave as one
script call: its Lua file says what one operation does, and `each.lua` repeats it.
"""

import asyncio
import hashlib
import os
import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import redis.asyncio
import structlog
from redis import exceptions

from node.errors import Unavailable
from node.metrics import Metrics
from node.store import keys
from node.store.connect import Elsewhere, Line

log = structlog.get_logger()

MAX_OPERATIONS = 500  # of one script call: the server does nothing else while it runs
WAIT_SHARE = 0.75  # of the time-out, for replicas
MAX_GROUP = 2_000  # operations of one round trip: all of them are done within one time-out
MAX_BYTES = 8 * 1024 * 1024  # of one round trip; a single larger operation travels alone

CLOSED = exceptions.ConnectionError("the node has closed it")
_CONNECTING = re.compile(
    r"Error (?P<number>-?\d+) connecting to (?P<address>\S+)\. (?P<reason>.+?)\.?"
)  # as redis-py says it

Operation = tuple[tuple[str, ...], tuple[Any, ...]]
"""Keys and arguments, as the head of the script says."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua file of `scripts/`; its head says keys, arguments, reply, and the state before and after."""

    sha: str
    text: str
    last: bool
    """Leaves after the others of its group: a claim sees what the group queues."""


@cache
def script(name: str, *, last: bool = False) -> Script:
    text = _file(name)
    flags, text = text.split("\n", 1) if text.startswith("#!") else ("#!lua", text)
    text = "\n".join([flags, f"local PREFIX = '{keys.PREFIX}'", _file("prelude"), text, _file("each")])
    return Script(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text, last)


def _file(name: str) -> str:
    return resources.files("node.store").joinpath("scripts", f"{name}.lua").read_text()


_Kind = tuple[Script, tuple[Any, ...]]
"""Operations of one script that share the same arguments travel in one call of it."""


@dataclass(slots=True)
class _Call:
    """Some operations of one script, or one plain command, and the future that waits for the reply."""

    kind: "_Kind | None"
    operations: Sequence[Operation]
    words: tuple[Any, ...]
    size: int
    reply: asyncio.Future[Any]


class Reach:
    """Does the server answer; told to the log and the metrics when it changes."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.on_return: list[Callable[[], None]] = []  # called when the server answers for the first time, or again
        self._answers: bool | None = None  # not known before the first round trip
        self._told_at = time.monotonic()

    def tell(self, *, answers: bool, **facts: str) -> None:
        """One line when the server goes, one when it is back."""
        before, self._answers = self._answers, answers
        if answers and before:
            return
        since, self._told_at = self._told_at, time.monotonic()
        if before is False:
            self.metrics.store_away_s.inc(self._told_at - since)
        self.metrics.store_up.set(answers)
        if answers:
            for told in self.on_return:
                told()
        if answers and before is False:
            log.info("store_available", **facts)
        elif not answers and before is not False:
            log.warning("store_unavailable", **facts)


class Commit:
    """The queue of calls and the connection that they leave by."""

    def __init__(self, client: redis.asyncio.Redis, timeout_s: float, reach: Reach, *, replicas: int = 0) -> None:
        """replicas: how many of them must have a group before its calls count as done."""
        self._line = Line(client)
        self._timeout_s = timeout_s
        self._reach = reach
        self._replicas = replicas
        self._waiting: deque[_Call] = deque()
        self._wanted = asyncio.Event()
        self._sent = 0
        self._closed = False
        self.round_trips = 0

    def call(self, *words: Any) -> asyncio.Future[Any]:
        """Send one command with the next group. The future's error is `Unavailable` when the server did not do it.

        A call that was under way when the connection broke may have been done all the same.
        """
        return self._enter(None, (), words)

    def run(
        self, script: Script, operations: Sequence[Operation], *, shared: tuple[Any, ...] = ()
    ) -> Awaitable[list[Any]]:
        """Run operations of a script with the next group; their replies, in order. They stand in line at once.

        shared: arguments that all of them have.
        """
        kind = script, shared
        if 0 < len(operations) <= MAX_OPERATIONS:
            return self._enter(kind, operations, ())
        parts = [operations[i : i + MAX_OPERATIONS] for i in range(0, len(operations), MAX_OPERATIONS)]
        return _joined([self._enter(kind, part, ()) for part in parts])

    def _enter(
        self, kind: _Kind | None, operations: Sequence[Operation], words: tuple[Any, ...]
    ) -> asyncio.Future[Any]:
        size = 0
        for _, args in operations:
            for word in args:
                if type(word) is bytes:
                    size += len(word)
        call = _Call(kind, operations, words, size, asyncio.get_running_loop().create_future())
        if self._closed:
            _settle(call.reply, CLOSED)
            return call.reply
        self._waiting.append(call)
        self._wanted.set()
        return call.reply

    @property
    def queued(self) -> int:
        """Calls that wait or are under way."""
        return len(self._waiting) + self._sent

    async def serve(self) -> None:
        """Send groups for ever. However it ends: nobody waits for an answer that cannot come."""
        group: list[_Call] = []
        try:
            while True:
                await self._wanted.wait()
                await asyncio.sleep(0)  # whoever runs in this turn of the loop still joins
                group = self._take()
                if group:
                    self._sent = len(group)
                    await self._round_trip(group)
                    self._sent = 0
        finally:
            self._closed = True
            for call in [*group, *self._waiting]:
                _settle(call.reply, CLOSED)

    def _take(self) -> list[_Call]:
        group: list[_Call] = []
        size = count = 0
        while self._waiting and (not group or (size < MAX_BYTES and count < MAX_GROUP)):
            call = self._waiting.popleft()
            if not call.reply.done():
                group.append(call)
                size += call.size
                count += len(call.operations)
        if not self._waiting:
            self._wanted.clear()
        return group

    async def _round_trip(self, group: list[_Call]) -> None:
        bundles = _bundles(group)
        try:
            async with asyncio.timeout(self._timeout_s):
                replies = await self._send(bundles)
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            self._fail([*group, *self._waiting], error)
            return
        if loading := next((each for each in replies if isinstance(each, exceptions.BusyLoadingError)), None):
            self._fail([*group, *self._waiting], loading)  # it just started, and reads its file
            return
        self._reach.tell(answers=True)
        unknown = []
        for bundle, reply in reversed(list(zip(bundles, replies, strict=True))):  # claims first: steps wait for them
            if isinstance(reply, exceptions.NoScriptError):
                unknown.append(bundle)
            else:
                _deliver(bundle, reply)
        if unknown:
            await self._load({bundle[0].kind[0] for bundle in unknown if bundle[0].kind})
            self._waiting.extendleft(call for bundle in unknown for call in reversed(bundle))
            self._wanted.set()

    async def _send(self, bundles: list[list[_Call]]) -> list[Any]:
        try:
            return await self._replies(bundles)
        except Elsewhere:  # it refused, and the next connection is to the right server
            return await self._replies(bundles)

    async def _replies(self, bundles: list[list[_Call]]) -> list[Any]:
        self.round_trips += 1
        commands = [_words(bundle) for bundle in bundles]
        if self._replicas:
            commands.append(("WAIT", self._replicas, int(self._timeout_s * WAIT_SHARE * 1000)))
        replies = await self._line.exchange(commands)
        if self._replicas and _fewer(replies.pop(), self._replicas):
            raise exceptions.ConnectionError(f"fewer than {self._replicas} replicas have the change")
        return replies

    async def _load(self, scripts: set[Script]) -> None:
        """Give the server scripts that it lacks: it was restarted, or somebody flushed them."""
        try:
            async with asyncio.timeout(self._timeout_s):
                replies = await self._line.exchange([("SCRIPT LOAD", missing.text) for missing in scripts])
            if error := next((each for each in replies if isinstance(each, Exception)), None):
                raise error
            self._reach.metrics.scripts_loaded.inc(len(scripts))
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            self._fail(list(self._waiting), error)

    def _fail(self, calls: list[_Call], error: Exception) -> None:
        """All that wait fail together: nobody waits longer than one time-out for a server that does not answer."""
        self._reach.tell(answers=False, error=_told(error))
        self._waiting.clear()
        self._wanted.clear()
        for call in calls:
            _settle(call.reply, error)


class Turns:
    """Several commits in turns: while the server works on one group, this process reads the answers of another.

    Only for calls that may overtake each other, such as reads.
    """

    def __init__(self, commits: Sequence[Commit]) -> None:
        self._commits = commits

    @property
    def round_trips(self) -> int:
        return sum(each.round_trips for each in self._commits)

    def call(self, *words: Any) -> asyncio.Future[Any]:
        """As `Commit.call`."""
        return self._next.call(*words)

    def run(
        self, script: Script, operations: Sequence[Operation], *, shared: tuple[Any, ...] = ()
    ) -> Awaitable[list[Any]]:
        """As `Commit.run`."""
        return self._next.run(script, operations, shared=shared)

    @property
    def _next(self) -> Commit:
        return min(self._commits, key=lambda each: each.queued)


def _fewer(reply: Any, wanted: int) -> bool:
    return not isinstance(reply, int) or reply < wanted


async def _joined(replies: list[asyncio.Future[list[Any]]]) -> list[Any]:
    return [reply for part in await asyncio.gather(*replies) for reply in part]


def _bundles(group: list[_Call]) -> list[list[_Call]]:
    """Calls of one script together, in the order of their first; plain commands alone."""
    bundles: list[list[_Call]] = []
    open_bundles: dict[_Kind, list[_Call]] = {}
    sizes: Counter[_Kind] = Counter()
    for call in group:
        kind = call.kind
        if kind is None:
            bundles.append([call])
            continue
        sizes[kind] += len(call.operations)
        if kind not in open_bundles or sizes[kind] > MAX_OPERATIONS:
            sizes[kind] = len(call.operations)
            open_bundles[kind] = []
            bundles.append(open_bundles[kind])
        open_bundles[kind].append(call)
    return sorted(bundles, key=_leaves_last)


def _leaves_last(bundle: list[_Call]) -> bool:
    kind = bundle[0].kind
    return kind is not None and kind[0].last


def _words(bundle: list[_Call]) -> tuple[Any, ...]:
    if bundle[0].kind is None:
        return bundle[0].words
    script, shared = bundle[0].kind
    return words(script, [operation for call in bundle for operation in call.operations], shared)


def words(script: Script, operations: Sequence[Operation], shared: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """The command that runs operations of a script in one call."""
    named: list[str] = []
    args: list[Any] = []
    for keys_of_one, args_of_one in operations:
        named += keys_of_one
        args += args_of_one
    counts = len(keys_of_one), len(args_of_one), len(shared)
    return ("EVALSHA", script.sha, len(named), *named, *counts, *shared, *args)


def _deliver(bundle: list[_Call], reply: Any) -> None:
    if bundle[0].kind is None or isinstance(reply, Exception):
        for call in bundle:
            _settle(call.reply, reply)
        return
    place = 0
    for call in bundle:
        part = reply[place : place + len(call.operations)]
        place += len(call.operations)
        _settle(call.reply, next((each for each in part if isinstance(each, Exception)), part))


def _settle(reply: asyncio.Future[Any], value: Any) -> None:
    if reply.done():
        return
    if isinstance(value, Exception):
        reply.set_exception(unavailable(value))
    else:
        reply.set_result(value)


def unavailable(error: Exception) -> Unavailable:
    """The refusal for an error of the server or of the way to it."""
    if isinstance(error, exceptions.OutOfMemoryError):
        message = "The job store is full"
    elif str(error).startswith("MISCONF"):
        message = "The job store cannot write"
    elif isinstance(error, exceptions.ResponseError):
        message = "The job store refused the operation"
    else:
        message = "The job store does not answer"
    return Unavailable(message, retry_after_s=1, reason=_told(error))


def _told(error: Exception) -> str:
    """The cause in words: `connection refused 127.0.0.1:6379`."""
    if isinstance(error, TimeoutError | exceptions.TimeoutError):
        return "no answer in time"
    if refused := _CONNECTING.fullmatch(str(error)):
        number = int(refused["number"])  # the loops word it differently
        return f"{os.strerror(number) if number > 0 else refused['reason']} {refused['address']}".lower()
    return str(error) or type(error).__name__
