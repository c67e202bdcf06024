"""The node is killed again and again while it works, every second time with its own server in the same moment: nothing
that it accepted is lost, nothing finished is redone.
"""

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from node.config import Embedded as EmbeddedSettings
from node.jobs import Job
from node.store import Store
from node.store.embedded import Embedded
from tests.support import Echo, Node, eventually

pytestmark = pytest.mark.acceptance

FULL = bool(os.environ.get("STOKER_FULL"))
BATCHES, KILLS = (5, 20) if FULL else (4, 3)
BATCH = 1000
CHAIN = ["a", "b", "c"]


class Trial:
    """The jobs that were accepted, and what was seen of them between the node's lives."""

    def __init__(self, node: Node, services: dict[str, Echo]) -> None:
        self.node = node
        self.services = services
        self.accepted: dict[str, str] = {}  # job id -> its key
        self.calls_at_finish: dict[tuple[str, str], int] = {}  # (container, key) -> calls when first seen finished

    async def submit_all(self) -> None:
        """Batches, each sent until it is answered: what was not answered with ids was not promised."""
        for batch in range(BATCHES):
            keys = [f"{batch}-{i}" for i in range(BATCH)]
            body = [{"containers": CHAIN, "data": {"key": key}} for key in keys]
            answers = None
            while answers is None:
                try:
                    answers = await self.node.post("/api/jobs/batch", body)
                except (OSError, AssertionError):  # killed meanwhile, or still starting
                    await asyncio.sleep(0.05)
            self.accepted |= {answer["id"]: key for answer, key in zip(answers, keys, strict=True)}

    async def progress(self) -> int:
        return sum(len(service.counts()["calls"]) for service in self.services.values())

    async def look(self, data_dir: Path) -> None:
        """While no node lives: which steps are finished, and how often was each called until now."""
        async with Embedded(data_dir, EmbeddedSettings()) as server, Store(server.url, node_id="observer") as store:
            jobs = await store.get(list(self.accepted))
        calls = {container: service.counts()["calls"] for container, service in self.services.items()}
        for job in jobs:
            assert job is not None
            for container in finished(job):
                key = self.accepted[job.id]
                self.calls_at_finish.setdefault((container, key), calls[container][key])

    async def results(self) -> list[dict]:
        ids = list(self.accepted)
        parts = [ids[i : i + 500] for i in range(0, len(ids), 500)]
        found = [await self.node.get("/api/jobs?intermediate=true&id=" + "&id=".join(part)) for part in parts]
        return [job for part in found for job in part]


def finished(job: Job) -> list[str]:
    return CHAIN if job.state.terminal else CHAIN[: job.step]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [0, 2] if FULL else [0])
async def test_accepted_jobs_survive_kills_and_finished_steps_are_not_run_again(tmp_path: Path, workers: int) -> None:
    of = {"workers": workers}
    with Echo() as a, Echo() as b, Echo() as c:
        services = {"a": a, "b": b, "c": c}
        containers = [spec for name, service in services.items() for spec in service.containers(name)]
        async with Node(tmp_path, containers, server=of, runner=of) as node:
            trial = Trial(node, services)
            submitting = asyncio.create_task(trial.submit_all())
            total = BATCHES * BATCH * len(CHAIN)
            for kill in range(KILLS):
                goal = total * (kill + random.random()) / (KILLS + 1)
                await eventually(lambda goal=goal: reached(trial, goal), seconds=120, message=f"{goal:.0f} calls")
                if kill % 2:
                    os.kill(int((tmp_path / "data" / "valkey" / "valkey.pid").read_text()), signal.SIGKILL)
                node.kill()
                await trial.look(tmp_path / "data")
                await node.start()
            await submitting

            async def done() -> bool:
                return not await node.get("/api/jobs?pending=true")

            await eventually(done, seconds=120, message="the end of all jobs")
            jobs = await trial.results()
            right = {"key": None}
            wrong = []
            for job in jobs:
                right = {"key": trial.accepted[job["id"]]}
                outputs = [each.get("output") for each in [*job["intermediate_results"], job["result"]]]
                if job["status"] != "success" or outputs != [right] * 3:
                    wrong.append(job)
            calls = {container: service.counts()["calls"] for container, service in services.items()}
    again = [place for place, before in trial.calls_at_finish.items() if calls[place[0]][place[1]] != before]
    repeated = sum(times - 1 for counts in calls.values() for times in counts.values())
    print(
        f"\n{len(trial.accepted)} jobs, {KILLS} kills: {len(trial.accepted) - len(jobs)} lost, {len(wrong)} wrong, "
        f"{len(again)} of {len(trial.calls_at_finish)} steps seen finished run again, {repeated} calls repeated in all"
    )
    assert len(trial.accepted) == BATCHES * BATCH
    assert len(jobs) == len(trial.accepted)
    assert wrong == []
    assert again == []


async def reached(trial: Trial, goal: float) -> bool:
    return await trial.progress() >= goal
