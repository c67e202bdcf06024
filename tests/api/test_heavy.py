"""Bodies within the limits that are made to be slow to read: they are answered, and others are served meanwhile."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import requests

from tests.api.support import Client
from tests.support import Echo, Node

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

SIZE = (16 if os.environ.get("STOKER_FULL") else 4) * 2**20
JOB = (b'{"containers":["a"],"data":{"x":[', b"1]}}")
BATCH = (b"[NaN,[", b"1]]")
NAMES = b",".join(b'"%x":0' % number for number in range(SIZE // 16))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def node(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> AsyncIterator[Node]:
    async with Node(tmp_path_factory.mktemp("heavy"), echo.containers("a")) as node:
        yield node


def filled(frame: tuple[bytes, bytes], part: bytes) -> bytes:
    return frame[0] + part * ((SIZE - 100) // len(part)) + frame[1]


SINGLE = {
    "the largest number": lambda: filled(JOB, b"1e308,"),
    "digits": lambda: filled(JOB, b"9" * 4200 + b","),
    "small integers": lambda: filled(JOB, b"1,"),
    "small fractions": lambda: filled(JOB, b".1,".rjust(4, b"0")),
    "floats": lambda: filled(JOB, b"0.123456,"),
    "empty lists": lambda: filled(JOB, b"[],"),
    "empty objects": lambda: filled(JOB, b"{},"),
    "lists in lists": lambda: filled(JOB, b"[" * 300 + b"]" * 300 + b","),
    "names": lambda: b'{"containers":["a"],"data":{%b}}' % NAMES,
    "a name twice": lambda: (
        b'{"containers":["a"],"data":{"0":1,"z":"\\u003a",%b}}' % NAMES[: SIZE // 3].rpartition(b",")[0]
    ),
    "texts": lambda: filled(JOB, b'"",'),
    "escapes": lambda: filled(JOB, b'"\\u20ac",'),
    "brackets in texts": lambda: filled(JOB, b'"%b",' % (b"[" * 1000)),
    "one text": lambda: b'{"containers":["a"],"data":{"x":"%b"}}' % (b"x" * (SIZE - 100)),
    "open brackets": lambda: b"[" * SIZE,
}
BATCHES = {
    "quotes": lambda: b'[NaN,"' + b'"' * (SIZE - 100) + b"]",
    "texts in a row": lambda: b"[NaN" + b'""' * (SIZE // 2 - 100) + b"]",
    "open objects": lambda: filled((b"[NaN,", b"]"), b'{"":'),
    "flat lists": lambda: filled(BATCH, b"[1],"),
    "lists in lists": lambda: filled(BATCH, b"[[]1],"),
    "numbers": lambda: filled((b"[NaN,", b"1]"), b"1,"),
    "jobs and one mistake": lambda: (
        b"[%bNaN]"
        % (b'{"containers":["nope"],"data":{"x":[%b1]}},' % (b'{"k":[1,2,3],"v":"abcdefgh"},' * 50) * (SIZE // 1700))
    ),
    "jobs of large numbers": lambda: (
        b"[%b1]" % (b'{"containers":["nope"],"data":{"x":[%b1]}},' % (b"1e308," * 200) * (SIZE // 1700))
    ),
    "many jobs": lambda: b"[%b1]" % (b'{"containers":["a"],"data":{}},' * 2_000),
}
CASES = [("/api/jobs", name, body) for name, body in SINGLE.items()]
CASES += [("/api/jobs/batch", name, body) for name, body in BATCHES.items()]


async def longest_wait(node: Node, ended: asyncio.Event) -> float:
    """The longest that somebody else waited for an answer that needs nothing but the loop."""
    longest = 0.0
    async with Client(node, "127.3.0.2") as client:
        while not ended.is_set():
            began = time.monotonic()
            assert (await client.ask("GET", "/health/live")).status == 200
            longest = max(longest, time.monotonic() - began)
            await asyncio.sleep(0.005)
    return longest


def resident_mib(node: Node) -> int:
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) // 1024


@pytest.mark.parametrize(("path", "name", "make"), CASES, ids=[f"{path[5:]} {name}" for path, name, _ in CASES])
async def test_no_body_within_the_limit_holds_up_the_others(
    node: Node, path: str, name: str, make: Callable[[], bytes]
) -> None:
    body = make()
    assert len(body) <= SIZE
    ended = asyncio.Event()
    waiting = asyncio.create_task(longest_wait(node, ended))
    began = time.monotonic()
    answer = await asyncio.to_thread(
        requests.post, node.url + path, data=body, headers={"Content-Type": "application/json"}, timeout=120
    )
    took = time.monotonic() - began
    ended.set()
    longest = await waiting
    told = f"{answer.status_code} after {took:.2f} s, others waited {longest:.2f} s; {resident_mib(node)} MiB"
    print(f"\n{path} {name}: {told}; {answer.content[:110]!r}")
    assert answer.status_code in (200, 400, 413)
    assert longest < 3  # seconds; some held the loop for 70
    assert node.events("request_failed") == []
