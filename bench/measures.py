"""The measures of throughput. Each takes what runs and the name of the subject, applies its load, checks every answer,
and gives its figures by name.

`jobs` is how many jobs or calls the load was; rates end in `per_s`. Checks run after the clock stops. Here: many at
once. In `latency`: one at a time, and containers that take their time.
"""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import redis

from bench import client, jobs, load
from bench.client import BATCH, CONNECTIONS, Batches
from bench.clock import Clock
from bench.committed import LANE
from bench.counts import Counts
from bench.jobs import Wrong
from bench.load import Connection
from bench.subjects import AWAY, CONTAINERS, Subject

MOST_BATCHES_PER_S = 60  # more are not made beforehand
ALONE = 10  # batches that are sent one after the other
POLLS = 500  # requests of different jobs, sent again and again

Figures = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What runs during a round, and how long a load lasts that is bounded by time."""

    subjects: Mapping[str, Subject]
    containers: Mapping[str, Subject]
    directory: Path
    seconds: float

    def port(self, name: str) -> int:
        return self.subjects[name].port

    def clock(self, name: str) -> Clock:
        """The subject's processes, and those of the containers."""
        servers = [self.subjects[name], *self.containers.values()]
        return Clock(process for server in servers for process in server.processes())

    @property
    def chain_jobs(self) -> int:
        """Jobs of an end-to-end measure, in whole batches."""
        return max(1, round(self.seconds * 2)) * BATCH


Measure = Callable[[Running, str], Figures]


def rate(count: int, clock: Clock) -> Figures:
    return {
        "jobs": count,
        "per_s": count / clock.seconds,
        "generator_share": clock.generator_share,
        **clock.cpu_us(count),
    }


# Single jobs


def post(running: Running, name: str) -> Figures:
    """Jobs to a handler that answers an id and does no more."""
    clock = running.clock(name)
    answers = client.post_jobs(running.port(name), CONTAINERS[:1], running.seconds, clock)
    return rate(len(client.accepted(answers)), clock)


def post_committed(running: Running, name: str) -> Figures:
    """The same, and each job is then found in the server with its data."""
    clock = running.clock(name)
    answers = client.post_jobs(running.port(name), CONTAINERS[:1], running.seconds, clock)
    sent = client.accepted(answers)
    with redis.Redis(unix_socket_path=str(running.subjects[name].store)) as server:
        kept = server.pipeline(transaction=False)
        for job_id in sent:
            kept.hget(f"job:{job_id}", "data")
        if kept.execute() != [jobs.data(number) for number in sent.values()] or server.xlen(LANE) != len(sent):
            raise Wrong("the handler that commits answered ids of jobs that the server does not have")
        server.flushall()
    return rate(len(sent), clock)


def call(running: Running, name: str) -> Figures:
    """Calls of one container, as a node makes them."""

    def make() -> tuple[int, bytes]:
        number = jobs.number()
        return number, load.post("/service_output", jobs.call(number))

    clock = running.clock(name)
    answers = load.flood(running.port(name), CONNECTIONS, make, seconds=running.seconds, clock=clock)
    for number, reply in answers:
        jobs.check_echo(reply, number)
    return rate(len(answers), clock)


def post_waiting(running: Running, name: str) -> Figures:
    """Single jobs, accepted while no container runs."""
    clock = running.clock(name)
    answers = client.post_jobs(running.port(name), [AWAY], running.seconds, clock)
    sent = client.accepted(answers)
    with Connection(running.port(name)) as connection:
        client.check_waiting(connection, sent)
    return rate(len(sent), clock)


def post_running(running: Running, name: str) -> Figures:
    """Single jobs, accepted while those accepted before run. `ended_share`: of them, when the last was accepted."""
    chain = CONTAINERS[:1]
    with Connection(running.port(name)) as connection:
        before = client.pending(connection)
        clock = running.clock(name)
        answers = client.post_jobs(running.port(name), chain, running.seconds, clock)
        left = client.pending(connection) - before
        sent = client.accepted(answers)
        client.collect(connection, list(sent))
        client.check_done(connection, sent, chain)
    return {**rate(len(sent), clock), "ended_share": 1 - left / len(sent)}


# Batches


def batches(running: Running, name: str) -> Figures:
    """Jobs accepted by batches, while no container runs."""
    made = Batches([AWAY], round(running.seconds * MOST_BATCHES_PER_S))
    clock = running.clock(name)
    answers = made.flood(running.port(name), running.seconds, clock)
    sent = made.accepted(answers)
    with Connection(running.port(name)) as connection:
        client.check_waiting(connection, sent)
    return rate(len(sent), clock)


def batch_alone(running: Running, name: str) -> Figures:
    """How long the answer to one batch takes while nothing else is asked."""
    times = []
    with Connection(running.port(name)) as connection:
        for _ in range(ALONE):
            of = [jobs.number() for _ in range(BATCH)]
            request = load.post("/api/jobs/batch", jobs.batch([AWAY], of))
            with load.collector_off():
                began = time.perf_counter()
                reply = connection.ask(request)
                times.append((time.perf_counter() - began) * 1000)
            client.check_waiting(connection, jobs.all_accepted(reply, of))
    return {"jobs": ALONE * BATCH, "p50_ms": statistics.median(times), "most_ms": max(times)}


# End to end


def chain_of(length: int) -> Measure:
    """Submit by batches, then collect results until all jobs have ended."""

    def measure(running: Running, name: str) -> Figures:
        chain = CONTAINERS[:length]
        made = Batches(chain, running.chain_jobs // BATCH)
        counts = Counts(running.subjects[name].store)
        with Connection(running.port(name)) as connection:
            with load.collector_off(), counts, running.clock(name) as clock:
                sent = made.send(running.port(name))
                client.collect(connection, list(sent))
            jobs.check_distinct(sent, running.chain_jobs)
            client.check_done(connection, sent, chain)
        return {**rate(len(sent), clock), **counts.per_job(len(sent))}

    return measure


# Reads


def poll(ids: int) -> Measure:
    """Results of so many jobs in one request, of any that have ended."""

    def measure(running: Running, name: str) -> Figures:
        chain = CONTAINERS[:1]
        with Connection(running.port(name)) as connection:
            sent = Batches(chain, running.chain_jobs // BATCH).send(running.port(name))
            client.collect(connection, list(sent))
        return polls(running, name, sent, ids)

    return measure


def polls(running: Running, name: str, sent: Mapping[str, int], ids: int, source: str = load.LOCAL) -> Figures:
    """Results of so many of these jobs in one request, at random. source: the caller whose they are."""
    known = list(sent)
    asked = [random.choices(known, k=ids) for _ in range(POLLS)]
    requests = [(place, client.query(each, intermediate="true")) for place, each in enumerate(asked)]
    turns = itertools.count()
    clock = running.clock(name)
    answers = load.flood(
        running.port(name),
        CONNECTIONS,
        lambda: requests[next(turns) % POLLS],
        seconds=running.seconds,
        source=source,
        clock=clock,
    )
    for place, reply in answers:
        jobs.check_done(reply, asked[place], sent, CONTAINERS[:1])
    return rate(len(answers), clock)
