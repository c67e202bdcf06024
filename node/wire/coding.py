"""Bodies that come packed. Nobody asks for them, but some services pack all that they send."""

import zlib
from typing import Any

UNPACKED_BYTES = 256 * 1024  # at most, at a time: a small body may unpack to a thousand times its size
GZIP = ("gzip", "x-gzip")
NOT_READ = ("br", "zstd", "compress")


class Unreadable(ValueError):
    """A body that cannot be unpacked; the text says why."""


def packing(coding: str) -> "Packing | None":
    """What reads a body of that `Content-Encoding`; None when it is to be taken as it is.

    That holds for words that name no coding as well, such as `utf-8`. Raises `Unreadable`.
    """
    coding = coding.strip().lower()
    if coding in NOT_READ:
        raise Unreadable(f"its answer is packed with {coding}, which was not asked for")
    return Packing(coding) if coding in GZIP or coding == "deflate" else None


class Packing:
    """Unpacks one body, a bounded piece at a time."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._unpacker: Any = None
        self._rest = b""

    def put(self, packed: bytes) -> None:
        """More of the packed body; `take` must have given all that was there before."""
        self._rest = packed

    def take(self) -> bytes:
        """A piece of what was put; nothing when more is needed. Raises `Unreadable`."""
        while self._rest:
            if self._unpacker is None:
                self._unpacker = zlib.decompressobj(self._window())
            try:
                piece: bytes = self._unpacker.decompress(self._rest, UNPACKED_BYTES)
            except zlib.error:
                raise Unreadable(f"its answer is no {self._coding}") from None
            self._rest = self._unpacker.unconsumed_tail or self._unpacker.unused_data
            if self._unpacker.eof:
                self._unpacker = None  # a gzip may be followed by another one
            if piece:
                return piece
        return b""

    def end(self) -> None:
        """There is no more. Raises `Unreadable` when there should be."""
        if self._unpacker is not None:
            raise Unreadable(f"its answer ends within its {self._coding}")

    def _window(self) -> int:
        if self._coding in GZIP:
            return 31
        return 15 if self._rest[0] & 15 == 8 else -15  # some send deflate without the head that it should have
