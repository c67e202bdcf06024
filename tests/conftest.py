"""What all tests share: real servers, real nodes, a real service; and the list of what this machine could not run."""

import gc
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import pytest
import requests

from tests.support import ROOT, Echo, Node, RedisServer, SmallDisk

NOT_RUN = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOT_RUN] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run, and remember it. Under CI nothing may be left out: there it fails."""
    if os.environ.get("CI"):
        return
    wanted = (("docker", _docker()), ("redis", _redis()), ("mount", _mount()), ("faketime", _faketime()))
    missing = {name: reason for name, reason in wanted if reason}
    kept = []
    for item in items:
        reasons = [reason for name, reason in missing.items() if item.get_closest_marker(name)]
        if reasons:
            config.stash[NOT_RUN].append(f"{item.nodeid}  ({', '.join(reasons)})")
        else:
            kept.append(item)
    items[:] = kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash[NOT_RUN]
    if left_out:
        terminalreporter.section(f"NOT RUN on this machine: {len(left_out)} tests", sep="!", red=True)
        for line in left_out:
            terminalreporter.line(line)


def _docker() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the SDK forgets a socket that could not connect
        try:
            client = docker.from_env()
            images = client.images.list(name="stoker-test-base")
            client.close()
        except (docker.errors.DockerException, requests.RequestException):
            return "no Docker engine answers"
        finally:
            gc.collect()
    return "" if images or shutil.which("debootstrap") else "no debootstrap to make a base image with"


def _mount() -> str:
    with tempfile.TemporaryDirectory() as place:
        try:
            with SmallDisk(Path(place)):
                return ""
        except (OSError, subprocess.CalledProcessError):
            return "no right to mount a small disk"


def _faketime() -> str:
    return "" if list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")) else "no faketime"


def _redis() -> str:
    return "" if shutil.which("redis-server") else "no redis-server"


@pytest.fixture(scope="session")
def echo() -> Iterator[Echo]:
    """A service on the container contract that does what its input says; see `tests/service.py`."""
    with Echo() as service:
        yield service


@pytest.fixture(scope="session", params=["valkey", pytest.param("redis", marks=pytest.mark.redis)])
def redis_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of its own for the session: the one that the node embeds, then Debian's."""
    with RedisServer(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
async def node(tmp_path: Path, echo: Echo) -> AsyncIterator[Node]:
    """A running node, as an operator runs it, with the echo service under the names a, b, c (internal) and d."""
    async with Node(tmp_path, echo.containers("a", "b", "d") + echo.containers("c", external=False)) as running:
        yield running


@pytest.fixture(scope="session")
def base() -> str:
    """Name of a base image for the example containers; made here, because no registry need be reachable."""
    subprocess.run([ROOT / "tests" / "images" / "base"], check=True)
    return "stoker-test-base"
