"""Finding the processes of a node that is gone. Each process carries a mark in its environment, and so do its heirs.

A process dies with its node (see `child`), but what it started in turn may live on. Linux only: elsewhere the
environment of another process cannot be read, and nothing is ever found.
"""

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "STOKER_INSTANCE"
PROC = Path("/proc")

KILLED_S = 5.0
"""Longest wait for the end of what was killed."""

LOOK_S = 0.01
"""Between two looks whether it has ended."""


def mark(folder: Path, instance: str) -> str:
    """The mark of one instance: whose folder, which node process, which instance."""
    return f"{_owner(folder)}{os.getpid()}.{_started_at(os.getpid())}:{instance}"


def kill_marked(wanted: str) -> None:
    """Kill whatever carries exactly this mark, until there is none; it may be forking meanwhile."""
    deadline = time.monotonic() + KILLED_S
    while (pids := [pid for pid, found in _marked() if found == wanted]) and time.monotonic() < deadline:
        for pid in pids:
            _kill(pid)
        time.sleep(LOOK_S)


def kill_orphans(folder: Path) -> list[int]:
    """Kill what carries a mark of this folder and of a node process that no longer exists: their ids."""
    killed = []
    for pid, found in _marked():
        node = found.removeprefix(_owner(folder)).partition(":")[0]
        if found.startswith(_owner(folder)) and not _alive(node):
            _kill(pid)
            killed.append(pid)
    return killed


def _owner(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:16] + ":"


def _marked() -> Iterator[tuple[int, str]]:
    prefix = f"{VARIABLE}=".encode()
    for entry in PROC.glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended, or it is another user's
            for variable in entry.read_bytes().split(b"\0"):
                if variable.startswith(prefix):
                    yield int(entry.parent.name), os.fsdecode(variable.removeprefix(prefix))


def _alive(node: str) -> bool:
    pid, _, started_at = node.partition(".")
    return pid.isdigit() and _started_at(int(pid)) == started_at


def _started_at(pid: int) -> str:
    """When a process started, in the kernel's ticks; it tells a process from a later one with the same id."""
    try:
        # The second field is a name in brackets that may hold anything; start time is the 22nd field.
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
