"""What a balancer, a supervisor and Prometheus ask, and that they are answered whatever stands still."""

import asyncio
import signal
import socket
from pathlib import Path

import aiohttp
import pytest

from node import __version__
from tests.support import Echo, Node, RedisServer, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_node_that_can_work_is_live_and_ready(node: Node) -> None:
    assert await node.get("/health/live") == {"status": "live"}
    await eventually(lambda: is_ready(node), message="readiness")
    ready = await node.get("/health/ready")
    assert (ready["status"], ready["reasons"]) == ("ready", [])
    assert [words.partition(":")[0] for words in ready["warnings"]] == ["container gone"]


async def test_the_counters_are_shown_in_the_format_of_prometheus(node: Node) -> None:
    async with node.session.get("/metrics") as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert await node.metric("stoker_build_info", version=__version__) == 1
    assert await node.metric("stoker_store_up") == 1
    assert await node.metric("stoker_store_unavailable_seconds_total") == 0


async def test_a_node_without_its_store_is_live_and_says_why_it_is_not_ready(tmp_path: Path, echo: Echo) -> None:
    server = RedisServer("valkey", tmp_path / "redis")
    node = Node(tmp_path, echo.containers("a"), redis={"url": server.url})
    node.session = aiohttp.ClientSession(node.url)
    try:
        await node.start()
        await node.get("/health/live")
        unready = await node.get("/health/ready", status=503)
        assert unready["status"] == "unready"
        assert unready["reasons"] == [f"redis: connection refused 127.0.0.1:{server.port}"]
        assert await node.metric("stoker_store_up") == 0
        with server:
            await eventually(lambda: is_ready(node), message="readiness")
            assert (await node.run(["a"], {"x": 1}))["status"] == "success"
            assert await node.metric("stoker_store_up") == 1
            assert await node.metric("stoker_store_unavailable_seconds_total") > 0
            await frozen(node, server)
    finally:
        await node.__aexit__(None, None, None)


async def frozen(node: Node, server: RedisServer) -> None:
    server.process.send_signal(signal.SIGSTOP)
    began = asyncio.get_running_loop().time()
    answers = await asyncio.gather(*(node.get("/health/ready", status=503) for _ in range(5)))
    assert asyncio.get_running_loop().time() - began < 2
    assert answers[0]["reasons"][0].startswith("redis: no answer")
    await node.get("/health/live")
    server.process.send_signal(signal.SIGCONT)
    await eventually(lambda: is_ready(node), message="readiness")


async def is_ready(node: Node) -> bool:
    async with node.session.get("/health/ready") as answer:
        return answer.status == 200


async def test_a_node_is_not_ready_before_a_container_was(tmp_path: Path, echo: Echo) -> None:
    gone = {"id": "gone", "url": "http://127.0.0.1:1"}  # nobody takes that port meanwhile
    async with Node(tmp_path, [gone], down=("gone",)) as node:
        unready = await node.get("/health/ready", status=503)
        assert unready["reasons"] == ["no container is ready yet: 1 of 1 are not"]
        assert unready["warnings"][0].startswith("container gone: ")
    async with Node(tmp_path, [gone, *echo.containers("a")], down=("gone",)) as node:
        await eventually(lambda: is_ready(node), message="readiness")


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
async def test_probes_can_only_be_read(node: Node, path: str) -> None:
    await node.post(path, {}, status=405)


async def test_a_docker_engine_that_is_stuck_does_not_keep_the_node_from_serving(tmp_path: Path, echo: Echo) -> None:
    """It takes connections and never answers."""
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "engine"))
        engine.listen(100)
        node = Node(tmp_path, [*echo.containers("a"), {"id": "b", "image": "b:1"}], backend="docker", down=("b",))
        node.environment = {"DOCKER_HOST": f"unix://{tmp_path / 'engine'}"}
        began = asyncio.get_running_loop().time()
        async with node:
            assert asyncio.get_running_loop().time() - began < 25
            await node.get("/health/live")
            await eventually(lambda: is_ready(node), message="readiness")
            assert (await node.run(["a"], {}))["status"] == "success"
