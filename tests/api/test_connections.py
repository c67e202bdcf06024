"""Clients that take their time, or too many connections: each is ended or refused, and the others do not notice.

Sizes are those of an attack with STOKER_FULL=1.
"""

import asyncio
import contextlib
import json
import os
import socket
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.api.support import Client, Raw
from tests.support import Echo, Node, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

FULL = bool(os.environ.get("STOKER_FULL"))
LIMIT_S = 10.0 if FULL else 1.0
SLOW = 1000 if FULL else 100  # connections of each kind
MOST = 40
SPARE = 4  # the store and the containers may have got a connection more
STREAMS = 5
BODY = b'{"containers":["a"],"data":{"x":"%b"}}'
POST = "POST /api/jobs HTTP/1.1"
TYPE = "Content-Type: application/json"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def quick(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> AsyncIterator[Node]:
    """A node that waits a second for a request; in full, as long as any."""
    server = {} if FULL else {"request_timeout_s": LIMIT_S}
    async with Node(tmp_path_factory.mktemp("quick"), echo.containers("a"), server=server) as node:
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> AsyncIterator[Node]:
    """A node for few connections and fewer streams, of which one runs at a time."""
    server = {"max_connections": MOST, "max_streams": STREAMS, "max_bodies_bytes": 1_000_000}
    containers = echo.containers("a", concurrency=1)
    async with Node(tmp_path_factory.mktemp("small"), containers, server=server) as node:
        yield node


async def seconds_to_end(raw: Raw, began: float) -> tuple[float, bytes]:
    """How long the connection was open, and what was said."""
    parts = []
    async with asyncio.timeout(LIMIT_S * 3 + 10):
        with contextlib.suppress(ConnectionError):
            while part := await raw.reader.read(65536):
                parts.append(part)
    return time.monotonic() - began, b"".join(parts)


def open_files(node: Node) -> int:
    return len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))


async def until_closed(node: Node, before: int) -> None:
    async def closed() -> bool:
        return open_files(node) <= before

    await eventually(closed, seconds=20, message="the end of the connections")


HEAD = "POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HALF = {
    "nothing": "",
    "half a line": "GET /hea",
    "an empty line": "\r\n",
    "half the headers": "GET /health HTTP/1.1\r\nHost: localhost\r\nX: ",
    "no body": HEAD + "Content-Length: 10\r\n\r\n",
    "half a body": HEAD + 'Content-Length: 10\r\n\r\n{"a"',
    "half a chunk": HEAD + 'Transfer-Encoding: chunked\r\n\r\n5\r\n{"a"',
    "half a list": HEAD.replace("jobs", "jobs/batch") + 'Content-Length: 10\r\n\r\n[{"a"',
}


@pytest.mark.parametrize("sent", HALF.values(), ids=HALF)
async def test_half_a_request_is_ended_in_time_and_told_why(quick: Node, sent: str) -> None:
    async with Raw(quick) as raw:
        began = time.monotonic()
        raw.writer.write(sent.encode())
        seconds, said = await seconds_to_end(raw, began)
    assert LIMIT_S * 0.9 < seconds < LIMIT_S + 5
    if not sent:
        assert said == b""
        return
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"Connection: close" in head
    params = {"limit_s": LIMIT_S, "setting": "server.request_timeout_s"}
    assert json.loads(body) == {"error": "Request too slow", "params": params}


async def test_half_a_request_after_a_whole_one_is_ended_too(quick: Node) -> None:
    async with Raw(quick) as raw:
        raw.send("GET /health HTTP/1.1")
        await raw.head()
        await raw.until(b"\n")
        began = time.monotonic()
        raw.writer.write(b"GET /hea")
        seconds, said = await seconds_to_end(raw, began)
    assert seconds < LIMIT_S + 5
    assert said.startswith(b"HTTP/1.1 408 ")


async def test_the_body_of_a_request_that_needs_none_is_not_waited_for(quick: Node) -> None:
    async with Raw(quick) as raw:
        began = time.monotonic()
        raw.send("GET /nope HTTP/1.1", "Content-Length: 10")
        assert (await raw.head())[0] == 404
        seconds, _ = await seconds_to_end(raw, began)
    assert seconds < LIMIT_S + 10


async def test_an_idle_connection_is_kept_longer_than_that(quick: Node) -> None:
    async with Raw(quick) as raw:
        for _ in range(2):
            raw.send("GET /health HTTP/1.1")
            assert (await raw.head())[0] == 200
            await raw.until(b"\n")
            await asyncio.sleep(LIMIT_S * 1.5)
        raw.send("GET /health HTTP/1.1")
        assert (await raw.head())[0] == 200


