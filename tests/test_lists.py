"""Lists of jobs while jobs come, end and are purged; and what is left of a job after its time: nothing, at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from tests.support import Echo, Node, RedisServer, eventually

STAYING = 20
ROUNDS = 20
PURGED, BATCH = 500, 50
FILLING = "x" * 10_000
MIB = 1024 * 1024


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer("valkey", tmp_path / "redis") as running:
        yield running


@contextlib.asynccontextmanager
async def forgetful(directory: Path, echo: Echo, server: RedisServer, **kept_s: float) -> AsyncIterator[Node]:
    """A node that purges often what was not to be kept."""
    settings = {"redis": {"url": server.url}, "retention_s": kept_s, "runner": {"reclaim_s": 0.2}}
    async with Node(directory, echo.containers("a", "b"), **settings) as node:
        yield node


async def test_lists_are_whole_and_without_repetition_while_jobs_come_and_go(
    tmp_path: Path, echo: Echo, server: RedisServer
) -> None:
    async with forgetful(tmp_path, echo, server, failed=0.2) as node:
        body = [{"containers": ["b"], "data": {"wait_for": tmp_path.name}}] * STAYING
        waiting = {answer["id"] for answer in await node.post("/api/jobs/batch", body)}
        finished = {(await node.run(["a"], {"x": i}))["id"] for i in range(STAYING)}
        seen: set[str] = set()
        longest = 0
        coming = asyncio.create_task(come_and_go(node))
        while not coming.done():
            every, pending, ended = [
                await node.get(f"/api/jobs{query}") for query in ("", "?pending=true", "?pending=false")
            ]
            for listed in (every, pending, ended):
                assert len(listed) == len(set(listed))
            assert waiting | finished <= set(every)
            assert waiting <= set(pending)
            assert finished <= set(ended)
            assert not finished & set(pending)
            seen.update(every)
            longest = max(longest, len(every))
        await coming
        echo.release(tmp_path.name)
        for job_id in waiting:
            assert (await node.result(job_id))["status"] == "success"
        await eventually(lambda: only(node, waiting | finished), message="the purge of what failed")
    print(f"\n{len(seen)} jobs seen, at most {longest} at once")
    assert longest < len(seen), "nothing went while there were lists"


async def come_and_go(node: Node) -> None:
    for i in range(ROUNDS):
        await node.post("/api/jobs/batch", [{"containers": ["a"], "data": {"status": 500, "x": i}}] * 20)
        await asyncio.sleep(0.1)


async def only(node: Node, ids: set[str]) -> bool:
    return set(await node.get("/api/jobs")) == ids


async def test_a_job_whose_time_is_over_is_gone_everywhere_at_once_and_its_memory_is_free(
    tmp_path: Path, echo: Echo, server: RedisServer
) -> None:
    async with forgetful(tmp_path, echo, server, succeeded=1, failed=1, cancelled=1) as node:
        with redis.Redis(port=server.port, decode_responses=True) as raw:
            await node.run(["a"], {"x": 0})
            await eventually(lambda: only(node, set()))
            free = raw.info("memory")["used_memory"]
            statuses = [500] * 5 + [200] * (BATCH - 5)
            ids: list[str] = []
            for _ in range(PURGED // BATCH):
                body = [{"containers": ["a", "b"], "data": {"x": FILLING, "status": status}} for status in statuses]
                ids += [answer["id"] for answer in await node.post("/api/jobs/batch", body)]
            most = raw.info("memory")["used_memory"]
            known = set(ids)
            while known:
                still = await found(node, ids)
                assert still <= known, "a job came back"
                known = still
                for query in ("", "?pending=true", "?pending=false"):
                    assert set(await node.get("/api/jobs" + query)) <= known, "listed, but not found"
                most = max(most, raw.info("memory")["used_memory"])
            assert await node.get("/api/jobs") == []
            async with node.session.delete(f"/api/jobs/{ids[0]}") as answer:
                assert answer.status == 404
            left = {key.split(":")[2] for key in raw.scan_iter()}
            after = raw.info("memory")["used_memory"]
    print(f"\n{PURGED} jobs: {free / MIB:.1f} MiB before, {most / MIB:.1f} with them, {after / MIB:.1f} after")
    assert left <= {"lane", "bulk", "nodes", "served", "mark", "back", "owner"}
    assert most > free + PURGED * len(FILLING)
    assert after < free + MIB


async def found(node: Node, ids: list[str]) -> set[str]:
    """Those of the ids that the node knows; 404 when there is none."""
    async with node.session.get("/api/jobs?id=" + "&id=".join(ids)) as answer:
        assert answer.status in (200, 404)
        return {job["id"] for job in await answer.json()} if answer.status == 200 else set()
