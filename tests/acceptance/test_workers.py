"""A node of several processes: it is one node for its clients and its operator, whichever of them dies."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests
from aiohttp import web

from tests.support import READY_S, ROOT, Echo, Node, eventually, free_port, in_flight, stoker

pytestmark = pytest.mark.acceptance

WORKERS: dict[str, Any] = {"server": {"workers": 2}, "runner": {"workers": 2}}
ALL = {"zygote", "d1", "d2", "r1", "r2"}
FAULTY = """
import time
from node import log
from node.runner import Runner
async def faulty(self):
    raise ZeroDivisionError("a fault")
def slow(sound=log.flush):
    time.sleep(0.3)
    sound()
Runner.tidy = faulty
log.flush = slow
"""
GONE_S = 2.0  # for all processes of a node that was killed


def several(directory: Path, containers: list[dict[str, Any]], **more: Any) -> Node:
    return Node(directory, containers, **{**WORKERS, **more})


def processes(node: Node) -> dict[str, int]:
    """The node's other processes, by name."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (place / "comm").read_text().strip()
            if name.startswith("stoker ") and node.process.pid in ancestors(int(place.name)):
                found[name.removeprefix("stoker ")] = int(place.name)
    return found


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


async def complete(node: Node) -> None:
    async def all_there() -> bool:
        return set(processes(node)) == ALL

    await eventually(all_there, message="all processes")


async def replaced(node: Node, name: str, before: int) -> int:
    async def there() -> int:
        now = processes(node).get(name, before)
        return 0 if now == before else now

    return await eventually(there, message=f"a new {name}")


