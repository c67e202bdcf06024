"""The other job queues beside the node, where they are installed (`make bench-peers`): see `bench.peers`.

Each has a Valkey of its own without any persistence: their best case.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

from bench.client import PAUSE_S
from bench.measures import Figures, Measure, Running
from bench.subjects import CONTAINERS, FORGETFUL, READY_S, ROOT, Broken, die_with_parent, process, valkey

ENVIRONMENTS = ROOT / ".venv-peers"
RUN_S = 300.0

# The command by which a worker that waits for jobs is known, and how many connections of a worker then show it.
# Jobs are sent after that only: saq's first sweep would take for lost those that its slots take meanwhile.
WAITING = {"arq": ("zrangebyscore", 1), "saq": ("blmove", 64), "taskiq": ("brpop", 1)}


def installed() -> list[str]:
    return [name for name in ("arq", "saq", "taskiq") if _python(name).exists()]


def enqueue(queue: str) -> Measure:
    """How many jobs a client sends while no worker runs."""

    def measure(running: Running, name: str) -> Figures:
        with _store(running, name) as environment:
            return _told(queue, environment, "enqueue", str(running.seconds))

    return measure


def chain(queue: str, workers: int) -> Measure:
    """Jobs that call one container, from sending the first until reading the last result, by so many processes."""

    def measure(running: Running, name: str) -> Figures:
        with ExitStack() as stack:
            environment = stack.enter_context(_store(running, name))
            for number, command in enumerate(_working(queue, workers)):
                log = running.directory / f"{name}-{number}.log"
                stack.enter_context(process(command, log, environment))
            _until_waiting(queue, workers, environment["PEER_STORE"])
            return _told(queue, environment, "run", str(running.chain_jobs))

    return measure


def _until_waiting(queue: str, workers: int, store: str) -> None:
    word, connections = WAITING[queue]
    deadline = time.monotonic() + READY_S
    with redis.Redis(unix_socket_path=store) as server:
        while sum(each["cmd"] == word for each in server.client_list()) < workers * connections:
            if time.monotonic() > deadline:
                raise Broken(f"the workers of {queue} were not ready after {READY_S:g} s")
            time.sleep(PAUSE_S)


def _working(queue: str, workers: int) -> list[list[str]]:
    """The commands that run workers: taskiq's starts the processes itself."""
    python = str(_python(queue))
    if queue != "taskiq":
        return [[python, "-m", f"bench.peers.with_{queue}", "work"]] * workers
    settings = ["--workers", str(workers), "--max-async-tasks", "64", "--max-prefetch", "64", "--no-parse"]
    quiet = ["--log-level", "WARNING"]
    return [[python, "-m", "taskiq", "worker", "bench.peers.with_taskiq:broker", *settings, *quiet]]


@contextmanager
def _store(running: Running, name: str) -> Iterator[dict[str, str]]:
    """A fresh server; what its users are told."""
    with valkey(running.directory / name, FORGETFUL) as (path, _):
        port = running.containers[CONTAINERS[0]].port
        yield {"PEER_STORE": str(path), "PEER_CONTAINER": f"http://127.0.0.1:{port}/service_output"}


def _told(queue: str, environment: dict[str, str], *arguments: str) -> Figures:
    command = [str(_python(queue)), "-m", f"bench.peers.with_{queue}", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        timeout=RUN_S,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=die_with_parent,
    )
    if done.returncode:
        raise Broken(f"{queue}: {done.stderr.strip().splitlines()[-1:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return {"jobs": told["jobs"], "per_s": told["jobs"] / told["seconds"]}


def _python(name: str) -> Path:
    return ENVIRONMENTS / name / "bin" / "python"
