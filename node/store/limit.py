"""The rate limit's windows, kept in Redis by the package `limits`, so that all nodes of a store count together."""

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import redis.asyncio
from redis import exceptions

from node.config import RateLimit
from node.store import keys
from node.store.commit import unavailable

CONNECTIONS = 16  # each is used for one request at a time; more requests wait for their turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is left after a request was counted. reset_s: seconds until the oldest request of the window leaves it."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: float


class Limit:
    """A moving window for each list of names. Entered for as long as it is used; its connections are its own."""

    def __init__(self, client: redis.asyncio.Redis, settings: RateLimit, timeout_s: float) -> None:
        from limits import RateLimitItemPerSecond  # a slow import, for those who have a limit
        from limits.aio.storage import RedisStorage
        from limits.aio.strategies import MovingWindowRateLimiter

        self._client = client
        self._timeout_s = timeout_s
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._item = RateLimitItemPerSecond(settings.num_requests, max(1, round(settings.period)))
        storage = RedisStorage(
            "async+redis://",  # not used: the connections are given
            implementation="redispy",
            key_prefix=keys.RATE,
            connection_pool=client.connection_pool,  # type: ignore[arg-type]  # as its documentation says
        )
        self._windows = MovingWindowRateLimiter(storage)

    @property
    def period_s(self) -> int:
        return self._item.get_expiry()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def hit(self, *names: str) -> Standing | None:
        """Count a request, unless the window is full. None when the server is full and can count nothing any more.

        Raises `Unavailable`.
        """
        try:
            async with asyncio.timeout(self._timeout_s), self._turns:
                allowed = await self._windows.hit(self._item, *names)
                reset_at, remaining = await self._windows.get_window_stats(self._item, *names)
        except exceptions.OutOfMemoryError:  # submits are refused for that; results must still be had
            return None
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            raise unavailable(error) from error
        reset_s = min(max(0.0, reset_at - time.time()), self.period_s)
        return Standing(allowed=allowed, limit=self._item.amount, remaining=max(0, remaining), reset_s=reset_s)
