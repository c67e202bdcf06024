"""POST /api/jobs/stream: the id on a line of its own, then the container's bytes as they come, then an honest end."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from node.api.infernet import ID_ALONE_S
from tests.api.conftest import MAX_OUTPUT_BYTES
from tests.api.support import DELEGATED, UNREADABLE, Client, Raw, Stage
from tests.support import Node, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

Json = dict[str, Any]
PATH = "/api/jobs/stream"


async def started(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    return answer


def ask(raw: Raw, container: str, data: Json) -> None:
    body = json.dumps({"containers": [container], "data": data}).encode()
    raw.send(f"POST {PATH} HTTP/1.1", "Content-Type: application/json", f"Content-Length: {len(body)}", body=body)


async def begin(raw: Raw, container: str, data: Json) -> str:
    """Ask for a stream and read its first chunk: the job's id."""
    ask(raw, container, data)
    status, _ = await raw.head()
    assert status == 200
    return (await raw.chunk()).decode().removesuffix("\n")


async def streamed(caller: Client, container: str, data: Json) -> tuple[str, bytes, bool]:
    """A whole stream as an HTTP client sees it: the id, the bytes, and whether it ended as it should."""
    body = {"containers": [container], "data": data}
    whole = b""
    async with caller.session.post(PATH, json=body) as answer:
        assert answer.status == 200, await answer.read()
        try:
            async for part in answer.content.iter_any():
                whole += part
        except aiohttp.ClientPayloadError:
            complete = False
        else:
            complete = True
    job_id, _, sent = whole.partition(b"\n")
    return job_id.decode(), sent, complete


async def test_the_id_line_is_a_chunk_of_its_own_sent_before_the_container_says_anything(
    caller: Client, node: Node, stage: Stage
) -> None:
    go_on = asyncio.Event()

    async def after(request: web.Request, _: Json) -> web.StreamResponse:
        await go_on.wait()
        return web.Response(text="done")

    async with Raw(node, caller.address) as raw:
        ask(raw, "stage", stage.play(after))
        _, head = await raw.head()
        line = await raw.chunk()
        go_on.set()
        assert await raw.chunk() == b"done"
        assert await raw.chunk() == b""  # the regular end
    assert line.endswith(b"\n")
    assert str(UUID(line.decode().strip())) == line.decode().strip()
    headers = head.lower()
    assert "content-type: application/octet-stream\r\n" in headers
    assert "transfer-encoding: chunked\r\n" in headers
    assert "x-request-id: " in headers


async def test_nothing_follows_the_id_at_once_since_a_client_takes_its_first_read_for_the_id(
    caller: Client, node: Node, stage: Stage
) -> None:
    async def hurry(request: web.Request, _: Json) -> web.StreamResponse:
        return web.Response(text="done")

    async with Raw(node, caller.address) as raw:
        await begin(raw, "stage", stage.play(hurry))
        began = time.monotonic()
        assert await raw.chunk() == b"done"
        assert time.monotonic() - began > ID_ALONE_S / 2


async def test_each_part_is_relayed_before_the_next_is_there(caller: Client, node: Node, stage: Stage) -> None:
    seen = [asyncio.Event() for _ in range(3)]

    async def step_by_step(request: web.Request, _: Json) -> web.StreamResponse:
        answer = await started(request)
        for number, event in enumerate(seen):
            await answer.write(b"part %d" % number)
            await event.wait()
        return answer

    async with Raw(node, caller.address) as raw:
        await begin(raw, "stage", stage.play(step_by_step))
        for number, event in enumerate(seen):
            assert await raw.chunk() == b"part %d" % number
            event.set()
        assert await raw.chunk() == b""


