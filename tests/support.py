"""Real things for tests: a Redis or Valkey server, the echo service and a node, each a process that can be killed."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import redis
import requests
from prometheus_client.parser import text_string_to_metric_families

from node.store.embedded import server_binary

READY_S = 60.0
LOG_S = 0.1  # longer than the node keeps lines to write them together; those of a worker pass two processes
START_S = 600.0  # of containers whose images must be built
ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: Any, *, seconds: float = READY_S, message: str = "the condition") -> Any:
    """The first true answer of `what()`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"{message} did not come true in {seconds:g} s"
        time.sleep(0.02)
    return answer


async def eventually(what: Any, *, seconds: float = READY_S, message: str = "the condition") -> Any:
    """The same for a coroutine function."""
    deadline = time.monotonic() + seconds
    while not (answer := await what()):
        assert time.monotonic() < deadline, f"{message} did not come true in {seconds:g} s"
        await asyncio.sleep(0.02)
    return answer


async def in_flight(echo: "Echo", key: str, calls: int = 1) -> None:
    """Wait until the service was called so often with that key."""

    async def called() -> bool:
        return echo.counts()["calls"].get(key, 0) >= calls

    await eventually(called, message=f"call {calls} with {key!r}")


def stoker(
    *arguments: str, cwd: Path | None = None, seconds: float = READY_S, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "node", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        text=True,
        capture_output=True,
        timeout=seconds,
        check=False,
    )


class RedisServer:
    """A server process on a TCP port, with its append-only file on."""

    def __init__(self, kind: str, directory: Path, *options: str) -> None:
        self.binary = str(server_binary()) if kind == "valkey" else "redis-server"
        self.directory = directory
        self.options = options
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self.binary,
                    *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
                    *("--appendonly", "yes", "--save", "", *self.options),
                ],
                stdout=log,
                stderr=log,
            )
        with redis.Redis(port=self.port) as client:
            until(lambda: _answers(client), message="the Redis server")

    def kill(self, sign: int = signal.SIGKILL) -> None:
        self.process.send_signal(sign)
        self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.kill()


def _answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(client.ping())
    return False


class SmallDisk:
    """A file system of 1 MiB in memory, mounted on a directory; `grow` makes room."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __enter__(self) -> Self:
        self.place.mkdir(parents=True, exist_ok=True)
        self._run("mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(self.place))
        return self

    def grow(self) -> None:
        self._run("mount", "-o", "remount,size=64m", str(self.place))

    def __exit__(self, *_: object) -> None:
        self._run("umount", "--lazy", str(self.place))

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)


class Echo:
    """`tests/service.py` as a process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.process = subprocess.Popen([sys.executable, str(ROOT / "tests" / "service.py"), str(self.port)])
        until(self._answers, message="the echo service")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(self.url, timeout=5).ok
        return False

    def containers(self, *names: str, **more: Any) -> list[dict[str, Any]]:
        """Entries for a node's configuration: this service under each of the names."""
        return [{"id": name, "url": self.url, **more} for name in names]

    def counts(self) -> dict[str, Any]:
        """`{"calls": {key: calls}, "most": at once, "now": at once, "aborted": keys}`"""
        return requests.get(f"{self.url}/calls", timeout=5).json()

    def release(self, key: str) -> None:
        requests.get(f"{self.url}/release", params={"key": key}, timeout=5)


class Node:
    """`stoker serve` as a process, as an operator runs it. Entering starts it; leaving kills it.

    directory: its configuration, data and log. down: ids of containers that will not come up, so nobody waits for them.
    more: other sections of the configuration, such as `server={...}`.
    """

    def __init__(
        self, directory: Path, containers: list[dict[str, Any]], *, down: tuple[str, ...] = (), **more: Any
    ) -> None:
        self.directory = directory
        self.down = down
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config: dict[str, Any] = {"data_dir": str(directory / "data"), **more, "containers": containers}
        self.config["server"] = {"port": self.port, "workers": 0, **more.get("server", {})}
        self.config["runner"] = {"workers": 0, **more.get("runner", {})}
        self.arguments: list[str] = []
        self.prefix: list[str] = []  # a command that runs the node, such as `prlimit`
        self.tls: ssl.SSLContext | bool = True  # how its certificate is checked
        self.environment: dict[str, str] = {}
        self.log = directory / "node.log"

    async def start(self, *, ready: bool = True) -> None:
        """Start it; wait until it serves, and until all containers are ready."""
        file = self.directory / "config.json"
        file.write_text(json.dumps(self.config))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "node", "serve", "--config", str(file), *self.arguments],
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"} | self.environment,
            )
        await eventually(self._serves, message="the node")
        if ready:
            await self.until_ready()

    async def until_ready(self, *, seconds: float = START_S) -> None:
        async def ready() -> bool:
            info = await self.get("/info?verbose=true")
            return all(entry["state"] == "ready" for entry in info["containers"] if entry["id"] not in self.down)

        await eventually(ready, seconds=seconds, message="the node's containers")

    async def _serves(self) -> bool:
        assert self.process.poll() is None, f"the node exited:\n{self.log.read_text()}"
        with contextlib.suppress(aiohttp.ClientError):
            async with self.session.get("/health"):
                return True
        return False

    def kill(self, sign: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(sign)
        return self.process.wait(timeout=READY_S)

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self.tls)
        self.session = aiohttp.ClientSession(
            self.url, connector=connector, timeout=aiohttp.ClientTimeout(total=READY_S)
        )
        try:
            await self.start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's lines of one event. They come a moment after what they tell."""
        time.sleep(LOG_S)
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for line in lines if (event := json.loads(line))["event"] == name]

    async def get(self, path: str, *, status: int = 200) -> Any:
        async with self.session.get(path) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json()

    async def metric(self, name: str, **labels: str) -> float:
        """A number that `/metrics` shows; 0 when it does not show it."""
        async with self.session.get("/metrics") as answer:
            families = list(text_string_to_metric_families(await answer.text()))
        samples = [sample for family in families for sample in family.samples]
        return sum(sample.value for sample in samples if (sample.name, sample.labels) == (name, labels))

    async def post(self, path: str, body: Any, *, status: int = 200) -> Any:
        async with self.session.post(path, json=body) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json()

    async def submit(self, containers: list[str], data: Any) -> str:
        return (await self.post("/api/jobs", {"containers": containers, "data": data}))["id"]

    async def result(self, job_id: str, *, seconds: float = READY_S) -> dict[str, Any]:
        """The job's result with its intermediate results, once it has ended."""

        async def ended() -> Any:
            (job,) = await self.get(f"/api/jobs?id={job_id}&intermediate=true")
            return job if job["status"] != "running" else None

        return await eventually(ended, seconds=seconds, message=f"the end of job {job_id}")

    async def run(self, containers: list[str], data: Any) -> dict[str, Any]:
        return await self.result(await self.submit(containers, data))
