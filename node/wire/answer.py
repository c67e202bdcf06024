"""What a server answers to one request."""

import asyncio
from collections.abc import Callable

from node.wire.coding import Packing, Unreadable, packing

HELD_BYTES = 256 * 1024  # of a body that nobody has taken yet; then the server has to wait


class Broken(Exception):
    """A connection broke, or what came over it is no HTTP; the text says which.

    unheard: not a byte of an answer had come, so the request may never have been read.
    """

    def __init__(self, words: str, *, unheard: bool = False) -> None:
        super().__init__(words)
        self.unheard = unheard


class Answer:
    """Head and body of an answer; the body as it comes. Whoever has one closes it.

    status: 0 until the head is there. headers: names in small letters; of a name that comes twice, the first.
    """

    __slots__ = (
        "_ended",
        "_failure",
        "_give_up",
        "_held",
        "_loop",
        "_packing",
        "_parts",
        "_resume",
        "_waiter",
        "headers",
        "status",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, give_up: Callable[["Answer"], None], resume: Callable[[], None]
    ) -> None:
        """give_up: ends the connection if it still brings this answer. resume: the body is read on."""
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._loop = loop
        self._give_up = give_up
        self._resume = resume
        self._parts: list[bytes] = []
        self._held = 0
        self._ended = False
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._packing: Packing | None = None

    @property
    def length(self) -> int:
        """What the head says of the body's size in bytes; 0 when it says nothing."""
        return int(self.headers.get(b"content-length", 0))

    def header(self, name: bytes) -> str:
        """Its text, or nothing; bytes that are no text come as lone surrogates."""
        return self.headers.get(name, b"").decode("utf-8", "surrogateescape")

    async def head(self) -> None:
        """Wait for status and headers. Raises `Broken`, and `TimeoutError` when the request's time is over."""
        while not self.status:
            if self._failure is not None:
                raise self._failure
            await self._news()
        if b"content-encoding" in self.headers:
            try:
                self._packing = packing(self.header(b"content-encoding"))
            except Unreadable as error:
                raise Broken(str(error)) from None

    async def more(self) -> bytes:
        """The next bytes of the body; none at its end. Raises `Broken` and `TimeoutError`."""
        if self._packing is None:
            return await self._sent()
        try:
            while not (piece := self._packing.take()):
                if not (sent := await self._sent()):
                    self._packing.end()
                    return b""
                self._packing.put(sent)
        except Unreadable as error:
            raise Broken(str(error)) from None
        return piece

    def whole(self) -> bytes | None:
        """The body, if all of it is here already; it can be had once."""
        return self._taken() if self._ended and self._packing is None else None

    def close(self) -> None:
        """Nothing more is wanted. A connection that has not brought all of it yet is given up."""
        if not self._ended:
            self._give_up(self)

    async def _sent(self) -> bytes:
        while not self._parts:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return b""
            await self._news()
        return self._taken()

    def _taken(self) -> bytes:
        parts, self._parts = self._parts, []
        if self._held > HELD_BYTES:
            self._resume()
        self._held = 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _news(self) -> asyncio.Future[None]:
        self._waiter = waiter = self._loop.create_future()
        return waiter

    # What the connection tells. Only it calls these.

    def add(self, part: bytes) -> None:
        self._parts.append(part)

    def grown(self, size: int) -> bool:
        """So many bytes were read, and the body goes on. Is that enough for now?"""
        self.told()
        self._held += size
        return self._held > HELD_BYTES

    def end(self) -> None:
        self._ended = True
        self.told()

    def fail(self, failure: Exception) -> None:
        self._failure = failure
        self.told()

    def told(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