async def test_the_container_is_told_that_it_streams(caller: Client, stage: Stage) -> None:
    seen: list[Json] = []

    async def keep(request: web.Request, envelope: Json) -> web.Response:
        seen.append(envelope)
        return web.Response(text="x")

    data = stage.play(keep, x=[1.5, None, "é"])
    await streamed(caller, "stage", data)
    assert seen == [{"source": 1, "destination": 2, "data": data, "requires_proof": False}]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"hello", "hello"),
        (b"", ""),
        ("né €".encode(), "né €"),
        (b'{"n": 1}', '{"n": 1}'),
        (b"\xff\x00", "�\x00"),
    ],
)
async def test_bytes_pass_as_they_are_and_are_kept_as_text(
    caller: Client, stage: Stage, sent: bytes, kept: str
) -> None:
    async def send(request: web.Request, _: Json) -> web.Response:
        return web.Response(body=sent, content_type="text/plain")

    job_id, got, complete = await streamed(caller, "stage", stage.play(send))
    assert (got, complete) == (sent, True)
    assert await caller.job(job_id) == {
        "id": job_id,
        "intermediate_results": [],
        "result": {"container": "stage", "output": {"output": kept}},
        "status": "success",
    }
    assert await caller.get("/api/jobs?pending=false") == [job_id]


async def test_a_stream_under_way_is_a_running_job_of_its_caller_only(
    caller: Client, stranger: Client, node: Node, stage: Stage
) -> None:
    go_on = asyncio.Event()

    async def wait(request: web.Request, _: Json) -> web.Response:
        await go_on.wait()
        return web.Response()

    async with Raw(node, caller.address) as raw:
        job_id = await begin(raw, "stage", stage.play(wait))
        assert (await caller.job(job_id))["status"] == "running"
        assert await caller.get("/api/jobs?pending=true") == [job_id]
        assert (await stranger.ask("GET", f"/api/jobs?id={job_id}")).status == 404
        go_on.set()
        assert await raw.chunk() == b""


async def test_a_container_that_dies_midway_breaks_the_clients_connection(caller: Client, stage: Stage) -> None:
    async def die(request: web.Request, _: Json) -> web.StreamResponse:
        answer = await started(request)
        await answer.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return answer

    job_id, sent, complete = await streamed(caller, "stage", stage.play(die))
    assert (sent, complete) == (b"half", False)
    job = await caller.job(job_id)
    assert job["status"] == "failed"
    assert job["result"]["error"].startswith("container 'stage': the connection broke: ")


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (500, b"out of paper", "answered HTTP 500: out of paper"),
        (404, b"", "answered HTTP 404: no text"),
        (503, b'{"description": "busy"}', "answered HTTP 503: busy"),
        (204, b"", "answered HTTP 204: no text"),
        (302, b"elsewhere", "answered HTTP 302: elsewhere"),
    ],
)
async def test_a_container_that_refuses_before_the_first_byte_breaks_it_after_the_id(
    caller: Client, stage: Stage, status: int, body: bytes, told: str
) -> None:
    async def refuse(request: web.Request, _: Json) -> web.Response:
        return web.Response(status=status, body=body, headers={"Location": "/"})

    job_id, sent, complete = await streamed(caller, "stage", stage.play(refuse))
    assert (sent, complete) == (b"", False)
    assert (await caller.job(job_id))["result"] == {"container": "stage", "error": f"container 'stage': {told}"}


async def test_a_stream_over_the_output_limit_is_cut(caller: Client, stage: Stage) -> None:
    async def flood(request: web.Request, _: Json) -> web.StreamResponse:
        answer = await started(request)
        while True:
            await answer.write(b"x" * 100_000)

    job_id, sent, complete = await streamed(caller, "brief", stage.play(flood))
    assert not complete
    assert len(sent) <= MAX_OUTPUT_BYTES
    assert (await caller.job(job_id))["result"]["error"] == (
        f"container 'brief': its answer is over the limit of {MAX_OUTPUT_BYTES} bytes (max_output_bytes)"
    )


@pytest.mark.parametrize("speaks_first", [False, True])
async def test_a_stream_over_its_time_is_cut(caller: Client, stage: Stage, speaks_first: bool) -> None:
    async def hang(request: web.Request, _: Json) -> web.StreamResponse:
        if speaks_first:
            await (await started(request)).write(b"half")
        await asyncio.Event().wait()
        raise AssertionError

    job_id, sent, complete = await streamed(caller, "hasty", stage.play(hang))
    assert (sent, complete) == (b"half" if speaks_first else b"", False)
    assert (await caller.job(job_id))["result"]["error"] == "container 'hasty': timeout after 0.3 s (timeout_s)"


