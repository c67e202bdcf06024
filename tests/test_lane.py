"""Lanes: slots are the limit, slow containers delay only themselves, a lane looks when there is something to see."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, Echo, Node, RedisServer, eventually

FAULTY = """
from node.service import Service
sound = Service._output
async def faulty(self, body):
    if b"fault" in body:
        raise RuntimeError("a fault")
    return await sound(self, body)
Service._output = faulty
"""
FORGETFUL = """
from node.store import Store
sound, told = Store.finish, []
async def forgetful(self, claim, result):
    if not told:
        told.append(claim)
        raise RuntimeError("a fault")
    return await sound(self, claim, result)
Store.finish = forgetful
"""


async def test_never_more_at_once_than_the_concurrency_of_the_container(tmp_path: Path) -> None:
    with Echo() as echo:
        async with Node(tmp_path, echo.containers("a", concurrency=3)) as node:
            body = [{"containers": ["a"], "data": {"key": str(i), "sleep_s": 0.01}} for i in range(60)]
            ids = [answer["id"] for answer in await node.post("/api/jobs/batch", body)]
            results = [await node.result(job_id) for job_id in ids]
        assert {result["status"] for result in results} == {"success"}
        counts = echo.counts()
        assert counts["most"] == 3
        assert set(counts["calls"].values()) == {1}


async def test_a_container_without_a_free_slot_delays_only_its_own_jobs(node: Node, echo: Echo) -> None:
    body = [{"containers": ["a"], "data": {"key": f"stuck-{i}", "wait_for": "stuck"}} for i in range(50)]
    stuck = [answer["id"] for answer in await node.post("/api/jobs/batch", body)]
    assert (await node.run(["b", "c"], {"x": 1}))["status"] == "success"
    echo.release("stuck")
    assert {(await node.result(job_id))["status"] for job_id in stuck} == {"success"}


async def test_a_job_for_a_container_that_is_not_ready_waits(tmp_path: Path, echo: Echo) -> None:
    late = Echo()
    async with Node(tmp_path, echo.containers("a")) as node:
        node.kill()
        node.config["containers"] += late.containers("late")
        await node.start(ready=False)
        job_id = await node.submit(["a", "late"], {"x": 1})

        async def waits() -> bool:
            (job,) = await node.get(f"/api/jobs?id={job_id}&intermediate=true")
            return bool(job["intermediate_results"])

        await eventually(waits)
        info = await node.get("/info?verbose=true")
        assert {each["id"]: each["state"] for each in info["containers"]}["late"] != "ready"
        assert [each["id"] for each in (await node.get("/info"))["containers"]] == ["a"]
        with late:
            assert (await node.result(job_id))["status"] == "success"


FAULTS = {
    "answers 503": {"status": 503},
    "answers 502": {"status": 502, "body": "<html>bad gateway", "type": "text/html"},
    "closes the connection": {"drop": True},
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_call_that_was_not_begun_is_repeated(node: Node, echo: Echo, fault: str) -> None:
    result = await node.run(["a"], {"key": f"again-{fault}", "fail_first": 2} | FAULTS[fault])
    assert result["status"] == "success"
    assert echo.counts()["calls"][f"again-{fault}"] == 3


async def test_it_is_repeated_only_so_often(node: Node, echo: Echo) -> None:
    result = await node.run(["a"], {"key": "again-enough", "fail_first": 3, "status": 503, "body": "{}"})
    assert result["result"]["error"] == "container 'a': answered HTTP 503: {}"
    assert echo.counts()["calls"]["again-enough"] == 3


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 404}, {"type": "text/plain"}, {"body": "{"}])
async def test_a_call_that_was_begun_is_not_repeated(node: Node, echo: Echo, fault: dict[str, Any]) -> None:
    key = f"once-{fault}"
    assert (await node.run(["a"], {"key": key} | fault))["status"] == "failed"
    assert echo.counts()["calls"][key] == 1


@pytest.mark.parametrize(("idempotent", "calls"), [(False, 1), (True, 2)])
async def test_a_timeout_is_repeated_only_for_an_idempotent_container(
    tmp_path: Path, echo: Echo, idempotent: bool, calls: int
) -> None:
    key = f"late-{idempotent}"
    async with Node(tmp_path, echo.containers("a", timeout_s=0.3, retries=1, idempotent=idempotent)) as node:
        result = await node.run(["a"], {"key": key, "sleep_s": 2})
    assert result["result"]["error"] == "container 'a': timeout after 0.3 s (timeout_s)"
    assert echo.counts()["calls"][key] == calls


async def test_a_fault_of_the_nodes_own_ends_one_job_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULTY)
    with Echo() as echo:
        node = Node(tmp_path, echo.containers("a", "b"))
        node.environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        async with node:
            ended = await node.run(["b", "a"], {"fault": True})
            assert ended["status"] == "failed"
            assert ended["result"]["error"] == "step 1 of 2: container 'b': internal error: a fault"
            assert (await node.run(["a", "b"], {"x": 1}))["status"] == "success"
            assert [event["job_id"] for event in node.events("step_broke")] == [ended["id"]]
            assert "RuntimeError: a fault" in node.events("step_broke")[0]["exception"]


async def test_an_outcome_that_cannot_be_written_ends_no_node(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FORGETFUL)
    with Echo() as echo:
        node = Node(tmp_path, echo.containers("a"), runner={"lease_s": 1, "reclaim_s": 0.2})
        node.environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        async with node:
            assert (await node.run(["a"], {"x": 1}))["status"] == "success"  # the second time
            assert len(node.events("step_lost")) == 1


async def test_two_nodes_on_one_server_share_the_lanes(tmp_path: Path, echo: Echo) -> None:
    """A chain crosses nodes: each claims only from the lanes of the containers that it has."""
    with RedisServer("valkey", tmp_path / "redis") as server:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        redis = {"url": server.url}
        inner = echo.containers("b", external=False)
        both = echo.containers("a") + [spec | {"backend": "auto"} for spec in inner]
        async with Node(tmp_path / "one", both, redis=redis) as one, Node(tmp_path / "two", inner, redis=redis) as two:
            jobs = [{"containers": ["a", "b"], "data": {"i": i, "sleep_s": 0.01}} for i in range(100)]
            ids = [answer["id"] for answer in await one.post("/api/jobs/batch", jobs)]
            results = [await one.result(job_id) for job_id in ids]
            assert {result["status"] for result in results} == {"success"}
            done = [{event["job_id"] for event in node.events("step_finished")} for node in (one, two)]
        assert done[0] | done[1] == set(ids)
        assert done[1], "the second node took nothing"


async def test_a_dead_nodes_steps_are_taken_over_by_another(tmp_path: Path, echo: Echo) -> None:
    with RedisServer("valkey", tmp_path / "redis") as server:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        more = {"redis": {"url": server.url}, "runner": {"lease_s": 1, "reclaim_s": 0.2}}
        async with Node(tmp_path / "one", echo.containers("a"), **more) as one:
            job_id = await one.submit(["a"], {"key": "orphan", "wait_for": "orphan"})

            async def called() -> bool:
                return "orphan" in echo.counts()["calls"]

            await eventually(called)
            await asyncio.to_thread(one.kill)
            async with Node(tmp_path / "two", echo.containers("a"), **more) as two:
                echo.release("orphan")
                assert (await two.result(job_id, seconds=10))["status"] == "success"
                assert [event["job_id"] for event in two.events("step_reclaimed")] == [job_id]