async def test_a_body_that_keeps_coming_may_take_longer(quick: Node) -> None:
    async with Raw(quick) as raw:
        body = BODY % (b"x" * 20_000 * 20)
        raw.send(POST, TYPE, f"Content-Length: {len(body)}")
        for start in range(0, len(body), 20_000):
            raw.writer.write(body[start : start + 20_000])
            await asyncio.sleep(LIMIT_S / 10)
        assert (await raw.head())[0] == 200


async def test_a_long_answer_and_a_slow_stream_may_take_longer(quick: Node) -> None:
    async with Raw(quick) as raw:
        gap = LIMIT_S * 0.8
        body = json.dumps({"containers": ["a"], "data": {"parts": ["x", "y", "z"], "gap_s": gap}})
        raw.send("POST /api/jobs/stream HTTP/1.1", TYPE, f"Content-Length: {len(body)}", body=body.encode())
        assert (await raw.head())[0] == 200
        await raw.chunk()
        assert [await raw.chunk() for _ in range(4)] == [b"x", b"y", b"z", b""]


async def test_a_client_that_does_not_read_its_answer_is_ended(quick: Node) -> None:
    job_id = await quick.submit(["a"], {"bytes": 20_000_000})
    await quick.result(job_id)
    before = open_files(quick)
    raw = Raw(quick)
    async with raw:
        raw.reader._transport.pause_reading()  # type: ignore[attr-defined]
        raw.send(f"GET /api/jobs?id={job_id} HTTP/1.1")
        began = time.monotonic()
        await eventually(lambda: _more_than(quick, before), seconds=10, message="the connection")
        await until_closed(quick, before)
    assert time.monotonic() - began < LIMIT_S + 15


@pytest.mark.parametrize(("bytes_per_s", "kept"), [(2_000, False), (500_000, True)])
async def test_a_client_that_reads_a_trickle_is_ended_and_a_slow_one_is_not(
    quick: Node, bytes_per_s: int, kept: bool
) -> None:
    """Seen from the node: what has come this far the client can read for longer."""
    job_id = await quick.submit(["a"], {"bytes": 20_000_000})
    await quick.result(job_id)
    before = open_files(quick)
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", quick.port))
        await loop.sock_sendall(client, f"GET /api/jobs?id={job_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        for _ in range(40):
            await asyncio.sleep(LIMIT_S / 10)
            with contextlib.suppress(ConnectionError):
                await loop.sock_recv(client, int(bytes_per_s * LIMIT_S / 10))
        assert (open_files(quick) > before) == kept


async def _more_than(node: Node, before: int) -> bool:
    return open_files(node) > before


async def p99(node: Node, ended: asyncio.Event, *, least: int) -> float:
    """Of submits one after the other until `ended`, seconds."""
    took = []
    async with Client(node, "127.3.0.1") as client:
        while len(took) < least or not ended.is_set():
            began = time.monotonic()
            assert (await client.ask("POST", "/api/jobs", BODY % b"x")).status == 200
            took.append(time.monotonic() - began)
    return statistics.quantiles(took, n=100)[98]


@pytest.mark.timeout(300)
async def test_slow_clients_are_ended_and_others_do_not_notice(quick: Node) -> None:
    """Half a head, or a body of which a byte comes now and then."""
    ended = asyncio.Event()
    ended.set()
    quiet = await p99(quick, ended, least=1000 if FULL else 200)
    before = open_files(quick) + SPARE

    async def slow(number: int) -> float:
        async with Raw(quick, f"127.4.{number % 4}.1") as raw:
            began = time.monotonic()
            if number % 2:
                raw.writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
            else:
                raw.send(POST, TYPE, "Content-Length: 1000", body=b"{")
            end = asyncio.ensure_future(raw.rest_of(LIMIT_S * 3 + 10))
            while not end.done():
                raw.writer.write(b"X: y\r\n" if number % 2 else b" ")
                await asyncio.wait([end], timeout=LIMIT_S / 4)
            return time.monotonic() - began

    ended.clear()
    attacked = asyncio.create_task(p99(quick, ended, least=200))
    took = await asyncio.gather(*(slow(number) for number in range(2 * SLOW)))
    ended.set()
    busy = await attacked
    print(
        f"\n{2 * SLOW} slow clients: the last was ended after {max(took):.1f} s; "
        f"p99 of a submit {quiet * 1000:.1f} ms before, {busy * 1000:.1f} ms meanwhile"
    )
    assert max(took) < LIMIT_S + 5
    assert busy < max(3 * quiet, 0.25)
    await until_closed(quick, before)


# Many


async def test_one_connection_too_many_is_told_so_and_the_next_is_served_when_one_ends(small: Node) -> None:
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(Raw(small)) for _ in range(MOST)]
        for raw in held[:-1]:  # the node's own client in this test may have one more
            raw.send("GET /health HTTP/1.1")
            assert (await raw.head())[0] == 200
        async with Raw(small) as raw:
            raw.send("GET /health HTTP/1.1")
            status, head = await raw.head()
            assert status == 503
            assert "Retry-After: 1\r\n" in head
            params = {"limit": MOST, "setting": "server.max_connections"}
            assert json.loads(await raw.until(b"\n")) == {"error": "Too many connections", "params": params}
            assert await raw.rest() == b""

    async def served() -> bool:
        async with Raw(small) as raw:
            raw.send("GET /health HTTP/1.1")
            return (await raw.head())[0] == 200

    await eventually(served, seconds=10, message="room for a connection")


