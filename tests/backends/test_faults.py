"""A whole node whose containers misbehave in a real engine: what jobs, operators and the other containers see of it."""

import os
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.backends.grounds import DockerGround
from tests.backends.registry import ImageRegistry
from tests.support import Node, eventually, free_port

pytestmark = pytest.mark.docker

MIB = 2**20
FULL = bool(os.environ.get("STOKER_FULL"))


@pytest.fixture
def ground(docker_ground: DockerGround) -> DockerGround:
    return docker_ground


def container(ground: DockerGround, id: str, **more: Any) -> dict[str, Any]:
    """An entry of the configuration: the service of the backend tests."""
    return {"id": id, "build": str(ground.context), "backend": "docker", "retries": 0, **more}


async def health(node: Node, id: str) -> dict[str, Any]:
    return next(each for each in (await node.get("/info?verbose=true"))["containers"] if each["id"] == id)


async def until_restarted(node: Node, id: str, restarts: int = 1) -> dict[str, Any]:
    async def restarted() -> dict[str, Any] | None:
        now = await health(node, id)
        return now if now["state"] == "ready" and now["restarts"] >= restarts else None

    return await eventually(restarted, message=f"restart {restarts} of {id}")


# Containers that end during a step.


async def test_a_job_whose_container_runs_out_of_memory_is_told_so_and_the_next_one_runs(
    ground: DockerGround, tmp_path: Path
) -> None:
    hungry = container(ground, "hungry", hardening={"memory_bytes": 48 * MIB})
    async with Node(tmp_path, [hungry], node_id=ground.node_id) as node:
        limit = "out of memory (limit 48 MiB, hardening.memory_bytes)"
        ended = await node.run(["hungry"], {"action": "worker", "mib": 200})
        assert ended["result"]["error"] == f"container 'hungry': a process in it was {limit} during the step"
        assert (await health(node, "hungry"))["restarts"] == 0
        ended = await node.run(["hungry"], {"action": "eat", "mib": 200})
        assert ended["status"] == "failed"
        assert ended["result"]["error"] == f"container 'hungry': {limit} during the step"
        waiting = await node.submit(["hungry"], {"action": "index"})  # while it is down
        assert (await node.result(waiting))["status"] == "success"
        now = await until_restarted(node, "hungry")
        assert now["last_error"] == limit
        (down,) = node.events("container_restarting")
        assert down["reason"] == limit


async def test_a_job_whose_container_ends_is_told_how(ground: DockerGround, tmp_path: Path) -> None:
    containers = [container(ground, "first"), container(ground, "brittle")]
    async with Node(tmp_path, containers, node_id=ground.node_id) as node:
        ended = await node.run(["brittle"], {"action": "leave", "code": 3})
        assert ended["result"]["error"] == "container 'brittle': exited with code 3 during the step"
        await until_restarted(node, "brittle")
        ended = await node.run(["brittle"], {"action": "leave", "code": 139})
        assert ended["result"]["error"] == ("container 'brittle': killed by SIGSEGV (exit code 139) during the step")
        await until_restarted(node, "brittle", 2)
        running = await node.submit(
            ["first", "brittle"], {"action": "hand_on", "data": {"action": "sleep", "seconds": 60}}
        )

        async def begun() -> bool:
            (job,) = await node.get(f"/api/jobs?id={running}&intermediate=true")
            return bool(job["intermediate_results"])

        await eventually(begun)
        ground.kill("brittle")
        error = "step 2 of 2: container 'brittle': killed by SIGKILL (exit code 137) during the step"
        assert (await node.result(running))["result"]["error"] == error


async def test_a_crash_loop_is_slowed_down_and_explained_while_others_serve(
    ground: DockerGround, tmp_path: Path
) -> None:
    looping = container(ground, "looping", command="python3 -c 'raise SystemExit(\"no model found\")'")
    containers = [looping, container(ground, "good")]
    async with Node(tmp_path, containers, node_id=ground.node_id, down=("looping",)) as node:

        async def restarted() -> bool:
            return (await health(node, "looping"))["restarts"] >= 2

        waiting = await node.submit(["looping"], {})
        while not await restarted():
            assert (await node.run(["good"], {}))["status"] == "success"
        now = await health(node, "looping")
        assert now["last_error"] == "exited with code 1"
        assert now["log_tail"] == ["no model found"]
        began = [each["timestamp"] for each in node.events("container_starting") if each["container"] == "looping"]
        first, second = (datetime.fromisoformat(stamp).timestamp() for stamp in began)
        assert second - first > 1
        (job,) = await node.get(f"/api/jobs?id={waiting}")
        assert job["status"] == "running"  # it waits, and harms nobody


# Images that are not to be had.


