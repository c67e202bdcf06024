"""The connections of the HTTP server: how many there are, how long a client may take, and what is no proper HTTP.

The framework waits for ever for the rest of a request, and for a client that does not read; here it does not. A
connection that is idle between two requests is the framework's to close, and a handler may take its time.
"""

import array
import asyncio
import fcntl
import re
import resource
import socket
import struct
import termios
from typing import Any, cast

import aiohttp
import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from node.api.reply import framework_error, refused, reply
from node.config import Server
from node.errors import SHOWN_CHARS, HeadersTooLarge, Refusal, Rejected, TooSlow, Unavailable, UriTooLong

log = structlog.get_logger()

MAX_LINE_BYTES = 64 * 1024  # a poll of some 1,600 ids in one query
BYTES_PER_S = 16 * 1024  # a large body or answer gets a second more for so much that has gone through
MAX_HEADERS = 128
OWN_FILES = 256  # open files beside the connections: the store, containers, logs
TURNED_AWAY = 64  # connections over the limit that are told so; more are cut off
TURN_AWAY_S = 1.0
NO_LINGER = struct.pack("ii", 1, 0)

_QUOTED = re.compile(r"\n|: ?b?['\"]")


class Connections:
    """Makes the protocol of each connection that is accepted, for `loop.create_server`."""

    def __init__(self, server: web.Server, settings: Server, **options: Any) -> None:
        self.timeout_s = settings.request_timeout_s
        self.open = 0
        self._server = server
        self._wanted = settings.max_connections
        self._most = _room(settings.max_connections)
        self._options = options

    def __call__(self) -> asyncio.Protocol:
        return Connection(self, self._server, loop=asyncio.get_running_loop(), **self._options)

    @property
    def full(self) -> bool:
        return self.open > self._most

    @property
    def overrun(self) -> bool:
        return self.open > self._most + TURNED_AWAY

    @property
    def refusal(self) -> Refusal:
        setting = "server.max_connections" if self._most == self._wanted else "the limit of open files (ulimit -n)"
        return Unavailable("Too many connections", retry_after_s=1, limit=self._most, setting=setting)


