"""Every way in which a container breaks the contract is a failure in words that name the container and the fact."""

import asyncio
import gzip
import json
import os
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from node.config import ContainerSpec
from node.jobs import ContainerError, ContainerOutput, ContainerResult
from node.service import Service, StepFailed
from tests.support import Node, free_port

LIMIT = 100_000
MIB = 2**20
GIGABYTE = 2**30 if os.environ.get("STOKER_FULL") else 2**28
OK = b"HTTP/1.1 200 OK\r\n"
JSON = b"Content-Type: application/json\r\n"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes, status: str = "200 OK", headers: bytes = JSON) -> bytes:
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status.encode(), headers, len(body), body)


def chunked(*chunks: bytes, headers: bytes = JSON) -> bytes:
    parts = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b"")]
    return OK + headers + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(parts)


async def request_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of what the node asked."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = dict(line.split(b": ", 1) for line in head.splitlines()[1:] if line)
    return head, await reader.readexactly(int(lines.get(b"Content-Length", 0)))


@asynccontextmanager
async def container(talk: Talk | bytes, **more: Any) -> AsyncIterator[Service]:
    """A service whose container does this on each connection, once it has read a request."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if callable(talk):
                await talk(reader, writer)
            else:
                await request_of(reader)
                writer.write(talk)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    spec = {"id": "box", "url": "http://127.0.0.1:1", "timeout_s": 10, "max_output_bytes": LIMIT, **more}
    service = Service(ContainerSpec.model_validate(spec))
    service.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, service:
        yield service


async def outcome(talk: Talk | bytes, **more: Any) -> ContainerResult:
    async with container(talk, **more) as service:
        return await service.call(b"{}", requires_proof=False)


async def error(talk: Talk | bytes, **more: Any) -> str:
    """The words after the container's name, which stands first in all of them."""
    result = await outcome(talk, **more)
    assert isinstance(result, ContainerError), result
    assert result.container == "box"
    assert result.error.startswith("container 'box': ")
    return result.error.removeprefix("container 'box': ")


# What is asked


@pytest.mark.parametrize("proof", [False, True])
async def test_the_request_is_infernets_and_holds_the_data_byte_for_byte(proof: bool) -> None:
    asked = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await request_of(reader))
        writer.write(answer(b"{}"))

    data = b'{ "n":%d,"x" : 0.10, "s":"\\u00e9"}' % (2**256 - 1)
    async with container(note) as service:
        await service.call(data, requires_proof=proof)
    ((head, body),) = asked
    assert head.startswith(b"POST /service_output HTTP/1.1\r\n")
    assert b"\r\nContent-Type: application/json\r\n" in head
    assert b"Authorization" not in head
    assert body == b'{"source":1,"destination":1,"data":%b,"requires_proof":%b}' % (data, str(proof).lower().encode())


@pytest.mark.parametrize("ask", ["call", "stream", "resources"])
async def test_a_bearer_token_goes_with_every_request(ask: str) -> None:
    heads = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await request_of(reader))[0])
        writer.write(answer(b"{}"))

    async with container(note, bearer="secret-1") as service:
        if ask == "call":
            await service.call(b"{}", requires_proof=False)
        elif ask == "stream":
            assert [part async for part in service.stream(b"{}", requires_proof=False)] == [b"{}"]
        else:
            assert await service.resources(None) == {}
    assert b"\r\nAuthorization: Bearer secret-1\r\n" in heads[0]


async def test_a_large_body_goes_out_whole() -> None:
    bodies = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append((await request_of(reader))[1])
        writer.write(answer(b"{}"))

    data = b'{"x":"' + bytes(range(97, 123)) * 100_000 + b'"}'
    async with container(note) as service:
        await service.call(data, requires_proof=False)
    assert bodies == [b'{"source":1,"destination":1,"data":%b,"requires_proof":false}' % data]


# Good answers

GOOD = [
    b"{}",
    b"null",
    b'"x"',
    b"[1,2]",
    b' {"b": 1,\n"a": 0.1000000000000000055}\n',
    b'{"n":115792089237316195423570985008687907853269984665640564039457584007913129639935}',
    b'"\\u00e9\xc3\xa9\\/"',
]


@pytest.mark.parametrize("body", GOOD)
@pytest.mark.parametrize("status", ["200 OK", "201 Created", "206 Partial Content"])
async def test_json_is_kept_byte_for_byte(body: bytes, status: str) -> None:
    assert await outcome(answer(body, status)) == ContainerOutput(container="box", output=body)


