"""What a client of the job API does: send jobs, wait for them, read and check results."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlencode

import msgspec

from bench import jobs, load
from bench.jobs import Wrong
from bench.load import Connection

CONNECTIONS = 64
BATCH = 1000
BATCH_CONNECTIONS = 4  # some batches are read while others are written
RESULTS = 500  # in one request: 20 kB of query
PAUSE_S = 0.005  # between two looks at a job that has not ended
END_S = 300.0  # for all jobs of a measure

RUNNING = b'"status":"running"'  # no data that is sent holds it

Sent = dict[str, int]
"""Jobs by their ids: the number that each was made from."""


def post_jobs(
    port: int, chain: Sequence[str], seconds: float, clock: AbstractContextManager[Any]
) -> list[tuple[int, bytes]]:
    """Single jobs at full load, for so long; all answers, each with its job's number."""

    def make() -> tuple[int, bytes]:
        number = jobs.number()
        return number, load.post("/api/jobs", jobs.job(chain, number))

    return load.flood(port, CONNECTIONS, make, seconds=seconds, clock=clock)


def accepted(answers: Sequence[tuple[int, bytes]]) -> Sent:
    sent = {jobs.accepted(reply): number for number, reply in answers}
    jobs.check_distinct(sent, len(answers))
    return sent


class Batches:
    """Batches made beforehand, so that making them costs nothing while the clock runs."""

    def __init__(self, chain: Sequence[str], count: int, size: int = BATCH) -> None:
        self._numbers = [[jobs.number() for _ in range(size)] for _ in range(count)]
        bodies = [jobs.batch(chain, of) for of in self._numbers]
        self._requests = enumerate(load.post("/api/jobs/batch", body) for body in bodies)

    def send(self, port: int) -> Sent:
        """Send all of them; the jobs."""
        return self.accepted(load.flood(port, BATCH_CONNECTIONS, lambda: next(self._requests, None)))

    def flood(self, port: int, seconds: float, clock: AbstractContextManager[Any]) -> list[tuple[int, bytes]]:
        """Send for so long, or until there is none left; the answers."""
        return load.flood(port, BATCH_CONNECTIONS, lambda: next(self._requests, None), seconds=seconds, clock=clock)

    def accepted(self, answers: Sequence[tuple[int, bytes]]) -> Sent:
        sent: Sent = {}
        for place, reply in answers:
            sent |= jobs.all_accepted(reply, self._numbers[place])
        jobs.check_distinct(sent, sum(len(self._numbers[place]) for place, _ in answers))
        return sent


def collect(connection: Connection, ids: Sequence[str]) -> None:
    """Read results, in the order of submission, until all jobs have ended.

    A client that waits looks at the last job of a part only, and reads the part when that has ended.
    """
    deadline = time.monotonic() + END_S
    for part in parts(ids):
        for look in (query(part[-1:]), query(part)):
            while RUNNING in connection.ask(look):
                if time.monotonic() > deadline:
                    raise Wrong(f"some of {len(ids)} jobs had not ended after {END_S:g} s")
                time.sleep(PAUSE_S)


def check_done(connection: Connection, sent: Mapping[str, int], chain: Sequence[str]) -> None:
    for ids in parts(list(sent)):
        jobs.check_done(connection.ask(query(ids, intermediate="true")), ids, sent, chain)


def check_waiting(connection: Connection, sent: Mapping[str, int]) -> None:
    for ids in parts(list(sent)):
        jobs.check_waiting(connection.ask(query(ids)), ids)


def pending(connection: Connection) -> int:
    return int(msgspec.json.decode(connection.ask(load.get("/info")))["pending"]["offchain"])


def query(ids: Sequence[str], **more: str) -> bytes:
    return load.get("/api/jobs?" + urlencode([*(("id", job_id) for job_id in ids), *more.items()]))


def parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[i : i + RESULTS] for i in range(0, len(ids), RESULTS))
