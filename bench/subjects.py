"""What is measured, as processes that this run starts and ends: the yardsticks, the containers, the nodes."""

import ctypes
import http.client
import json
import os
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

from node.store.embedded import server_binary

ROOT = Path(__file__).parents[1]
READY_S = 60.0
STOP_S = 30.0
SLOTS = 64  # calls of one container at once, of the nodes and of the smallest one
CONTAINERS = ("echo-1", "echo-2", "echo-3")
SLOW = "slow"  # takes SLOW_S
SLOW_S = 0.05
SINGLE = "single"  # takes SINGLE_S, and one call at a time
SINGLE_S = 0.002
AWAY = "away"  # a container that never comes up: its jobs wait in their lane

# The nodes that are compared: the setting that makes each what it is.
ONE_PROCESS: Mapping[str, Any] = {"server": {"workers": 0}, "runner": {"workers": 0}}
NODES: Mapping[str, Mapping[str, Any]] = {
    "node": ONE_PROCESS,
    "workers": {},
    "everysec": {**ONE_PROCESS, "embedded": {"fsync": "everysec"}},
}

DURABLE = {"appendonly": "yes", "appendfsync": "always"}
FORGETFUL = {"appendonly": "no"}


class Broken(Exception):
    """A subject did not start; the text says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A running server. roots: its processes by what they are. store: socket of its Valkey, if it has one."""

    port: int
    roots: Mapping[str, int]
    store: Path | None = None

    def processes(self) -> list[tuple[str, int]]:
        """What each process is, with its id; those that a root has started are of its kind."""
        children = _children()
        roots = set(self.roots.values())
        found = [(kind, pid) for kind, pid in self.roots.items()]
        for kind, pid in found:  # grows meanwhile
            found += [(kind, child) for child in children.get(pid, ()) if child not in roots]
        return found


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):  # no process, or one that has just ended
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    return children


# The yardsticks


def bare(directory: Path) -> AbstractContextManager[Subject]:
    return _program("bare", directory)


def echo(directory: Path) -> AbstractContextManager[Subject]:
    return _program("echo", directory)


def slow(directory: Path, wait_s: float) -> AbstractContextManager[Subject]:
    return _program("slow", directory, str(wait_s))


@contextmanager
def committed(directory: Path) -> Iterator[Subject]:
    with valkey(directory / "committed", DURABLE) as store, _program("committed", directory, str(store[0])) as program:
        yield Subject(port=program.port, roots={**program.roots, "server": store[1]}, store=store[0])


def smallest(directory: Path, containers: Mapping[str, Subject]) -> AbstractContextManager[Subject]:
    urls = {container: f"http://127.0.0.1:{subject.port}" for container, subject in containers.items()}
    return _program("smallest", directory, str(SLOTS), json.dumps({**urls, AWAY: ""}), path="/info")


@contextmanager
def _program(name: str, directory: Path, *arguments: str, path: str = "/") -> Iterator[Subject]:
    port = _free_port()
    command = [sys.executable, "-m", f"bench.{name}", str(port), *arguments]
    with process(command, directory / f"{name}-{port}.log") as started:
        _until(lambda: _get(port, path) is not None, started, name)
        yield Subject(port=port, roots={name: started.pid})


@contextmanager
def valkey(directory: Path, settings: Mapping[str, str]) -> Iterator[tuple[Path, int]]:
    """A Valkey of our own: its socket, and its process."""
    directory.mkdir(exist_ok=True)
    path = directory / "valkey.sock"
    all_settings = {"port": "0", "unixsocket": str(path), "dir": str(directory), "save": "", **settings}
    words = [word for name, value in all_settings.items() for word in (f"--{name}", value)]
    with process([str(server_binary()), *words], directory / "valkey.log") as started:
        _until(lambda: _pings(path), started, "Valkey")
        yield path, started.pid


def _pings(path: Path) -> bool:
    with suppress(redis.RedisError), redis.Redis(unix_socket_path=str(path)) as client:
        return bool(client.ping())
    return False


# The nodes


@contextmanager
def node(directory: Path, settings: Mapping[str, Any], containers: Mapping[str, Subject]) -> Iterator[Subject]:
    """A node as an operator starts it, its containers given by URL. settings: what is not a default."""
    directory.mkdir()
    with ExitStack() as stack:
        unanswered = stack.enter_context(_unanswered_port())
        port = _free_port()
        specs: list[dict[str, Any]] = [
            {"id": name, "url": f"http://127.0.0.1:{subject.port}", "concurrency": 1 if name == SINGLE else SLOTS}
            for name, subject in containers.items()
        ]
        # The short time-out makes the node try it ever less often, instead of all the time.
        specs.append({"id": AWAY, "url": f"http://127.0.0.1:{unanswered}", "startup_timeout_s": 0.05})
        data_dir = directory / "data"
        config = directory / "config.json"
        server = {"max_pending": 10_000_000, **settings.get("server", {}), "port": port}
        config.write_text(json.dumps({**settings, "data_dir": str(data_dir), "server": server, "containers": specs}))
        command = [sys.executable, "-m", "node", "serve", "--config", str(config)]
        started = stack.enter_context(process(command, directory / "node.log"))
        _until(lambda: _serves(port, containers), started, "the node")
        server_pid = int((data_dir / "valkey" / "valkey.pid").read_text())
        store = data_dir / "valkey" / "valkey.sock"
        yield Subject(port=port, roots={"server": server_pid, "node": started.pid}, store=store)


def _serves(port: int, containers: Mapping[str, Subject]) -> bool:
    """All containers but the one that never comes up are ready."""
    info = _get(port, "/info?verbose=true")
    states = {container["id"]: container["state"] for container in info["containers"]} if info else {}
    return bool(states) and all(states[container] == "ready" for container in containers)


def described(store: Path) -> str:
    """A server in its own words, so that the table does not just claim how durable it is."""
    with redis.Redis(unix_socket_path=str(store)) as client:
        about: Any = client.info("server")
        policy: Any = client.config_get("append*")
    version = about.get("valkey_version") or about["redis_version"]
    return f"Valkey {version}, appendonly {policy['appendonly']}, appendfsync {policy['appendfsync']}"


# Processes


@contextmanager
def process(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        started = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            preexec_fn=die_with_parent,
        )
    try:
        yield started
    except BaseException as error:
        if lines := _tail(log):
            error.add_note(f"{log.name} ends with:\n{lines}")
        raise
    finally:
        started.terminate()
        try:
            started.wait(STOP_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def die_with_parent() -> None:
    """Runs in the child: the kernel ends it when this run is killed. Linux only."""
    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _until(ready: Callable[[], bool], started: subprocess.Popen[bytes], name: str) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        if started.poll() is not None:
            raise Broken(f"{name} ended with code {started.returncode} instead of starting")
        if time.monotonic() > deadline:
            raise Broken(f"{name} was not ready after {READY_S:g} s")
        time.sleep(0.02)


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
