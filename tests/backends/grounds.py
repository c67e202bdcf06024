"""The grounds that the backend tests stand on: a real Docker engine, real processes, a real service elsewhere."""

import asyncio
import contextlib
import shutil
import subprocess
import sys
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import aiohttp
import docker
import pytest

from node.backends.contract import Backend, Instance
from node.backends.docker import DockerBackend
from node.backends.docker.firewall import Firewall
from node.backends.docker.plan import NODE, Mark
from node.backends.process import ProcessBackend
from node.backends.process.orphans import VARIABLE
from node.backends.remote import RemoteBackend
from node.config import ContainerSpec
from tests.support import READY_S, eventually, free_port

APP = Path(__file__).with_name("app.py")

LABEL = "stoker.tests=backends"
"""On every layer that the tests build, so that all can be removed in the end."""

DOCKERFILE = f"""\
FROM stoker-test-base
LABEL {LABEL}
COPY app.py /app.py
CMD ["python3", "/app.py"]
"""


class Ground(ABC):
    """One backend with what a test must know of the world below it."""

    name: str
    refuses: str
    """What it says of a spec that has nothing for it."""
    app = "app.py"
    """The service's program, as a command names it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context = folder / "service"
        self.context.mkdir()
        shutil.copy(APP, self.context / "app.py")
        (self.context / "Dockerfile").write_text(DOCKERFILE)

    @abstractmethod
    def backend(self) -> Backend:
        """A new object, as after a restart of the node."""

    def spec(self, id: str = "service", **more: Any) -> ContainerSpec:
        return ContainerSpec.model_validate({"id": id, "build": {"context": self.context}} | more)

    @abstractmethod
    def kill(self, id: str = "service") -> None:
        """Kill the service, as an operator or the kernel would."""

    def change(self) -> None:
        """Make the next start prepare something."""
        (self.context / "requirements.txt").write_text("# nothing\n")
        (self.context / "note").write_text(uuid.uuid4().hex)
        with (self.context / "Dockerfile").open("a") as dockerfile:
            dockerfile.write("COPY note /note\n")

    def spoil(self) -> None:
        """Make the preparation fail."""
        (self.context / "requirements.txt").write_text("./no-such-package-of-the-tests\n")
        with (self.context / "Dockerfile").open("a") as dockerfile:
            dockerfile.write("RUN echo installing && no-such-package-of-the-tests\n")

    @abstractmethod
    def left_running(self) -> list[str]:
        """What of its making runs."""

    @abstractmethod
    def left(self) -> list[str]:
        """What of its making is in the world, running or not."""

    @abstractmethod
    def clean(self) -> None:
        """Remove all of it, whatever the test did."""


class DockerGround(Ground):
    name = "docker"
    refuses = "set `image` or `build`"
    app = "/app.py"

    def __init__(self, folder: Path, client: docker.DockerClient) -> None:
        super().__init__(folder)
        self.client = client
        self.node_id = f"test-{uuid.uuid4().hex[:8]}"
        self.mark = Mark(node_id=self.node_id, prefix="stoker")
        self.filters = {"label": f"{NODE}={self.node_id}"}

    def backend(self, **more: Any) -> DockerBackend:
        return DockerBackend(node_id=self.node_id, **more)

    def container(self, id: str = "service") -> Any:
        return self.client.containers.get(self.mark.name(id))

    def kill(self, id: str = "service") -> None:
        # The init process would pass a TERM on; what the kernel kills is the service itself.
        self.container(id).exec_run(["sh", "-c", "kill -9 $(pidof -s python3)"])

    def left_running(self) -> list[str]:
        return [each.name for each in self.client.containers.list(all=True, filters=self.filters)]

    def left(self) -> list[str]:
        return self.left_running() + [each.name for each in self.client.networks.list(filters=self.filters)]

    def clean(self) -> None:
        for container in self.client.containers.list(all=True, filters=self.filters):
            container.remove(force=True, v=True)
        for network in self.client.networks.list(filters=self.filters):
            network.remove()
        Firewall(mark=self.mark).lift()


class ProcessGround(Ground):
    name = "process"
    refuses = "needs Docker"

    def backend(self) -> ProcessBackend:
        return ProcessBackend(data_dir=self.folder / "data")

    def kill(self, id: str = "service") -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                subprocess.run(["kill", "-9", str(pid)], check=False)

    def left_running(self) -> list[str]:
        return [str(pid) for pid in self._processes()]

    def left(self) -> list[str]:
        return self.left_running() + [str(path) for path in (self.folder / "data/process/tmp").iterdir()]

    def clean(self) -> None:
        self.kill()

    def _processes(self) -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                environment = entry.read_bytes()
                if f"{VARIABLE}=".encode() in environment and str(self.folder).encode() in environment:
                    found.append(int(entry.parent.name))
        return found


class RemoteGround(Ground):
    name = "remote"
    refuses = "set `url`"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.services: list[subprocess.Popen[bytes]] = []

    def backend(self) -> RemoteBackend:
        return RemoteBackend()

    def spec(self, id: str = "service", **more: Any) -> ContainerSpec:
        """Somebody else has started it."""
        port = free_port()
        environment = {"HOST": "127.0.0.1", "PORT": str(port)} | more.get("env", {})
        command = [sys.executable, str(self.context / "app.py")]
        self.services.append(subprocess.Popen(command, env=environment))
        return ContainerSpec.model_validate({"id": id, "url": f"http://127.0.0.1:{port}/"} | more)

    def kill(self, id: str = "service") -> None:
        for service in self.services:
            service.kill()

    def left_running(self) -> list[str]:
        return []

    def left(self) -> list[str]:
        return []

    def clean(self) -> None:
        for service in self.services:
            service.kill()
            service.wait()


class Caller:
    """Asks a service."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def get(self, instance: Instance, action: str = "index", /, **query: Any) -> Any:
        """Its answer, once it gives one."""
        await self.until_up(instance)
        return await self.get_url(f"{instance.url}/{action}", **query)

    async def get_url(self, url: str, /, **query: Any) -> Any:
        async with self._session.get(url, params=query) as answer:
            assert answer.status == 200
            return await answer.json()

    async def until_up(self, instance: Instance) -> None:
        async def answers() -> bool:
            return await self.answers(instance)

        await eventually(answers, message=f"an answer on {instance.url}")

    async def answers(self, instance: Instance) -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self._session.get(instance.url, timeout=aiohttp.ClientTimeout(total=2)):
                return True
        return False

    async def fail(self, instance: Instance, action: str, /, **query: Any) -> None:
        """Ask for something that it does not survive."""
        with pytest.raises(aiohttp.ClientError):
            await self.get(instance, action, **query)

    async def leave(self, instance: Instance, code: int) -> None:
        await self.fail(instance, "leave", code=code)


def quiet(line: str) -> None:
    """A progress that nobody reads."""


async def soon(waiting: Any, seconds: float = READY_S) -> Any:
    """The result of an awaitable that must not take longer."""
    return await asyncio.wait_for(waiting, seconds)
