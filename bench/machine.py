"""What a run took place on: a ratio travels from machine to machine, an absolute figure does not."""

import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

SYNCS = 50


def describe(directory: Path) -> dict[str, str | float]:
    """`directory` is where the node will keep its files."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "uvloop", "redis", "hiredis")),
        "file_system": _file_system(directory),
        "sync_ms": round(_sync_ms(directory), 3),
        "load_before": round(os.getloadavg()[0], 2),
    }


def durable_directory() -> str | None:
    """Where temporary files are on a disk: a file system in memory would make durability look free."""
    lasting = "/var/tmp"
    if _file_system(Path(tempfile.gettempdir())) == "tmpfs" and os.access(lasting, os.W_OK):
        return lasting
    return None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    """Type of the file system that holds a directory: that of the longest mount point above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(point, kind) for point, kind in mounts if directory.resolve().is_relative_to(point)]
    return max(above, key=lambda mount: len(mount[0]))[1] if above else "unknown"


def _sync_ms(directory: Path) -> float:
    """What forcing one small append to the disk costs here."""
    times = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(SYNCS):
            os.write(file.fileno(), bytes(400))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)
