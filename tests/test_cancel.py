"""Our own routes of a job."""

import asyncio
import time
import uuid
from collections import Counter

import aiohttp
import pytest

from tests.support import Echo, Node, eventually

RACES, AT_ONCE = 1000, 50
ABORTS = 20
ABORTED_S = 5.0  # on a busy machine; docs/reliability.md has what was measured


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
    """Each cancel comes at another moment of its job's life; what it was answered is what the job stays."""
    outcomes: Counter[bool] = Counter()
    life_s = 0.02  # of a job, about; found out as the machine has it
    for _ in range(RACES // AT_ONCE):
        cancelled = await asyncio.gather(*(race(node, 2 * life_s * i / AT_ONCE) for i in range(AT_ONCE)))
        results = await node.get("/api/jobs?id=" + "&id=".join(job_id for job_id, _ in cancelled))
        told = [(result["status"], (result["result"] or {}).get("error")) for result in results]
        assert told == [("failed", "cancelled: by request") if each else ("success", None) for _, each in cancelled]
        outcomes.update(each for _, each in cancelled)
        life_s *= 1.5 if sum(each for _, each in cancelled) > AT_ONCE / 2 else 0.7
    print(f"\n{outcomes.total()} races: {outcomes[True]} cancelled, {outcomes[False]} had ended")
    assert min(outcomes[True], outcomes[False]) > RACES / 50, "hardly a race"
    assert await node.get("/api/jobs?pending=true") == []


async def race(node: Node, after_s: float) -> tuple[str, bool]:
    """A job, and a cancel some time after it; whether that stopped it."""
    job_id = await node.submit(["a", "b"], {"x": 1})
    await asyncio.sleep(after_s)
    async with node.session.delete(f"/api/jobs/{job_id}") as answer:
        body = await answer.json()
        assert answer.status in (200, 409), body
        if answer.status == 409:
            assert body["params"] == {"id": job_id, "state": "succeeded"}
        return job_id, answer.status == 200


async def test_a_cancelled_call_is_aborted_soon(node: Node, echo: Echo) -> None:
    """Also while the node is busy with others."""
    waits_s = []
    for i in range(ABORTS):
        key = f"cancel-soon-{i}"
        job_id = await node.submit(["d"], {"key": key, "wait_for": key})
        await eventually(lambda key=key: called(echo, key), message="the call")
        await node.post("/api/jobs/batch", [{"containers": ["a", "b"], "data": {"x": i}}] * 100)
        began = time.monotonic()
        await cancel(node, job_id)
        await eventually(lambda key=key: aborted(echo, key), seconds=ABORTED_S, message="the abort of the call")
        waits_s.append(time.monotonic() - began)
    waits_s.sort()
    print(f"\n{ABORTS} calls aborted, half within {waits_s[ABORTS // 2]:.3f} s, all within {waits_s[-1]:.3f} s")


async def called(echo: Echo, key: str) -> bool:
    return key in echo.counts()["calls"]


async def aborted(echo: Echo, key: str) -> bool:
    return key in echo.counts()["aborted"]
