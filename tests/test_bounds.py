"""What a caller may fill, and requests that come twice, as HTTP tells it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import Echo, Node, eventually

JOB = {"containers": ["a"], "data": {"x": 1}}


@pytest.fixture
async def small(tmp_path: Path, echo: Echo) -> AsyncIterator[Node]:
    down = {"id": "down", "url": "http://127.0.0.1:9", "max_queued": 3}
    server = {"max_pending": 5}
    async with Node(tmp_path, [*echo.containers("a"), down], down=("down",), server=server) as node:
        yield node


async def test_a_full_queue_is_503_with_retry_after_and_names_its_container(small: Node) -> None:
    job = {"containers": ["down"], "data": {}}
    for _ in range(3):
        await small.post("/api/jobs", job)
    async with small.session.post("/api/jobs", json=job) as answer:
        assert (answer.status, int(answer.headers["Retry-After"])) == (503, 5)
        assert await answer.json() == {"error": "Queue full", "params": {"container": "down", "limit": 3}}
    answers = await small.post("/api/jobs/batch", [job, JOB])
    assert answers[0]["error"] == "Queue full"
    assert (await small.result(answers[1]["id"]))["status"] == "success"


async def test_a_caller_with_too_many_live_jobs_is_told_429(small: Node) -> None:
    jobs = [{"containers": ["down"], "data": {}}] * 3 + [JOB]
    (*_, last) = await small.post("/api/jobs/batch", jobs)
    await small.result(last["id"])
    body = {"containers": ["a"], "data": {"wait_for": "many"}}
    await small.post("/api/jobs/batch", [body] * 2)
    async with small.session.post("/api/jobs", json=JOB) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "5")
        assert await answer.json() == {"error": "Too many jobs at once", "params": {"limit": 5}}


async def named(node: Node, name: str, body: Any, path: str = "/api/jobs") -> tuple[int, Any]:
    async with node.session.post(path, json=body, headers={"Idempotency-Key": name}) as answer:
        return answer.status, await answer.json()


async def test_one_name_posted_in_parallel_is_one_job_also_after_a_restart(node: Node) -> None:
    answers = await asyncio.gather(*(named(node, "order-7", JOB) for _ in range(50)))
    assert {status for status, _ in answers} == {200}
    (job_id,) = {body["id"] for _, body in answers}
    assert await node.get("/api/jobs") == [job_id]
    node.kill()
    await node.start()
    assert await named(node, "order-7", JOB) == (200, {"id": job_id})
    assert await node.get("/api/jobs") == [job_id]


async def test_one_name_for_two_requests_is_422(node: Node) -> None:
    await named(node, "n", JOB)
    status, body = await named(node, "n", {"containers": ["b"], "data": {"x": 1}})
    assert (status, body) == (422, {"error": "Idempotency-Key was used for another request", "params": {}})


async def test_a_named_batch_is_accepted_once(node: Node) -> None:
    batch = [JOB, {"containers": ["nobody"], "data": {}}, JOB]
    first = await named(node, "b", batch, "/api/jobs/batch")
    assert [list(answer) for answer in first[1]] == [["id"], ["error", "params"], ["id"]]
    assert await named(node, "b", batch, "/api/jobs/batch") == first
    assert len(await node.get("/api/jobs")) == 2
    assert (await named(node, "b", batch[:2], "/api/jobs/batch"))[0] == 422


@pytest.mark.parametrize("name", ["x" * 256, "with space", "caf\u00e9"])
async def test_a_name_that_cannot_be_one_is_400(node: Node, name: str) -> None:
    status, body = await named(node, name, JOB)
    assert (status, body["error"]) == (400, "Idempotency-Key is invalid")
    assert await node.get("/api/jobs") == []


async def test_a_refused_request_does_not_use_its_name_up(node: Node) -> None:
    assert (await named(node, "again", {"containers": ["nobody"], "data": {}}))[0] == 400
    assert (await named(node, "again", JOB))[0] == 200


@pytest.mark.parametrize(
    "timeouts", [5, [], {"queue_s": 0}, {"queue_s": -1}, {"total_s": "9"}, {"total_s": True}, {"step_s": 5}]
)
async def test_timeouts_that_cannot_be_are_400(node: Node, timeouts: Any) -> None:
    answer = await node.post("/api/jobs", JOB | {"timeouts": timeouts}, status=400)
    assert answer["error"] == "Could not parse message"
    assert answer["params"]["reason"].startswith("timeouts")


async def test_a_retry_is_a_new_job_that_goes_on_where_the_old_one_failed(node: Node, echo: Echo) -> None:
    data = {"key": "retry", "fail_first": 2, "status": 500, "body": '{"error": "not yet"}'}
    job_id = await node.submit(["b", "a"], {"x": 1} | {"key": "other"})
    await node.result(job_id)
    async with node.session.post(f"/api/jobs/{job_id}/retry") as answer:
        assert answer.status == 409
        assert await answer.json() == {"error": "Job has not failed", "params": {"id": job_id, "state": "succeeded"}}
    failed = await node.run(["a", "b"], data)
    assert failed["result"]["error"] == "step 1 of 2: container 'a': answered HTTP 500: not yet"
    first = (await node.post(f"/api/jobs/{failed['id']}/retry", None))["id"]
    assert (await node.result(first))["status"] == "failed"
    assert (await node.post(f"/api/jobs/{failed['id']}/retry", None))["id"] == first
    second = (await node.post(f"/api/jobs/{first}/retry", None))["id"]
    assert (await node.result(second))["status"] == "success"
    assert await node.result(failed["id"]) == failed
    await node.post("/api/jobs/00000000-0000-0000-0000-000000000000/retry", None, status=404)


async def test_results_are_gone_after_their_time(tmp_path: Path, echo: Echo) -> None:
    kept = {"retention_s": {"succeeded": 0.5, "cancelled": 0.5}, "runner": {"reclaim_s": 0.1}}
    async with Node(tmp_path, echo.containers("a"), **kept) as node:
        good = (await node.run(["a"], {"x": 1}))["id"]
        bad = (await node.run(["a"], {"status": 500}))["id"]

        async def gone() -> bool:
            async with node.session.get(f"/api/jobs?id={good}") as answer:
                return answer.status == 404

        await eventually(gone, seconds=20)
        assert await node.get("/api/jobs") == [bad]
        assert (await node.result(bad))["status"] == "failed"