def _room(wanted: int) -> int:
    """How many connections the limit of open files leaves room for, after it was raised as far as is needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + TURNED_AWAY + OWN_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = max(1, soft - TURNED_AWAY - OWN_FILES)
    if room < wanted:
        log.warning("connections_limited", limit=room, wanted=wanted, reason=f"the limit of open files is {hard}")
    return min(room, wanted)


class Connection(web.RequestHandler):
    """One connection. Its timer runs while the rest of a request, or the reading of an answer, is the client's turn."""

    __slots__ = ("_away", "_began_at", "_body", "_connections", "_heard", "_last", "_timer", "_unread")

    def __init__(self, connections: Connections, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._connections = connections
        self._away: asyncio.Transport | None = None  # set when it is one too many
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._began_at = 0.0
        self._body: aiohttp.StreamReader | None = None  # of the latest request
        self._heard = False
        self._last = False  # no request after this one can be read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        self._connections.open += 1
        if self._connections.full:
            self._turn_away(transport)
            return
        super().connection_made(transport)
        self._start_timer()

    def _turn_away(self, transport: asyncio.Transport) -> None:
        """It is told so after its request has come: an answer before that is lost with the connection."""
        self._away = transport
        if self._connections.overrun:
            transport.abort()
        else:
            self._timer = self._loop.call_later(TURN_AWAY_S, transport.close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.open -= 1
        self._stop_timer()
        if self._unread:
            self._unread.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._away:
            self._away.write(_text(self._connections.refusal))
            self._away.close()
            return
        super().data_received(data)
        if not data:  # the framework's own call, to go on with what it has
            return
        if self._messages and self._unreadable_rest(*self._messages[-1]):
            pass
        elif not self._clients_turn:
            self._stop_timer()
        elif self._timer is None:
            self._start_timer()
        self._heard = self._timer is not None

    def _unreadable_rest(self, message: Any, content: aiohttp.StreamReader) -> bool:
        """Is the latest message the news that the rest of a body cannot be read; whoever reads that is told so.

        The request of the body may be between the framework's queue and its handler, so its body is remembered here.
        """
        error = getattr(message, "exc", None)
        if not isinstance(error, HttpProcessingError):
            self._body = content
            return False
        half = self._messages[-2][1] if len(self._messages) > 1 else self._body
        if half is None or half.is_eof():
            return False
        self._break_off(Rejected("Body unreadable", reason=_reason(error)), half)
        return True

    @property
    def _clients_turn(self) -> bool:
        """Is a request awaited, or the rest of one."""
        content = self._last_content
        return content is None or not content.is_eof()

    @property
    def _last_content(self) -> aiohttp.StreamReader | None:
        """The body of the last request whose head is complete, if it has not been answered yet."""
        if self._messages:
            return self._messages[-1][1]
        return self._current_request.content if self._current_request else None

    def _start_timer(self) -> None:
        self._began_at = self._loop.time()
        self._timer = self._loop.call_later(self._connections.timeout_s, self._look_at_request)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _look_at_request(self) -> None:
        self._timer = None
        if not self._clients_turn:
            return
        content = self._last_content
        came_bytes = content.total_bytes if content else 0
        due_at = self._began_at + self._connections.timeout_s + came_bytes / BYTES_PER_S
        if self._loop.time() < due_at:
            self._timer = self._loop.call_at(due_at, self._look_at_request)
            return
        refusal = TooSlow("Request too slow", limit_s=self._connections.timeout_s, setting="server.request_timeout_s")
        if content:
            self._break_off(refusal, content)
            return
        if self._heard and self._waiter and self.transport:
            self.transport.write(_text(refusal))
        self.force_close()

    def _break_off(self, refusal: Refusal, content: aiohttp.StreamReader) -> None:
        """Whoever reads the body gets the refusal; the answer is the last one."""
        self._stop_timer()
        self._last = True
        self._lingering_time = 0.0
        content.set_exception(refusal)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport:
            self._await_reading(self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread:
            self._unread.cancel()
            self._unread = None

    def _await_reading(self, transport: asyncio.Transport) -> None:
        """The client must take a part of the answer in the time for a request, or the connection ends."""
        waiting = _unread_bytes(transport)
        self._unread = self._loop.call_later(self._connections.timeout_s, self._look_at_answer, transport, waiting)

    def _look_at_answer(self, transport: asyncio.Transport, before: int) -> None:
        if before - _unread_bytes(transport) < BYTES_PER_S * self._connections.timeout_s:
            # what the system has queued must go with the connection, or it would stay as long as the client likes
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            transport.abort()
        else:
            self._await_reading(transport)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):  # raised before the middleware: an unknown `Expect`
            resp = framework_error(request, resp)
        if self._last:
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What no handler saw, or none caught, as JSON. It is the last answer of its connection."""
        if isinstance(exc, HttpProcessingError):
            answer = refused(_unreadable(exc))
            log.info("request_unreadable", address=request.remote, status=answer.status, reason=_reason(exc))
        else:
            log.error("server_failed", reason=message or "no answer", exc_info=exc)
            if request.writer.output_size > 0:
                raise ConnectionError("half an answer was sent")
            answer = reply({"error": "Internal error", "params": {}}, status)
        answer.force_close()
        return answer


def _unreadable(error: HttpProcessingError) -> Refusal:
    if isinstance(error, LineTooLong):
        limit = error.args[1]
        return (
            UriTooLong("URI too long", limit_bytes=limit)
            if limit == MAX_LINE_BYTES
            else HeadersTooLarge("Header too long", limit_bytes=limit)
        )
    if "Too many headers" in error.message:
        return HeadersTooLarge("Too many headers", limit=MAX_HEADERS)
    return Rejected("Request unreadable", reason=_reason(error))


def _reason(error: HttpProcessingError) -> str:
    """The parser's words, without the bytes that it quotes: a key may be among them."""
    return _QUOTED.split(error.message, maxsplit=1)[0].rstrip(":")[:SHOWN_CHARS]


def _text(refusal: Refusal) -> bytes:
    """A refusal as the whole answer, for where there is no request to answer."""
    answer = refused(refusal)
    answer.force_close()
    headers = {**answer.headers, "Content-Length": str(len(answer.body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + answer.body


def _unread_bytes(transport: asyncio.Transport) -> int:
    """What the client has still to take: here, and in the system's own queue, which can hold megabytes."""
    queued = array.array("i", [0])
    fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
    return int(transport.get_write_buffer_size()) + queued[0]
