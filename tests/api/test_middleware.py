"""What every route has in common: JSON errors, what a body may be, request ids, the rate limit, clients that leave."""

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.api.conftest import MAX_BODY_BYTES
from tests.api.support import Client, Raw
from tests.support import Echo, Node, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

JOB = {"containers": ["a"], "data": {}}
ROUTES = {
    "/health": "GET, HEAD",
    "/info": "GET, HEAD",
    "/resources": "GET, HEAD",
    "/api/jobs": "GET, HEAD, POST",
    "/api/jobs/batch": "POST",
    "/api/jobs/stream": "POST",
    "/api/status": "PUT",
}
BODY_ROUTES = [("POST", "/api/jobs"), ("POST", "/api/jobs/batch"), ("POST", "/api/jobs/stream"), ("PUT", "/api/status")]

body_routes = pytest.mark.parametrize(("method", "path"), BODY_ROUTES)


@pytest.mark.parametrize("path", ["/", "/api", "/api/jobs/", "/api/jobs/some-id", "/Health", "/health/", "/x%ED%A0%80"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_unknown_path_is_a_json_404(caller: Client, method: str, path: str) -> None:
    answer = await caller.ask(method, path)
    assert (answer.status, answer.json) == (404, {"error": "Not Found", "params": {"path": path}})


@pytest.mark.parametrize("path", ROUTES)
async def test_a_wrong_method_is_a_json_405_that_names_the_right_ones(caller: Client, path: str) -> None:
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - set(ROUTES[path].split(", ")):
        answer = await caller.ask(method, path)
        assert (answer.status, answer.headers["Allow"]) == (405, ROUTES[path])
        params = {"method": method, "allowed": ROUTES[path].split(", ")}
        assert answer.json == {"error": "Method Not Allowed", "params": params}


@pytest.mark.parametrize("path", ROUTES)
async def test_options_is_200_with_the_methods(caller: Client, path: str) -> None:
    answer = await caller.ask("OPTIONS", path)
    assert (answer.status, answer.headers["Allow"], answer.body) == (200, ROUTES[path], b"")


@pytest.mark.parametrize("path", [path for path, methods in ROUTES.items() if "GET" in methods])
async def test_head_is_get_without_the_body(caller: Client, path: str) -> None:
    get = await caller.ask("GET", path)
    head = await caller.ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == get.headers["Content-Length"]


async def test_answers_are_compact_json_with_sorted_keys_and_one_newline(caller: Client) -> None:
    for path in ("/health", "/info", "/api/jobs", "/api/jobs?id=x", "/nope"):
        body = (await caller.ask("GET", path)).body
        value = json.loads(body)
        assert body == json.dumps(value, separators=(",", ":"), sort_keys=True).encode() + b"\n"


# Bodies


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json; charset=utf8",
        "application/json; charset=us-ascii",
        "APPLICATION/JSON",
        "application/problem+json",
        "application/json; x=y",
    ],
)
async def test_json_in_utf8_is_accepted(caller: Client, content_type: str) -> None:
    assert (await caller.ask("POST", "/api/jobs", JOB, Content_Type=content_type)).status == 200


@body_routes
@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "application/jsonp",
        "json",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        "application/json; charset=klingon",
        "x" * 5000,
    ],
)
async def test_another_content_type_or_charset_is_415(
    caller: Client, method: str, path: str, content_type: str | None
) -> None:
    answer = await caller.ask(method, path, JOB, Content_Type=content_type)
    assert answer.status == 415
    assert answer.json["error"] == "Content-Type must be application/json, in UTF-8"
    assert len(answer.json["params"]["content_type"]) <= 128


@body_routes
@pytest.mark.parametrize(
    "header",
    [
        "Content-Type: application/\xff",
        "Content-Type: application/json; charset=\xff",
        "Content-Type: application/json\r\nContent-Encoding: \xff",
    ],
)
async def test_a_header_that_is_no_text_is_415(caller: Client, node: Node, method: str, path: str, header: str) -> None:
    async with Raw(node, caller.address) as raw:
        raw.send(f"{method} {path} HTTP/1.1", header, "Content-Length: 2", body=b"{}")
        assert (await raw.head())[0] == 415
        assert "?" in json.loads(await raw.until(b"\n"))["params"].popitem()[1]


