"""HTTP from the asking side, against servers that the tests play byte by byte, on both event loops."""

import asyncio
import gzip
import hashlib
import re
import socket
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from node.config import ContainerSpec
from node.errors import BackendError
from node.jobs import ContainerError
from node.service import Service
from node.wire import Answer, Broken, Peer, Unreachable, peer
from tests.api.test_tls import certificate
from tests.support import Node, eventually
from tests.test_service import OK, answer, chunked, container, request_of

MIB = 2**20

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Does `talk` on each connection; knows how many there were and how many are open."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.accepted = 0
        self.now = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.now += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.talk(reader, writer)
                await writer.drain()
        finally:
            self.now -= 1
            writer.close()

    async def until_closed(self) -> None:
        async def closed() -> bool:
            return self.now == 0

        await eventually(closed, seconds=5, message="the end of the connection")


@asynccontextmanager
async def served(talk: Talk | bytes, *, host: str = "127.0.0.1") -> AsyncIterator[tuple[Peer, Server]]:
    """A peer, and the server that it talks to. Bytes are what is answered to each request."""

    async def same(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            writer.write(talk)

    server = Server(talk if callable(talk) else same)
    async with await asyncio.start_server(server.connected, host, 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        there = Peer(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        yield there, server
        there.close()
        listening.close()
        await server.until_closed()


async def ask(there: Peer, body: bytes | None = b"{}", *, seconds: float = 10) -> tuple[int, bytes]:
    head = there.head("GET" if body is None else "POST", "/x")
    reply = await there.ask(head, body, seconds)
    try:
        return reply.status, await rest(reply)
    finally:
        reply.close()


async def rest(reply: Answer) -> bytes:
    parts = []
    while part := await reply.more():
        parts.append(part)
    return b"".join(parts)


def port_of(there: Peer) -> int:
    return int(there.head("GET", "/").partition(b"Host: 127.0.0.1:")[2].partition(b"\r\n")[0])


# Every shape of an answer, in pieces of every size

PACKED = gzip.compress(b"[1") + gzip.compress(b",2]")
SHAPES = {
    "length": (answer(b"[1]"), 200, b"[1]"),
    "chunks": (chunked(b"[", b"1", b"]"), 200, b"[1]"),
    "extensions and trailers": (
        OK + b'Transfer-Encoding: chunked\r\n\r\n3;a=b;c="d;e"\r\n[1]\r\n0;last\r\nContent-Type: x\r\nX: y\r\n\r\n',
        200,
        b"[1]",
    ),
    "spaces after the size": (OK + b"Transfer-Encoding: chunked\r\n\r\n3 \r\n[1]\r\n0\r\n\r\n", 200, b"[1]"),
    "empty": (answer(b""), 200, b""),
    "interim ones first": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\nLink: x\r\n\r\n"
        + answer(b"[1]"),
        200,
        b"[1]",
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "no content, with a length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204, b""),
    "not modified, with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b""),
    "empty lines first": (b"\r\n\r\n" + answer(b"[1]"), 200, b"[1]"),
    "line feeds alone": (b"HTTP/1.1 200 OK\nContent-Length: 3\n\n[1]", 200, b"[1]"),
    "no reason": (b"HTTP/1.1 200\r\nX-Empty:\r\nContent-Length: 3\r\n\r\n[1]", 200, b"[1]"),
    "gzip": (answer(PACKED, headers=b"Content-Encoding: gzip\r\n"), 200, b"[1,2]"),
    "gzip in chunks": (chunked(PACKED[:5], PACKED[5:], headers=b"Content-Encoding: GZIP\r\n"), 200, b"[1,2]"),
    "deflate": (answer(zlib.compress(b"[1]"), headers=b"Content-Encoding: deflate\r\n"), 200, b"[1]"),
    "deflate without its head": (
        answer(zlib.compress(b"[1]", wbits=-15), headers=b"Content-Encoding: deflate\r\n"),
        200,
        b"[1]",
    ),
    "a coding that is none": (answer(b"[1]", headers=b"Content-Encoding: utf-8\r\n"), 200, b"[1]"),
}
LASTING = set(SHAPES)
SHAPES |= {
    "until it closes": (OK + b"\r\n[1]", 200, b"[1]"),
    "until it closes, coded": (OK + b"Transfer-Encoding: identity\r\n\r\n[1]", 200, b"[1]"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\n[1]", 200, b"[1]"),
    "closes after it": (answer(b"[1]", headers=b"Connection: close\r\n"), 200, b"[1]"),
    "switches": (b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nabc", 101, b""),
    "line end too many": (answer(b"[1]") + b"\0", 200, b"[1]"),
    "two answers": (answer(b"[1]") + answer(b"[2]"), 200, b"[1]"),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_answer_is_read_whole_and_its_connection_used_again_if_that_is_safe(shape: str) -> None:
    raw, *expected = SHAPES[shape]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            writer.write(raw)
            if shape not in LASTING:
                break

    async with served(talk) as (there, server):
        assert [list(await ask(there)) for _ in range(3)] == [expected] * 3
        assert server.accepted == (1 if shape in LASTING else 3)


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_answer_may_come_byte_by_byte(shape: str) -> None:
    raw, *expected = SHAPES[shape]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        for byte in raw:
            writer.write(b"%c" % byte)
            await writer.drain()
            await asyncio.sleep(0)

    async with served(talk) as (there, _):
        assert list(await ask(there)) == expected


# What is no answer

CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n"
WRONG = {
    "text": (b"hello\r\n\r\n", "its answer is not HTTP: "),
    "both lengths": (
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1]\r\n0\r\n\r\n",
        "its answer is not HTTP: ",
    ),
    "two lengths": (OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n[1]", "its answer is not HTTP: "),
    "a negative length": (OK + b"Content-Length: -3\r\n\r\n[1]", "its answer is not HTTP: "),
    "a length beyond all": (OK + b"Content-Length: 99999999999999999999999\r\n\r\n[1]", "its answer is not HTTP: "),
    "a bad chunk": (CHUNKS + b"zz\r\n", "its answer is not HTTP: "),
    "half a line": (b"HTTP/1.", "closed by the container within the head of its answer"),
    "half a head": (OK + b"Content-Ty", "closed by the container within the head of its answer"),
    "half a body": (OK + b"Content-Length: 4\r\n\r\n[1]", "closed by the container within its answer"),
    "half a chunk": (CHUNKS + b"4\r\n[1]", "closed by the container within its answer"),
    "no last chunk": (CHUNKS + b"3\r\n[1]\r\n", "closed by the container within its answer"),
    "only an interim one": (
        b"HTTP/1.1 100 Continue\r\n\r\n",
        "closed by the container within the head of its answer",
    ),
    "half a gzip": (answer(PACKED[:9], headers=b"Content-Encoding: gzip\r\n"), "its answer ends within its gzip"),
    "no gzip": (answer(b"[1]", headers=b"Content-Encoding: gzip\r\n"), "its answer is no gzip"),
    "more than a gzip": (answer(PACKED + b"junk", headers=b"Content-Encoding: gzip\r\n"), "its answer is no gzip"),
    "brotli": (
        answer(b"[1]", headers=b"Content-Encoding: br\r\n"),
        "its answer is packed with br, which was not asked for",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_is_no_answer_is_told_and_its_connection_closed(wrong: str) -> None:
    raw, told = WRONG[wrong]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(raw)
        await writer.drain()
        if told.startswith("closed"):
            writer.write_eof()
        await reader.read()

    async with served(talk) as (there, server):
        with pytest.raises(Broken, match="^" + re.escape(told)) as caught:
            await ask(there)
        assert not caught.value.unheard
        if "gzip" not in wrong and wrong != "brotli":
            await server.until_closed()


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit


ENDLESS = {
    "a status line": (b"HTTP/1.1 200 ", b"x"),
    "a name": (OK, b"x"),
    "a value": (OK + b"X: ", b"x"),
    "headers": (OK, b"X: y\r\n"),
    "many headers": (OK, b"".join(b"X%d: y\r\n" % i for i in range(2**14))),
    "interim answers": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "a chunk's extension": (CHUNKS + b"3;", b"x"),
    "a trailer": (CHUNKS + b"3\r\n[1]\r\n0\r\nX: ", b"x"),
    "trailers": (CHUNKS + b"3\r\n[1]\r\n0\r\n", b"X: y\r\n"),
}


@pytest.mark.parametrize("endless", ENDLESS)
async def test_heads_and_trailers_without_end_are_cut(endless: str) -> None:
    begin, again = ENDLESS[endless]
    block = again * (2**16 // len(again) + 1)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(begin)
        while True:
            writer.write(block)
            await writer.drain()

    async with served(talk) as (there, server):
        with memory_below(4 * MIB), pytest.raises(Broken, match="its answer has over 65536 bytes of headers"):
            await ask(there)
        await server.until_closed()


@pytest.mark.parametrize("size", [60_000, 70_000])
async def test_a_head_that_comes_at_once_has_the_same_limit(size: int) -> None:
    head = b"".join(b"X%d: %b\r\n" % (i, b"y" * 990) for i in range(size // 1000))
    async with served(answer(b"[1]", headers=head)) as (there, _):
        if size < 65_536:
            assert await ask(there) == (200, b"[1]")
        else:
            with pytest.raises(Broken, match="its answer has over 65536 bytes of headers"):
                await ask(there)


async def test_many_small_chunks_are_no_long_head() -> None:
    body = b"[" + b"1," * 50_000 + b"1]"
    async with served(chunked(*(b"%c" % byte for byte in body))) as (there, _):
        assert await ask(there) == (200, body)


# Which connection is used


async def test_the_connection_used_last_is_used_next() -> None:
    ports = []
    both = asyncio.Barrier(2)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, body = await request_of(reader)
            if body == b"both":
                await both.wait()
            ports.append(writer.get_extra_info("peername")[1])
            writer.write(answer(b""))

    async with served(talk) as (there, server):
        await asyncio.gather(ask(there, b"both"), ask(there, b"both"))
        for _ in range(3):
            await ask(there)
        assert server.accepted == 2
        assert len(set(ports[2:])) == 1


async def test_idle_connections_are_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "KEEPALIVE_S", 0.2)
    both = asyncio.Barrier(2)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, body = await request_of(reader)
            if body == b"both":
                await both.wait()
            writer.write(answer(b""))

    async with served(talk) as (there, server):
        await asyncio.gather(ask(there, b"both"), ask(there, b"both"))
        await asyncio.sleep(0.1)
        await ask(there)  # one of them is idle from now only
        assert server.now == 2
        await server.until_closed()
        assert server.accepted == 2


async def test_what_is_under_way_when_all_is_closed_is_answered_and_then_closed() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        asked.set()
        await told.wait()
        writer.write(answer(b"[1]"))
        await reader.read()

    asked, told = asyncio.Event(), asyncio.Event()
    async with served(talk) as (there, server), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(ask(there))
        await asked.wait()
        there.close()
        told.set()
        assert await asking == (200, b"[1]")
        await server.until_closed()


async def test_trailers_are_no_headers_of_this_answer_or_the_next() -> None:
    raw = OK + b"A: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nB: 2\r\n\r\n"
    async with served(raw) as (there, server):
        for _ in range(2):
            reply = await there.ask(there.head("GET", "/"), None, 10)
            assert reply.headers == {b"a": b"1", b"transfer-encoding": b"chunked"}
            assert await rest(reply) == b""
        assert server.accepted == 1


@pytest.mark.parametrize("last", [b"", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", b"\r\n"])
async def test_a_connection_that_the_server_ended_while_idle_is_not_used(last: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(answer(b"[1]"))
        await told.wait()
        writer.write(last)
        if last:
            await reader.read()

    async with served(talk) as (there, server):
        for accepted in (1, 2):
            told = asyncio.Event()
            assert await ask(there) == (200, b"[1]")
            assert (server.accepted, server.now) == (accepted, 1)
            told.set()
            await server.until_closed()


async def closes_at_the_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    writer.write(answer(b"[1]"))
    await request_of(reader)


async def test_a_kept_connection_that_turns_out_closed_is_replaced_for_a_request_without_a_body() -> None:
    async with served(closes_at_the_second) as (there, server):
        for accepted in (1, 2, 3):
            assert await ask(there, None) == (200, b"[1]")
            assert server.accepted == accepted


async def test_a_request_with_a_body_is_never_sent_twice() -> None:
    async with served(closes_at_the_second) as (there, server):
        await ask(there)
        with pytest.raises(Broken, match="closed by the container before it answered") as caught:
            await ask(there)
        assert caught.value.unheard
        assert server.accepted == 1


async def test_a_reset_before_an_answer_is_told_as_unheard() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with served(talk) as (there, _):
        with pytest.raises(Broken, match="before it answered") as caught:
            await ask(there)
        assert caught.value.unheard


async def test_an_answer_before_the_request_was_sent_counts_and_ends_the_connection() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"too much", "413 Too Large"))
        await writer.drain()
        await closed.wait()

    closed = asyncio.Event()
    async with served(talk) as (there, server):
        assert await ask(there, b"x" * 32 * MIB) == (413, b"too much")
        assert await ask(there, b"x" * 32 * MIB) == (413, b"too much")
        assert server.accepted == 2
        closed.set()


# Time, and giving up


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    await reader.read()


async def test_each_request_has_its_own_time_on_one_connection() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, body = await request_of(reader)
            if body == b"never":
                await reader.read()
            await asyncio.sleep(0.4 if body == b"later" else 0)
            writer.write(answer(b""))

    loop = asyncio.get_running_loop()
    async with served(talk) as (there, server):
        await ask(there, b"now", seconds=0.2)
        await ask(there, b"later", seconds=5)  # the first one's time is over meanwhile
        await ask(there, b"now", seconds=60)
        assert server.accepted == 1
        began = loop.time()
        with pytest.raises(TimeoutError):
            await ask(there, b"never", seconds=0.2)
        assert 0.15 < loop.time() - began < 3


@pytest.mark.parametrize("begun", [b"", OK, OK + b"Content-Length: 9\r\n\r\n", CHUNKS + b"3\r\n[1]\r\n"])
@pytest.mark.parametrize("how", ["time", "cancel"])
async def test_a_request_that_is_given_up_closes_its_connection(begun: bytes, how: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(begun)
        asked.set()
        await reader.read()

    asked = asyncio.Event()
    async with served(talk) as (there, server), asyncio.TaskGroup() as tasks:
        if how == "time":
            with pytest.raises(TimeoutError):
                await ask(there, seconds=0.1)
        else:
            asking = tasks.create_task(ask(there))
            await asked.wait()
            asking.cancel()
        await server.until_closed()


async def test_an_answer_that_is_closed_early_closes_its_connection() -> None:
    async with served(OK + b"Content-Length: 9\r\n\r\n[") as (there, server):
        reply = await there.ask(there.head("GET", "/"), None, 10)
        assert reply.status == 200
        reply.close()
        await server.until_closed()


async def test_connecting_has_the_same_time() -> None:
    with socket.socket() as full:  # nobody accepts, and the queue of those who wait is full
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        there = Peer(f"http://127.0.0.1:{full.getsockname()[1]}")
        with pytest.raises(TimeoutError):
            await ask(there, seconds=0.2)
        for each in waiting:
            each.close()


# Much


async def test_a_slow_reader_makes_the_server_wait() -> None:
    sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request_of(reader)
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % (64 * MIB))
        for _ in range(64):
            writer.write(bytes(MIB))
            await writer.drain()
            sent += 1

    async def stands_still() -> bool:
        before = sent
        await asyncio.sleep(0.3)
        return before == sent

    async with served(talk) as (there, _):
        reply = await there.ask(there.head("GET", "/"), None, 60)
        await eventually(stands_still)
        assert sent < 32
        assert len(await rest(reply)) == 64 * MIB
        reply.close()


async def test_a_large_body_goes_out_as_fast_as_it_is_read() -> None:
    body = b"0123456789abcdef" * (2 * MIB)
    digest = hashlib.sha256()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        left = len(body)
        while left:
            part = await reader.read(2**18)
            digest.update(part)
            left -= len(part)
        writer.write(answer(b"[1]"))

    async with served(talk) as (there, _):
        with memory_below(8 * MIB):
            assert await ask(there, body) == (200, b"[1]")
        assert digest.digest() == hashlib.sha256(body).digest()


# Where it is


async def test_names_and_addresses_of_either_kind() -> None:
    async with served(answer(b"[1]")) as (there, _):
        port = port_of(there)
        by_name = Peer(f"http://LocalHost:{port}")  # it stands for ::1 as well, where nobody listens
        assert await ask(by_name) == (200, b"[1]")
        assert f"\r\nHost: localhost:{port}\r\n".encode() in by_name.head("GET", "/")
        by_name.close()
    with suppress(OSError):  # a machine without IPv6
        async with served(answer(b"[1]"), host="::1") as (there, _):
            assert await ask(there) == (200, b"[1]")
            assert b"\r\nHost: [::1]:" in there.head("GET", "/")


@pytest.mark.parametrize(
    ("url", "path", "query", "line", "host"),
    [
        ("http://a", "/x", {}, "/x", "a"),
        ("http://a:80/base", "/x", {}, "/base/x", "a"),
        ("https://a:443/b c", "/x", {"q": "a/b c&d=é"}, "/b%20c/x?q=a/b+c%26d%3D%C3%A9", "a"),
        ("https://a:80", "/x", {"q": ""}, "/x?q=", "a:80"),
        ("http://münchen.test", "/x", {}, "/x", "xn--mnchen-3ya.test"),
        ("http://[::1]:3000/é", "/x", {}, "/%C3%A9/x", "[::1]:3000"),
    ],
)
def test_the_head_of_a_request(url: str, path: str, query: dict[str, str], line: str, host: str) -> None:
    head = Peer(url).head("GET", path, query)
    assert head == f"GET {line} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\nAccept-Encoding: identity\r\n".encode()


@pytest.mark.parametrize(
    ("url", "bearer", "sent"),
    [
        ("http://user:p%40ss@a", "", "Basic dXNlcjpwQHNz"),
        ("http://user@a", "", "Basic dXNlcjo="),
        ("http://a", "secret", "Bearer secret"),
        ("http://user:pass@a", "secret", "Bearer secret"),
    ],
)
def test_credentials(url: str, bearer: str, sent: str) -> None:
    assert f"\r\nAuthorization: {sent}\r\n".encode() in Peer(url, bearer=bearer).head("GET", "/")
    assert b"\r\nHost: a\r\n" in Peer(url, bearer=bearer).head("GET", "/")


@pytest.mark.parametrize(
    ("url", "bearer"), [("http://a:99999", ""), ("http://", ""), ("/", ""), ("http://a", "b\r\nc")]
)
def test_where_nothing_can_be_asked_is_told(url: str, bearer: str) -> None:
    service = Service(ContainerSpec.model_validate({"id": "box", "url": "http://a", "bearer": bearer}))
    with pytest.raises(BackendError, match="cannot be used: ") as caught:
        service.url = url
    assert not caught.value.retry


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a..b", "a" * 70 + ".invalid"])
async def test_a_name_that_leads_nowhere_is_told(name: str) -> None:
    with pytest.raises(Unreachable):
        await ask(Peer(f"http://{name}"))


async def test_a_new_url_ends_what_led_to_the_old_one() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked.append((await request_of(reader))[1])
            writer.write(answer(b"{}"))

    asked: list[bytes] = []
    old, new = Server(talk), Server(talk)
    async with container(b"") as service:
        for server in (old, new, new):
            async with await asyncio.start_server(server.connected, "127.0.0.1", 0) as listening:
                service.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
                await old.until_closed()
                await service.call(b"{}", requires_proof=False)
                assert server.now == 1
        service.url = ""
        await new.until_closed()
        nowhere = await service.call(b"{}", requires_proof=False)
        assert nowhere == ContainerError(
            container="box", error="container 'box': cannot connect: it has no address yet"
        )
    assert (old.accepted, new.accepted, len(asked)) == (1, 2, 3)


@asynccontextmanager
async def secured(folder: Path) -> AsyncIterator[tuple[int, Path, list[bytes]]]:
    """A server with a certificate: its port, the certificate, and the heads of what it was asked."""
    cert, key = certificate(folder)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)
    heads = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append((await request_of(reader))[0])
            writer.write(answer(b"{}"))

    async with await asyncio.start_server(Server(talk).connected, "127.0.0.1", 0, ssl=tls) as listening:
        yield listening.sockets[0].getsockname()[1], cert, heads


@pytest.mark.asyncio(loop_factories=["asyncio"])  # the node has its own
async def test_https_to_whom_the_system_trusts(tmp_path: Path) -> None:
    async with secured(tmp_path) as (port, cert, heads):
        node = Node(tmp_path, [{"id": "box", "url": f"https://user:pass@localhost:{port}/base"}])
        node.environment = {"SSL_CERT_FILE": str(cert)}
        async with node:
            assert (await node.run(["box", "box"], {}))["status"] == "success"
    assert heads[-1].startswith(b"POST /base/service_output HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Basic dXNlcjpwYXNz\r\n" in heads[-1]


async def test_why_https_fails_is_told(tmp_path: Path) -> None:
    async def no_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer(b"", "400 Bad Request"))

    async with secured(tmp_path) as (port, _, heads):
        with pytest.raises(Unreachable, match="its certificate is not trusted: self-signed certificate"):
            await ask(Peer(f"https://localhost:{port}"))
        with pytest.raises(Broken):
            await ask(Peer(f"http://localhost:{port}"))
    assert heads == []
    async with served(no_tls) as (there, _):
        with pytest.raises(Unreachable, match=r"^TLS failed: "):
            await ask(Peer(f"https://127.0.0.1:{port_of(there)}"))