async def test_an_image_that_cannot_run_here_is_told_exactly_and_the_others_serve(
    ground: DockerGround, tmp_path: Path, engine: docker.DockerClient
) -> None:
    nowhere = f"127.0.0.1:{free_port()}/any:1"
    with ImageRegistry() as registry, ImageRegistry() as listing:
        registry.put(layer_mib=1, architecture="arm64")
        listing.put(layer_mib=1, architecture="arm64", listed=True)
        missing = f"{registry.address}/stoker/missing:1"
        images = {"missing": missing, "down": nowhere, "foreign": registry.image, "listed": listing.image}
        containers = [{"id": id, "image": image, "backend": "docker"} for id, image in images.items()]
        containers.append(container(ground, "good"))
        async with Node(tmp_path, containers, node_id=ground.node_id, down=tuple(images)) as node:
            assert (await node.run(["good"], {}))["status"] == "success"

            async def told() -> dict[str, dict[str, Any]] | None:
                found = {id: await health(node, id) for id in images}
                return found if all(each["last_error"] for each in found.values()) else None

            found = await eventually(told, message="the reasons")
            assert found["missing"]["state"] == found["listed"]["state"] == "failed"
            cannot = "is not on this machine and cannot be pulled"
            assert found["missing"]["last_error"].startswith(f"image {missing} {cannot}: ")
            assert "unknown" in found["missing"]["last_error"]
            assert found["down"]["last_error"].startswith(f"image {nowhere} {cannot}: ")
            assert "connection refused" in found["down"]["last_error"]
            assert "no matching manifest for linux/amd64" in found["listed"]["last_error"]
            assert found["foreign"]["last_error"].endswith(": its image is for arm64, and this machine is amd64")
            assert any("exec /content failed" in line for line in found["foreign"]["log_tail"])


# A node that is killed.


async def test_what_a_killed_node_left_is_adopted_or_removed(ground: DockerGround, tmp_path: Path) -> None:
    containers = [container(ground, name) for name in ("same", "changed", "gone")]
    async with Node(tmp_path, containers, node_id=ground.node_id) as node:
        before = {name: ground.container(name).id for name in ("same", "changed", "gone")}
        node.kill()
        node.config["containers"] = [containers[0], containers[1] | {"env": {"GREETING": "new"}}]
        began = time.monotonic()
        await node.start()
        taken_s = time.monotonic() - began
        assert ground.container("same").id == before["same"]
        assert ground.container("changed").id != before["changed"]
        assert sorted(ground.left_running()) == sorted(ground.mark.name(name) for name in ("same", "changed"))
        (removed,) = node.events("container_left_over")
        assert removed["ended"] == f"container {ground.mark.name('gone')}"
        assert (await node.run(["same", "changed"], {}))["status"] == "success"
        node.kill(signal.SIGTERM)
    assert ground.left() == []
    print(f"up again with its containers after {taken_s:.2f} s")


# Neighbours.


async def test_hogs_of_every_kind_leave_the_node_and_the_neighbours_alone(ground: DockerGround, tmp_path: Path) -> None:
    seconds = 30 if FULL else 3
    hogs = {
        "forks": {"action": "fork", "seconds": str(seconds)},
        "eats": {"action": "eat", "mib": 500},
        "spins": {"action": "spin", "seconds": seconds},
        "writes": {"action": "write", "path": "/big", "mib": 100 * seconds},
        "floods": {"action": "flood", "mib": 20 * seconds},
    }
    limits = {"hardening": {"memory_bytes": 256 * MIB, "pids": 100}}
    containers = [container(ground, name, **limits) for name in hogs] + [container(ground, "neighbour")]
    async with Node(tmp_path, containers, node_id=ground.node_id) as node:
        alone = await latencies(node, 2)
        jobs = {name: await node.submit([name], wish) for name, wish in hogs.items()}
        beside = await latencies(node, seconds)
        ended = {name: (await node.result(job))["result"] for name, job in jobs.items()}
    assert ended["forks"].get("output", 0) > 0, ended["forks"]
    assert "out of memory (limit 256 MiB" in ended["eats"]["error"]
    assert ended["writes"]["output"] == "ok"
    for name in ("health", "job"):
        print(f"{name}: p50, p99 in ms alone {in_ms(alone[name])}, beside the hogs {in_ms(beside[name])}")
        assert beside[name][int(len(beside[name]) * 0.9)] < 2, in_ms(beside[name])


async def latencies(node: Node, seconds: float) -> dict[str, list[float]]:
    """How long the node takes to say that it is well, and a job through the neighbour: sorted, in seconds."""
    taken: dict[str, list[float]] = {"health": [], "job": []}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        began = time.monotonic()
        await node.get("/health")
        taken["health"].append(time.monotonic() - began)
        began = time.monotonic()
        assert (await node.run(["neighbour"], {}))["status"] == "success"
        taken["job"].append(time.monotonic() - began)
    return {name: sorted(each) for name, each in taken.items()}


def in_ms(taken: list[float]) -> tuple[float, float]:
    return tuple(round(taken[int(len(taken) * part)] * 1000, 1) for part in (0.5, 0.99))