@body_routes
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x" * 500])
async def test_a_compressed_body_is_415_and_not_unpacked(caller: Client, method: str, path: str, encoding: str) -> None:
    answer = await caller.ask(method, path, gzip.compress(json.dumps(JOB).encode()), Content_Encoding=encoding)
    assert (answer.status, answer.json["error"]) == (415, "Compressed bodies are not supported")


async def test_the_identity_encoding_is_none(caller: Client) -> None:
    assert (await caller.ask("POST", "/api/jobs", JOB, Content_Encoding="identity")).status == 200


def job_of(size: int) -> bytes:
    frame = b'{"containers":["a"],"data":{"x":""}}'
    return frame[:-3] + b"x" * (size - len(frame)) + frame[-3:]


TOO_LARGE = {"error": "Body too large", "params": {"limit_bytes": MAX_BODY_BYTES}}


async def test_a_body_of_exactly_the_limit_is_accepted(caller: Client) -> None:
    assert (await caller.ask("POST", "/api/jobs", job_of(MAX_BODY_BYTES))).status == 200


@body_routes
async def test_a_body_over_the_limit_is_413(caller: Client, method: str, path: str) -> None:
    answer = await caller.ask(method, path, job_of(MAX_BODY_BYTES + 1))
    assert (answer.status, answer.json) == (413, TOO_LARGE)
    assert await caller.get("/api/jobs") == []


@body_routes
async def test_a_chunked_body_over_the_limit_is_413_before_it_ends(
    caller: Client, node: Node, method: str, path: str
) -> None:
    async with Raw(node, caller.address) as raw:
        raw.send(f"{method} {path} HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked")
        for _ in range(MAX_BODY_BYTES // 50_000 + 1):
            raw.writer.write(b"c350\r\n" + b"x" * 50_000 + b"\r\n")
        status, head = await raw.head()
        assert status == 413
        assert json.loads(await raw.until(b"\n")) == TOO_LARGE
        assert "application/json" in head


async def test_a_small_chunked_body_is_as_good_as_any(caller: Client, node: Node) -> None:
    async with Raw(node, caller.address) as raw:
        raw.send("POST /api/jobs HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked")
        for byte in json.dumps(JOB).encode():
            raw.writer.write(b"1\r\n%c\r\n" % byte)
        raw.writer.write(b"0\r\n\r\n")
        assert (await raw.head())[0] == 200


@body_routes
@pytest.mark.parametrize("wrong", [b'{"secret": %b', b'[{"secret": %b}, nul', b'{"containers": [%b]}', b'{"data": %b}'])
async def test_no_error_repeats_the_body(caller: Client, method: str, path: str, wrong: bytes) -> None:
    answer = await caller.ask(method, path, wrong % (b'"' + b"hunter2 " * 1000 + b'"'))
    assert 400 <= answer.status < 500 or path.endswith("batch")
    assert len(answer.body) < 500
    assert b"hunter2 hunter2" not in answer.body


# Request ids


@pytest.mark.parametrize("path", ["/health", "/nope", "/api/jobs?id=x", "/api/jobs/batch"])
async def test_a_request_id_is_given_back(caller: Client, path: str) -> None:
    answer = await caller.ask("GET", path, X_Request_ID="mine-1.2_3")
    assert answer.headers["X-Request-ID"] == "mine-1.2_3"


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, "é", "{}"])
async def test_without_a_usable_one_each_request_gets_its_own(caller: Client, given: str | None) -> None:
    made = {(await caller.ask("GET", "/health", X_Request_ID=given)).headers["X-Request-ID"] for _ in range(5)}
    assert len(made) == 5
    assert given not in made
    assert all(len(request_id) == 16 for request_id in made)


