"""A Python environment for a service's `requirements.txt`: made once, kept until the file or the Python changes."""

import asyncio
import hashlib
import importlib.util
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from uv import find_uv_bin

from node.backends.contract import Progress
from node.backends.output import Pace
from node.backends.process.child import Child
from node.errors import BackendError

INSTALL_S = 900.0
"""Longest time for making one environment."""

ERROR_LINES = 15
"""Lines of output quoted when that fails."""

COMPLETE = ".complete"
"""File that is written last. An environment without it is half made, and is made again.

Not a rename at the end, because the scripts of an environment hold its path.
"""


async def prepare(folder: Path, container: str, context: Path, env: Mapping[str, str], progress: Progress) -> Path:
    """The Python of the environment for `context`, kept in `folder`. `BackendError` holds the last lines of output."""
    wanted = await asyncio.to_thread(_wanted, context)
    target = folder / f"{container}-{hashlib.sha256(wanted).hexdigest()[:12]}"
    python = target / "bin" / "python"
    if await asyncio.to_thread((target / COMPLETE).is_file):
        return python
    progress(f"making a Python environment for {container}")
    await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
    try:
        async with asyncio.timeout(INSTALL_S):
            await _make(target, context, env, Pace(progress))
    except TimeoutError:
        raise BackendError(f"the Python environment for {container} was not made within {INSTALL_S:g} s") from None
    await asyncio.to_thread(_finish, target, container)
    return python


def _wanted(context: Path) -> bytes:
    """All that the environment depends on."""
    requirements = context / "requirements.txt"
    content = requirements.read_bytes() if requirements.is_file() else b""
    return b"\0".join([content, sys.version.encode(), sys.executable.encode()])


async def _make(target: Path, context: Path, env: Mapping[str, str], pace: Pace) -> None:
    await _run([find_uv_bin(), "venv", "--python", sys.executable, str(target)], context, env, pace)
    if not (context / "requirements.txt").is_file():
        return
    python = str(target / "bin" / "python")
    try:
        install = ["pip", "install", "--python", python, "-r", "requirements.txt"]
        await _run([find_uv_bin(), *install], context, env, pace)
    except BackendError:
        if importlib.util.find_spec("pip") is None:
            raise
        # A mirror that only pip is told of; uv is ten times quicker, but does not read pip's configuration.
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--python", python]
        await _run([*pip, "install", "--progress-bar", "off", "-r", "requirements.txt"], context, env, pace)


async def _run(command: Sequence[str], cwd: Path, env: Mapping[str, str], pace: Pace) -> None:
    child = await Child.spawn(command, cwd=cwd, env=env, heard=pace)
    try:
        how = await child.wait()
    finally:
        await child.end(0)
    if how != "exited with code 0":
        said = "\n".join(child.tail(ERROR_LINES))
        raise BackendError(f"`{' '.join(command)}` in {cwd} {how}:\n{said}")


def _finish(target: Path, container: str) -> None:
    (target / COMPLETE).touch()
    former = re.compile(re.escape(container) + "-[0-9a-f]{12}")
    for other in target.parent.iterdir():
        if former.fullmatch(other.name) and other != target:
            shutil.rmtree(other, ignore_errors=True)
