"""The HTTP server itself: what is no proper HTTP is refused and closed, with bounded memory, and logged in one line."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.api.support import Client, Raw
from tests.support import Echo, Node

pytestmark = pytest.mark.asyncio(loop_scope="session")

POST = b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
JOB = b'{"containers":["a"],"data":{}}'
LENGTH = b"Content-Length: %d\r\n" % len(JOB)
CHUNKED = b"Transfer-Encoding: chunked\r\n"

SMUGGLING = {
    "length and chunked": POST + LENGTH + CHUNKED + b"\r\n0\r\n\r\n" + GET + b"\r\n",
    "two lengths": POST + LENGTH + b"Content-Length: 0\r\n\r\n" + JOB,
    "two equal lengths": POST + LENGTH + LENGTH + b"\r\n" + JOB,
    "a length with a sign": POST + b"Content-Length: +%d\r\n\r\n" % len(JOB) + JOB,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + JOB,
    "a length list": POST + b"Content-Length: 0, %d\r\n\r\n" % len(JOB) + JOB,
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "an unknown transfer coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a bad chunk size": POST + CHUNKED + b"\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk size with a prefix": POST + CHUNKED + b"\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk without its end": POST + CHUNKED + b"\r\n2\r\n{}xx0\r\n\r\n",
    "two hosts": GET + b"Host: other\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "bare line feeds": b"GET /health HTTP/1.1\nHost: localhost\n\n",
    "a bare line feed in a header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\nContent-Length: 5\r\n\r\n",
    "a folded header": GET + b"X: a\r\n b\r\n\r\n",
    "a space before the colon": GET + b"Content-Length : 5\r\n\r\n",
    "a header without a name": GET + b": x\r\n\r\n",
    "a zero byte": GET + b"X: a\0b\r\n\r\n",
    "another version": b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "an unknown method": b"BREW /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a byte that is no text in the path": b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}
TOO_LONG = {
    "a header of 20 kB": (431, "Header too long", GET + b"X: " + b"y" * 20_000 + b"\r\n\r\n"),
    "a header name of 20 kB": (431, "Header too long", GET + b"X" * 20_000 + b": y\r\n\r\n"),
    "200 headers": (431, "Too many headers", GET + b"".join(b"X%d: y\r\n" % number for number in range(200)) + b"\r\n"),
    "a path of 100 kB": (414, "URI too long", b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "a query of 100 kB": (414, "URI too long", b"GET /?" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
}


def refusal(answer: bytes, status: int) -> Any:
    """The JSON of the only answer of a connection that has ended."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0].split(" ")[0] in ("HTTP/1.0", "HTTP/1.1")
    assert lines[0].split(" ")[1] == str(status)
    assert "Content-Type: application/json" in lines
    assert "Connection: keep-alive" not in lines
    assert len(answer) < 800
    assert answer.count(b"\r\nServer: ") == 1
    value = json.loads(body)
    assert value.keys() == {"error", "params"}
    return value


@pytest.mark.parametrize("sent", SMUGGLING.values(), ids=SMUGGLING)
async def test_what_is_no_proper_http_is_400_once_and_the_connection_ends(
    caller: Client, node: Node, sent: bytes
) -> None:
    async with Raw(node, caller.address) as raw:
        raw.writer.write(sent)
        answer = refusal(await raw.rest(), 400)
    assert answer["error"] == "Request unreadable"
    assert answer["params"]["reason"]
    assert await caller.get("/api/jobs") == []


@pytest.mark.parametrize("sent", SMUGGLING.values(), ids=SMUGGLING)
async def test_nor_does_a_second_request_of_that_kind_reach_anything(caller: Client, node: Node, sent: bytes) -> None:
    async with Raw(node, caller.address) as raw:
        raw.send("GET /health HTTP/1.1")
        assert (await raw.head())[0] == 200
        await raw.until(b"\n")
        for byte in sent[:400]:
            raw.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        raw.writer.write(sent[400:] + GET + b"\r\n")
        answers = await raw.rest()
    if answers:  # lost where the connection ended before all was sent
        refusal(answers, 400)
    assert await caller.get("/api/jobs") == []


@pytest.mark.parametrize(("status", "error", "sent"), TOO_LONG.values(), ids=TOO_LONG)
async def test_what_is_too_long_is_refused_and_the_connection_ends(
    caller: Client, node: Node, status: int, error: str, sent: bytes
) -> None:
    async with Raw(node, caller.address) as raw:
        raw.writer.write(sent)
        assert refusal(await raw.rest(), status)["error"] == error


