"""What a page in somebody's browser can do to a node that only this machine can reach: nothing."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.api.support import Answer, Client, Raw
from tests.support import Echo, Node

pytestmark = pytest.mark.asyncio(loop_scope="session")

JOB = {"containers": ["a"], "data": {}}
EVIL = "evil.example:4000"
CHANGES = [
    ("POST", "/api/jobs", JOB),
    ("POST", "/api/jobs/batch", [JOB]),
    ("POST", "/api/jobs/stream", JOB),
    ("PUT", "/api/status", {"id": "x", "status": "success", "containers": []}),
    ("DELETE", "/api/jobs/00000000-0000-0000-0000-000000000000", None),
]
changes = pytest.mark.parametrize(("method", "path", "body"), CHANGES)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def named(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> AsyncIterator[Node]:
    """A node behind a proxy that hands on the name it was asked by."""
    server = {"allowed_hosts": ["jobs.example", "Other.Example"]}
    async with Node(tmp_path_factory.mktemp("named"), echo.containers("a"), server=server) as node:
        yield node


def refused(answer: Answer, error: str, **params: Any) -> bool:
    told = {"error": error, "params": {**params, "setting": "server.allowed_hosts"}}
    return (answer.status, answer.json) == (403, told)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.:80", "127.0.0.1:4000", "127.9.9.9", "[::1]:80", "a.localhost"]
)
async def test_its_own_names_are_answered(caller: Client, host: str) -> None:
    assert (await caller.ask("GET", "/info", Host=host)).status == 200
    assert (await caller.ask("POST", "/api/jobs", JOB, Host=host)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        EVIL,
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.168.1.1",
        "[::2]",
        "0x7f000001",
        "[",
        "evil@localhost.x",
    ],
)
@pytest.mark.parametrize(("method", "path", "body"), [("GET", "/info", None), ("GET", "/api/jobs", None), *CHANGES])
async def test_another_name_is_403_for_whoever_has_no_key(
    caller: Client, host: str, method: str, path: str, body: Any
) -> None:
    assert refused(await caller.ask(method, path, body, Host=host), "Host not allowed", host=host)
    assert await caller.get("/api/jobs") == []


async def test_whoever_only_watches_may_use_any_name(caller: Client) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        assert (await caller.ask("GET", path, Host=EVIL)).status == 200


@pytest.mark.parametrize("host", ["jobs.example", "JOBS.example:443", "other.example", "localhost"])
async def test_configured_names_are_answered(named: Node, host: str) -> None:
    async with Client(named) as client:
        origin = f"https://{host}"
        assert (await client.ask("POST", "/api/jobs", JOB, Host=host, Origin=origin)).status == 200
        assert refused(await client.ask("POST", "/api/jobs", JOB, Host=EVIL), "Host not allowed", host=EVIL)


async def test_a_proxy_may_ask_by_another_name_than_the_page_has(named: Node) -> None:
    async with Client(named) as client:
        assert (await client.ask("POST", "/api/jobs", JOB, Origin="https://jobs.example")).status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://localhost:1", "file://", "evil"])
@changes
async def test_a_page_of_another_site_changes_nothing(
    caller: Client, method: str, path: str, body: Any, origin: str
) -> None:
    answer = await caller.ask(method, path, body, Origin=origin)
    assert refused(answer, "Request from another site", origin=origin)
    assert await caller.get("/api/jobs") == []


async def test_a_page_of_the_node_itself_may(caller: Client) -> None:
    assert (await caller.ask("POST", "/api/jobs", JOB, Origin=caller.node.url)).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
@changes
async def test_what_a_form_can_send_without_asking_is_no_job(
    caller: Client, method: str, path: str, body: Any, kind: str
) -> None:
    """A browser sends these three kinds anywhere, and says from where; here it does not even say that."""
    if body is None:
        return
    answer = await caller.ask("POST" if method == "PUT" else method, path, json.dumps(body).encode(), Content_Type=kind)
    assert answer.status == (405 if method == "PUT" else 415)
    assert await caller.get("/api/jobs") == []


@changes
async def test_a_browser_that_asks_first_gets_no_leave(caller: Client, method: str, path: str, body: Any) -> None:
    answer = await caller.ask(
        "OPTIONS",
        path,
        Origin="http://evil.example",
        Access_Control_Request_Method=method,
        Access_Control_Request_Headers="content-type, authorization",
    )
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


async def test_no_answer_may_be_read_by_another_site(caller: Client) -> None:
    for path in ("/info", "/api/jobs", "/health", "/nope"):
        answer = await caller.ask("GET", path, Origin="http://evil.example")
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert answer.headers["Content-Type"] == "application/json"


async def test_names_that_are_no_text_are_403_too(caller: Client) -> None:
    for lines in (
        ["GET /api/jobs HTTP/1.1", "Host: \xff\xfe"],
        ["DELETE /api/jobs/x HTTP/1.1", "Host: localhost", "Origin: http://\xff"],
    ):
        async with Raw(caller.node) as raw:
            raw.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
            status, _ = await raw.head()
            assert status == 403
            assert json.loads(await raw.until(b"\n"))["params"]["setting"] == "server.allowed_hosts"
    assert caller.node.events("request_failed") == []
    assert caller.node.events("server_failed") == []