@asynccontextmanager
async def apart(node: Node) -> AsyncIterator[aiohttp.ClientSession]:
    """A client whose every request has a connection of its own, so that all doors get some."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(node.url, connector=connector) as session:
        yield session


@asynccontextmanager
async def stream(node: Node, container: str, data: dict[str, Any]) -> AsyncIterator[tuple[str, aiohttp.StreamReader]]:
    """A stream that has begun; left early, its client goes away."""
    async with aiohttp.ClientSession(node.url) as session:
        answer = await session.post("/api/jobs/stream", json={"containers": [container], "data": data})
        try:
            assert answer.status == 200, await answer.text()
            yield (await answer.content.readline()).decode().strip(), answer.content
        finally:
            answer.close()


async def idle(echo: Echo) -> None:
    async def none() -> bool:
        return echo.counts()["now"] == 0

    await eventually(none, message="the end of all calls")


async def test_jobs_flow_through_all_of_them_and_their_log_is_one(tmp_path: Path, echo: Echo) -> None:
    async with several(tmp_path, echo.containers("a", "b"), log={"path": str(tmp_path / "file.log")}) as node:
        await complete(node)
        ids = {}
        async with apart(node) as session:
            for i in range(100):
                body = {"containers": ["a", "b"], "data": {"key": f"w-flow-{i}"}}
                async with session.post("/api/jobs", json=body) as answer:
                    ids[(await answer.json())["id"]] = f"w-flow-{i}"
        for job_id, key in ids.items():
            result = await node.result(job_id)
            outputs = [result["result"], *result["intermediate_results"]]
            assert [each["output"] for each in outputs] == [{"key": key}] * 2
        many = [{"containers": ["b"], "data": {"key": "w-flow"}}] * 1000  # more lines at once than a pipe takes
        burst = [answer["id"] for answer in await node.post("/api/jobs/batch", many)]
        assert {(await node.result(job_id))["status"] for job_id in burst[::100]} == {"success"}
        finished = [event for event in node.events("step_finished") if event["job_id"] in ids]
        assert {event["worker"] for event in finished} == {"r1", "r2"}
        assert {event["worker"] for event in node.events("job_queued")} == {"d1", "d2"}
        assert Counter(event["job_id"] for event in finished) == dict.fromkeys(ids, 2)
        assert await asyncio.to_thread(node.kill, signal.SIGTERM) == 0
        assert {event["job_id"] for event in node.events("job_queued")} == {*ids, *burst}
    told, kept = node.log.read_text().splitlines(), (tmp_path / "file.log").read_text().splitlines()
    lines = [line for line in told if line.startswith("{")]
    assert [json.loads(line)["node_id"] for line in lines] == [json.loads(lines[0])["node_id"]] * len(lines)
    assert kept == lines


async def test_together_they_never_run_more_than_a_container_takes(tmp_path: Path) -> None:
    with Echo() as one, Echo() as four:
        containers = one.containers("one", concurrency=1) + four.containers("four", concurrency=4)
        async with several(tmp_path, containers) as node:
            body = [{"containers": ["one", "four"], "data": {"key": f"most-{i}", "sleep_s": 0.01}} for i in range(100)]
            body += [{"containers": ["four"], "data": {"sleep_s": 0.02}} for i in range(100)]
            ids = [answer["id"] for answer in await node.post("/api/jobs/batch", body)]
            async with apart(node) as session:

                async def streamed(container: str) -> bytes:
                    asked = {"containers": [container], "data": {"parts": ["x"] * 5, "gap_s": 0.01}}
                    async with session.post("/api/jobs/stream", json=asked) as answer:
                        return (await answer.read()).partition(b"\n")[2]

                streams = [streamed("one") for _ in range(5)] + [streamed("four") for _ in range(10)]
                assert await asyncio.gather(*streams) == [b"xxxxx"] * 15
            assert {(await node.result(job_id))["status"] for job_id in ids} == {"success"}
        assert (one.counts()["most"], four.counts()["most"]) == (1, 4)
        assert {one.counts()["calls"][f"most-{i}"] for i in range(100)} == {1}


async def test_steps_of_a_runner_that_is_killed_go_on_at_once(tmp_path: Path, echo: Echo) -> None:
    async with several(tmp_path, echo.containers("a", "b", concurrency=4)) as node:
        body = [{"containers": ["a", "b"], "data": {"key": f"w-rk-{i}", "wait_for": f"w-rk-{i}"}} for i in range(4)]
        ids = [answer["id"] for answer in await node.post("/api/jobs/batch", body)]
        for i in range(4):
            await in_flight(echo, f"w-rk-{i}")
        before = processes(node)
        os.kill(before["r1"], signal.SIGKILL)
        began = time.monotonic()

        async def again() -> bool:
            return sum(echo.counts()["calls"][f"w-rk-{i}"] for i in range(4)) == 6

        await eventually(again, message="the steps of the killed runner, in another one")
        assert time.monotonic() - began < 10  # and not when a lease has ended
        for i in range(4):
            echo.release(f"w-rk-{i}")
        assert {(await node.result(job_id))["status"] for job_id in ids} == {"success"}
        assert sum(echo.counts()["calls"][f"w-rk-{i}"] for i in range(4)) == 4 + 2 + 4
        (event,) = node.events("worker_replaced")
        assert (event["worker"], event["reason"]) == ("r1", "killed by SIGKILL")
        await replaced(node, "r1", before["r1"])
        assert await node.metric("stoker_jobs_reclaimed_total", container="a") == 2
        await complete(node)


async def test_others_serve_while_a_door_that_was_killed_is_replaced(tmp_path: Path, echo: Echo) -> None:
    async with several(tmp_path, echo.containers("a")) as node, apart(node) as session:
        before = processes(node)
        os.kill(before["d1"], signal.SIGKILL)
        for i in range(50):  # also those that wait at the socket of the killed one
            async with session.post("/api/jobs", json={"containers": ["a"], "data": {"key": f"w-dk-{i}"}}) as answer:
                assert answer.status == 200
                job_id = (await answer.json())["id"]
        assert (await node.result(job_id))["status"] == "success"
        await replaced(node, "d1", before["d1"])
        async with stream(node, "a", {"parts": ["x"], "gap_s": 0}) as (_, parts):
            assert await parts.read() == b"x"


async def test_a_killed_node_leaves_no_process_and_its_next_life_goes_on(tmp_path: Path, echo: Echo) -> None:
    async with several(tmp_path, echo.containers("a", "b")) as node:
        job_id = await node.submit(["a", "b"], {"key": "w-kill", "wait_for": "w-kill"})
        await in_flight(echo, "w-kill")
        async with stream(node, "a", {"key": "w-kill-s", "parts": ["x"] * 10_000, "gap_s": 0.05}) as (stream_id, _):
            left = processes(node)
            os.kill(left["r2"], signal.SIGSTOP)  # one that cannot see that the others have gone
            node.kill()
            began = time.monotonic()

            async def gone() -> bool:
                return not any(lives(pid) for pid in left.values())

            await eventually(gone, seconds=GONE_S, message="the end of all processes")
            print(f"\nall {len(left)} processes gone {time.monotonic() - began:.3f} s after their node was killed")
        node.config["runner"]["workers"] = 1
        node.config["server"]["workers"] = 0
        await node.start()
        await in_flight(echo, "w-kill", 2)
        echo.release("w-kill")
        assert (await node.result(job_id))["status"] == "success"
        assert echo.counts()["calls"]["w-kill"] == 3
        assert "stopped while it streamed" in (await node.result(stream_id))["result"]["error"]


async def test_one_signal_drains_and_ends_all_of_them(tmp_path: Path, echo: Echo) -> None:
    async with several(tmp_path, echo.containers("a", "b")) as node, apart(node) as session:
        job_id = await node.submit(["a", "b"], {"key": "w-drain", "wait_for": "w-drain"})
        await in_flight(echo, "w-drain")
        left = processes(node)
        node.process.send_signal(signal.SIGTERM)

        async def draining() -> bool:
            async with session.get("/health") as answer:
                return answer.status == 503

        await eventually(draining, message="the drain")
        for _ in range(10):
            async with session.post("/api/jobs", json={"containers": ["a"], "data": {}}) as answer:
                assert (answer.status, (await answer.json())["error"]) == (503, "The node is shutting down")
        async with session.get(f"/api/jobs?id={job_id}") as answer:
            assert answer.status == 200
        echo.release("w-drain")
        assert await asyncio.to_thread(node.process.wait, 30) == 0
        assert not any(lives(pid) for pid in left.values())
        assert node.events("worker_replaced") == []
        await node.start()
        assert (await node.result(job_id))["status"] == "success"


async def test_a_second_signal_ends_all_of_them_at_once(tmp_path: Path, echo: Echo) -> None:
    async with several(tmp_path, echo.containers("a")) as node:
        await node.submit(["a"], {"key": "w-second", "wait_for": "w-second"})
        await in_flight(echo, "w-second")
        left = processes(node)
        node.process.send_signal(signal.SIGTERM)

        async def stopping() -> bool:
            return bool(node.events("node_stopping"))

        await eventually(stopping)
        assert await asyncio.to_thread(node.kill, signal.SIGINT) == 128 + signal.SIGINT

        async def gone() -> bool:
            return not any(lives(pid) for pid in left.values())

        await eventually(gone, seconds=GONE_S, message="the end of all processes")


async def test_a_cancel_reaches_a_step_and_a_stream_in_other_processes(tmp_path: Path, echo: Echo) -> None:
    async with several(tmp_path, echo.containers("a")) as node, apart(node) as session:
        for i in range(4):
            job_id = await node.submit(["a"], {"key": f"w-cw-{i}", "wait_for": f"w-cw-{i}"})
            await in_flight(echo, f"w-cw-{i}")
            async with stream(node, "a", {"parts": ["x"] * 10_000, "gap_s": 0.05}) as (stream_id, parts):
                for each in (job_id, stream_id):
                    async with session.delete(f"/api/jobs/{each}") as answer:
                        assert (await answer.json())["result"]["error"] == "cancelled: by request"
                with pytest.raises(aiohttp.ClientPayloadError):
                    await parts.read()
            await idle(echo)


async def test_a_stream_keeps_its_slot_and_gives_it_back(tmp_path: Path) -> None:
    """Whoever goes away: its client, the runner whose slot it is, or the door in which it runs."""
    endless = {"parts": ["x"] * 10_000, "gap_s": 0.02}
    with Echo() as echo:
        async with several(tmp_path, echo.containers("a", concurrency=1)) as node:
            async with stream(node, "a", endless):
                waiting = await node.submit(["a"], {"key": "slot-1"})
            assert (await node.result(waiting))["status"] == "success"
            async with stream(node, "a", endless) as (_, parts):
                before = processes(node)
                for name in ("r1", "r2"):
                    os.kill(before[name], signal.SIGKILL)
                    await replaced(node, name, before[name])
                waiting = await node.submit(["a"], {"key": "slot-2"})
                assert await parts.readexactly(100) == b"x" * 100
                assert "slot-2" not in echo.counts()["calls"]
            assert (await node.result(waiting))["status"] == "success"
            async with stream(node, "a", endless) as (stream_id, _):
                before = processes(node)
                for name in ("d1", "d2"):
                    os.kill(before[name], signal.SIGKILL)
                assert "stopped while it streamed" in (await node.result(stream_id))["result"]["error"]
            assert (await node.run(["a"], {"key": "slot-3"}))["status"] == "success"
        assert echo.counts()["most"] == 1


async def test_one_callers_streams_leave_half_of_the_slots_and_are_as_many_as_allowed(
    tmp_path: Path, echo: Echo
) -> None:
    server = {"workers": 2, "max_streams_per_caller": 3}
    async with several(tmp_path, echo.containers("a", concurrency=4), server=server) as node, AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(stream(node, "a", {"parts": ["x"] * 10_000, "gap_s": 0.05}))
        body = {"containers": ["a"], "data": {"parts": ["y"]}}
        async with apart(node) as session:

            async def third() -> bytes:
                while True:
                    async with session.post("/api/jobs/stream", json=body) as answer:
                        if answer.status == 200:
                            return await answer.read()

            async def refused() -> bool:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1), session.post("/api/jobs/stream", json=body) as answer:
                        told = (await answer.json())["params"]["setting"]
                        return (answer.status, told) == (429, "server.max_streams_per_caller")
                return False  # it was the third itself

            waiting = asyncio.create_task(third())
            for _ in range(4):
                await eventually(refused, message="the refusal of a fourth stream")
            assert {(await node.run(["a"], {"x": i}))["status"] for i in range(10)} == {"success"}
            assert not waiting.done()
            await held.aclose()
            assert (await waiting).endswith(b"y")


async def test_metrics_are_those_of_all_processes(tmp_path: Path, echo: Echo) -> None:
    async with several(tmp_path, echo.containers("a")) as node, apart(node) as session:
        for i in range(20):
            await node.submit(["a"], {"key": f"w-sum-{i}", "fail_first": 1, "status": 503, "body": "{}"})

        async def text() -> str:
            async with session.get("/metrics") as answer:
                return await answer.text()

        async def counted() -> bool:
            return 'stoker_step_retries_total{container="a"} 20.0' in await text()

        await eventually(counted, message="all retries")
        assert {event["worker"] for event in node.events("step_repeated")} == {"r1", "r2"}
        before = processes(node)
        os.kill(before["r1"], signal.SIGKILL)
        await replaced(node, "r1", before["r1"])
        assert [await counted() for _ in range(8)] == [True] * 8


async def test_a_port_of_several_doors_is_taken_like_any_other(tmp_path: Path, echo: Echo) -> None:
    async with several(tmp_path, echo.containers("a")) as node:
        file = tmp_path / "config.json"
        ended = await asyncio.to_thread(
            stoker, "serve", "--config", str(file), "--data-dir", str(tmp_path / "second"), PYTHONWARNINGS="default"
        )
        last = ended.stderr.splitlines()[-1]
        assert last == f"stoker: cannot listen on 127.0.0.1:{node.port}: address already in use"


async def test_a_node_whose_zygote_is_gone_ends_and_says_so(tmp_path: Path, echo: Echo) -> None:
    async with several(tmp_path, echo.containers("a")) as node:
        left = processes(node)
        os.kill(left["zygote"], signal.SIGKILL)
        assert await asyncio.to_thread(node.process.wait, 30) == 1
        assert not any(lives(pid) for pid in left.values())
        assert "the process that starts the workers has ended; start the node again" in node.log.read_text()


async def test_a_runner_that_dies_while_the_main_process_looks_something_up_for_it_is_replaced(tmp_path: Path) -> None:
    """Its step broke, for its container is down: how that came is what is looked up."""
    down, asked, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def step(request: web.Request) -> web.Response:
        if not down.is_set():
            down.set()
            assert request.transport
            request.transport.abort()
        return web.json_response({})

    async def index(request: web.Request) -> web.Response:
        if down.is_set() and not asked.is_set():
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.set()
        return web.json_response({})

    app = web.Application()
    app.add_routes([web.get("/", index), web.post("/service_output", step)])
    service = web.AppRunner(app, handler_cancellation=True)
    await service.setup()
    try:
        port = free_port()
        await web.TCPSite(service, "127.0.0.1", port).start()
        async with several(tmp_path, [{"id": "a", "url": f"http://127.0.0.1:{port}", "retries": 0}]) as node:
            job_id = await node.submit(["a"], {})
            async with asyncio.timeout(READY_S):
                await asked.wait()
                for name in ("r1", "r2"):
                    os.kill(processes(node)[name], signal.SIGKILL)
                await left.wait()
            assert (await node.result(job_id))["status"] == "success"
            await complete(node)
            assert (await node.run(["a"], {}))["status"] == "success"
            assert await asyncio.to_thread(node.kill, signal.SIGTERM) == 0
    finally:
        await service.cleanup()


def test_whoever_connects_once_the_address_is_told_is_answered(tmp_path: Path, echo: Echo) -> None:
    node = several(tmp_path, echo.containers("a"))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(node.config))
    command = [sys.executable, "-m", "node", "serve", "--config", str(file)]
    for _ in range(3):
        with (tmp_path / "node.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)}
            )
        with process:
            try:
                assert process.stdout
                assert process.stdout.readline() == f"stoker listens on {node.url}\n".encode()
                answers = [requests.get(f"{node.url}/health/live", timeout=READY_S).status_code for _ in range(10)]
                assert answers == [200] * 10
            finally:
                process.terminate()
                process.communicate(timeout=READY_S)


@pytest.mark.parametrize("workers", [(1, 0), (0, 1)], ids=["doors", "runners"])
async def test_what_one_process_left_is_put_right_by_several(
    tmp_path: Path, echo: Echo, workers: tuple[int, int]
) -> None:
    key = f"w-mixed-{workers[0]}"
    async with Node(tmp_path, echo.containers("a")) as node:
        job_id = await node.submit(["a"], {"key": key, "wait_for": key})
        await in_flight(echo, key)
        async with stream(node, "a", {"parts": ["x"] * 10_000, "gap_s": 0.05}) as (stream_id, _):
            node.kill()
        node.config["server"]["workers"], node.config["runner"]["workers"] = workers
        await node.start()
        began = time.monotonic()
        await in_flight(echo, key, 2)
        echo.release(key)
        assert (await node.result(job_id))["status"] == "success"
        assert "stopped while it streamed" in (await node.result(stream_id))["result"]["error"]
        assert time.monotonic() - began < 10  # and not when a lease has ended


async def test_a_worker_that_fails_by_itself_says_why(tmp_path: Path, echo: Echo) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULTY)
    node = several(tmp_path, echo.containers("a"), runner={"workers": 1, "reclaim_s": 0.2})
    node.environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    async with node:

        async def told() -> list[dict[str, Any]]:
            return node.events("worker_replaced")

        event = (await eventually(told, message="the word of its end"))[0]
        assert (event["worker"], event["reason"]) == ("r1", "exit code 1")
        assert "ZeroDivisionError: a fault\n" in node.log.read_text()
