"""Many jobs of every kind, with results that are soon purged: what the node and its server hold does not grow.

The work comes in parts. After each the node is left alone until every job is gone, and what it holds is counted.
The first part warms up: allocators keep what their first busy time needed, connections and threads come to be. The
second and the last are compared.
"""

import asyncio
import os
import random
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from tests.support import Echo, Node, RedisServer, eventually

pytestmark = pytest.mark.acceptance

FULL = bool(os.environ.get("STOKER_FULL"))
JOBS, PARTS = (200_000, 11) if FULL else (3_000, 3)
CLIENTS = 8
BATCH = 50
KEPT_S = 1
ENDED_S = 300.0  # on a busy machine
CHAINS = [["a"], ["a", "b"], ["a", "b", "c"], ["b", "b"], ["c", "a"]]
KEY = "stoker:{0}:"
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What there is when no job is left. *_mib: of memory; peak: while the part before it ran."""

    jobs: int
    rss_mib: float
    peak_rss_mib: float
    files: int
    threads: int
    redis_mib: float
    keys: int
    entries: int
    leases: int
    connections: int
    log_bytes_per_job: int


class Load:
    """Clients that do, by chance, what clients do, until a number of jobs has been sent."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.sent = 0
        self.outcomes: Counter[str] = Counter()
        self._random = random.Random(12)

    async def run(self, jobs: int) -> None:
        goal = self.sent + jobs
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(self._client(goal))

    async def _client(self, goal: int) -> None:
        kinds = [self._batch] * 4 + [self._single] * 3 + [self._cancelled] * 2 + [self._streamed, self._lists]
        while self.sent < goal:
            await self._random.choice(kinds)()

    def _body(self) -> dict[str, Any]:
        data: dict[str, Any] = {"x": self._random.random(), "filling": "x" * self._random.randrange(2000)}
        if self._random.random() < 0.05:
            data["status"] = 500
        return {"containers": self._random.choice(CHAINS), "data": data}

    async def _batch(self) -> None:
        self.sent += BATCH
        answers = await self.node.post("/api/jobs/batch", [self._body() for _ in range(BATCH)])
        await self._ended([answer["id"] for answer in answers])

    async def _single(self) -> None:
        self.sent += 1
        body = self._body()
        await self._ended([await self.node.submit(body["containers"], body["data"])])

    async def _cancelled(self) -> None:
        self.sent += 1
        job_id = await self.node.submit(["a", "b"], {"sleep_s": self._random.choice([0, 0.05, 1])})
        await asyncio.sleep(self._random.random() * 0.05)
        async with self.node.session.delete(f"/api/jobs/{job_id}") as answer:
            assert answer.status in (200, 409)

    async def _streamed(self) -> None:
        """To its end, or until the client has enough."""
        self.sent += 1
        body = {"containers": ["a"], "data": {"parts": ["one", "two", "three"], "gap_s": 0.02}}
        async with self.node.session.post("/api/jobs/stream", json=body) as answer:
            assert answer.status == 200
            await answer.content.readline()
            if self._random.random() < 0.5:
                assert await answer.read() == b"onetwothree"
            else:
                answer.close()

    async def _lists(self) -> None:
        for query in ("", "?pending=true", "?pending=false"):
            await self.node.get("/api/jobs" + query)
        await self.node.get("/info")
        await self.node.get("/health/ready")

    async def _ended(self, ids: list[str]) -> None:
        """Poll until none of these jobs runs; those that are purged meanwhile have ended as well."""

        async def done() -> bool:
            async with self.node.session.get("/api/jobs?id=" + "&id=".join(ids)) as answer:
                found = await answer.json() if answer.status == 200 else []
            statuses = [job["status"] for job in found]
            if "running" in statuses:
                await asyncio.sleep(0.2)
                return False
            self.outcomes.update(statuses)
            return True

        await eventually(done, seconds=ENDED_S, message="the end of the jobs")


class Watch:
    """What the node's process and the server hold."""

    def __init__(self, node: Node, raw: redis.Redis) -> None:
        self._node = node
        self._raw = raw
        self._proc = Path(f"/proc/{node.process.pid}")
        self._logged = 0

    def _status(self, name: str) -> int:
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

    async def held(self, load: Load, before: int) -> Held:
        await eventually(self._empty, message="the purge of all jobs")
        await self._node.get("/health")  # opens the one connection that a client keeps
        logged = self._node.log.stat().st_size
        keys = {key: key.removeprefix(KEY).partition(":")[0] for key in self._raw.scan_iter()}
        assert set(keys.values()) <= {"lane", "bulk", "nodes", "served", "mark", "back", "owner"}, (
            "something outlived its jobs"
        )
        streams = [key for key, kind in keys.items() if kind in ("lane", "bulk")]
        held = Held(
            jobs=load.sent,
            rss_mib=round(self._status("VmRSS") / 1024, 1),
            peak_rss_mib=round(self._status("VmHWM") / 1024, 1),
            files=len(list((self._proc / "fd").iterdir())),
            threads=self._status("Threads"),
            redis_mib=round(self._raw.info("memory")["used_memory"] / MIB, 2),
            keys=len(keys),
            entries=sum(self._raw.xlen(key) for key in streams),
            leases=sum(self._raw.xpending(key, "nodes")["pending"] for key in streams),
            connections=self._raw.info("clients")["connected_clients"],
            log_bytes_per_job=round((logged - self._logged) / (load.sent - before)),
        )
        self._logged = logged
        (self._proc / "clear_refs").write_text("5")  # the peak begins anew
        return held

    async def _empty(self) -> bool:
        return not any(
            self._raw.exists(KEY + name) for name in ("live", "ended:succeeded", "ended:failed", "ended:cancelled")
        )


@pytest.mark.timeout(3600 if FULL else 120)
async def test_what_is_held_does_not_grow_with_the_jobs(tmp_path: Path, echo: Echo) -> None:
    kept_s = {"succeeded": KEPT_S, "failed": KEPT_S, "cancelled": KEPT_S}
    with (
        RedisServer("valkey", tmp_path / "redis") as server,
        redis.Redis(port=server.port, decode_responses=True) as raw,
    ):
        settings = {"redis": {"url": server.url}, "retention_s": kept_s, "runner": {"reclaim_s": 0.5}}
        async with Node(tmp_path, echo.containers("a", "b", "c"), **settings) as node:
            load, watch = Load(node), Watch(node, raw)
            parts = [await part(node, load, watch) for _ in range(PARTS)]
            assert node.events("job_put_right") == []
    warm, last = parts[1], parts[-1]
    print(f"\n{load.sent} jobs, {dict(load.outcomes)} of those seen to their end, {last.jobs - warm.jobs} in between")
    for name, first in asdict(warm).items():
        print(f"{name:18} {first:>10} {getattr(last, name):>10}")
    assert (last.entries, last.leases) == (0, 0)
    assert last.keys <= warm.keys
    assert last.threads <= warm.threads
    assert last.files <= warm.files + 3  # the clients' idle connections come and go
    assert last.connections <= warm.connections + 1
    assert last.rss_mib <= warm.rss_mib * 1.1 + 4
    assert last.redis_mib <= warm.redis_mib * 1.1 + 0.5
    assert last.log_bytes_per_job <= warm.log_bytes_per_job * 1.2


async def part(node: Node, load: Load, watch: Watch) -> Held:
    before = load.sent
    await load.run(JOBS // PARTS)
    await node.session.close()  # what the clients held is theirs; the next part's clients connect anew
    node.session = aiohttp.ClientSession(node.url, timeout=aiohttp.ClientTimeout(total=60))
    return await watch.held(load, before)
