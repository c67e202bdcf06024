"""Fixtures of the backend tests. The grounds themselves are in `grounds`."""

import subprocess
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
