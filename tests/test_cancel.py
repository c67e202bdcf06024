"""Our own routes of a job."""

import asyncio
import uuid

import aiohttp
import pytest

from tests.support import Echo, Node, eventually


async def cancel(node: Node, job_id: str, *, status: int = 200) -> dict:
    async with node.session.delete(f"/api/jobs/{job_id}") as answer:
        assert answer.status == status, await answer.text()
        return await answer.json()


async def test_a_cancelled_running_step_has_its_call_aborted_at_once(node: Node, echo: Echo) -> None:
    job_id = await node.submit(["a", "b"], {"key": "cancel-1", "wait_for": "cancel-1"})

    async def running() -> bool:
        return "cancel-1" in echo.counts()["calls"]

    async def aborted() -> bool:
        return echo.counts()["now"] == 0

    await eventually(running)
    result = await cancel(node, job_id)
    assert (result["status"], result["result"]["error"]) == ("failed", "cancelled: by request")
    await eventually(aborted, seconds=5, message="the abort of the call")
    echo.release("cancel-1")
    assert (await node.result(job_id)) == result
    assert echo.counts()["calls"]["cancel-1"] == 1


async def test_a_cancelled_waiting_job_never_starts(node: Node, echo: Echo) -> None:
    body = [{"containers": ["a"], "data": {"key": f"cancel-2-{i}", "wait_for": "cancel-2"}} for i in range(9)]
    *blockers, last = [answer["id"] for answer in await node.post("/api/jobs/batch", body)]
    await cancel(node, last)
    echo.release("cancel-2")
    assert {(await node.result(job_id))["status"] for job_id in blockers} == {"success"}
    assert "cancel-2-8" not in echo.counts()["calls"]


async def test_a_cancelled_stream_has_its_call_aborted_and_its_client_cut_off(node: Node, echo: Echo) -> None:
    body = {"containers": ["a"], "data": {"parts": ["x"] * 10_000, "gap_s": 0.05}}
    async with node.session.post("/api/jobs/stream", json=body) as answer:
        job_id = (await answer.content.readline()).decode().strip()
        result = await cancel(node, job_id)
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    assert (result["status"], result["result"]["error"]) == ("failed", "cancelled: by request")

    async def aborted() -> bool:
        return echo.counts()["now"] == 0

    await eventually(aborted, seconds=5, message="the abort of the call")
    assert await node.result(job_id) == result


async def test_a_job_that_has_ended_cannot_be_cancelled(node: Node) -> None:
    result = await node.run(["a"], {"x": 1})
    answer = await cancel(node, result["id"], status=409)
    assert answer == {"error": "Job has ended", "params": {"id": result["id"], "state": "succeeded"}}
    assert await node.result(result["id"]) == result


async def test_an_unknown_job_cannot_be_cancelled(node: Node) -> None:
    assert (await cancel(node, str(uuid.uuid4()), status=404))["error"] == "Job not found"


async def test_a_cancel_that_races_with_the_end_leaves_one_outcome(node: Node) -> None:
    body = [{"containers": ["a", "b"], "data": {"x": i}} for i in range(200)]
    ids = [answer["id"] for answer in await node.post("/api/jobs/batch", body)]

    async def race(job_id: str) -> bool:
        async with node.session.delete(f"/api/jobs/{job_id}") as answer:
            assert answer.status in (200, 409)
            return answer.status == 200

    cancelled = await asyncio.gather(*(race(job_id) for job_id in ids))
    results = [await node.result(job_id) for job_id in ids]
    told = [(result["status"], result["result"].get("error")) for result in results]
    assert told == [("failed", "cancelled: by request") if each else ("success", None) for each in cancelled]
