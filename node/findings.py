"""What a look at something found, and what to do about it: for `stoker doctor` and the node's own checks."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # works, but something may be lost or fail later
    FAULT = "fault"  # jobs cannot be run, or not be kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """check: what was looked at, one word or two. found: a fact. do: what helps; empty when nothing need be done."""

    check: str
    level: Level
    found: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.found}"


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, level=Level.OK, found=found)


def warning(check: str, found: str, do: str) -> Finding:
    return Finding(check=check, level=Level.WARNING, found=found, do=do)


def fault(check: str, found: str, do: str) -> Finding:
    return Finding(check=check, level=Level.FAULT, found=found, do=do)


def size(count: float) -> str:
    """Bytes for a reader: `1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.3g} GiB"
