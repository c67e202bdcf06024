"""What every backend promises (`node/backends/contract.py`): on a real engine, real processes, a real service.

`ground`: each backend in turn. `seeing`: those that see how their services fare; of a service that runs elsewhere
nothing is seen, by contract.
"""

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from node.backends.contract import LINE_CHARACTERS
from node.errors import BackendError
from tests.backends.grounds import Caller, Ground, quiet, soon
from tests.support import eventually


async def until_logged(instance: Any, line: str) -> list[str]:
    async def logged() -> list[str]:
        lines = await instance.log_tail(2000)
        return lines if line in lines else []

    return await eventually(logged, message=f"the line {line!r} in the log")


async def test_a_started_service_answers(ground: Ground, caller: Caller) -> None:
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(), quiet)
        assert await caller.get(instance)
        assert not instance.url.endswith("/")
        await instance.stop(5)


async def test_command_and_environment_reach_the_service(seeing: Ground, caller: Caller) -> None:
    spec = seeing.spec(env={"GREETING": "héllo $HOME"}, command=f"python3 {seeing.app} --mood 'very good'")
    async with seeing.backend() as backend:
        instance = await backend.start(spec, quiet)
        answer = await caller.get(instance)
        await instance.stop(5)
    assert answer["greeting"] == "héllo $HOME"
    assert answer["arguments"] == ["--mood", "very good"]


async def test_the_nodes_own_environment_does_not_reach_the_service(
    seeing: Ground, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_OF_THE_NODE", "x")
    async with seeing.backend() as backend:
        instance = await backend.start(seeing.spec(), quiet)
        answer = await caller.get(instance)
        await instance.stop(5)
    assert "A_SECRET_OF_THE_NODE" not in answer["environment"]


async def test_stop_leaves_nothing_and_may_be_called_twice(seeing: Ground, caller: Caller) -> None:
    async with seeing.backend() as backend:
        instance = await backend.start(seeing.spec(), quiet)
        await caller.get(instance)
        await instance.stop(5)
        assert not await caller.answers(instance)
        await instance.stop(5)
    assert seeing.left() == []


async def test_stop_leaves_no_heirs(seeing: Ground, caller: Caller) -> None:
    async with seeing.backend() as backend:
        instance = await backend.start(seeing.spec(), quiet)
        await caller.get(instance, "heir", session="same")
        await caller.get(instance, "heir", session="own")
        await instance.stop(5)
        assert seeing.left_running() == []


async def test_a_service_that_ignores_the_request_to_stop_is_killed_after_the_grace(
    seeing: Ground, caller: Caller
) -> None:
    async with seeing.backend() as backend:
        instance = await backend.start(seeing.spec(env={"IGNORE_TERM": "1"}), quiet)
        await caller.get(instance)
        began = time.monotonic()
        await instance.stop(1)
        assert 1 <= time.monotonic() - began < 6
        assert seeing.left_running() == []


async def test_exited_tells_the_code(seeing: Ground, caller: Caller) -> None:
    async with seeing.backend() as backend:
        instance = await backend.start(seeing.spec(), quiet)
        exited = asyncio.ensure_future(instance.exited())
        await caller.leave(instance, 3)
        assert await soon(exited) == "exited with code 3"
        assert await soon(instance.exited()) == "exited with code 3"
        await instance.stop(5)
    assert seeing.left() == []


async def test_exited_tells_a_kill(seeing: Ground, caller: Caller) -> None:
    async with seeing.backend() as backend:
        instance = await backend.start(seeing.spec(), quiet)
        await caller.get(instance)
        seeing.kill()
        assert (await soon(instance.exited())).startswith("killed by SIGKILL")
        await instance.stop(5)


async def test_exited_waits_while_the_service_runs_and_returns_after_stop(ground: Ground, caller: Caller) -> None:
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(), quiet)
        exited = asyncio.ensure_future(instance.exited())
        for _ in range(20):
            await caller.get(instance)
        assert not exited.done()
        await instance.stop(5)
        assert await soon(exited)


async def test_a_service_that_ends_at_once_says_why(seeing: Ground) -> None:
    (seeing.context / "app.py").write_text("raise SystemExit('no model found')")
    async with seeing.backend() as backend:
        instance = await backend.start(seeing.spec(), quiet)
        assert await soon(instance.exited()) == "exited with code 1"
        assert await instance.log_tail(5) == ["no model found"]
        await instance.stop(5)
    assert seeing.left() == []


async def test_the_log_tail_is_in_order_and_bounded(seeing: Ground, caller: Caller) -> None:
    async with seeing.backend() as backend:
        instance = await backend.start(seeing.spec(), quiet)
        assert await instance.log_tail(10) == []
        await caller.get(instance, "say", lines=100)
        await until_logged(instance, "line 99 ")
        assert await instance.log_tail(3) == ["line 97 ", "line 98 ", "line 99 "]
        assert len(await instance.log_tail(1000)) == 100
        assert await instance.log_tail(0) == []
        await caller.get(instance, "say", lines=2, width=2000)
        await eventually(lambda: _all_cut(instance), message="two long lines")
        await instance.stop(5)


