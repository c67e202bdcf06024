"""One local process in a session of its own: started, listened to, ended with all that it started."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from node.backends.output import tail

KEPT_BYTES = 256 * 1024
"""How much of the output is kept: the end of it, in memory only."""

SETTLE_S = 1.0
"""Longest wait for the last output of a process that has ended."""

KILLED_S = 5.0
"""Longest wait for the end of a process that was killed; the kernel may hold it longer, in a disk's name."""

LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the node is gone")
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"cannot run {sys.argv[2]}: {error}")
"""
"""Becomes the process, once it is sure to die with the node, however that dies (Linux).

A program and not a `preexec_fn`: that would run Python between fork and exec in a node that has threads.
"""


class Child:
    """Made by `spawn`; whoever makes it calls `end`."""

    def __init__(self, process: asyncio.subprocess.Process, output: "_Output") -> None:
        self._process = process
        self._output = output
        self._cleared = False

    @classmethod
    async def spawn(
        cls, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], heard: Callable[[str], None] | None = None
    ) -> Self:
        """Run `command`. `heard` is told lines of its output, not necessarily all of a flood."""
        output = _Output(heard)
        read, write = os.pipe()
        try:
            # Its own pipe, and not asyncio's: a process has ended when it has, not when all heirs of the pipe have.
            await asyncio.get_running_loop().connect_read_pipe(lambda: output, os.fdopen(read, "rb", 0))
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *command),
                cwd=cwd,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                start_new_session=True,
            )
        except BaseException:
            output.close()
            raise
        finally:
            os.close(write)
        return cls(process, output)

    @property
    def pid(self) -> int:
        return self._process.pid

    def tail(self, lines: int) -> list[str]:
        return tail(self._output.kept, lines)

    async def wait(self) -> str:
        """Wait for its end: how it ended, in words. What is left of its group is killed."""
        code = await self._process.wait()
        if not self._cleared:
            self._cleared = True  # once only: the number may be somebody else's later
            self._signal(signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    await self._output.ended.wait()
            self._output.close()
        return describe(code)

    async def end(self, grace_s: float) -> None:
        """Ask it to end, and kill it after `grace_s`. Also when cancelled, it is killed."""
        try:
            if self._process.returncode is None and grace_s > 0:
                self._signal(signal.SIGTERM)
                async with asyncio.timeout(grace_s):
                    await self._process.wait()
        except TimeoutError:
            pass
        finally:
            if self._process.returncode is None:
                self._signal(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILLED_S):
                await self.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class _Output(asyncio.Protocol):
    """Takes all that a process says, so that it never blocks, and keeps the end of it."""

    def __init__(self, heard: Callable[[str], None] | None) -> None:
        self.kept = bytearray()
        self.ended = asyncio.Event()
        self._heard = heard
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.kept += data
        if len(self.kept) > 2 * KEPT_BYTES:
            del self.kept[:-KEPT_BYTES]
        if self._heard is not None and b"\n" in data:
            for line in tail(self.kept[: self.kept.rfind(b"\n")], 1):
                self._heard(line.strip())

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def describe(code: int) -> str:
    """A return code in words."""
    if code < 0:
        named = -code in set(signal.Signals)  # most real-time signals have no name
        return f"killed by {signal.Signals(-code).name if named else f'signal {-code}'}"
    return f"exited with code {code}"
