"""One connection to a server: one request at a time, and its answer read as it comes."""

import asyncio
import os
from collections.abc import Callable
from typing import cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpResponseParser

from node.wire.answer import Answer, Broken

HEAD_BYTES = 64 * 1024  # longest head, and most of anything else that brings nothing of a body
LARGE_BYTES = 1024 * 1024  # a larger body is sent piece by piece, so that the loop is not held up
PIECE_BYTES = 256 * 1024


class Connection(asyncio.Protocol):
    """Bytes out and in. `idle_since` is when its last answer ended, by the loop's clock.

    It counts bytes that bring no body (`_quiet`): that bounds heads, chunk extensions and trailers at once. Its timer
    may ring early, for an answer that came long ago, and is then set anew: so most calls set none.
    """

    def __init__(self, ended: Callable[["Connection"], None], lost: Callable[["Connection"], None]) -> None:
        """ended: an answer came whole, and another request may follow. lost: it is closed."""
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._on_end = ended
        self._on_loss = lost
        self._answer: Answer | None = None
        self._headers: dict[bytes, bytes] = {}
        self._complete = False
        self._lasts = False
        self._quiet = 0
        self._heard = False
        self._unsent = memoryview(b"")
        self._paused = False
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._parser = HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    @property
    def open(self) -> bool:
        return not self._transport.is_closing()

    def send(self, head: bytes, body: bytes, deadline: float) -> Answer:
        """Begin a request; its answer must have come whole at `deadline`, by the loop's clock."""
        self._answer = answer = Answer(self._loop, self._give_up, self._resume)
        self._complete = self._heard = False
        self._quiet = 0
        self._deadline = deadline
        if self._timer is None or deadline < self._timer.when():
            self._set_timer()
        if len(body) <= LARGE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._unsent = memoryview(body)
            self._send_on()
        return answer

    def close(self) -> None:
        self._transport.abort()

    def _give_up(self, answer: Answer) -> None:
        if self._answer is answer:
            self._answer = None
            self.close()

    def _resume(self) -> None:
        self._transport.resume_reading()

    def _send_on(self) -> None:
        while self._unsent and not self._paused and self.open:
            piece, self._unsent = self._unsent[:PIECE_BYTES], self._unsent[PIECE_BYTES:]
            self._transport.write(piece)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._rung)

    def _rung(self) -> None:
        self._timer = None
        if self._answer is None:
            return
        if self._loop.time() < self._deadline:
            self._set_timer()
        else:
            self._fail(TimeoutError())

    def _fail(self, failure: Exception) -> None:
        answer, self._answer = self._answer, None
        self.close()
        if answer is not None:
            answer.fail(failure)

    # What the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send_on()

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:  # nobody asked
            self.close()
            return
        self._heard = True
        self._quiet += len(data)
        fault: Exception | None = None
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            fault = error
        if self._complete:
            self._finish(answer, spoiled=fault is not None)
        elif fault is not None:
            self._fail(_no_http(fault))
        elif self._quiet > HEAD_BYTES:
            self._fail(_too_much())
        elif answer.status and answer.grown(len(data)):
            self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        answer, self._answer = self._answer, None
        self._unsent = memoryview(b"")
        self._on_loss(self)
        if answer is None:
            return
        if answer.status and error is None and _lasts_until_close(answer):
            answer.end()
        else:
            answer.fail(Broken(self._how_lost(answer, error), unheard=not self._heard))

    def _how_lost(self, answer: Answer, error: Exception | None) -> str:
        number = getattr(error, "errno", None)
        what = os.strerror(number) if number else "closed by the container"
        if not self._heard:
            return f"{what} before it answered"
        return f"{what} within its answer" if answer.status else f"{what} within the head of its answer"

    def _finish(self, answer: Answer, *, spoiled: bool) -> None:
        self._answer = None
        answer.end()
        unsent = self._unsent or self._transport.get_write_buffer_size()
        if spoiled or unsent or not self._lasts:
            self.close()
        else:
            self.idle_since = self._loop.time()
            self._on_end(self)

    # What the parser tells

    def on_message_begin(self) -> None:
        if self._complete:
            raise Broken("more came than the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        headers, self._headers = self._headers, {}
        status = self._parser.get_status_code()
        if status < 200 and status != 101:  # another answer follows
            return
        if self._quiet > HEAD_BYTES and sum(map(len, headers)) + sum(map(len, headers.values())) > HEAD_BYTES:
            raise _too_much()
        answer = self._answer
        if answer is not None:
            answer.status, answer.headers = status, headers

    def on_body(self, part: bytes) -> None:
        self._quiet = 0
        if self._answer is not None:
            self._answer.add(part)

    def on_message_complete(self) -> None:
        self._headers = {}
        self._complete = self._answer is not None and self._answer.status != 0
        self._lasts = self._parser.should_keep_alive()


def _lasts_until_close(answer: Answer) -> bool:
    chunked = b"chunked" in answer.headers.get(b"transfer-encoding", b"").lower()
    return not chunked and b"content-length" not in answer.headers


def _no_http(fault: Exception) -> Broken:
    if isinstance(fault, HttpParserCallbackError) and isinstance(fault.__context__, Broken):
        return fault.__context__
    return Broken(f"its answer is not HTTP: {fault}")


def _too_much() -> Broken:
    return Broken(f"its answer has over {HEAD_BYTES} bytes of headers")
