"""The rate limit: exact, per caller and route, over all nodes of a store; and what it says of itself."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from node.jobs import Role
from node.store import Store
from tests.api.support import Answer, Client
from tests.secrets import NO_KEY
from tests.support import Echo, Node, RedisServer, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

JOB = {"containers": ["a"], "data": {}}
LIMIT = 20
PERIOD_S = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer("valkey", tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def nodes(tmp_path_factory: pytest.TempPathFactory, echo: Echo, server: RedisServer) -> AsyncIterator[list[Node]]:
    """Two nodes on one store; the second one has been closed by a key, the first one is told of it within a second."""
    async with AsyncExitStack() as stack:
        settings = {"rate_limit": {"num_requests": LIMIT, "period": PERIOD_S}}
        yield [
            await stack.enter_async_context(
                Node(
                    tmp_path_factory.mktemp("limited"), echo.containers("a"), redis={"url": server.url}, server=settings
                )
            )
            for _ in range(2)
        ]


async def asked(nodes: list[Node], count: int, path: str, address: str, **headers: str) -> list[Answer]:
    """So many requests by as many parallel clients, from one address to the nodes in turn."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(nodes[i % len(nodes)], address)) for i in range(count)]
        return await asyncio.gather(*(client.ask("GET", path, **headers) for client in clients))


def tally(answers: list[Answer]) -> dict[int, int]:
    statuses = [answer.status for answer in answers]
    return {status: statuses.count(status) for status in sorted(set(statuses))}


async def test_it_is_exact_under_50_parallel_clients_of_two_nodes(nodes: list[Node]) -> None:
    for address in ("127.2.1.1", "127.2.1.2"):
        answers = await asked(nodes, 50, "/api/jobs", address)
        assert tally(answers) == {200: LIMIT, 429: 50 - LIMIT}
        refusal = next(answer for answer in answers if answer.status == 429)
        assert refusal.json == {"error": "Too many requests", "params": {"limit": LIMIT, "period_s": PERIOD_S}}
        assert PERIOD_S - 20 <= int(refusal.headers["Retry-After"]) <= PERIOD_S
        assert refusal.headers["RateLimit-Remaining"] == "0"
        assert "X-Request-ID" in refusal.headers


async def test_each_answer_tells_what_is_left(nodes: list[Node]) -> None:
    async with Client(nodes[0], "127.2.2.1") as client:
        for used in range(1, 4):
            answer = await client.ask("POST", "/api/jobs", JOB)
            assert answer.status == 200
            assert answer.headers["RateLimit-Limit"] == str(LIMIT)
            assert answer.headers["RateLimit-Remaining"] == str(LIMIT - used)
            assert PERIOD_S - 20 <= int(answer.headers["RateLimit-Reset"]) <= PERIOD_S
        answer = await client.ask("POST", "/api/jobs/stream", {"containers": ["a"], "data": {"parts": ["x"]}})
        assert (answer.status, answer.headers["RateLimit-Remaining"]) == (200, str(LIMIT - 1))
        for path in ("/health", "/health/live", "/health/ready"):
            answer = await client.ask("GET", path)
            assert "RateLimit-Limit" not in answer.headers


async def test_health_and_reports_are_not_counted(nodes: list[Node]) -> None:
    assert tally(await asked(nodes, LIMIT + 5, "/health/live", "127.0.0.1")) == {200: LIMIT + 5}
    async with Client(nodes[0]) as client:
        for number in range(LIMIT + 5):
            body = {"id": f"r-{number}", "status": "success", "containers": ["a"]}
            assert (await client.ask("PUT", "/api/status", body)).status == 200


async def test_the_window_moves(nodes: list[Node], server: RedisServer) -> None:
    """Not one period after the other: a request is let in when the oldest of the last ones is a period ago."""
    node = Node(nodes[0].directory / "quick", [], redis={"url": server.url})
    node.directory.mkdir()
    node.config["server"]["rate_limit"] = {"num_requests": 4, "period": 1}
    node.config["containers"] = []
    async with node, Client(node, "127.2.3.1") as client:
        passed: list[tuple[float, float]] = []
        until = time.monotonic() + 3
        while time.monotonic() < until:
            began = time.monotonic()
            if (await client.ask("GET", "/api/jobs")).status == 200:
                passed.append((began, time.monotonic()))
            await asyncio.sleep(0.05)
    assert len(passed) >= 8
    for (first_began, _), (_, fifth_ended) in zip(passed, passed[4:], strict=False):
        assert fifth_ended - first_began >= 1


async def test_with_keys_it_is_the_key_that_is_counted_and_a_refusal_by_the_address(
    nodes: list[Node], server: RedisServer
) -> None:
    async with Store(server.url, node_id="test") as store:
        keys = [(await store.access.create(name, Role.SUBMIT))[0] for name in ("shop", "rival")]
    for key in keys:  # one address, two keys
        answers = await asked(nodes, 50, "/api/jobs", "127.2.4.1", Authorization=f"Bearer {key}")
        assert tally(answers) == {200: LIMIT, 429: 50 - LIMIT}
    answers = await asked(nodes, 5, "/api/jobs", "127.2.4.2", Authorization=f"Bearer {keys[0]}")
    assert tally(answers) == {429: 5}  # another address, the same key

    async def closed() -> bool:
        return {answer.status for answer in await asked(nodes, 2, "/resources", "127.2.4.3")} == {401}

    await eventually(closed, seconds=5, message="the end of the open door")
    answers = await asked(nodes, 50, "/info", "127.2.4.4", Authorization=f"Bearer {NO_KEY}")
    assert tally(answers) == {401: LIMIT, 429: 50 - LIMIT}
    answers = await asked(nodes, 5, "/resources", "127.2.4.4", Authorization=f"Bearer {keys[1]}")
    assert tally(answers) == {200: 5}  # whoever shares the address with a guesser is not harmed


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_without_the_store_a_request_is_503_within_two_seconds(
    nodes: list[Node], server: RedisServer, fault: str
) -> None:
    """The last test of this module: the nodes have keys by now."""
    async with Store(server.url, node_id="test") as store:
        secret, _ = await store.access.create(fault, Role.SUBMIT)
    authorization = f"Bearer {secret}"
    assert tally(await asked(nodes, 2, "/resources", "127.2.5.1", Authorization=authorization)) == {200: 2}
    if fault == "killed":
        server.kill()
    else:
        server.process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(2):
            began = time.monotonic()
            answers = await asked(nodes, 50, "/resources", "127.2.5.1", Authorization=authorization)
            assert tally(answers) == {503: 50}
            assert all(json.loads(answer.body)["error"] == "The job store does not answer" for answer in answers)
            assert time.monotonic() - began < 3.5  # two, and what a busy machine adds
    finally:
        if fault == "killed":
            await asyncio.to_thread(server.start)
        else:
            server.process.send_signal(signal.SIGCONT)

    async def back() -> bool:
        answers = await asked(nodes, 2, "/resources", "127.2.5.1", Authorization=authorization)
        return tally(answers) == {200: 2}

    await eventually(back, seconds=10, message="the store")
