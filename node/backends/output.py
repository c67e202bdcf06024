"""What containers and slow starts say, cut to what people can read."""

import time

from node.backends.contract import LINE_CHARACTERS, Progress

SPACING_S = 1.0

MARK = "…"
"""Last character of a line that was cut."""


class Pace:
    """A `Progress` that passes on at most one line in `SPACING_S`, and never the same line twice running."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._next_at = 0.0
        self._last = ""

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if line and line != self._last and now >= self._next_at:
            self._next_at = now + SPACING_S
            self._last = line
            self._progress(line)


def tail(output: bytes | bytearray, lines: int) -> list[str]:
    """The last `lines` lines of some output, each cut to `LINE_CHARACTERS`."""
    if lines <= 0:
        return []
    kept = output.removesuffix(b"\n").rsplit(b"\n", lines)[-lines:] if output else []
    return [_cut(line) for line in kept]


def _cut(line: bytes | bytearray) -> str:
    # Four bytes are the longest character: cutting before decoding keeps a line of megabytes cheap.
    text = line[: 4 * LINE_CHARACTERS + 4].decode(errors="replace").rstrip("\r")
    return text if len(text) <= LINE_CHARACTERS else text[: LINE_CHARACTERS - 1] + MARK
