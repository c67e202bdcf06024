"""The measures. Each takes what runs, applies its load, checks every answer, and gives its figures by name.

`jobs` is how many jobs or calls the load was; rates end in `_per_s`, times in `_ms`. Checks run after the clock stops.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import msgspec

from bench import jobs, load
from bench.clock import Clock
from bench.jobs import Wrong
from bench.load import Connection
from bench.subjects import AWAY, CONTAINERS, Subject

CONNECTIONS = 64
BATCH = 1000
BATCH_CONNECTIONS = 2  # one batch is read while another is written
RESULTS = 500  # in one request: 20 kB of query
PAUSE_S = 0.01  # between two looks at a job that has not ended
END_S = 300.0  # for all jobs of a measure
WARM_UP = 20

RUNNING = b'"status":"running"'  # no data that is sent holds it

Figures = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What runs during a round, and how long a load lasts that is bounded by time."""

    bare: Subject
    echoes: Sequence[Subject]
    node: Subject
    seconds: float

    def clock(self) -> Clock:
        servers = (self.bare, self.node, *self.echoes)
        return Clock(process for server in servers for process in server.pids.items())

    @property
    def chain_jobs(self) -> int:
        """Jobs of an end-to-end measure, in whole batches."""
        return max(1, round(self.seconds * 1.5)) * BATCH

    @property
    def latency_jobs(self) -> int:
        return max(50, round(self.seconds * 150))


Measure = Callable[[Running], Figures]


# Many at once


def post_bare(running: Running) -> Figures:
    figures, _ = _post_jobs(running, running.bare.port, CONTAINERS[:1])
    return figures


def post_echo(running: Running) -> Figures:
    """Calls of one container, as the node makes them."""

    def make() -> tuple[int, bytes]:
        number = jobs.number()
        return number, load.post("/service_output", jobs.call(number))

    with running.clock() as clock:
        answers = load.flood(running.echoes[0].port, CONNECTIONS, running.seconds, make)
    for number, reply in answers:
        jobs.check_echo(reply, number)
    return _rate(len(answers), clock)


def post_waiting(running: Running) -> Figures:
    """Single jobs, accepted while no container runs."""
    figures, sent = _post_jobs(running, running.node.port, [AWAY])
    _check_waiting(running.node.port, sent)
    return figures


def post_running(running: Running) -> Figures:
    """Single jobs, accepted while those accepted before run. `ended_share`: of them, when the last was accepted."""
    chain = CONTAINERS[:1]
    with Connection(running.node.port) as connection:
        before = _pending(connection)
        figures, sent = _post_jobs(running, running.node.port, chain)
        figures["ended_share"] = 1 - (_pending(connection) - before) / len(sent)
        _collect(connection, list(sent))
        _check_done(connection, sent, chain)
    return figures


def batches(running: Running) -> Figures:
    """Jobs accepted by batches, while no container runs."""
    numbers: dict[int, list[int]] = {}

    def make() -> tuple[int, bytes]:
        of = [jobs.number() for _ in range(BATCH)]
        numbers[of[0]] = of
        return of[0], load.post("/api/jobs/batch", jobs.batch([AWAY], of))

    with running.clock() as clock:
        answers = load.flood(running.node.port, BATCH_CONNECTIONS, running.seconds, make)
    sent: dict[str, int] = {}
    for first, reply in answers:
        sent |= jobs.all_accepted(reply, numbers[first])
    jobs.check_distinct(sent, len(answers) * BATCH)
    _check_waiting(running.node.port, sent)
    return _rate(len(sent), clock)


