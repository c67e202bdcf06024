"""Brings services up as local processes. They are not adopted: they die with the node and are started again."""

import asyncio
import os
import shlex
import shutil
import socket
import tempfile
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from node.backends.contract import Instance, Progress
from node.backends.process import environment, orphans
from node.backends.process.child import Child
from node.config import BackendName, ContainerSpec
from node.errors import BackendError

HOST = "127.0.0.1"

HANDED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")
"""Variables of the node that a service sees; the others may hold secrets."""

INSTALLER_PREFIXES = ("UV_", "PIP_", "SSL_CERT_", "REQUESTS_CA_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
"""Variables of the node that the installer of packages sees as well, in capitals or not."""


class ProcessBackend:
    """A `Backend` of local processes, which keeps its files in `data_dir / "process"`.

    `build`: the folder's `app.py` in a Python environment with its `requirements.txt`; with `command`, that instead,
    in the folder and with the environment's programs. `command` alone: run where the node runs. A service is told
    where to listen by `HOST` and `PORT`; `{port}` in a command is replaced.
    """

    def __init__(self, *, data_dir: Path, environ: Mapping[str, str] = os.environ) -> None:
        self._data_dir = data_dir
        self._environ = environ
        self._ports: set[int] = set()
        self._running: set[ProcessInstance] = set()

    async def __aenter__(self) -> Self:
        self._folder = await asyncio.to_thread(lambda: self._data_dir.resolve() / "process")
        await asyncio.to_thread((self._folder / "tmp").mkdir, parents=True, exist_ok=True)
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(instance.stop(0) for instance in tuple(self._running)))
        await self._tasks.__aexit__(None, None, None)

    async def start(self, spec: ContainerSpec, progress: Progress) -> Instance:
        env = self._environment(HANDED_ON)
        if spec.build is not None:
            command, cwd = await self._from_folder(spec, spec.build.context, env, progress)
        elif spec.command and (not spec.image or spec.backend is BackendName.PROCESS):
            command, cwd = shlex.split(spec.command), await asyncio.to_thread(Path.cwd)
        else:
            raise BackendError(
                f"container {spec.id} needs Docker: give it a `build` folder or a `command` to run it as a process",
                retry=False,
            )
        return await self._launch(spec, command, cwd, env)

    async def sweep(self, known: Collection[str]) -> list[str]:
        """Nothing is adopted, so whatever outlived an earlier life of the node is ended, `known` or not."""
        killed = await asyncio.to_thread(orphans.kill_orphans, self._folder)
        await asyncio.to_thread(_empty, self._folder / "tmp")
        return [f"process {pid}" for pid in killed]

    async def _from_folder(
        self, spec: ContainerSpec, context: Path, env: dict[str, str], progress: Progress
    ) -> tuple[list[str], Path]:
        """What to run in a `build` folder. Puts the folder's environment into `env`."""
        needed = context if spec.command else context / "app.py"
        if not await asyncio.to_thread(needed.exists):
            raise BackendError(f"container {spec.id}: there is no {needed} to run", retry=False)
        installer = self._environment(HANDED_ON, INSTALLER_PREFIXES) | {"NO_COLOR": "1"}
        python = await environment.prepare(self._folder, spec.id, context, installer, progress)
        env["PATH"] = f"{python.parent}{os.pathsep}{env['PATH']}"
        env["VIRTUAL_ENV"] = str(python.parent.parent)
        return shlex.split(spec.command) if spec.command else [str(python), "app.py"], context

    async def _launch(self, spec: ContainerSpec, command: list[str], cwd: Path, env: dict[str, str]) -> Instance:
        port = self._take_port(spec)
        instance = f"{spec.id}:{uuid.uuid4().hex}"
        own_mark = orphans.mark(self._folder, instance)
        scratch = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=f"{spec.id}-", dir=self._folder / "tmp"))
        env |= {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        env |= spec.env | {"HOST": HOST, "PORT": str(port), orphans.VARIABLE: own_mark}
        try:
            _find(spec, command[0], env)
            child = await Child.spawn([word.replace("{port}", str(port)) for word in command], cwd=cwd, env=env)
        except BaseException as error:
            self._ports.discard(port)
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
            if isinstance(error, OSError):
                raise BackendError(f"container {spec.id}: {error}") from error
            raise
        exit_ = self._tasks.create_task(child.wait(), name=f"process-{spec.id}")
        made = ProcessInstance(child=child, port=port, own_mark=own_mark, scratch=scratch, exit_=exit_)
        self._running.add(made)
        exit_.add_done_callback(lambda _: self._release(made, port))
        return made

    def _release(self, instance: "ProcessInstance", port: int) -> None:
        self._ports.discard(port)
        self._running.discard(instance)

    def _environment(self, names: Collection[str], prefixes: tuple[str, ...] = ()) -> dict[str, str]:
        wanted = {
            name: value
            for name, value in self._environ.items()
            if name in names or (prefixes and name.upper().startswith(prefixes))
        }
        return {"PATH": os.defpath} | wanted

    def _take_port(self, spec: ContainerSpec) -> int:
        if spec.port:
            if not _free(spec.port):
                raise BackendError(
                    f"container {spec.id}: port {spec.port} on {HOST} is taken: free it or choose another"
                )
            return spec.port
        while True:
            with socket.socket() as probe:
                probe.bind((HOST, 0))
                port = int(probe.getsockname()[1])
            if port not in self._ports:  # given to a service that does not listen yet
                self._ports.add(port)
                return port


class ProcessInstance:
    """A running service."""

    def __init__(self, *, child: Child, port: int, own_mark: str, scratch: Path, exit_: asyncio.Task[str]) -> None:
        self._child = child
        self._url = f"http://{HOST}:{port}"
        self._mark = own_mark
        self._scratch = scratch
        self._exit = exit_

    @property
    def url(self) -> str:
        return self._url

    @property
    def loosened(self) -> tuple[str, ...]:
        return ("a process of this host: no setting of `hardening` confines it",)

    async def exited(self) -> str:
        return await asyncio.shield(self._exit)

    async def mishap(self) -> str:
        """Only its end is seen."""
        return ""

    async def log_tail(self, lines: int) -> list[str]:
        return self._child.tail(lines)

    async def stop(self, grace_s: float) -> None:
        await self._child.end(grace_s)
        # What left the process group, a daemon perhaps, still carries the mark.
        await asyncio.to_thread(orphans.kill_marked, self._mark)
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)


def _find(spec: ContainerSpec, program: str, env: Mapping[str, str]) -> None:
    if os.sep not in program and shutil.which(program, path=env["PATH"]) is None:
        raise BackendError(f"container {spec.id}: there is no program {program} on the PATH", retry=False)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a connection of an earlier service that still lingers does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry, ignore_errors=True)
