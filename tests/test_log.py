"""The log's reader, or the disk under it, may be slow or gone: the node is not."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import tee
from pathlib import Path

import pytest

from tests.support import ROOT, Echo, Node, until

LINES = 25_000

TALKER = f"""
import sys
import structlog
from node import log
from node.config import Log
log.set_up(Log(path="talk.log", format="json"), node_id="n-1")
talk = structlog.get_logger()
for number in range({LINES}):
    talk.info("said", number=number, text="\\udcff" if number == 1 else "x" * 100)
print("said all", flush=True)
sys.stdin.read()
talk.info("last")
"""

RAW = r"""
from node import log
from node.config import Log
log.set_up(Log(path="raw.log", format="json"))
for line in (b"one", b"\xe2\x82", b"\xffthree"):
    log.pass_on(line)
log.flush()
"""


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[int]:
    """The reading end of a pipe that stands where a node's log would."""
    os.mkfifo(tmp_path / "node.log")
    reader = os.open(tmp_path / "node.log", os.O_RDONLY | os.O_NONBLOCK)
    yield reader
    os.close(reader)


async def serves(node: Node, jobs: int) -> None:
    for _ in range(jobs // 100):
        body = [{"containers": ["a"], "data": {}}] * 100
        ids = [answer["id"] for answer in await node.post("/api/jobs/batch", body)]
        assert {(await node.result(job_id))["status"] for job_id in ids} == {"success"}


async def test_a_node_whose_log_nobody_reads_goes_on(tmp_path: Path, pipe: int, echo: Echo) -> None:
    async with Node(tmp_path, echo.containers("a")) as node:
        await serves(node, 500)  # 250 KB, and a pipe takes 64
        assert node.kill(signal.SIGTERM) == 0
    assert len(os.read(pipe, 2**20)) > 30_000


async def test_a_node_whose_logs_reader_has_gone_goes_on(tmp_path: Path, echo: Echo) -> None:
    read, write = os.pipe()
    node = Node(tmp_path, echo.containers("a"))
    node.log = Path(f"/dev/fd/{write}")
    async with node:
        os.close(write)
        os.close(read)
        await serves(node, 100)
        assert node.kill(signal.SIGTERM) == 0


async def test_a_node_whose_log_finds_no_space_goes_on(tmp_path: Path, echo: Echo) -> None:
    node = Node(tmp_path, echo.containers("a"), log={"path": "/dev/full", "max_file_size": 10**9})
    node.prefix = ["sh", "-c", 'exec "$@" 2>/dev/full', "sh"]
    async with node:
        await serves(node, 100)
        assert node.kill(signal.SIGTERM) == 0


def test_what_a_reader_is_too_slow_for_is_counted(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TALKER],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as talker:
        assert talker.stdin
        assert talker.stdout
        assert talker.stderr
        assert talker.stdout.readline() == b"said all\n"
        file = tmp_path / "talk.log"
        until(lambda: all_told(file.read_text().splitlines(keepends=True), "log.path"), message="the file's lines")
        lines, late = tee(line.decode() for line in talker.stderr)
        assert all_told(late, "stderr")
        talker.stdin.close()
        events = [json.loads(line) for line in lines]
    assert talker.returncode == 0
    assert events[-1]["event"] == "last"
    assert events[1]["text"] == "\udcff"
    dropped = next(event for event in events if event["event"] == "log_lines_dropped")
    assert dropped["lines"] > 0
    assert (dropped["sink"], dropped["level"], dropped["node_id"]) == ("stderr", "warning", "n-1")


def all_told(lines: Iterable[str], sink: str) -> bool:
    """Whether each line was said, or counted as dropped for this place; reads no further than needed."""
    count = 0
    for line in lines:
        event = json.loads(line) if line.endswith("\n") else {"event": ""}
        count += event["event"] == "said"
        count += event["lines"] if (event["event"], event.get("sink")) == ("log_lines_dropped", sink) else 0
        if count >= LINES:
            return True
    return False


def test_a_line_that_is_no_text_takes_no_other_with_it(tmp_path: Path) -> None:
    """A worker's line that was cut within a character, say."""
    ended = subprocess.run(
        [sys.executable, "-c", RAW],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert ended.stderr == b"one\n\xe2\x82\n\xffthree\n"
    assert (tmp_path / "raw.log").read_text() == "one\n\ufffd\n\ufffdthree\n"
