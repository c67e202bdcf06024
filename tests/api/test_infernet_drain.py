"""What the doors say while the node stops."""

import signal
from pathlib import Path
from typing import Any

from tests.api.support import Client
from tests.support import Echo, Node, eventually

JOB = {"containers": ["a"], "data": {}}
WORK: list[tuple[str, Any]] = [("/api/jobs", JOB), ("/api/jobs/batch", [JOB, None]), ("/api/jobs/stream", JOB)]


async def test_a_node_that_stops_takes_no_work_and_still_answers_questions(tmp_path: Path, echo: Echo) -> None:
    async with Node(tmp_path, echo.containers("a")) as node, Client(node) as client:
        held = await client.submit("a", data={"wait_for": "held", "key": "held"})

        async def called() -> bool:
            return "held" in echo.counts()["calls"]

        async def draining() -> bool:
            return (await client.ask("GET", "/health")).status == 503

        await eventually(called, message="the call")
        node.process.send_signal(signal.SIGTERM)
        await eventually(draining, message="the drain")
        for path, asked in WORK:
            answer = await client.ask("POST", path, asked)
            assert (answer.status, answer.json) == (503, {"error": "The node is shutting down", "params": {}})
            assert int(answer.headers["Retry-After"]) > 0
        health = await client.ask("GET", "/health")
        assert health.json == {"reason": "The node is shutting down", "status": "unhealthy"}
        assert (await client.job(held))["status"] == "running"
        assert (await client.get("/info"))["pending"]["offchain"] == 1
        echo.release("held")
        assert node.process.wait(30) == 0
