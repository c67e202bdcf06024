"""The measures of time: one job at a time, and containers that take their time. Times end in `_ms` or `_s`."""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

import msgspec

from bench import client, jobs, load
from bench.client import Batches
from bench.jobs import Wrong
from bench.load import Connection
from bench.measures import Figures, Measure, Running
from bench.subjects import CONTAINERS, SINGLE, SINGLE_S, SLOTS, SLOW, SLOW_S

WARM_UP = 20
SLOW_JOBS = 500
SINGLE_JOBS = 200

IDEAL_S = -(-SLOW_JOBS // SLOTS) * SLOW_S  # of the slow jobs: so many rounds of all slots


def direct(length: int) -> Measure:
    """Calling the containers by hand, one after the other."""

    def measure(running: Running, name: str) -> Figures:
        with ExitStack() as stack:
            connections = [
                stack.enter_context(Connection(running.containers[container].port)) for container in CONTAINERS[:length]
            ]

            def call() -> None:
                number = jobs.number()
                for connection in connections:
                    jobs.check_echo(connection.ask(load.post("/service_output", jobs.call(number))), number)

            return _times(call, running)

    return measure


def one_job(length: int) -> Measure:
    """One job on an idle node: from the POST until the first GET that says success.

    It asks again at once. A pause changes the median by nothing that can be seen: there are two or three GETs a job.
    """

    def measure(running: Running, name: str) -> Figures:
        chain = CONTAINERS[:length]
        sent: client.Sent = {}
        with Connection(running.port(name)) as connection:

            def run() -> None:
                number = jobs.number()
                job_id = jobs.accepted(connection.ask(load.post("/api/jobs", jobs.job(chain, number))))
                sent[job_id] = number
                look = client.query([job_id])
                while client.RUNNING in connection.ask(look):
                    pass

            figures = _times(run, running)
            client.check_done(connection, sent, chain)
        return figures

    return measure


def _times(run: Callable[[], None], running: Running) -> Figures:
    count = max(50, round(running.seconds * 150))
    for _ in range(WARM_UP):
        run()
    times = []
    with load.collector_off():
        for _ in range(count):
            began = time.perf_counter()
            run()
            times.append((time.perf_counter() - began) * 1000)
    times.sort()
    return {"jobs": count, "p50_ms": statistics.median(times), "p99_ms": times[int(count * 0.99)]}


# Containers that take their time


def slow_jobs(running: Running, name: str) -> Figures:
    """Many jobs on a container that takes 50 ms, with 64 slots: how near to the ideal time they all end."""
    seconds, most = _ended(running, name, SLOW, SLOW_JOBS, at_once=SLOTS)
    return {"jobs": SLOW_JOBS, "s": seconds, "ideal_s": IDEAL_S, "most": most}


def single_jobs(running: Running, name: str) -> Figures:
    """Many jobs on a container that takes one call at a time."""
    seconds, most = _ended(running, name, SINGLE, SINGLE_JOBS, at_once=1)
    return {"jobs": SINGLE_JOBS, "s": seconds, "ideal_s": SINGLE_JOBS * SINGLE_S, "most": most}


def _ended(running: Running, name: str, container: str, count: int, *, at_once: int) -> tuple[float, int]:
    """How long it takes until the jobs have ended, and how many calls the container had at once.

    Each slot runs one job before the clock starts, so that its connection is open.
    """
    with Connection(running.containers[container].port) as asked, Connection(running.port(name)) as connection:
        client.collect(connection, list(Batches([container], 1, at_once).send(running.port(name))))
        _most(asked)
        made = Batches([container], 1, count)
        with load.collector_off():
            began = time.perf_counter()
            sent = made.send(running.port(name))
            client.collect(connection, list(sent))
            seconds = time.perf_counter() - began
        client.check_done(connection, sent, [container])
        most = _most(asked)
    if most > at_once:
        raise Wrong(f"{name}: {container} had {most} calls at once, and may have {at_once}")
    return seconds, most


def _most(connection: Connection) -> int:
    return int(msgspec.json.decode(connection.ask(load.get("/most"))))
