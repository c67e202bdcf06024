"""A step that runs well is called once: neither renewals nor the janitor disturb it."""

import asyncio
from pathlib import Path

from tests.support import Echo, Node

CLIENTS, JOBS = 12, 10


async def test_a_chain_through_one_container_calls_each_step_once(tmp_path: Path, echo: Echo) -> None:
    """While renewals overtake the recording of outcomes all the time, as jobs come one by one from some clients."""
    runner = {"lease_s": 5, "reclaim_s": 0.02}
    async with Node(tmp_path, echo.containers("a", concurrency=32), runner=runner) as node:

        async def client(number: int) -> None:
            for i in range(JOBS):
                result = await node.run(["a"] * 4, {"key": f"again-{number}-{i}", "sleep_s": 0.02})
                assert result["status"] == "success"

        await asyncio.gather(*(client(number) for number in range(CLIENTS)))
        disturbed = node.events("step_handed_back") + node.events("step_unheard")
    calls = echo.counts()["calls"]
    names = [f"again-{number}-{i}" for number in range(CLIENTS) for i in range(JOBS)]
    assert {name: calls[name] for name in names if calls[name] != 4} == {}
    assert disturbed == []