async def silent(answer: web.StreamResponse) -> None:
    await asyncio.Event().wait()


async def flooding(answer: web.StreamResponse) -> None:
    while True:
        await answer.write(b"x" * 1000)
        await asyncio.sleep(0)


@pytest.mark.parametrize("manner", [silent, flooding])
@pytest.mark.parametrize("abrupt", [False, True])
async def test_a_client_that_goes_away_cancels_its_job_and_the_containers_call(
    caller: Client, node: Node, stage: Stage, manner: Any, abrupt: bool
) -> None:
    aborted = asyncio.Event()

    async def endless(request: web.Request, _: Json) -> web.StreamResponse:
        try:
            answer = await started(request)
            await answer.write(b"first")
            await manner(answer)
        finally:
            aborted.set()
        return answer

    async with Raw(node, caller.address) as raw:
        job_id = await begin(raw, "one", stage.play(endless))
        assert (await raw.chunk())[:5] == b"first"
        if abrupt:
            raw.writer.transport.abort()
    await asyncio.wait_for(aborted.wait(), 10)
    assert (await caller.result(job_id))["result"] == {
        "container": "one",
        "error": "cancelled: the client disconnected",
    }
    assert await slot_is_free(caller, stage)


async def test_a_client_that_goes_away_before_the_container_answers_cancels_its_job(
    caller: Client, node: Node, stage: Stage
) -> None:
    called, aborted = asyncio.Event(), asyncio.Event()

    async def wait(request: web.Request, _: Json) -> web.StreamResponse:
        called.set()
        try:
            await asyncio.Event().wait()
        finally:
            aborted.set()
        raise AssertionError

    async with Raw(node, caller.address) as raw:
        job_id = await begin(raw, "one", stage.play(wait))
        await asyncio.wait_for(called.wait(), 10)
    await asyncio.wait_for(aborted.wait(), 10)
    assert (await caller.result(job_id))["result"]["error"] == "cancelled: the client disconnected"
    assert await slot_is_free(caller, stage)


async def slot_is_free(caller: Client, stage: Stage) -> bool:
    async def echo(request: web.Request, envelope: Json) -> web.Response:
        return web.json_response(envelope["data"])

    return (await caller.result(await caller.submit("one", data=stage.play(echo))))["status"] == "success"


async def test_clients_that_go_away_at_any_moment_leave_no_running_job(
    caller: Client, node: Node, stage: Stage
) -> None:
    async def chatty(request: web.Request, _: Json) -> web.StreamResponse:
        answer = await started(request)
        for _ in range(20):
            await answer.write(b"x")
        return answer

    async def leave_after(turns: int) -> None:
        async with Raw(node, caller.address) as raw:
            ask(raw, "stage", stage.play(chatty))
            await raw.writer.drain()
            for _ in range(turns):
                await asyncio.sleep(0)
            raw.writer.transport.abort()

    for turns in range(40):
        await leave_after(turns * 4)

    async def nothing_runs() -> bool:
        return await caller.get("/api/jobs?pending=true") == []

    await eventually(nothing_runs, seconds=20, message="the end of all streams")
    assert node.events("request_failed") == []
    assert node.events("server_failed") == []


class Busy:
    """A played container with one slot, which is taken."""

    def __init__(self) -> None:
        self.called, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, request: web.Request, envelope: Json) -> web.Response:
        self.called.set()
        await self.go_on.wait()
        return web.json_response({})


@pytest_asyncio.fixture(loop_scope="session")
async def busy(caller: Client, stage: Stage) -> AsyncIterator[Busy]:
    busy = Busy()
    await caller.submit("one", data=stage.play(busy))
    await asyncio.wait_for(busy.called.wait(), 10)
    yield busy
    busy.go_on.set()