async def test_the_log_of_a_job_carries_the_request_id_and_not_the_payload(caller: Client, node: Node) -> None:
    body = {"containers": ["a"], "data": {"word": "never-logged"}}
    job_id = (await caller.ask("POST", "/api/jobs", body, X_Request_ID=f"log-{caller.address}")).json["id"]
    await caller.result(job_id)
    (event,) = [event for event in node.events("job_queued") if event["job_id"] == job_id]
    assert (event["request_id"], event["caller"]) == (f"log-{caller.address}", caller.address)
    assert "never-logged" not in node.log.read_text()


# Clients that leave


def open_sockets(node: Node) -> int:
    count = 0
    for file in Path(f"/proc/{node.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += str(file.readlink()).startswith("socket:")
    return count


async def test_clients_that_leave_during_a_submit_harm_nothing_and_leak_nothing(caller: Client, node: Node) -> None:
    body = json.dumps(JOB).encode()
    head = [f"Content-Length: {len(body)}", "Content-Type: application/json"]
    before = open_sockets(node)
    for part in (0, 10, len(body)):
        for _ in range(20):
            async with Raw(node, caller.address) as raw:
                raw.send("POST /api/jobs HTTP/1.1", *head, body=body[:part])
                await raw.writer.drain()
                raw.writer.transport.abort()

    async def all_closed() -> bool:
        return open_sockets(node) <= before

    await eventually(all_closed, seconds=10, message="the end of all connections")
    for job_id in await caller.get("/api/jobs"):
        assert (await caller.result(job_id))["status"] == "success"
    assert node.events("request_failed") == []


# The rate limit


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def limited(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> AsyncIterator[Node]:
    directory: Path = tmp_path_factory.mktemp("limited")
    rate = {"num_requests": "3", "period": 60}
    async with Node(directory, echo.containers("a"), server={"rate_limit": rate}) as node:
        yield node


async def statuses(client: Client, method: str, path: str, times: int, body: Any = None) -> list[int]:
    return [(await client.ask(method, path, body)).status for _ in range(times)]


async def test_over_the_limit_a_request_is_429_and_told_when_to_come_again(limited: Node) -> None:
    async with Client(limited, "127.2.0.1") as client:
        assert await statuses(client, "GET", "/api/jobs", 3) == [200, 200, 200]
        answer = await client.ask("GET", "/api/jobs")
    assert (answer.status, answer.json) == (429, {"error": "Too many requests", "params": {"limit": 3, "period_s": 60}})
    assert 50 <= int(answer.headers["Retry-After"]) <= 60


async def test_each_caller_and_each_route_has_its_own_count(limited: Node) -> None:
    async with Client(limited, "127.2.0.2") as client, Client(limited, "127.2.0.3") as other:
        assert await statuses(client, "POST", "/api/jobs", 4, JOB) == [200, 200, 200, 429]
        assert await statuses(client, "GET", "/api/jobs", 4) == [200, 200, 200, 429]
        assert await statuses(client, "GET", "/health", 3) == [200, 200, 200]
        assert await statuses(other, "GET", "/api/jobs", 4) == [200, 200, 200, 429]


async def test_queries_and_unknown_paths_are_no_way_around_it(limited: Node) -> None:
    async with Client(limited, "127.2.0.4") as client:
        asked = [await client.ask("GET", f"/api/jobs?pending={number}") for number in range(4)]
        assert [answer.status for answer in asked] == [200, 200, 200, 429]
        asked = [await client.ask("GET", f"/nope/{number}") for number in range(4)]
        assert [answer.status for answer in asked] == [404, 404, 404, 429]


async def test_parallel_requests_are_counted_exactly(limited: Node) -> None:
    async with Client(limited, "127.2.0.5") as client:
        answers = await asyncio.gather(*(client.ask("POST", "/api/jobs", JOB) for _ in range(50)))
        assert sorted(answer.status for answer in answers) == [200] * 3 + [429] * 47
        assert len((await client.ask("GET", "/api/jobs")).json) == 3


async def test_without_a_configured_limit_there_is_none(caller: Client) -> None:
    assert set(await statuses(caller, "GET", "/health", 100)) == {200}
