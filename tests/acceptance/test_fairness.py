"""One caller's flood does not keep another one waiting."""

import os
import statistics
import time
from pathlib import Path

import pytest

from tests.support import Echo, Node

pytestmark = pytest.mark.acceptance

FLOOD = 100_000 if os.environ.get("STOKER_FULL") else 5_000
BATCH = 5_000
STEP_S = 0.02
OTHERS = 20


@pytest.mark.timeout(600)
async def test_another_callers_jobs_pass_a_flood(tmp_path: Path, echo: Echo) -> None:
    server = {"trusted_proxies": ["127.0.0.1"], "max_pending": 200_000}
    async with Node(tmp_path, echo.containers("a", concurrency=4), server=server) as node:
        flood = [{"containers": ["a"], "data": {"sleep_s": STEP_S}}] * BATCH
        for _ in range(FLOOD // BATCH):
            await node.post("/api/jobs/batch", flood)
        node.session.headers["X-Forwarded-For"] = "192.0.2.7"
        waits = []
        for _ in range(OTHERS):
            began = time.monotonic()
            assert (await node.run(["a"], {"x": 1}))["status"] == "success"
            waits.append(time.monotonic() - began)
        node.session.headers["X-Forwarded-For"] = "192.0.2.8"
        assert len(await node.get("/api/jobs")) == 0
        del node.session.headers["X-Forwarded-For"]
        left = len(await node.get("/api/jobs?pending=true"))
    alone_s = FLOOD * STEP_S / 4
    print(
        f"\n{FLOOD} jobs of one caller ({alone_s:.0f} s of work), {left} left; another caller's jobs took "
        f"{waits[0]:.2f} s the first, {statistics.median(waits):.2f} s the median, {max(waits):.2f} s the longest"
    )
    assert left > FLOOD / 2, "the flood was over too early to say anything"
    assert waits[0] < 5
    assert statistics.median(waits) < 2
