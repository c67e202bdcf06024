"""The blocking read by which a lane learns of entries that other processes queue."""

import asyncio
from typing import Any

import redis.asyncio
from redis import exceptions

from node.store.commit import unavailable


class Waiter:
    """Waits for a lane to get another entry. Blocks one connection, so each reader has its own."""

    def __init__(self, client: redis.asyncio.Redis, streams: tuple[str, str], grace_s: float) -> None:
        self._client = client
        self._streams = streams
        self._grace_s = grace_s

    async def wait(self, tail: str, seconds: float) -> None:
        """Return when the lane has an entry later than `tail`, as a claim gave it, or after `seconds`."""
        places: dict[Any, Any] = dict(zip(self._streams, tail.split(), strict=True))
        try:
            async with asyncio.timeout(seconds + self._grace_s):
                await self._client.xread(places, count=1, block=int(seconds * 1000))
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            raise unavailable(error) from error

    async def close(self) -> None:
        await self._client.aclose()
