"""Fixtures of the backend tests. The grounds themselves are in `grounds`."""

import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import docker
import pytest

from tests.backends.grounds import LABEL, Caller, DockerGround, Ground, ProcessGround, RemoteGround
from tests.support import READY_S, ROOT


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=READY_S)) as session:
        yield Caller(session)


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """The Docker engine, with the base image of the tests in it."""
    subprocess.run([ROOT / "tests" / "images" / "base"], check=True)
    client = docker.from_env()
    yield client
    # Layers of builds that were made to fail have no other name. One that others stand on is not removed.
    while any([_removed(client, layer) for layer in client.images.list(all=True, filters={"label": LABEL})]):  # noqa: C419
        pass
    client.close()


METADATA = "169.254.169.254"
"""Where clouds tell their machines' secrets. It is another host, by a route of this one."""


@pytest.fixture
def outside() -> Iterator[tuple[str, int]]:
    """A host that is not this one, on a network of its own, as all hosts of the Internet are: its address and port.

    It is the host at the metadata address as well.
    """
    name = f"out{uuid.uuid4().hex[:6]}"
    server = (
        "import socket; s = socket.create_server(('', 80)); print('up', flush=True); [s.accept() for _ in iter(int, 1)]"
    )
    run(f"ip netns add {name}")
    try:
        run(f"ip link add {name} type veth peer name eth0 netns {name}")
        run(f"ip address add 198.51.100.1/30 dev {name}", f"ip link set {name} up")
        for line in ("address add 198.51.100.2/30 dev eth0", f"address add {METADATA}/32 dev eth0"):
            run(f"ip -netns {name} {line}")
        run(f"ip -netns {name} link set eth0 up", f"ip -netns {name} route add default via 198.51.100.1")
        run(f"ip route add {METADATA}/32 via 198.51.100.2")
        command = ["ip", "netns", "exec", name, sys.executable, "-c", server]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield "198.51.100.2", 80
            process.kill()
    finally:
        run(f"ip link delete {name}", f"ip netns delete {name}")


def run(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True)


def _removed(client: docker.DockerClient, image: Any) -> bool:
    try:
        client.images.remove(image.id)
    except docker.errors.APIError:
        return False
    return True


@pytest.fixture
def docker_ground(tmp_path: Path, engine: docker.DockerClient) -> Iterator[DockerGround]:
    ground = DockerGround(tmp_path, engine)
    yield ground
    ground.clean()


@pytest.fixture
def process_ground(tmp_path: Path) -> Iterator[ProcessGround]:
    ground = ProcessGround(tmp_path)
    yield ground
    ground.clean()


@pytest.fixture
def remote_ground(tmp_path: Path) -> Iterator[RemoteGround]:
    ground = RemoteGround(tmp_path)
    yield ground
    ground.clean()


DOCKER = pytest.param("docker", marks=pytest.mark.docker)


@pytest.fixture(params=[DOCKER, "process", "remote"])
def ground(request: pytest.FixtureRequest) -> Ground:
    """Each backend in turn."""
    return request.getfixturevalue(f"{request.param}_ground")


@pytest.fixture(params=[DOCKER, "process"])
def seeing(request: pytest.FixtureRequest) -> Ground:
    """Each backend that sees how its services fare."""
    return request.getfixturevalue(f"{request.param}_ground")