async def test_far_too_many_connections_are_cut_off_and_none_is_kept(small: Node) -> None:
    before = open_files(small) + SPARE
    raws = [Raw(small) for _ in range(1000 if FULL else 300)]
    opened = await asyncio.gather(*(raw.__aenter__() for raw in raws), return_exceptions=True)
    assert open_files(small) < before + MOST + 100
    for raw in opened:
        if isinstance(raw, Raw):
            raw.writer.transport.abort()
    await until_closed(small, before)
    async with Client(small) as client:
        assert (await client.ask("GET", "/health")).status == 200
    assert small.events("server_failed") == []


async def test_one_stream_too_many_is_503_and_leaving_makes_room(small: Node) -> None:
    body = json.dumps({"containers": ["a"], "data": {"wait_for": "never"}})
    stream = ("POST /api/jobs/stream HTTP/1.1", TYPE, f"Content-Length: {len(body)}")
    before = open_files(small) + SPARE
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(Raw(small)) for _ in range(STREAMS + 1)]
        for raw in streams:  # one runs, the others wait for the container's only slot, and one is too many
            raw.send(*stream, body=body.encode())
        answers = [asyncio.create_task(raw.head()) for raw in streams]

        async def refused() -> bool:
            return sorted(answer.result()[0] for answer in answers if answer.done()) == [200, 503]

        await eventually(refused, seconds=10, message="the limit of streams")
        for waiting in answers:
            waiting.cancel()
        async with Client(small) as client:
            answer = await client.ask("POST", "/api/jobs/stream", body.encode())
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            params = {"limit": STREAMS, "setting": "server.max_streams"}
            assert answer.json == {"error": "Too many streams", "params": params}
    await until_closed(small, before)
    assert (await small.run(["a"], {"x": 1}))["status"] == "success"
    async with Client(small) as client:
        answer = await client.ask("POST", "/api/jobs/stream", {"containers": ["a"], "data": {"parts": ["x"]}})
    assert answer.body.endswith(b"\nx")


async def test_too_many_bytes_of_half_bodies_are_503_and_small_bodies_are_not(small: Node) -> None:
    body = BODY % (b"x" * 400_000)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):  # of the third a part is read before it is one too many
            raw = await stack.enter_async_context(Raw(small))
            raw.send(POST, TYPE, f"Content-Length: {len(body)}", body=body[:-1])
        status, head = await raw.head()
        assert status == 503
        assert "Retry-After: 1\r\n" in head
        params = {"limit_bytes": 1_000_000, "setting": "server.max_bodies_bytes"}
        assert json.loads(await raw.until(b"\n")) == {"error": "Too many large bodies", "params": params}
        async with Client(small) as client:
            assert (await client.ask("POST", "/api/jobs", BODY % b"x")).status == 200
    async with Client(small) as client:
        for _ in range(5):
            assert (await client.ask("POST", "/api/jobs", body)).status == 200


async def test_a_body_counts_until_its_request_is_answered(small: Node) -> None:
    wish = b'{"containers":["a"],"data":{"wait_for":"never","x":"%b"}}' % (b"x" * 600_000)
    async with Raw(small) as raw:
        raw.send("POST /api/jobs/stream HTTP/1.1", TYPE, f"Content-Length: {len(wish)}", body=wish)
        assert (await raw.head())[0] == 200
        async with Client(small) as client:
            answer = await client.ask("POST", "/api/jobs", BODY % (b"x" * 600_000))
            assert (answer.status, answer.json["error"]) == (503, "Too many large bodies")
            assert (await client.ask("POST", "/api/jobs", BODY % b"x")).status == 200

    async def accepted() -> bool:
        async with Client(small) as client:
            return (await client.ask("POST", "/api/jobs", BODY % (b"x" * 600_000))).status == 200

    await eventually(accepted, seconds=10, message="room for a large body")


