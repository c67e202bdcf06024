"""Reads the rows of `get.lua`. What is small comes with the group, in one round trip. Large outputs come in parts, on a
connection of their own, so that no answer holds up those who submit or work meanwhile.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import redis.asyncio
from redis import exceptions

from node.errors import TooLarge, Unavailable
from node.store import keys
from node.store.commit import MAX_OPERATIONS, Operation, Turns, script, unavailable, words

GET = script("get")
ROOM_BYTES = 1024 * 1024  # of outputs, that one script call of a group answers
PART_BYTES = 4 * 1024 * 1024  # of outputs, in one round trip; a single larger job comes alone

Row = list[Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked of each job. caller: None for anybody's. most_bytes: of outputs, in the whole answer."""

    intermediate: bool
    caller: str | None
    most_bytes: int | None

    def shared(self, room: int | str) -> tuple[Any, ...]:
        mine = ("", "") if self.caller is None else ("1", self.caller)
        return ("1" if self.intermediate else "", *mine, room)


def _operations(job_ids: Iterable[str]) -> list[Operation]:
    return [((keys.job(job_id),), ()) for job_id in job_ids]


@dataclass(slots=True)
class Reader:
    """`commit` for what is small, `client` for the rest. timeout_s: longest wait for `PART_BYTES`."""

    commit: Turns
    client: redis.asyncio.Redis
    timeout_s: float
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _failures: int = 0

    async def rows(self, job_ids: Sequence[str], wanted: Wanted) -> list[Row]:
        """A row for each id, empty for what is not there. An id that comes again is read once.

        Raises `TooLarge` before anything large is read, or `Unavailable`.
        """
        asked = Counter(job_ids)
        first = await self.commit.run(GET, _operations(asked), shared=wanted.shared(ROOM_BYTES))
        rows: dict[str, Any] = dict(zip(asked, first, strict=True))
        sizes = {job_id: row for job_id, row in rows.items() if isinstance(row, int)}
        if wanted.most_bytes is not None:
            _refuse_more(wanted.most_bytes, sum(_size(row) * asked[job_id] for job_id, row in rows.items()))
        for part in _parts(sizes):
            read = await self._part(words(GET, _operations(part), wanted.shared("")), sum(sizes[each] for each in part))
            rows.update(zip(part, read, strict=True))
        return [rows[job_id] for job_id in job_ids]

    async def value(self, job_id: str, field: str, size: int) -> bytes | None:
        """A large value of a job's record alone. Raises `Unavailable`."""
        return await self._alone(lambda: self._field(job_id, field), size)

    async def _field(self, job_id: str, field: str) -> bytes | None:
        value: Any = await self.client.hget(keys.job(job_id), field)
        return value if value is None else bytes(value)

    async def _part(self, evaluate: tuple[Any, ...], size: int) -> list[Row]:
        return await self._alone(lambda: self._evaluated(evaluate), size)

    async def _alone(self, read: Callable[[], Awaitable[T]], size: int) -> T:
        """One at a time, each reader in turn. Who waited while another got no answer does not ask in its turn."""
        failures = self._failures
        async with self._turn:
            if self._failures != failures:
                raise Unavailable("The job store does not answer", retry_after_s=1, reason="no answer in time")
            try:
                async with asyncio.timeout(self.timeout_s * max(1, size / PART_BYTES)):
                    return await read()
            except (exceptions.RedisError, OSError, TimeoutError) as error:
                self._failures += 1
                raise unavailable(error) from error

    async def _evaluated(self, evaluate: tuple[Any, ...]) -> list[Row]:
        _, sha, *rest = evaluate
        try:
            replies: list[Row] = await self.client.evalsha(sha, *rest)
        except exceptions.NoScriptError:
            await self.client.script_load(GET.text)
            replies = await self.client.evalsha(sha, *rest)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies


def _size(row: Any) -> int:
    """Of the outputs in a row, or of those that it stands for."""
    if isinstance(row, int):
        return row
    return sum(len(value) for value in (*row[7:8], *row[10:]) if value)


def _refuse_more(limit: int, size: int) -> None:
    if size > limit:
        message = "Answer too large: ask for fewer ids at once, or without intermediate results"
        raise TooLarge(message, limit_bytes=limit, setting="server.max_answer_bytes")


def _parts(sizes: dict[str, int]) -> Iterator[list[str]]:
    part: list[str] = []
    total = 0
    for job_id, size in sizes.items():
        if part and (total + size > PART_BYTES or len(part) == MAX_OPERATIONS):
            yield part
            part, total = [], 0
        part.append(job_id)
        total += size
    if part:
        yield part