async def test_a_stream_waits_for_a_slot_and_comes_before_those_queued_after_it(
    caller: Client, node: Node, stage: Stage, busy: Busy
) -> None:
    order: list[str] = []

    async def note(request: web.Request, envelope: Json) -> web.Response:
        order.append(envelope["data"]["who"])
        return web.json_response({})

    async with Raw(node, caller.address) as raw:
        ask(raw, "one", stage.play(note, who="stream"))
        await raw.writer.drain()
        assert (await caller.ask("GET", "/health")).status == 200
        jobs = [await caller.submit("one", data=stage.play(note, who="job")) for _ in range(5)]
        assert order == []
        busy.go_on.set()
        status, _ = await raw.head()
        assert status == 200
        await raw.chunk()
        assert await raw.chunk() == b"{}"
    for job_id in jobs:
        await caller.result(job_id)
    assert order.count("job") == 5
    assert order.index("stream") <= 1


async def test_a_client_that_goes_away_while_it_waits_leaves_nothing_behind(
    caller: Client, stranger: Client, node: Node, stage: Stage, busy: Busy
) -> None:
    before = await stranger.get("/api/jobs")
    async with Raw(node, stranger.address) as raw:
        ask(raw, "one", stage.play(busy))
        await raw.writer.drain()
        await caller.get("/health")
    busy.go_on.set()
    assert await slot_is_free(caller, stage)
    assert await stranger.get("/api/jobs") == before


async def test_a_reader_that_stops_holds_the_container_back_and_loses_nothing(
    caller: Client, node: Node, stage: Stage
) -> None:
    sent, total, part = 0, 24 * 2**20, bytes(range(256)) * 256
    finished = asyncio.Event()

    async def flood(request: web.Request, _: Json) -> web.StreamResponse:
        nonlocal sent
        answer = await started(request)
        while sent < total:
            await answer.write(part)
            sent += len(part)
        finished.set()
        return answer

    async with Raw(node, caller.address) as raw:
        job_id = await begin(raw, "stage", stage.play(flood))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(finished.wait(), 0.5)
        assert sent < total
        got = []
        while chunk := await raw.chunk():
            got.append(chunk)
        assert b"".join(got) == part * (total // len(part))
    assert (await caller.result(job_id))["status"] == "success"


REFUSALS: list[tuple[Any, str, Json]] = [
    ({"containers": ["a", "b"], "data": {}}, "Streaming supports one container", {"containers": ["a", "b"]}),
    (DELEGATED, "Streaming only supported for OffchainJob requests.", {}),
    ({"containers": [], "data": {}}, "No containers specified", {}),
    ({"containers": ["zz"], "data": {}}, "Container not supported", {"container": "zz"}),
    ({"containers": ["c"], "data": {}}, "First container must be external", {"first_container": "c"}),
    (
        {"containers": ["a"], "data": {}, "requires_proof": True},
        "Container does not generate proof",
        {"container": "a"},
    ),
    ({"containers": ["a"]}, UNREADABLE, {"reason": "data: expected an object"}),
    (b"[]", UNREADABLE, {"reason": "expected an object"}),
    (b"\xff", UNREADABLE, {"reason": "JSON is malformed: invalid character (byte 0)"}),
]


@pytest.mark.parametrize(("body", "error", "params"), REFUSALS)
async def test_what_cannot_be_streamed_is_400_and_makes_no_job(
    caller: Client, body: Any, error: str, params: Json
) -> None:
    answer = await caller.ask("POST", PATH, body)
    assert (answer.status, answer.json) == (400, {"error": error, "params": params})
    assert await caller.get("/api/jobs") == []


async def test_a_container_that_is_not_ready_is_503(caller: Client) -> None:
    answer = await caller.ask("POST", PATH, {"containers": ["gone"], "data": {}})
    assert (answer.status, answer.json) == (503, {"error": "Container not ready", "params": {"container": "gone"}})
    assert answer.headers["Retry-After"] == "1"
    assert await caller.get("/api/jobs") == []