@pytest.mark.parametrize(
    "media", [b"application/json; charset=utf-8", b"application/problem+json", b"Application/JSON"]
)
async def test_any_json_type_is_json(media: bytes) -> None:
    assert isinstance(await outcome(answer(b"{}", headers=b"Content-Type: %b\r\n" % media)), ContainerOutput)


async def test_a_chunked_answer_is_put_together() -> None:
    assert await outcome(chunked(b'{"a"', b":1", b"}")) == ContainerOutput(container="box", output=b'{"a":1}')


async def test_an_answer_that_ends_with_its_connection_is_whole() -> None:
    assert await outcome(OK + JSON + b"\r\n[1]") == ContainerOutput(container="box", output=b"[1]")


async def test_a_compressed_answer_is_unpacked() -> None:
    packed = answer(gzip.compress(b"[1]"), headers=JSON + b"Content-Encoding: gzip\r\n")
    assert await outcome(packed) == ContainerOutput(container="box", output=b"[1]")


async def test_an_answer_of_exactly_the_limit_is_kept() -> None:
    body = b'"' + b"x" * (LIMIT - 2) + b'"'
    for sent in (answer(body), chunked(body[:10], body[10:])):
        assert await outcome(sent) == ContainerOutput(container="box", output=body)


async def test_a_slow_answer_within_the_time_is_kept() -> None:
    async def byte_by_byte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        for byte in answer(b'{"slow":true}'):
            writer.write(b"%c" % byte)
            await writer.drain()

    assert isinstance(await outcome(byte_by_byte), ContainerOutput)


# Refusals by status


@pytest.mark.parametrize(
    ("status", "body", "headers", "told"),
    [
        (
            "400 Bad Request",
            b'{"code":"400","name":"Bad Request","description":"no such model"}',
            JSON,
            "answered HTTP 400: no such model",
        ),
        (
            "500 Oops",
            b'{"code":"500","name":"X","description":""}',
            JSON,
            'answered HTTP 500: {"code":"500","name":"X","description":""}',
        ),
        ("500 Oops", b'{"error": {"code": 7}}', JSON, 'answered HTTP 500: {"code": 7}'),
        ("422 No", b'{"detail": [{"loc": ["data"]}]}', JSON, 'answered HTTP 422: [{"loc": ["data"]}]'),
        ("500 Oops", b'{"message": "out of memory"}', JSON, "answered HTTP 500: out of memory"),
        ("503 Busy", b"come back later", b"Content-Type: text/plain\r\n", "answered HTTP 503: come back later"),
        ("500 Oops", b"<h1>Internal</h1>\n", b"Content-Type: text/html\r\n", "answered HTTP 500: <h1>Internal</h1>"),
        ("404 Not Found", b"", b"", "answered HTTP 404: no text"),
        ("500 Oops", b" \n ", b"", "answered HTTP 500: no text"),
        ("500 Oops", b"[1]", JSON, "answered HTTP 500: [1]"),
        ("500 Oops", b"\xff\xfe", JSON, "answered HTTP 500: \ufffd\ufffd"),
        ("500 Oops", b"[" * 5000, JSON, "answered HTTP 500: " + "[" * 500),
        ("500 Oops", "é".encode() * 5000, b"", "answered HTTP 500: " + "é" * 500),
        ("302 Found", b"", b"Location: http://127.0.0.1:1/\r\n", "answered HTTP 302: no text"),
        ("304 Not Modified", b"", b"", "answered HTTP 304: no text"),
        ("500 Oops", b"x" * 2**20, b"", "answered HTTP 500: " + "x" * 500),
        ("600 Odd", b"x", b"", "answered HTTP 600: x"),
    ],
)
async def test_a_status_that_is_no_success_is_told_with_the_containers_words(
    status: str, body: bytes, headers: bytes, told: str
) -> None:
    assert await error(answer(body, status, headers)) == told