@pytest.mark.timeout(300)
async def test_few_open_files_make_fewer_connections_and_no_crash(tmp_path: Path, echo: Echo) -> None:
    node = Node(tmp_path, echo.containers("a"))
    node.prefix = ["prlimit", "--nofile=400:400"]
    async with node:
        (event,) = node.events("connections_limited")
        assert (event["limit"], event["wanted"]) == (80, 4096)
        raws = [Raw(node) for _ in range(600)]
        opened = await asyncio.gather(*(raw.__aenter__() for raw in raws), return_exceptions=True)
        assert (await node.post("/api/jobs", {"containers": ["a"], "data": {}}))["id"]  # over the connection it has
        for raw in opened:
            if isinstance(raw, Raw):
                raw.writer.transport.abort()
        assert (await node.run(["a"], {"x": 1}))["status"] == "success"
        assert node.events("server_failed") == []


@pytest.mark.skipif(not FULL, reason="takes thousands of connections")
@pytest.mark.timeout(300)
async def test_thousands_of_streams_are_refused_and_not_a_crash(tmp_path: Path, echo: Echo) -> None:
    body = json.dumps({"containers": ["a"], "data": {"wait_for": "never"}})
    async with Node(tmp_path, echo.containers("a")) as node:
        before = open_files(node) + SPARE
        raws = [Raw(node, f"127.5.{number % 8}.1") for number in range(10_000)]
        opened = []
        for start in range(0, len(raws), 500):
            part = await asyncio.gather(
                *(raw.__aenter__() for raw in raws[start : start + 500]), return_exceptions=True
            )
            for raw in part:
                if isinstance(raw, Raw):
                    raw.send("POST /api/jobs/stream HTTP/1.1", TYPE, f"Content-Length: {len(body)}", body=body.encode())
                    opened.append(raw)
        print(f"\n{len(opened)} of 10,000 connected; {open_files(node)} files open in the node")
        for raw in opened:
            raw.writer.transport.abort()
        await until_closed(node, before)
        assert (await node.run(["a"], {"x": 1}))["status"] == "success"
        assert node.events("server_failed") == []


async def test_clients_that_leave_at_any_moment_leave_nothing_behind(small: Node) -> None:
    before = open_files(small) + SPARE
    for data in ({"parts": ["x"] * 50, "gap_s": 0.01}, {"wait_for": "never"}, {"sleep_s": 0.2}):
        for path in ("/api/jobs", "/api/jobs/stream"):
            body = json.dumps({"containers": ["a"], "data": data}).encode()
            for cut in (0, len(body) // 2, len(body)):
                async with Raw(small, "127.6.0.1") as raw:
                    raw.send(f"POST {path} HTTP/1.1", TYPE, f"Content-Length: {len(body)}", body=body[:cut])
                    await raw.writer.drain()
                    raw.writer.transport.abort()
    await until_closed(small, before)
    async with Client(small, "127.6.0.1") as client:
        for job_id in await client.get("/api/jobs"):
            await client.ask("DELETE", f"/api/jobs/{job_id}")
    assert (await small.run(["a"], {"x": 1}))["status"] == "success"
    assert small.events("request_failed") == []
    assert small.events("server_failed") == []


async def test_one_callers_streams_leave_slots_and_streams_for_others(tmp_path: Path, echo: Echo) -> None:
    server = {"max_streams_per_caller": 3}
    body = json.dumps({"containers": ["a"], "data": {"wait_for": "never"}})
    stream = ("POST /api/jobs/stream HTTP/1.1", TYPE, f"Content-Length: {len(body)}")
    async with (
        Node(tmp_path, echo.containers("a", concurrency=3), server=server) as node,
        contextlib.AsyncExitStack() as stack,
        Client(node) as client,
        Client(node, "127.4.0.1") as other,
    ):
        streams = [await stack.enter_async_context(Raw(node)) for _ in range(3)]
        for raw in streams[:2]:
            raw.send(*stream, body=body.encode())
            assert (await raw.head())[0] == 200  # two of three slots; the third stream waits
        streams[2].send(*stream, body=body.encode())

        async def refused() -> bool:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1), Client(node) as fourth:
                    return (await fourth.ask("POST", "/api/jobs/stream", body.encode())).status == 429
            return False  # it waited in the third's place

        await eventually(refused, seconds=10, message="the caller's limit of streams")
        answer = await client.ask("POST", "/api/jobs/stream", body.encode())
        params = {"limit": 3, "setting": "server.max_streams_per_caller"}
        assert (answer.status, answer.json) == (429, {"error": "Too many streams at once", "params": params})
        assert (await other.result(await other.submit("a", data={"x": 1})))["status"] == "success"
        answer = await other.ask("POST", "/api/jobs/stream", {"containers": ["a"], "data": {"parts": ["x"]}})
        assert answer.body.endswith(b"\nx")
        streams[0].writer.transport.abort()
        assert (await streams[2].head())[0] == 200
