"""What happens when the Docker engine goes away: a second engine of the test's own, in a network of its own, is killed.

It stands for two things at once: an engine that dies while containers run on, and one whose bridges this host cannot
reach (Docker Desktop, rootless).
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import docker
import pytest

from node.backends.contract import Instance
from node.backends.docker import DockerBackend
from node.config import ContainerSpec
from node.errors import BackendError
from tests.backends.grounds import APP, quiet, soon
from tests.support import ROOT, until

pytestmark = pytest.mark.docker

AWAY_S = 30 if os.environ.get("STOKER_FULL") else 3
"""How long the engine is away."""


class SecondEngine:
    """A `dockerd` in its own network namespace. Its containers survive it (`--live-restore`)."""

    def __init__(self, image: bytes) -> None:
        self._image = image

    def __enter__(self) -> Self:
        self.namespace = f"eng{uuid.uuid4().hex[:6]}"
        self.folder = Path(tempfile.mkdtemp(prefix="eng"))  # its sockets' paths must be short
        self.address = f"unix://{self.folder}/docker.sock"
        subprocess.run(["ip", "netns", "add", self.namespace], check=True)
        subprocess.run(["ip", "-netns", self.namespace, "link", "set", "lo", "up"], check=True)
        self.start()
        self.client = docker.DockerClient(self.address)
        self.client.images.load(self._image)
        return self

    def start(self) -> None:
        # Not `ip netns exec`: that hides the cgroup mounts, without which no engine starts.
        command = ["nsenter", f"--net=/run/netns/{self.namespace}", "dockerd", "--live-restore"]
        command += [f"--host={self.address}", f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec"]
        command += [f"--pidfile={self.folder}/pid", "--containerd-namespace=second", "--ip-masq=false"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._answers, message="the second engine")

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()[-3000:]
        with socket.socket(socket.AF_UNIX) as knock:
            if knock.connect_ex(f"{self.folder}/docker.sock") != 0:
                return False
        with contextlib.suppress(docker.errors.DockerException), docker.APIClient(self.address) as client:
            return bool(client.ping())
        return False

    def kill(self, sign: int = signal.SIGKILL) -> None:
        containerd = Path("/proc", (self.folder / "exec/containerd/containerd.pid").read_text())
        self.process.send_signal(sign)
        self.process.wait()
        until(lambda: not containerd.exists(), message="the end of its containerd")

    def inside(self, code: str, *arguments: str) -> list[str]:
        """A command that runs a Python program in the namespace, where the engine publishes its ports."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", sys.executable, "-c", code, *arguments]

    def ask(self, instance: Instance) -> Any:
        """Call a service, once it answers."""
        code = f"import urllib.request; print(urllib.request.urlopen('{instance.url}', timeout=5).read().decode())"
        command = self.inside(code)
        answer = until(
            lambda: subprocess.run(command, capture_output=True, text=True, check=False).stdout, message="an answer"
        )
        return json.loads(answer)

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is not None:  # a test failed while it was away
            self.start()
        for container in self.client.containers.list(all=True):
            container.remove(force=True)
        self.client.close()
        self.kill()
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(str(self.folder))]):
            subprocess.run(["umount", mount], check=True)
        subprocess.run(["ip", "netns", "delete", self.namespace], check=True)
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def second(engine: docker.DockerClient) -> Iterator[SecondEngine]:
    image = b"".join(engine.images.get("stoker-test-base").save(named=True))
    with SecondEngine(image) as second:
        yield second


@pytest.fixture
def node_id() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


def spec(**more: Any) -> ContainerSpec:
    """The service, mounted instead of built: the second engine shares this machine's files."""
    mount = {"volumes": [f"{APP.parent}:/service:ro"], "command": f"python3 /service/{APP.name}"}
    return ContainerSpec.model_validate(
        {"id": "service", "image": "stoker-test-base", "stop_grace_s": 1} | mount | more
    )


def only_container(second: SecondEngine, node_id: str) -> Any:
    (container,) = second.client.containers.list(filters={"label": f"stoker.node={node_id}"})
    return container


def address(second: SecondEngine, node_id: str) -> str:
    """Of the container on its bridge. What is published goes through a process that dies with the engine."""
    ((_, network),) = only_container(second, node_id).attrs["NetworkSettings"]["Networks"].items()
    return str(network["IPAddress"])


async def still_waits(exited: "asyncio.Future[str]", seconds: float) -> bool:
    await asyncio.wait([exited], timeout=seconds)
    return not exited.done()


async def test_an_engine_whose_bridges_are_out_of_reach_publishes_on_loopback(
    second: SecondEngine, node_id: str
) -> None:
    async with DockerBackend(node_id=node_id, base_url=second.address) as backend:
        instance = await backend.start(spec(), quiet)
        assert instance.url.startswith("http://127.0.0.1:")
        assert await asyncio.to_thread(second.ask, instance)
        await instance.stop(1)


