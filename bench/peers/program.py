"""What is the same for all queues: the job itself, and the client that sends jobs, collects results and checks them."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import aiohttp
import uvloop

from bench import jobs
from bench.jobs import Wrong

AT_ONCE = 64  # jobs in a worker process, and requests of the client
WARM_UP = 200
PART = 500  # results that are read together
PAUSE_S = 0.005
END_S = 120.0

STORE = os.environ.get("PEER_STORE", "")  # socket of the server
CONTAINER = os.environ.get("PEER_CONTAINER", "")  # URL of the container's route


class Queue(Protocol):
    """A job queue as its client sees it. A ticket is what it gives for a job."""

    async def enqueue(self, data: str) -> Any: ...

    async def waiting(self) -> int: ...

    async def results(self, tickets: Sequence[Any]) -> list[str | None]:
        """Outputs in the order of the tickets; None for jobs that have not ended."""
        ...


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"Content-Type": "application/json"},
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def call(to: aiohttp.ClientSession, data: str) -> str:
    """The job: one call of the container."""
    body = b'{"source":1,"destination":1,"data":%b,"requires_proof":false}' % data.encode()
    async with to.post(CONTAINER, data=body) as answer:
        answer.raise_for_status()
        return (await answer.read()).decode()


def main(queue: Queue) -> None:
    """`enqueue SECONDS` or `run COUNT`: prints one line of JSON, `jobs` and `seconds`."""
    what, amount = sys.argv[1:]
    work = _enqueue(queue, float(amount)) if what == "enqueue" else _run(queue, int(amount))
    print(json.dumps(uvloop.run(work)), flush=True)


async def _enqueue(queue: Queue, seconds: float) -> dict[str, float]:
    """Jobs at full load, for so long, while no worker runs."""
    until = time.perf_counter() + seconds
    count = 0

    async def send() -> None:
        nonlocal count
        while time.perf_counter() < until:
            await queue.enqueue(jobs.data(jobs.number()).decode())
            count += 1

    began = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    took_s = time.perf_counter() - began
    if (waiting := await queue.waiting()) != count:
        raise Wrong(f"{count} jobs were sent, and {waiting} wait")
    return {"jobs": count, "seconds": took_s}


async def _run(queue: Queue, count: int) -> dict[str, float]:
    """From the first job sent until the last result is read."""
    await _ended(queue, WARM_UP)
    began = time.perf_counter()
    await _ended(queue, count)
    return {"jobs": count, "seconds": time.perf_counter() - began}


async def _ended(queue: Queue, count: int) -> None:
    wanted = [jobs.data(jobs.number()).decode() for _ in range(count)]
    tickets: list[Any] = [None] * count
    places = iter(range(count))

    async def send() -> None:
        for place in places:
            tickets[place] = await queue.enqueue(wanted[place])

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    found: list[str | None] = []
    for part in _parts(tickets):
        await _until_ended(queue, part[-1:])
        found += await _until_ended(queue, part)
    if found != wanted:
        raise Wrong("a job's result is not what was sent")


async def _until_ended(queue: Queue, tickets: Sequence[Any]) -> list[str | None]:
    deadline = time.monotonic() + END_S
    while None in (results := await queue.results(tickets)):
        if time.monotonic() > deadline:
            raise Wrong(f"some jobs had not ended after {END_S:g} s")
        await asyncio.sleep(PAUSE_S)
    return results


def _parts(tickets: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (tickets[i : i + PART] for i in range(0, len(tickets), PART))
