"""A long queue costs whoever asks nothing: no request makes the server do work that grows with the number of jobs."""

import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import redis

from tests.support import Node, RedisServer, free_port

pytestmark = pytest.mark.acceptance

FULL = bool(os.environ.get("STOKER_FULL"))
QUEUED = 100_000 if FULL else 10_000
BATCH = 1_000
TIMES = 300 if FULL else 60
SLOW_S = 0.02  # of the server's time for one call; a group of hundreds of jobs takes some milliseconds
WALK_US = 0.1  # less than the server needs for each of many jobs, should it walk over them
BUSY_S = 0.5  # a busy machine may take so long; docs/reliability.md has what was measured

# What a request may have the server do. ZRANGE, XRANGE and the like cost what they find, and are asked only for what is
# answered, or for one entry; HGETALL is for the API keys. Not here: KEYS, SCAN, SMEMBERS, SORT, and whatever else walks
# over all there is.
CALLS = {"evalsha", "script|load", "ping", "auth", "hello", "client|setinfo", "select", "time", "info", "config|get"}
RECORDS = {
    "get",
    "set",
    "exists",
    "unlink",
    "publish",
    "hget",
    "hgetall",
    "hmget",
    "hstrlen",
    "hset",
    "hdel",
    "hincrby",
}
INDEXES = {"zadd", "zrem", "zremrangebyscore", "zcard", "zscore", "zrange", "zrevrange", "zrangebyscore", "srem"}
LANES = {"xadd", "xdel", "xack", "xlen", "xrange", "xclaim", "xpending", "xreadgroup", "xread", "xinfo|stream"}
ALLOWED = CALLS | RECORDS | INDEXES | LANES
OURS = {"slowlog|get", "slowlog|reset", "config|resetstat", "config|set", "latency|reset"}


async def timed(request: Callable[[], Awaitable[object]]) -> dict[str, float]:
    """Seconds of `TIMES` requests, one after the other."""
    took_s = []
    for _ in range(TIMES):
        began = time.monotonic()
        await request()
        took_s.append(time.monotonic() - began)
    cuts = statistics.quantiles(took_s, n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


async def figures(node: Node) -> dict[str, dict[str, float]]:
    """Each request of a caller who has few jobs, and a submit of the one who has them all."""
    node.session.headers["X-Forwarded-For"] = "192.0.2.7"
    job_id = await node.submit(["a"], {"x": 1})
    found = {
        "submit": await timed(lambda: node.submit(["a"], {"x": 1})),
        "find": await timed(lambda: node.get(f"/api/jobs?id={job_id}")),
        "list": await timed(lambda: node.get("/api/jobs?pending=true")),
        "info": await timed(lambda: node.get("/info")),
    }
    await cancelled(node, await node.get("/api/jobs?pending=true"))
    del node.session.headers["X-Forwarded-For"]
    found["submit too"] = await timed(lambda: node.submit(["a"], {"x": 1}))
    return found


async def cancelled(node: Node, ids: list[str]) -> None:
    for job_id in ids:
        async with node.session.delete(f"/api/jobs/{job_id}") as answer:
            assert answer.status == 200


@pytest.mark.timeout(600)
async def test_requests_cost_the_same_however_long_the_queue_is(tmp_path: Path) -> None:
    away = [{"id": "a", "url": f"http://127.0.0.1:{free_port()}", "max_queued": 2 * QUEUED}]
    server = {"trusted_proxies": ["127.0.0.1"], "max_pending": 2 * QUEUED}
    with (
        RedisServer("valkey", tmp_path / "redis", "--slowlog-log-slower-than", f"{SLOW_S * 1e6:.0f}") as store,
        redis.Redis(port=store.port, decode_responses=True) as raw,
    ):
        async with Node(tmp_path, away, down=("a",), server=server, redis={"url": store.url, "timeout_s": 30}) as node:
            before = await figures(node)
            empty_bytes = raw.info("memory")["used_memory"]
            began = time.monotonic()
            for _ in range(QUEUED // BATCH):
                await node.post("/api/jobs/batch", [{"containers": ["a"], "data": {"x": 1}}] * BATCH)
            submitting_s = time.monotonic() - began
            job_bytes = (raw.info("memory")["used_memory"] - empty_bytes) / QUEUED
            raw.config_resetstat()
            raw.slowlog_reset()
            after = await figures(node)
            used = {name.removeprefix("cmdstat_"): each for name, each in raw.info("commandstats").items()}
            slow = raw.slowlog_get(10)
            began = time.monotonic()
            listed = await node.get("/api/jobs?pending=true")
            listing_s = time.monotonic() - began
    print(
        f"\n{len(listed)} queued in {submitting_s:.1f} s, {job_bytes:.0f} bytes each; all listed in {listing_s:.2f} s"
    )
    for name, figure in after.items():
        empty = before[name]
        print(
            f"{name:10} p50 {empty['p50'] * 1000:6.1f} -> {figure['p50'] * 1000:6.1f} ms,"
            f" p99 {empty['p99'] * 1000:6.1f} -> {figure['p99'] * 1000:6.1f} ms"
        )
    print(f"slower than {SLOW_S:g} s on the server: {len(slow)}")
    assert len(listed) == len(set(listed)) >= QUEUED
    assert used.keys() <= ALLOWED | OURS
    slowest = {name: used[name]["usec_per_call"] for name in (RECORDS | INDEXES | LANES) & used.keys()}
    assert max(slowest.values()) < QUEUED * WALK_US, slowest
    assert not slow
    assert max(figure["p99"] for figure in after.values()) < BUSY_S
