"""PUT /api/status: somebody else's runner says how a job stands."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from tests.api.support import Client, Stage
from tests.support import Node, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

STORED = "Could not store job status"


async def report(client: Client, job_id: Any, status: Any = "success", containers: Any = ("a",), **more: Any) -> Any:
    body = {"id": job_id, "status": status, "containers": containers, **more}
    answer = await client.ask("PUT", "/api/status", body)
    return answer.json if answer.status == 200 else (answer.status, answer.json["error"])


def fresh(caller: Client) -> str:
    return f"reported-{caller.address}"


@pytest.mark.parametrize(
    ("status", "result"),
    [
        ("success", None),
        ("running", None),
        ("failed", {"container": "x", "error": "reported as failed"}),
    ],
)
async def test_an_unknown_id_becomes_a_job_of_whoever_reports_it(caller: Client, status: str, result: Any) -> None:
    job_id = fresh(caller)
    assert await report(caller, job_id, status, ["x", "y"], data={"anything": 1}) is None
    assert await caller.job(job_id) == {
        "id": job_id,
        "intermediate_results": [],
        "result": result,
        "status": status,
    }
    assert await caller.get("/api/jobs") == [job_id]
    assert await caller.get("/api/jobs?pending=true") == ([job_id] if status == "running" else [])


@pytest.mark.parametrize("status", ["success", "failed"])
async def test_a_report_without_containers_can_be_read_again(caller: Client, status: str) -> None:
    assert await report(caller, fresh(caller), status, []) is None
    assert (await caller.job(fresh(caller)))["status"] == status


async def test_a_report_that_a_job_runs_is_ended_by_a_later_one(caller: Client) -> None:
    job_id = fresh(caller)
    await report(caller, job_id, "running")
    await report(caller, job_id, "running")
    await report(caller, job_id, "success")
    assert (await caller.job(job_id))["status"] == "success"
    assert await caller.get("/api/jobs?pending=false") == [job_id]


async def test_a_waiting_job_is_found_by_its_id_and_ended_whoever_owns_it(caller: Client, stranger: Client) -> None:
    job_id = await stranger.submit("gone")
    assert await report(caller, job_id, "failed", ["gone"]) is None
    assert await stranger.job(job_id) == {
        "id": job_id,
        "intermediate_results": [],
        "result": {"container": "gone", "error": "reported as failed"},
        "status": "failed",
    }
    assert job_id not in await stranger.get("/api/jobs?pending=true")
    assert job_id in await stranger.get("/api/jobs?pending=false")
    assert await caller.get("/api/jobs") == []


async def test_a_report_that_a_job_of_ours_runs_changes_nothing(caller: Client) -> None:
    job_id = await caller.submit("gone")
    before = await caller.job(job_id)
    assert await report(caller, job_id, "running") is None
    assert await caller.job(job_id) == before


async def test_a_report_ends_a_running_job_and_its_late_result_is_refused(
    caller: Client, stage: Stage, node: Node
) -> None:
    called, go_on = asyncio.Event(), asyncio.Event()

    async def late(request: web.Request, _: Any) -> web.Response:
        called.set()
        await go_on.wait()
        return web.json_response({"late": True})

    job_id = await caller.submit("stage", "a", data=stage.play(late))
    await asyncio.wait_for(called.wait(), 10)
    assert await report(caller, job_id, "failed", ["stage"]) is None
    ended = await caller.job(job_id)
    assert ended["status"] == "failed"
    go_on.set()

    async def refused() -> bool:
        stopped = [*node.events("step_stopped"), *node.events("step_refused")]
        return job_id in [event["job_id"] for event in stopped]

    await eventually(refused, seconds=20, message="the refusal of the late result")
    assert await caller.job(job_id) == ended


@pytest.mark.parametrize("status", ["running", "success", "failed"])
async def test_a_job_that_has_ended_stays_as_it_is(caller: Client, status: str) -> None:
    succeeded = await caller.submit("a", data={"x": 1})
    failed = await caller.submit("a", data={"status": 500})
    before = [await caller.result(succeeded), await caller.result(failed)]
    assert await report(caller, succeeded, status) is None
    assert await report(caller, failed, status) is None
    assert [await caller.job(succeeded), await caller.job(failed)] == before


@pytest.mark.parametrize("status", ["failure", "queued", "SUCCESS", "", None, 1, ["success"], {"success": 1}])
async def test_only_infernets_three_words_are_a_status(caller: Client, status: Any) -> None:
    assert await report(caller, fresh(caller), status) == (400, "Status is invalid")
    assert await caller.get("/api/jobs") == []


@pytest.mark.parametrize(
    ("job_id", "containers"),
    [
        (None, ["a"]),
        ("", ["a"]),
        (1, ["a"]),
        (["x"], ["a"]),
        ("x" * 129, ["a"]),
        ("x", None),
        ("x", "a"),
        ("x", [1]),
        ("x", {"a": 1}),
    ],
)
async def test_an_id_is_a_short_text_and_containers_a_list_of_texts(
    caller: Client, job_id: Any, containers: Any
) -> None:
    assert await report(caller, job_id, "success", containers) == (400, STORED)
    assert await caller.get("/api/jobs") == []


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'{"id":"x","id":"y"}', b'{"id":NaN}'])
async def test_a_body_that_is_no_strict_object_is_400(caller: Client, body: bytes) -> None:
    answer = await caller.ask("PUT", "/api/status", body)
    assert (answer.status, answer.json["error"]) == (400, "Could not parse message")


async def test_who_calls_from_outside_the_configured_networks_is_refused(caller: Client, stranger: Client) -> None:
    job_id = await stranger.submit("gone")
    assert await report(stranger, job_id) == (403, "Unauthorized")
    assert (await stranger.job(job_id))["status"] == "running"


async def test_the_refusal_comes_before_any_look_at_the_body(stranger: Client) -> None:
    answer = await stranger.ask("PUT", "/api/status", b"\xff", Content_Type="text/plain")
    assert (answer.status, answer.json) == (403, {"error": "Unauthorized", "params": {}})