async def _all_cut(instance: Any) -> bool:
    lines = await instance.log_tail(2)
    return [len(line) for line in lines] == [LINE_CHARACTERS] * 2


async def test_a_flood_of_output_stops_neither_the_service_nor_the_node(seeing: Ground, caller: Caller) -> None:
    async with seeing.backend() as backend:
        instance = await backend.start(seeing.spec(), quiet)
        await caller.get(instance)
        longest = 0.0
        flood = asyncio.ensure_future(caller.get(instance, "flood", mib=100))
        while not flood.done():
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)
        assert longest < 0.5
        lines = await until_logged(instance, "the flood is over")
        assert sum(map(len, lines)) <= 2000 * LINE_CHARACTERS
        await instance.stop(5)


async def test_a_slow_start_tells_its_progress(seeing: Ground) -> None:
    told: list[str] = []
    seeing.change()
    async with seeing.backend() as backend:
        instance = await backend.start(seeing.spec(), told.append)
        await instance.stop(5)
    assert any("service" in line for line in told), told


async def test_a_failed_preparation_says_why_and_leaves_nothing(seeing: Ground) -> None:
    seeing.spoil()
    async with seeing.backend() as backend:
        with pytest.raises(BackendError, match="no-such-package-of-the-tests") as caught:
            await backend.start(seeing.spec(), quiet)
        assert caught.value.retry
    assert seeing.left() == []


async def test_a_folder_that_is_not_there_is_named(seeing: Ground) -> None:
    async with seeing.backend() as backend:
        with pytest.raises(BackendError, match="no/such/folder") as caught:
            await backend.start(seeing.spec(build={"context": "/no/such/folder"}), quiet)
        assert not caught.value.retry


async def test_a_start_that_is_cancelled_leaves_nothing(seeing: Ground) -> None:
    for delay_s in (0.0, 0.05, 0.2, 0.4, 0.8):
        async with seeing.backend() as backend:
            start = asyncio.ensure_future(backend.start(seeing.spec(), quiet))
            await asyncio.wait([start], timeout=delay_s)
            start.cancel()
            (outcome,) = await asyncio.gather(start, return_exceptions=True)
            if not isinstance(outcome, BaseException):
                await outcome.stop(0)
            await eventually(_asks(lambda: not seeing.left_running()), message="the end of what was begun")


def _asks(question: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        return question()

    return ask


async def test_several_start_and_stop_at_the_same_time(ground: Ground, caller: Caller) -> None:
    specs = [ground.spec(f"service-{number}") for number in range(4)]
    async with ground.backend() as backend:
        instances = await asyncio.gather(*(backend.start(spec, quiet) for spec in specs))
        assert len({instance.url for instance in instances}) == 4
        await asyncio.gather(*(caller.get(instance) for instance in instances))
        await asyncio.gather(*(instance.stop(5) for instance in instances))
    assert ground.left() == []


async def test_leaving_ends_all_threads_and_closes_all_files(seeing: Ground, caller: Caller) -> None:
    async def life() -> None:
        async with seeing.backend() as backend:
            instance = await backend.start(seeing.spec(), quiet)
            await caller.leave(instance, 0)
            await soon(instance.exited())
            await instance.stop(5)

    await life()
    await eventually(_no_threads_of_ours, message="the end of all threads")
    files = len(os.listdir("/proc/self/fd"))
    await life()
    await eventually(_no_threads_of_ours, message="the end of all threads")
    assert len(os.listdir("/proc/self/fd")) <= files


async def _no_threads_of_ours() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith(("stoker-", "waitpid"))]


async def test_what_it_cannot_bring_up_it_refuses_with_the_reason(ground: Ground) -> None:
    async with ground.backend() as backend:
        with pytest.raises(BackendError, match=f"service.*{ground.refuses}") as caught:
            await backend.start(ground.spec().model_copy(update={"build": None, "url": "", "command": ""}), quiet)
        assert not caught.value.retry


async def test_sweep_ends_what_is_no_longer_configured_and_only_that(ground: Ground, caller: Caller) -> None:
    async with ground.backend() as backend:
        kept, ended = [await backend.start(ground.spec(name), quiet) for name in ("kept", "ended")]
        await asyncio.gather(caller.get(kept), caller.get(ended))
        async with ground.backend() as later:
            told = await later.sweep(["kept"])
        assert await caller.answers(kept)
        # Only what outlives its node can be left over.
        assert bool(told) == (ground.name == "docker")
        assert await caller.answers(ended) == (ground.name != "docker")
        await asyncio.gather(kept.stop(5), ended.stop(5))
