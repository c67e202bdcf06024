"""The blocking read by which a lane learns of entries that other processes queue."""

import asyncio
from dataclasses import dataclass, replace
from typing import Self

import redis.asyncio
from redis import exceptions

from node.store.commit import unavailable
from node.store.connect import Line

Place = tuple[int, int]
"""Id of a stream's entry: milliseconds, number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tails:
    """How far a lane and its bulk queue are known: the last entries that they had."""

    lane: Place = (0, 0)
    bulk: Place = (0, 0)

    @classmethod
    def read(cls, text: bytes) -> Self:
        """`1-2 3-4`"""
        lane, bulk = text.split()
        return cls(lane=_place(lane), bulk=_place(bulk))

    def beyond(self, other: "Tails | None") -> bool:
        """Is something here that is not there."""
        return other is None or self.lane > other.lane or self.bulk > other.bulk


class Waiter:
    """Waits for a lane to get another entry. Blocks one connection, so each reader has its own."""

    def __init__(self, client: redis.asyncio.Redis, streams: tuple[str, str], grace_s: float) -> None:
        self._client = client
        self._line = Line(client)
        self._streams = streams
        self._grace_s = grace_s

    async def wait(self, tails: Tails, seconds: float) -> Tails | None:
        """Return when the lane has an entry later than `tails`, as a claim gave them: how far it is then. None after
        `seconds` without one."""
        places = map(_text, (tails.lane, tails.bulk))
        command = ("XREAD", "COUNT", 1, "BLOCK", int(seconds * 1000), "STREAMS", *self._streams, *places)
        try:
            async with asyncio.timeout(seconds + self._grace_s):
                (found,) = await self._line.exchange([command])
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            raise unavailable(error) from error
        if isinstance(found, Exception):
            raise unavailable(found)
        for stream, rows in found or ():
            kind = "lane" if stream == self._streams[0].encode() else "bulk"
            tails = replace(tails, **{kind: _place(rows[-1][0])})
        return tails if found else None

    async def close(self) -> None:
        await self._client.aclose()


def _place(text: bytes) -> Place:
    milliseconds, _, number = text.partition(b"-")
    return int(milliseconds), int(number)


def _text(place: Place) -> str:
    return f"{place[0]}-{place[1]}"
