"""What is measured, as processes that this run starts and ends: the bare handler, the echo containers, the node."""

import ctypes
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

ROOT = Path(__file__).parents[1]
READY_S = 60.0
STOP_S = 30.0
CONTAINERS = ("echo-1", "echo-2", "echo-3")
AWAY = "away"  # a container that never comes up: its jobs wait in their lane


class Broken(Exception):
    """A subject did not start; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A running server. pids: its processes by what they are, for the CPU time."""

    port: int
    pids: Mapping[str, int]


def bare(directory: Path) -> AbstractContextManager[Subject]:
    return _program("bare", directory)


def echo(directory: Path) -> AbstractContextManager[Subject]:
    return _program("echo", directory)


@contextmanager
def _program(name: str, directory: Path) -> Iterator[Subject]:
    port = _free_port()
    with _process([sys.executable, "-m", f"bench.{name}", str(port)], directory / f"{name}-{port}.log") as process:
        _until(lambda: _get(port, "/") is not None, process, name)
        yield Subject(port, {name: process.pid})


@contextmanager
def node(directory: Path, echoes: Sequence[Subject]) -> Iterator[Subject]:
    """The node as an operator starts it: defaults throughout, its containers given by URL."""
    with ExitStack() as stack:
        unanswered = stack.enter_context(_unanswered_port())
        port = _free_port()
        containers: list[dict[str, Any]] = [
            {"id": container, "url": f"http://127.0.0.1:{echo.port}"}
            for container, echo in zip(CONTAINERS, echoes, strict=True)
        ]
        # The short time-out makes the node try it ever less often, instead of all the time.
        containers.append({"id": AWAY, "url": f"http://127.0.0.1:{unanswered}", "startup_timeout_s": 0.05})
        data_dir = directory / "data"
        config = directory / "config.json"
        config.write_text(json.dumps({"data_dir": str(data_dir), "server": {"port": port}, "containers": containers}))
        command = [sys.executable, "-m", "node", "serve", "--config", str(config)]
        process = stack.enter_context(_process(command, directory / "node.log"))
        _until(lambda: _serves(port), process, "the node")
        server_pid = int((data_dir / "valkey" / "valkey.pid").read_text())
        yield Subject(port, {"node": process.pid, "server": server_pid})


def server(directory: Path) -> str:
    """The node's embedded server in its own words, so that the table does not just claim how durable it is."""
    with redis.Redis(unix_socket_path=str(directory / "data" / "valkey" / "valkey.sock")) as client:
        about: Any = client.info("server")
        policy: Any = client.config_get("append*")
    version = about.get("valkey_version") or about["redis_version"]
    return f"Valkey {version}, appendonly {policy['appendonly']}, appendfsync {policy['appendfsync']}"


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    try:
        yield process
    except BaseException as error:
        if lines := _tail(log):
            error.add_note(f"{log.name} ends with:\n{lines}")
        raise
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    """Runs in the child: the kernel ends it when this run is killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes], name: str) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        if process.poll() is not None:
            raise Broken(f"{name} ended with code {process.returncode} instead of starting")
        if time.monotonic() > deadline:
            raise Broken(f"{name} was not ready after {READY_S:g} s")
        time.sleep(0.02)


def _serves(port: int) -> bool:
    """All containers but the one that never comes up are ready."""
    info = _get(port, "/info?verbose=true")
    states = {container["id"]: container["state"] for container in info["containers"]} if info else {}
    return bool(states) and all(states[container] == "ready" for container in CONTAINERS)


def _get(port: int, path: str) -> Any:
    """The JSON that a server answers with 200; None when it does not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            answer = connection.getresponse()
            return json.loads(answer.read()) if answer.status == 200 else None
        return None
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _unanswered_port() -> Iterator[int]:
    """A port that refuses connections, and that nobody else can take meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-5:])
