"""Nodes that die, freeze or forget, and stores that lose things: each job still ends once, with its cause."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support import Echo, Node, RedisServer, eventually, in_flight

pytestmark = pytest.mark.acceptance

FULL = bool(os.environ.get("STOKER_FULL"))
LEASE_S, RECLAIM_S = (30, 5) if FULL else (2, 0.3)
RUNNER = {"lease_s": LEASE_S, "reclaim_s": RECLAIM_S, "check_s": 1}
SLACK_S = 5  # for a busy machine
KEY = "stoker:{0}:"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer("valkey", tmp_path / "redis") as running:
        yield running


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port, decode_responses=True) as client:
        yield client


@asynccontextmanager
async def a_node(directory: Path, server: RedisServer, containers: list[dict[str, Any]], **more: Any) -> AsyncIterator:
    directory.mkdir()
    async with Node(directory, containers, redis={"url": server.url}, **({"runner": RUNNER} | more)) as node:
        yield node


@pytest.mark.parametrize("fault", ["dies", "freezes"])
@pytest.mark.timeout(300)
async def test_another_node_takes_over_within_lease_and_reclaim_time(
    tmp_path: Path, server: RedisServer, echo: Echo, fault: str
) -> None:
    """And what the frozen one says when it wakes is refused."""
    containers = echo.containers("a", "b", timeout_s=600)
    key = f"over-{fault}"
    async with a_node(tmp_path / "one", server, containers) as one:
        job_id = await one.submit(["a", "b"], {"key": key, "wait_for": key})
        await in_flight(echo, key)
        async with a_node(tmp_path / "two", server, containers) as two:
            if fault == "dies":
                await asyncio.to_thread(one.kill)
            else:
                one.process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            await in_flight(echo, key, 2)
            took_s = time.monotonic() - began
            print(f"\na node {fault}: taken over after {took_s:.1f} s (lease {LEASE_S} s, reclaim {RECLAIM_S} s)")
            assert took_s < LEASE_S + RECLAIM_S + SLACK_S
            assert await two.metric("stoker_jobs_reclaimed_total", container="a") == 1
            echo.release(key)
            result = await two.result(job_id)
            assert result["status"] == "success"
            if fault == "freezes":
                one.process.send_signal(signal.SIGCONT)

                async def refused() -> list[dict]:
                    return one.events("step_refused") + one.events("step_stopped")

                (event,) = await eventually(refused, message="the refusal of the late outcome")
                assert (event["job_id"], event["attempt"]) == (job_id, 1)
            assert await two.result(job_id) == result
    assert echo.counts()["calls"][key] == 3  # step 1 twice, step 2 once


async def test_a_job_whose_worker_dies_each_time_becomes_a_dead_letter(tmp_path: Path, echo: Echo) -> None:
    async with Node(tmp_path, echo.containers("a", "b")) as node:
        job_id = await node.submit(["b", "a"], {"key": "poison", "wait_for": "poison-gone"})
        echo.release("poison-gone")
        await node.result(job_id)
        poison = await node.submit(["a"], {"key": "poison-2", "wait_for": "poison-2"})
        for kill in range(3):
            await in_flight(echo, "poison-2", kill + 1)
            node.kill()
            await node.start()
        result = await node.result(poison)
        words = "container 'a': its worker died 3 times"
        assert (result["status"], result["result"]) == ("failed", {"container": "a", "error": words})
        assert [job["id"] for job in await node.get("/api/dead")] == [poison]
        assert await node.metric("stoker_dead_letters_total", container="a") == 1
        assert (await node.run(["a", "b"], {"x": 1}))["status"] == "success"
        echo.release("poison-2")
        again = (await node.post(f"/api/jobs/{poison}/retry", {}))["id"]
        assert (await node.result(again))["status"] == "success"
        assert await node.get("/api/dead") == []
        assert await node.result(poison) == result


async def test_jobs_for_a_container_that_was_removed_fail_and_say_so(tmp_path: Path, echo: Echo) -> None:
    runner = {"gone_s": 1, "check_s": 0.2, "reclaim_s": 0.2}
    down = {"id": "b", "url": "http://127.0.0.1:9"}
    async with Node(tmp_path, [*echo.containers("a"), down], runner=runner, down=("b",)) as node:
        first, later = await node.submit(["b"], {"x": 1}), await node.submit(["a", "b"], {"x": 2})
        node.kill()
        node.config["containers"] = echo.containers("a")
        await node.start()
        for job_id in (first, later):
            result = await node.result(job_id)
            words = "container 'b': no node has had it for 1 s (runner.gone_s)"
            assert (result["status"], result["result"]) == ("failed", {"container": "b", "error": words})
        assert (await node.run(["a"], {"x": 3}))["status"] == "success"


async def test_a_container_that_does_not_come_up_fails_its_jobs_after_the_queue_timeout(
    tmp_path: Path, echo: Echo
) -> None:
    runner = {"queue_timeout_s": 100, "check_s": 1, "reclaim_s": 0.2}
    down = {"id": "b", "url": "http://127.0.0.1:9"}
    async with Node(tmp_path, [*echo.containers("a"), down], runner=runner, down=("b",)) as node:
        body = {"containers": ["a", "b"], "data": {"x": 1}, "timeouts": {"queue_s": 0.5}}
        result = await node.result((await node.post("/api/jobs", body))["id"])
        words = "container 'b': waited in its queue for more than 0.5 s"
        assert result["result"] == {"container": "b", "error": words}
        assert result["intermediate_results"] == [{"container": "a", "output": {"x": 1}}]


async def test_a_job_over_its_total_time_has_its_call_aborted(tmp_path: Path, echo: Echo) -> None:
    async with Node(tmp_path, echo.containers("a"), runner={"reclaim_s": 0.2}) as node:
        body = {"containers": ["a"], "data": {"key": "total", "wait_for": "total"}, "timeouts": {"total_s": 1}}
        result = await node.result((await node.post("/api/jobs", body))["id"])
        assert result["result"]["error"] == "not done 1 s after it was accepted; it was running in step 1"

        async def aborted() -> bool:
            return echo.counts()["now"] == 0

        await eventually(aborted, message="the abort of the call")


async def test_a_store_emptied_while_running_is_told_and_leaves_no_ghosts(
    tmp_path: Path, server: RedisServer, raw: redis.Redis, echo: Echo
) -> None:
    async with a_node(tmp_path / "one", server, echo.containers("a", "b")) as node:
        lost = await node.submit(["a", "b"], {"key": "emptied", "wait_for": "emptied"})
        await in_flight(echo, "emptied")
        raw.flushall()
        raw.script_flush()
        echo.release("emptied")

        async def told() -> list[dict]:
            return node.events("store_emptied")

        await eventually(told, message="the word that the store was emptied")
        assert await node.metric("stoker_store_emptied_total") == 1
        assert (await node.run(["a", "b"], {"x": 1}))["status"] == "success"
        await node.get(f"/api/jobs?id={lost}", status=404)
        assert await node.get("/api/jobs?pending=true") == []
        assert raw.exists(KEY + f"job:{lost}") == 0
        assert echo.counts()["calls"]["emptied"] == 1


async def test_forgotten_scripts_are_loaded_again_while_jobs_run(
    tmp_path: Path, server: RedisServer, raw: redis.Redis, echo: Echo
) -> None:
    async with a_node(tmp_path / "one", server, echo.containers("a", "b")) as node:
        ids = []
        for i in range(20):
            body = [{"containers": ["a", "b"], "data": {"key": f"flush-{i}-{j}"}} for j in range(10)]
            ids += [answer["id"] for answer in await node.post("/api/jobs/batch", body)]
            raw.script_flush()
        assert {(await node.result(job_id))["status"] for job_id in ids} == {"success"}
        calls = echo.counts()["calls"]
        assert {calls[f"flush-{i}-{j}"] for i in range(20) for j in range(10)} == {2}
        assert await node.metric("stoker_store_scripts_loaded_total") > 0


@pytest.mark.parametrize("lost", ["lane", "group", "lease"])
async def test_what_is_deleted_by_hand_strands_no_job(
    tmp_path: Path, server: RedisServer, raw: redis.Redis, echo: Echo, lost: str
) -> None:
    lane = KEY + "lane:a"
    key = f"hand-{lost}"
    async with a_node(tmp_path / "one", server, echo.containers("a", "b", concurrency=2)) as node:
        body = [{"containers": ["a", "b"], "data": {"key": f"{key}-{i}", "wait_for": key}} for i in range(6)]
        ids = [answer["id"] for answer in await node.post("/api/jobs/batch", body)]
        await in_flight(echo, f"{key}-1")
        if lost == "lane":
            raw.delete(lane)
        elif lost == "group":
            raw.xgroup_destroy(lane, "nodes")
        else:
            for entry in raw.xpending_range(lane, "nodes", "-", "+", 10):
                raw.xack(lane, "nodes", entry["message_id"])

        async def mended() -> bool:
            return raw.exists(lane) == 1 and len(raw.xinfo_groups(lane)) == 1 and raw.xpending(lane, "nodes")["pending"]

        await eventually(mended)
        echo.release(key)
        assert {(await node.result(job_id))["status"] for job_id in ids} == {"success"}
        calls = echo.counts()["calls"]
        assert [calls[f"{key}-{i}"] for i in range(6)] == [2] * 6
        assert raw.xlen(lane) == 0


async def test_a_second_node_of_the_same_name_waits_and_disturbs_nothing(
    tmp_path: Path, server: RedisServer, echo: Echo
) -> None:
    async with a_node(tmp_path / "one", server, echo.containers("a"), node_id="twin") as one:
        job_id = await one.submit(["a"], {"key": "twin", "wait_for": "twin"})
        await in_flight(echo, "twin")
        async with a_node(tmp_path / "two", server, echo.containers("a"), node_id="twin") as two:

            async def told() -> list[dict]:
                return two.events("node_name_taken")

            assert len(await eventually(told, message="the word about the name")) == 1
            echo.release("twin")
            assert (await one.result(job_id))["status"] == "success"
            assert echo.counts()["calls"]["twin"] == 1
            await asyncio.to_thread(one.kill)
            assert (await two.run(["a"], {"x": 1}))["status"] == "success"
