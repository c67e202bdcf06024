"""The process that all workers are forked from: begun before the node has threads or a loop, so that a fork is safe.

    main ── "fork r1" + its files, "kill 123" ──> zygote ── fork ──> worker
         <── "born r1 123", "unborn r1 ERRNO", "died 123 WAIT-STATUS" ──

A worker begins in milliseconds and shares the memory of what is imported. When the main process ends, however that
comes, the zygote ends all workers at once; should it be gone itself, the kernel does.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NoReturn, Self

import structlog

from node.errors import StokerError

log = structlog.get_logger()

PACKET_BYTES = 4096
MAX_FILES = 64  # given to one worker
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # of Linux's prctl

Body = Callable[[str, Sequence[int]], None]
"""What a worker does: its name, and the files that were given to it. It has the process for itself."""


class Life:
    """One process that was forked. ended: how it ended, in words, once it has."""

    def __init__(self) -> None:
        self.pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()


class Zygote:
    """The main process's side of it. Made before there is a loop; entered within one."""

    def __init__(self, body: Body) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._born: dict[str, Life] = {}
        self._lives: dict[int, Life] = {}
        self.gone = False
        self.on_end: Callable[[], None] = lambda: None
        """Called when it ended although it should not have."""
        main = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            self._socket.close()
            _serve(theirs, body, main)
        theirs.close()
        self._socket.setblocking(False)

    async def __aenter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._socket, self._heard)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)

    def end(self) -> None:
        """End it, and with it all workers that are left; wait for that."""
        self._socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    async def fork(self, name: str, files: Sequence[int]) -> Life:
        """A worker; only one of a name at a time. Raises `StokerError` when there can be none."""
        life = self._born[name] = Life()
        try:
            socket.send_fds(self._socket, [f"fork {name}".encode()], files)
        except OSError as error:
            raise StokerError(f"no process can be started: {error.strerror}") from None
        await life.pid
        return life

    def kill(self, life: Life) -> None:
        if life.pid.done() and not life.ended.done():
            with contextlib.suppress(OSError):
                self._socket.send(f"kill {life.pid.result()}".encode())

    def _heard(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while words := self._received():
                what, *rest = words
                if what == "born":
                    life = self._born.pop(rest[0])
                    self._lives[int(rest[1])] = life
                    life.pid.set_result(int(rest[1]))
                elif what == "unborn":
                    reason = os.strerror(int(rest[1]))
                    self._born.pop(rest[0]).pid.set_exception(StokerError(f"no process can be started: {reason}"))
                else:
                    self._lives.pop(int(rest[0])).ended.set_result(_ending(int(rest[1])))
            self._lost()

    def _received(self) -> list[str]:
        with contextlib.suppress(ConnectionError):
            return self._socket.recv(PACKET_BYTES).decode().split()
        return []

    def _lost(self) -> None:
        self.gone = True
        asyncio.get_running_loop().remove_reader(self._socket)
        for life in [*self._born.values(), *self._lives.values()]:
            if not life.pid.done():
                life.pid.set_exception(StokerError("no process can be started: the one that does it has ended"))
            if not life.ended.done():
                life.ended.set_result("ended with the process that started it")
        self.on_end()


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


# What follows runs in the zygote, and in the workers.


def _serve(requests: socket.socket, body: Body, main: int) -> NoReturn:
    """Never returns: what the main process had begun is none of its business."""
    try:
        _die_with_parent(main)
        _call("zygote")
        for sign in (signal.SIGTERM, signal.SIGINT):  # the main process's to handle
            signal.signal(sign, signal.SIG_IGN)
        gc.collect()
        gc.freeze()  # shared memory stays shared
        _fork_on_request(requests, body)
    finally:
        _leave()


def _fork_on_request(requests: socket.socket, body: Body) -> None:
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    while True:
        readable, _, _ = select.select([requests, woken], [], [])
        if woken in readable:
            woken.recv(PACKET_BYTES)
            _reap(requests, children)
        if requests in readable:
            packet, files, _, _ = socket.recv_fds(requests, PACKET_BYTES, MAX_FILES)
            what, _, who = packet.decode().partition(" ")
            if what == "fork":
                try:
                    pid = _forked(requests, body, who, files, (woken, wake))
                except OSError as error:
                    _say(requests, f"unborn {who} {error.errno}")
                else:
                    children.add(pid)
                    _say(requests, f"born {who} {pid}")
            elif what == "kill":
                if int(who) in children:
                    os.kill(int(who), signal.SIGKILL)
            else:
                _end(children)


def _forked(requests: socket.socket, body: Body, name: str, files: Sequence[int], own: Sequence[socket.socket]) -> int:
    zygote = os.getpid()
    try:
        pid = os.fork()
    finally:
        if os.getpid() == zygote:
            for file in files:
                os.close(file)
    if pid:
        return pid
    try:
        _die_with_parent(zygote)
        _call(name)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (requests, *own):
            end.close()
        body(name, files)
    finally:
        _leave()


def _reap(requests: socket.socket, children: set[int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        children.discard(pid)
        _say(requests, f"died {pid} {status}")


def _say(requests: socket.socket, words: str) -> None:
    with contextlib.suppress(ConnectionError):  # nobody is there any more; the next look at the requests shows it
        requests.send(words.encode())


def _end(children: set[int]) -> NoReturn:
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)
    os._exit(0)


def _leave() -> NoReturn:
    """Without anything that the process it was forked from meant to do at its exit."""
    failed = sys.exc_info()[0] is not None
    if failed:
        traceback.print_exc()
    os._exit(int(failed))


def _die_with_parent(parent: int) -> None:
    """The kernel ends this process when its parent ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def _call(name: str) -> None:
    """What `ps -o comm` and `top` show."""
    _prctl(PR_SET_NAME, f"stoker {name}".encode())


def _prctl(option: int, value: int | bytes) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)