@pytest.mark.parametrize("rest", [b"zz\r\n{}\r\n", b"2\r\n{}xx0\r\n\r\n", b"\n\n\n"])
@pytest.mark.parametrize("path", ["/api/jobs", "/api/jobs/batch", "/api/jobs/stream"])
async def test_a_body_that_breaks_the_rules_midway_is_answered_at_once(
    caller: Client, node: Node, path: str, rest: bytes
) -> None:
    async with Raw(node, caller.address) as raw:
        raw.writer.write(POST.replace(b"/api/jobs", path.encode()) + CHUNKED + b"\r\n5\r\n")
        raw.writer.write(b'{"a":\r\n')
        await raw.writer.drain()
        await caller.ask("GET", "/nope")  # the node has read so far
        raw.writer.write(rest)
        answer = await raw.rest()
    assert (answer.split(b" ")[1], json.loads(answer.split(b"\r\n\r\n")[1])["error"]) == (b"400", "Body unreadable")
    assert answer.count(b"\r\nServer: ") == 1
    assert await caller.get("/api/jobs") == []
    assert node.events("server_failed") == []


async def test_an_unknown_expectation_is_417_and_the_known_one_is_met(caller: Client, node: Node) -> None:
    answer = await caller.ask("GET", "/health", Expect="a miracle")
    assert (answer.status, answer.json["error"]) == (417, "Expectation Failed")
    async with Raw(node, caller.address) as raw:
        raw.writer.write(POST + LENGTH + b"Expect: 100-continue\r\n\r\n")
        assert (await raw.head())[0] == 100
        raw.writer.write(JOB)
        assert (await raw.head())[0] == 200


async def test_what_is_no_proper_http_is_one_line_in_the_log(caller: Client, node: Node) -> None:
    before = len(node.events("request_unreadable"))
    async with Raw(node, caller.address) as raw:
        raw.writer.write(SMUGGLING["length and chunked"])
        await raw.rest()
    (event,) = node.events("request_unreadable")[before:]
    assert event["reason"] == "Transfer-Encoding can't be present with Content-Length"
    assert "Traceback" not in node.log.read_text()


async def test_pipelined_requests_are_answered_in_order(caller: Client, node: Node) -> None:
    async with Raw(node, caller.address) as raw:
        for number in range(200):
            raw.send(f"GET /nope/{number} HTTP/1.1")
        for number in range(200):
            assert (await raw.head())[0] == 404
            assert json.loads(await raw.until(b"\n"))["params"] == {"path": f"/nope/{number}"}


def resident_bytes(node: Node) -> int:
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


async def test_ten_thousand_pipelined_requests_take_no_memory(caller: Client, node: Node) -> None:
    before = resident_bytes(node)
    async with Raw(node, caller.address) as raw:
        raw.writer.write((GET + b"\r\n") * 9_999 + GET + b"Connection: close\r\n\r\n")
        answers = await raw.rest()
    assert answers.count(b'{"status":"healthy"}\n') == 10_000
    assert resident_bytes(node) - before < 30_000_000


async def test_a_connection_is_kept_and_an_old_client_gets_its_end(caller: Client, node: Node) -> None:
    async with Raw(node, caller.address) as raw:
        for _ in range(3):
            raw.send("GET /health HTTP/1.1")
            await raw.head()
            await raw.until(b"\n")
        raw.send("GET /health HTTP/1.0")
        assert (await raw.rest()).endswith(b'{"status":"healthy"}\n')


async def test_a_node_on_ipv6_knows_its_callers_by_their_addresses(tmp_path: Path, echo: Echo) -> None:
    containers = echo.containers("a", allowed_ips=["::1/128"]) + echo.containers("b", allowed_ips=["127.0.0.0/8"])
    node = Node(tmp_path, containers, server={"host": "::1"})
    node.url = f"http://[::1]:{node.port}"
    async with node:
        job_id = await node.submit(["a"], {"x": 1})
        assert (await node.result(job_id))["status"] == "success"
        assert await node.get("/api/jobs") == [job_id]
        refused = await node.post("/api/jobs", {"containers": ["b"], "data": {}}, status=400)
        assert refused["params"] == {"address": "::1", "container": "b"}
        async with node.session.put("/api/status", json={"id": "x", "status": "success", "containers": []}) as answer:
            assert answer.status == 200


async def test_an_answer_does_not_tell_what_the_node_runs_on(node: Node) -> None:
    async with Raw(node) as raw:
        raw.writer.write(b"rubbish\r\n\r\n")
        assert "\r\nServer: stoker\r\n" in (await raw.head())[1]
    for path in ("/health", "/nowhere"):
        async with node.session.get(path) as answer:
            assert answer.headers["Server"] == "stoker"