def chain_of(length: int) -> Measure:
    """End to end: submit by batches, then collect results until all jobs have ended."""

    def measure(running: Running) -> Figures:
        chain = CONTAINERS[:length]
        of = [[jobs.number() for _ in range(BATCH)] for _ in range(running.chain_jobs // BATCH)]
        requests = [load.post("/api/jobs/batch", jobs.batch(chain, numbers)) for numbers in of]
        sent: dict[str, int] = {}
        with Connection(running.node.port) as connection:
            with load.collector_off(), running.clock() as clock:
                for numbers, request in zip(of, requests, strict=True):
                    sent |= jobs.all_accepted(connection.ask(request), numbers)
                _collect(connection, list(sent))
            jobs.check_distinct(sent, running.chain_jobs)
            _check_done(connection, sent, chain)
        return _rate(len(sent), clock)

    return measure


def _rate(count: int, clock: Clock) -> Figures:
    return {
        "jobs": count,
        "per_s": count / clock.seconds,
        "generator_share": clock.generator_share,
        **clock.cpu_us(count),
    }


# One at a time


def direct(length: int) -> Measure:
    """Calling the containers by hand, one after the other."""

    def measure(running: Running) -> Figures:
        connections = [Connection(echo.port) for echo in running.echoes[:length]]

        def call() -> None:
            number = jobs.number()
            for connection in connections:
                jobs.check_echo(connection.ask(load.post("/service_output", jobs.call(number))), number)

        try:
            return _times(call, running.latency_jobs)
        finally:
            for connection in connections:
                connection.close()

    return measure


def one_job(length: int) -> Measure:
    """One job on an idle node: from the POST until the first GET that says success.

    It asks again at once. A pause changes the median by nothing that can be seen: there are two or three GETs a job.
    """

    def measure(running: Running) -> Figures:
        chain = CONTAINERS[:length]
        sent: dict[str, int] = {}
        with Connection(running.node.port) as connection:

            def run() -> None:
                number = jobs.number()
                job_id = jobs.accepted(connection.ask(load.post("/api/jobs", jobs.job(chain, number))))
                sent[job_id] = number
                look = _query([job_id])
                while RUNNING in connection.ask(look):
                    pass

            figures = _times(run, running.latency_jobs)
            _check_done(connection, sent, chain)
        return figures

    return measure


def _times(run: Callable[[], None], count: int) -> Figures:
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


# Sending and collecting


def _post_jobs(running: Running, port: int, chain: Sequence[str]) -> tuple[Figures, dict[str, int]]:
    """Single jobs at full load; the ids that were answered, each with its job's number."""

    def make() -> tuple[int, bytes]:
        number = jobs.number()
        return number, load.post("/api/jobs", jobs.job(chain, number))

    with running.clock() as clock:
        answers = load.flood(port, CONNECTIONS, running.seconds, make)
    sent = {jobs.accepted(reply): number for number, reply in answers}
    jobs.check_distinct(sent, len(answers))
    return _rate(len(sent), clock), sent


def _collect(connection: Connection, ids: Sequence[str]) -> None:
    """Read results, in the order of submission, until all jobs have ended.

    A client that waits looks at the last job of a part only, and reads the part when that has ended.
    """
    deadline = time.monotonic() + END_S
    for part in _parts(ids):
        for look in (_query(part[-1:]), _query(part)):
            while RUNNING in connection.ask(look):
                if time.monotonic() > deadline:
                    raise Wrong(f"some of {len(ids)} jobs had not ended after {END_S:g} s")
                time.sleep(PAUSE_S)


def _check_done(connection: Connection, sent: Mapping[str, int], chain: Sequence[str]) -> None:
    for ids in _parts(list(sent)):
        jobs.check_done(connection.ask(_query(ids, intermediate="true")), ids, sent, chain)


def _check_waiting(port: int, sent: Mapping[str, int]) -> None:
    with Connection(port) as connection:
        for ids in _parts(list(sent)):
            jobs.check_waiting(connection.ask(_query(ids)), ids)


def _pending(connection: Connection) -> int:
    return int(msgspec.json.decode(connection.ask(load.get("/info")))["pending"]["offchain"])


def _query(ids: Sequence[str], **more: str) -> bytes:
    return load.get("/api/jobs?" + urlencode([*(("id", job_id) for job_id in ids), *more.items()]))


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[i : i + RESULTS] for i in range(0, len(ids), RESULTS))