@pytest.mark.parametrize(
    "raw",
    [
        answer(b"{}", headers=b"Content-Type: text/\xff\r\n"),
        answer(b"{}", headers=b"Content-Type: text/\xe9\xe9\r\nX\xff: 1\r\n"),
        answer(b"{}", headers=JSON + b"Content-Encoding: gzip\r\n"),
        answer(b"{}", "500 x", headers=b"Content-Encoding: gzip\r\n"),
        b"HTTP/1.1 200 O\xff\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 500 \xff\r\nContent-Length: 2\r\n\r\n\xff\xff",
        b"HTTP/1.1 \xff00 x\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
        OK + JSON + b"Content-Length: \xff\r\n\r\n{}",
        OK + JSON + b"Transfer-Encoding: \xff\r\n\r\n{",
        OK + JSON + b"Transfer-Encoding: chunked\r\n\r\n\xff\r\n",
        answer(b"{}", "301 Moved", headers=b"Location: http://\xff/\r\nSet-Cookie: \xff=\xff\r\n"),
        answer(b'{"error": "\\ud800 \x00"}', "500 x"),
        answer(b"{", headers=JSON.replace(b"\r\n", b"; charset=\xff\r\n")),
    ],
)
async def test_bytes_that_are_no_text_become_text(raw: bytes) -> None:
    assert (await error(raw)).encode()
    (await streamed(raw))[1].encode()
    async with container(raw) as service:
        assert await service.resources(None) in (None, {})


async def test_what_a_container_says_never_ends_the_node(tmp_path: Path) -> None:
    head = answer(b"{}", headers=b"Content-Type: text/\xff\r\n")
    async with container(head) as service, Node(tmp_path, [{"id": "evil", "url": service.url}]) as node:
        told = await node.run(["evil"], {})
        assert told["result"]["error"] == "container 'evil': answered text/?, not JSON: {}"
        assert (await node.run(["evil"], {}))["status"] == "failed"


async def test_a_redirect_is_not_followed() -> None:
    asked = []

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await request_of(reader))
        writer.write(answer(b"", "307 Elsewhere", b"Location: /service_output\r\n"))

    assert await error(redirect) == "answered HTTP 307: no text"
    assert len(asked) == 1


# Answers that are no JSON


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (answer(b""), "answered with an empty body"),
        (chunked(), "answered with an empty body"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "answered with an empty body"),
        (answer(b"hi", headers=b"Content-Type: text/plain\r\n"), "answered text/plain, not JSON: hi"),
        (
            answer(b"{}", headers=b"Content-Type: text/html; charset=utf-8\r\n"),
            "answered text/html; charset=utf-8, not JSON: {}",
        ),
        (answer(b"{}", headers=b""), "answered no content type, not JSON: {}"),
        (
            answer(b"{'a': 1}"),
            "its answer is not valid JSON (JSON is malformed: object keys must be strings (byte 1)): {'a': 1}",
        ),
        (answer(b"{"), "its answer is not valid JSON (cut off, or a lone surrogate): {"),
        (answer(b" "), "its answer is not valid JSON (empty): no text"),
        (answer(b"NaN"), "its answer is not valid JSON (JSON is malformed: invalid character (byte 0)): NaN"),
        (
            answer(b'{"x":Infinity}'),
            'its answer is not valid JSON (JSON is malformed: invalid character (byte 5)): {"x":Infinity}',
        ),
        (answer(b"1e999"), "its answer is not valid JSON (Number out of range): 1e999"),
        (answer(b'"\xff"'), 'its answer is not valid JSON (invalid UTF-8): "\ufffd"'),
        (
            answer(b"\xef\xbb\xbf{}"),
            "its answer is not valid JSON (JSON is malformed: invalid character (byte 0)): \ufeff{}",
        ),
        (answer(b"{}{}"), "its answer is not valid JSON (JSON is malformed: trailing characters (byte 3)): {}{}"),
        (answer(b"{} x"), "its answer is not valid JSON (JSON is malformed: trailing characters (byte 4)): {} x"),
        (
            answer(b'{"a":1,"a":2}'),
            'its answer is not valid JSON (the name \'a\' stands twice in one object): {"a":1,"a":2}',
        ),
    ],
)
async def test_an_answer_that_is_no_strict_json_is_told_with_its_start(sent: bytes, told: str) -> None:
    assert await error(sent) == told


async def test_only_the_start_of_a_long_answer_is_told() -> None:
    assert len(await error(answer(b"x" * 90_000))) < 700


# Answers that are too long