async def test_a_container_without_internet_cannot_be_reached_there_and_that_is_said(
    second: SecondEngine, node_id: str
) -> None:
    async with DockerBackend(node_id=node_id, base_url=second.address) as backend:
        with pytest.raises(BackendError, match=r"service.*`hardening.internet`") as caught:
            await backend.start(spec(hardening={"profile": "strict"}), quiet)
        assert not caught.value.retry


async def test_an_engine_that_dies_is_no_end_of_its_containers(second: SecondEngine, node_id: str) -> None:
    async with DockerBackend(node_id=node_id, base_url=second.address) as backend:
        instance = await backend.start(spec(), quiet)
        exited = asyncio.ensure_future(instance.exited())
        before = only_container(second, node_id).id
        await asyncio.to_thread(second.ask, instance)
        url = f"http://{address(second, node_id)}:3000/sleep?seconds={AWAY_S + 4}"
        slow = f"import urllib.request as r; print(r.urlopen('{url}').read())"
        call = await asyncio.create_subprocess_exec(*second.inside(slow), stdout=subprocess.PIPE)
        second.kill()
        with pytest.raises(BackendError, match="does not answer"):
            await backend.probe()
        assert await instance.log_tail(5) == []
        assert await still_waits(exited, AWAY_S)
        assert call.returncode is None
        await asyncio.to_thread(second.start)
        assert await still_waits(exited, 3)
        told, _ = await soon(call.communicate())
        assert told == b"b'{}'\n"  # the call that was under way
        again = await backend.start(spec(), quiet)
        assert only_container(second, node_id).id == before
        os.kill(only_container(second, node_id).attrs["State"]["Pid"], signal.SIGKILL)
        assert await soon(exited) == "killed by SIGKILL (exit code 137)"
        await again.stop(1)


async def test_an_end_that_nobody_saw_is_found_when_the_engine_is_back(second: SecondEngine, node_id: str) -> None:
    async with DockerBackend(node_id=node_id, base_url=second.address) as backend:
        instance = await backend.start(spec(), quiet)
        exited = asyncio.ensure_future(instance.exited())
        service = only_container(second, node_id).attrs["State"]["Pid"]
        second.kill()
        os.kill(service, signal.SIGKILL)
        assert await still_waits(exited, 3)
        await asyncio.to_thread(second.start)
        assert await soon(exited) in ("killed by SIGKILL (exit code 137)", "exited with code 255")
        await instance.stop(1)


async def test_an_engine_that_hangs_is_no_end_of_its_containers_and_a_call_can_be_given_up(
    second: SecondEngine, node_id: str
) -> None:
    async with DockerBackend(node_id=node_id, base_url=second.address) as backend:
        instance = await backend.start(spec(), quiet)
        exited = asyncio.ensure_future(instance.exited())
        second.process.send_signal(signal.SIGSTOP)
        try:
            assert await still_waits(exited, 3)
            began = time.monotonic()
            probe = asyncio.ensure_future(backend.probe())
            assert await still_waits(probe, 1)
            probe.cancel()
            await asyncio.wait([probe])
            assert time.monotonic() - began < 2
        finally:
            second.process.send_signal(signal.SIGCONT)
        assert await still_waits(exited, 1)
        await instance.stop(1)


CUT_OFF = """
import asyncio, json, socket, sys, urllib.request
from node.backends.docker import DockerBackend
from node.config import ContainerSpec

async def main():
    address, node_id, spec = sys.argv[1:]
    listener = socket.create_server(("0.0.0.0", 0))
    port = listener.getsockname()[1]
    async with DockerBackend(node_id=node_id, base_url=address) as backend:
        instance = await backend.start(ContainerSpec.model_validate_json(spec), lambda line: None)
        network = instance.url.removeprefix("http://").rpartition(".")[0]
        print(json.dumps(backend.open_because), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            url = f"{instance.url}/connect?host={network}.1&port={port}"
            print((await asyncio.to_thread(urllib.request.urlopen, url)).read().decode(), flush=True)
        await instance.stop(1)

asyncio.run(main())
"""


async def test_containers_stay_cut_off_from_their_host_when_the_engine_starts_again(
    second: SecondEngine, node_id: str
) -> None:
    command = second.inside(CUT_OFF, second.address, node_id, spec().model_dump_json())
    pipe = subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as node:
        assert node.stdin is not None
        assert node.stdout is not None
        assert json.loads(node.stdout.readline()) == ""
        for restarted in (False, True):
            if restarted:
                second.kill()
                second.start()
            until(lambda: _connects(second, node_id), message="the service")
            print("try", file=node.stdin, flush=True)
            assert json.loads(node.stdout.readline()) == "timed out"
        node.stdin.close()


def _connects(second: SecondEngine, node_id: str) -> bool:
    """Whether the service answers by its address on the bridge."""
    code = f"import socket; socket.create_connection(('{address(second, node_id)}', 3000), timeout=1)"
    return subprocess.run(second.inside(code), capture_output=True, check=False).returncode == 0
