"""Start, stop and the loss of the store, seen from outside."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support import Echo, Node, RedisServer, eventually, in_flight, stoker

pytestmark = pytest.mark.acceptance


async def drained(node: Node) -> None:
    async def draining() -> bool:
        async with node.session.get("/health") as answer:
            return answer.status == 503

    await eventually(draining, message="the drain")


async def test_sigterm_refuses_new_jobs_and_lets_running_steps_finish(node: Node, echo: Echo) -> None:
    job_id = await node.submit(["a", "b"], {"key": "drain", "wait_for": "drain"})
    await in_flight(echo, "drain")
    node.process.send_signal(signal.SIGTERM)
    await drained(node)
    async with node.session.post("/api/jobs", json={"containers": ["a"], "data": {}}) as answer:
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await answer.json())["error"] == "The node is shutting down"
    assert (await node.get(f"/api/jobs?id={job_id}"))[0]["status"] == "running"
    echo.release("drain")
    assert node.process.wait(30) == 0
    await node.start()
    result = await node.result(job_id)
    assert result["status"] == "success"
    assert echo.counts()["calls"]["drain"] == 2  # one call per step: the drained one was recorded, not repeated


async def test_a_stream_may_end_within_the_drain(node: Node, echo: Echo) -> None:
    body = {"containers": ["a"], "data": {"key": "stream", "parts": ["x"] * 30, "gap_s": 0.1}}
    async with node.session.post("/api/jobs/stream", json=body) as answer:
        job_id = (await answer.content.readline()).decode().strip()
        node.process.send_signal(signal.SIGTERM)
        assert await answer.read() == b"x" * 30
    assert node.process.wait(30) == 0
    await node.start()
    assert (await node.result(job_id))["result"]["output"] == {"output": "x" * 30}


async def test_steps_that_outlast_the_drain_are_handed_back(tmp_path: Path, echo: Echo) -> None:
    async with Node(tmp_path, echo.containers("a"), runner={"drain_s": 0.2}) as node:
        job_id = await node.submit(["a"], {"key": "handed", "wait_for": "handed"})
        await in_flight(echo, "handed")
        assert node.kill(signal.SIGTERM) == 0
        assert [event["job_id"] for event in node.events("step_handed_back")] == [job_id]
        echo.release("handed")
        await node.start()
        assert (await node.result(job_id))["status"] == "success"


async def test_a_second_signal_leaves_at_once(node: Node, echo: Echo) -> None:
    job_id = await node.submit(["a"], {"key": "second", "wait_for": "second"})
    await in_flight(echo, "second")
    node.process.send_signal(signal.SIGTERM)
    await drained(node)
    assert node.kill(signal.SIGINT) == 128 + signal.SIGINT
    echo.release("second")
    await node.start()
    assert (await node.result(job_id))["status"] == "success"


async def test_a_killed_embedded_server_comes_back_with_all_jobs(node: Node, tmp_path: Path) -> None:
    before = await node.submit(["a"], {"x": 1})
    await node.result(before)
    pid = int((tmp_path / "data" / "valkey" / "valkey.pid").read_text())
    os.kill(pid, signal.SIGKILL)

    async def accepted() -> str:
        async with node.session.post("/api/jobs", json={"containers": ["a", "b"], "data": {"x": 2}}) as answer:
            assert answer.status in (200, 503)
            return (await answer.json()).get("id", "")

    after = await eventually(accepted, message="an accepted job")
    assert (await node.result(after))["status"] == "success"
    assert (await node.result(before))["status"] == "success"


async def test_two_nodes_never_share_a_data_directory(node: Node, tmp_path: Path) -> None:
    ended = stoker("serve", "--config", str(tmp_path / "config.json"))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == f"stoker: {tmp_path / 'data'}: another node uses this data directory"


@pytest.fixture
async def outside(tmp_path: Path, echo: Echo) -> AsyncIterator[tuple[Node, RedisServer]]:
    """A node on a server that the test can stop, freeze and kill."""
    with RedisServer("valkey", tmp_path / "redis") as server:
        redis = {"url": server.url}
        async with Node(tmp_path, echo.containers("a", "b"), redis=redis) as node:
            yield node, server


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_without_the_store_a_submit_is_503_within_two_seconds_and_all_recovers(
    outside: tuple[Node, RedisServer], echo: Echo, fault: str
) -> None:
    node, server = outside
    running = await node.submit(["a", "b"], {"key": fault, "wait_for": fault})
    await in_flight(echo, fault)
    if fault == "killed":
        server.kill()
    else:
        server.process.send_signal(signal.SIGSTOP)
    loop = asyncio.get_running_loop()
    for _ in range(3):
        began = loop.time()
        async with node.session.post("/api/jobs", json={"containers": ["a"], "data": {}}) as answer:
            assert answer.status == 503
            body = await answer.json()
            assert "id" not in body
            assert body["error"] == "The job store does not answer"
        assert loop.time() - began < 2.5
    assert (await node.get("/info?verbose=true"))["pending"]["offchain"] is None
    await node.get("/info", status=503)
    async with node.session.get("/health") as answer:
        assert answer.status == 503
    echo.release(fault)  # its outcome cannot be recorded yet
    if fault == "killed":
        await asyncio.to_thread(server.start)
    else:
        server.process.send_signal(signal.SIGCONT)
    assert (await node.result(running))["status"] == "success"
    assert echo.counts()["calls"][fault] == 2
    assert (await node.run(["a", "b"], {"x": 1}))["status"] == "success"
    assert [len(node.events(name)) for name in ("store_unavailable", "store_available")] == [1, 1]


async def test_a_node_stops_also_while_its_store_is_away(outside: tuple[Node, RedisServer], echo: Echo) -> None:
    """With a step and a stream under way whose ends cannot be recorded."""
    node, server = outside
    node.kill(signal.SIGTERM)
    node.config["runner"] = {"drain_s": 0.2}
    await node.start()
    await node.submit(["a"], {"key": "away", "wait_for": "away"})
    await in_flight(echo, "away")
    body = {"containers": ["b"], "data": {"parts": ["x"] * 10_000, "gap_s": 0.05}}
    async with node.session.post("/api/jobs/stream", json=body) as answer:
        await answer.content.readline()
        server.kill()
        began = asyncio.get_running_loop().time()
        assert await asyncio.to_thread(node.kill, signal.SIGTERM) == 0
        assert asyncio.get_running_loop().time() - began < 40
    echo.release("away")
    server.start()


async def test_a_node_waits_for_a_store_that_is_down_at_its_start(tmp_path: Path, echo: Echo) -> None:
    server = RedisServer("valkey", tmp_path / "redis")
    node = Node(tmp_path, echo.containers("a"), redis={"url": server.url})
    node.session = aiohttp.ClientSession(node.url)
    try:
        await node.start(ready=False)
        async with node.session.get("/health") as answer:
            assert answer.status == 503
            assert (await answer.json())["status"] == "unhealthy"
        with server:
            await node.until_ready()
            assert (await node.run(["a"], {"x": 1}))["status"] == "success"
            assert node.kill(signal.SIGTERM) == 0
    finally:
        await node.__aexit__(None, None, None)


async def test_a_port_in_use_is_one_line_and_exit_code_1(node: Node, tmp_path: Path) -> None:
    ended = stoker("serve", "--config", str(tmp_path / "config.json"), "--data-dir", str(tmp_path / "second"))
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last == f"stoker: cannot listen on 127.0.0.1:{node.port}: address already in use"
    assert "Traceback" not in ended.stderr
