"""The clock of the machine jumps by an hour while steps run: nothing counts as dead, nothing lasts less than 0 s."""

import asyncio
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support import Echo, Node, RedisServer, eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.faketime]

LEASE_S = 2.0
HOUR = 3600
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


class Clock:
    """The clock of a node, and of the server that it starts; this process's and monotonic clocks go on as they are."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.jump(0)
        self.environment = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, seconds: int) -> None:
        self._file.write_text(f"{seconds:+d}")


@pytest.mark.parametrize("own", [True, False] if os.environ.get("STOKER_FULL") else [True])
async def test_steps_that_run_are_left_alone(tmp_path: Path, echo: Echo, own: bool) -> None:
    clock = Clock(tmp_path / "clock")
    key = f"clock-{own}"
    settings: dict[str, Any] = {"runner": {"lease_s": LEASE_S, "reclaim_s": 0.2}}
    with RedisServer("valkey", tmp_path / "redis") as server:
        if not own:
            settings["redis"] = {"url": server.url}
        node = Node(tmp_path, echo.containers("a", "b"), **settings)
        node.environment = clock.environment
        async with node:
            running = await node.submit(["a", "b"], {"key": key, "wait_for": key})
            await eventually(lambda: called(echo, key), message="the call")
            for jump in (HOUR, -HOUR):
                clock.jump(jump)
                await asyncio.sleep(LEASE_S * 1.5)
                assert (await node.run(["a", "b"], {"x": 1}))["status"] == "success"
                last = node.events("step_finished")[-1]["timestamp"]
                assert abs(hours(last) - jump / HOUR) < 0.5, "the clock was not moved"
            echo.release(key)
            assert (await node.result(running))["status"] == "success"
            assert echo.counts()["calls"][key] == 2  # once per step
            assert all(0 <= event["duration_s"] < 60 for event in node.events("step_finished"))
            for name in ("step_reclaimed", "job_put_right", "jobs_purged", "store_emptied", "request_failed"):
                assert node.events(name) == []


async def called(echo: Echo, key: str) -> bool:
    return key in echo.counts()["calls"]


def hours(stamp: str) -> float:
    """How far a time in the log is from now."""
    return (datetime.fromisoformat(stamp).timestamp() - time.time()) / HOUR
