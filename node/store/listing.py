"""Lists of job ids, read page by page: a list costs what is read of it, and a long one holds nobody up."""

import asyncio
import math
from collections.abc import Sequence

from node.store import keys
from node.store.commit import Turns
from node.store.records import pairs

PAGE = 2_000

Times = dict[str, float]
"""Ids, each with its score in the set that it was found in."""


class Listing:
    def __init__(self, commit: Turns) -> None:
        self._commit = commit

    async def whole(self, sets: Sequence[str]) -> Times:
        """All ids of sorted sets. One set after the other: what moves on to a later one meanwhile is not missed."""
        found: Times = {}
        for key in sets:
            start, more = -math.inf, True
            while more:
                page = await self._page(key, start, PAGE)
                more = len(page) == PAGE and not page.keys() <= found.keys()
                found |= page
                start = max(page.values(), default=start)
        return found

    async def part(self, sets: Sequence[str], after: str, most: int) -> list[str] | None:
        """The first ids of sorted sets with one order, only those behind `after`, unless it is ''. At most so many;
        None when `after` is in no set."""
        start = await self._score(sets, after) if after else -math.inf
        if start is None:
            return None
        pages = await asyncio.gather(*(self._page(key, start, most + 1) for key in sets))
        times: Times = {}
        for page in pages:
            times |= page
        ids = in_order(times)
        return ids[ids.index(after) + 1 :][:most] if after in times else ids[:most]

    async def _page(self, key: str, start: float, most: int) -> Times:
        """From a score on, that of the last page among them: several ids may have it."""
        flat = await self._commit.call("ZRANGE", key, start, "+inf", "BYSCORE", "LIMIT", 0, most, "WITHSCORES")
        return {job_id.decode(): float(score) for job_id, score in pairs(flat)}

    async def _score(self, sets: Sequence[str], job_id: str) -> float | None:
        scores = await asyncio.gather(*(self._commit.call("ZSCORE", key, job_id) for key in sets))
        return next((float(score) for score in scores if score is not None), None)


def in_order(times: Times) -> list[str]:
    return sorted(times, key=lambda job_id: times[job_id])


def sets(caller: str | None, pending: bool | None) -> list[str]:
    """Where a caller's ids stand, or everybody's: first those that are pending, then the finished ones."""
    wanted = []
    if pending is not False:
        wanted += [keys.LIVE if caller is None else keys.pending(caller)]
    if pending is not True:
        wanted += [keys.finished(caller)] if caller is not None else keys.ENDED
    return wanted