TOO_LONG = f"its answer is over the limit of {LIMIT} bytes (max_output_bytes)"


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    writer.write(OK + JSON + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()


async def declared(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says that a terabyte will come, and says nothing more."""
    await request_of(reader)
    writer.write(OK + JSON + b"Content-Length: 1000000000000\r\n\r\n")
    await reader.read()


@pytest.mark.parametrize(
    "talk",
    [
        endless,
        declared,
        answer(b'"' + b"x" * (LIMIT - 1) + b'"'),
        chunked(b'"' + b"x" * (LIMIT - 1) + b'"'),
        OK + JSON + b"\r\n" + b"x" * (LIMIT + 1),
    ],
    ids=["endless", "declared", "one byte too many", "one byte too many in chunks", "no length"],
)
async def test_an_answer_over_the_limit_is_cut(talk: Talk | bytes) -> None:
    assert await error(talk) == TOO_LONG


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_bomb_is_cut_before_it_fills_the_memory(coding: str) -> None:
    packer = zlib.compressobj(9, wbits=31 if coding == "gzip" else 15)
    megabyte = b"0" * 2**20
    bomb = b"".join(packer.compress(megabyte) for _ in range(64)) + packer.flush()
    sent = answer(bomb, headers=JSON + b"Content-Encoding: %b\r\n" % coding.encode())
    with memory_below(20_000_000):
        assert await error(sent) == TOO_LONG


async def a_gigabyte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Without saying how much will come."""
    await request_of(reader)
    writer.write(OK + JSON + b"Connection: close\r\n\r\n")
    for _ in range(GIGABYTE // MIB):
        writer.write(b"0" * MIB)
        await writer.drain()


async def gigabyte_bomb(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A megabyte that unpacks to a gigabyte."""
    await request_of(reader)
    writer.write(answer(packed_gigabyte(), headers=JSON + b"Content-Encoding: gzip\r\n"))
    await writer.drain()


@cache
def packed_gigabyte() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(MIB)) for _ in range(GIGABYTE // MIB)) + packer.flush()


def peak_bytes(node: Node) -> int:
    """The most memory that the node ever held."""
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    return 1024 * int(dict(line.split(":", 1) for line in status.splitlines())["VmHWM"].split()[0])


async def test_replies_without_end_do_not_fill_the_nodes_memory(tmp_path: Path) -> None:
    """With the limit that it has by default, 32 MiB; each kind of reply twice at the same time."""
    packed_gigabyte()
    async with AsyncExitStack() as stack:
        kinds = {"endless": endless, "declared": declared, "gigabyte": a_gigabyte, "bomb": gigabyte_bomb}
        services = {name: await stack.enter_async_context(container(talk)) for name, talk in kinds.items()}
        containers = [{"id": name, "url": service.url} for name, service in services.items()]
        node = await stack.enter_async_context(Node(tmp_path, containers))
        before = peak_bytes(node)
        jobs = [await node.submit([name], {}) for name in [*kinds, *kinds]]
        for job in jobs:
            error = (await node.result(job))["result"]["error"]
            assert error.endswith(f"its answer is over the limit of {32 * MIB} bytes (max_output_bytes)"), error
        grown = peak_bytes(node) - before
        print(f"8 replies over 32 MiB at once: the node grew by {grown / MIB:.0f} MiB at most")
        assert grown < 8 * 32 * MIB


# Connections that break, and time


async def test_a_refused_connection_is_told() -> None:
    async with container(b"") as service:
        service.url = f"http://127.0.0.1:{free_port()}"
        result = await service.call(b"{}", requires_proof=False)
    assert result == ContainerError(container="box", error="container 'box': cannot connect: Connection refused")


async def test_a_name_that_does_not_exist_is_told() -> None:
    async with container(b"") as service:
        service.url = "http://no-such-host.invalid:3000"
        result = await service.call(b"{}", requires_proof=False)
    assert isinstance(result, ContainerError)
    assert result.error.startswith("container 'box': cannot connect: ")


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    writer.transport.abort()


async def close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


BROKEN = {
    "hangs up": hang_up,
    "resets": reset,
    "closes at once": close_at_once,
    "half a head": OK + b"Content-Ty",
    "half a body": OK + JSON + b"Content-Length: 10\r\n\r\n{}",
    "half a chunk": OK + JSON + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}",
    "chunks without an end": OK + JSON + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "bad chunks": OK + JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "no HTTP": b"hello\r\n\r\n",
    "bad gzip": answer(b"no gzip", headers=JSON + b"Content-Encoding: gzip\r\n"),
    "a header of 1 MB": OK + b"X: " + b"y" * 2**20 + b"\r\n\r\n",
}


@pytest.mark.parametrize("talk", BROKEN.values(), ids=BROKEN)
async def test_a_broken_connection_is_told(talk: Talk | bytes) -> None:
    told = await error(talk)
    assert told.startswith("the connection broke: ")
    assert 0 < len(told.removeprefix("the connection broke: ")) < 700
    assert "\n" not in told


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    await reader.read()


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A byte at a time, for ever: no wait between two bytes is long."""
    await request_of(reader)
    writer.write(OK + JSON + b"Content-Length: 90000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.005)


async def head_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    writer.write(OK + JSON + b"Content-Length: 10\r\n\r\n")
    await reader.read()


async def test_a_job_is_told_which_step_of_its_chain_failed_and_how(tmp_path: Path) -> None:
    async with (
        container(answer(b"{}")) as good,
        container(trickle) as slow,
        container(BROKEN["half a body"]) as half,
        Node(
            tmp_path,
            [
                {"id": "good", "url": good.url},
                {"id": "slow", "url": slow.url, "timeout_s": 1},
                {"id": "half", "url": half.url},
            ],
        ) as node,
    ):
        began = time.monotonic()
        result = (await node.run(["good", "slow"], {}))["result"]
        assert result == {"container": "slow", "error": "step 2 of 2: container 'slow': timeout after 1 s (timeout_s)"}
        assert time.monotonic() - began < 5
        error = (await node.run(["half", "good"], {}))["result"]["error"]
        assert error.startswith("step 1 of 2: container 'half': the connection broke: ")


@pytest.mark.parametrize("talk", [silence, trickle, head_only])
async def test_the_time_of_a_step_is_limited_as_a_whole(talk: Talk) -> None:
    began = time.monotonic()
    assert await error(talk, timeout_s=0.3) == "timeout after 0.3 s (timeout_s)"
    assert time.monotonic() - began < 2


async def test_a_container_that_does_not_read_is_a_timeout() -> None:
    async def blocked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()

    done = asyncio.Event()
    async with container(blocked, timeout_s=0.3) as service:
        result = await service.call(json.dumps({"x": "x" * 2**24}).encode(), requires_proof=False)
        done.set()
    assert result == ContainerError(container="box", error="container 'box': timeout after 0.3 s (timeout_s)")


# Streams


async def streamed(talk: Talk | bytes, **more: Any) -> tuple[bytes, str]:
    """What came before the end, and how it ended."""
    got = b""
    async with container(talk, **more) as service:
        try:
            async for part in service.stream(b"{}", requires_proof=False):
                got += part
        except StepFailed as failure:
            return got, str(failure)
    return got, ""


@pytest.mark.parametrize(
    ("talk", "got", "told"),
    [
        (chunked(b"a", b"\xff", b"c", headers=b""), b"a\xffc", ""),
        (answer(b"x", headers=b"Content-Type: text/plain\r\n"), b"x", ""),
        (answer(b""), b"", ""),
        (answer(b"full", "503 Busy"), b"", "container 'box': answered HTTP 503: full"),
        (answer(b"x" * 10**6, "500 Oops"), b"", "container 'box': answered HTTP 500: " + "x" * 500),
        (answer(b"x" * (LIMIT + 1)), b"", f"container 'box': {TOO_LONG}"),
    ],
)
async def test_a_stream_is_relayed_as_it_is_or_its_failure_told(talk: bytes, got: bytes, told: str) -> None:
    relayed, failure = await streamed(talk)
    assert failure == told
    assert relayed == got if not failure else relayed == b"" or len(relayed) <= LIMIT


@pytest.mark.parametrize("talk", [BROKEN["half a body"], BROKEN["half a chunk"]])
async def test_a_stream_that_breaks_off_keeps_what_came(talk: bytes) -> None:
    got, failure = await streamed(talk)
    assert got == b"{}"
    assert failure.startswith("container 'box': the connection broke: ")


@pytest.mark.parametrize("talk", [silence, head_only, trickle])
async def test_a_streams_time_is_limited_as_a_whole(talk: Talk) -> None:
    _, failure = await streamed(talk, timeout_s=0.3)
    assert failure == "container 'box': timeout after 0.3 s (timeout_s)"


# Whether it is up


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "500 Oops"])
async def test_any_answer_means_that_it_is_up(status: str) -> None:
    async with container(answer(b"x", status)) as service:
        assert await service.answers()


@pytest.mark.parametrize("talk", [hang_up, reset, b"no HTTP\r\n\r\n"])
async def test_no_answer_means_that_it_is_not(talk: Talk | bytes) -> None:
    async with container(talk) as service:
        assert not await service.answers()
