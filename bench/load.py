"""The load generator: requests made beforehand, plain sockets, one selector. It must cost less than what it measures.

Closed loop: a connection sends its next request when the answer to the last one is complete. Every answer is kept and
looked at when the clock has stopped; only one that is not a 200 ends the run at once.
"""

import gc
import math
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

from bench.jobs import Wrong

LOCAL = "127.0.0.1"
ANSWER_S = 30.0  # longest wait for one answer
CHUNK_BYTES = 1 << 18


Make = Callable[[], tuple[int, bytes] | None]
"""Gives the next request, with a tag; None when there is none left."""


def post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return b"%bContent-Length: %d\r\n\r\n%b" % (head.encode(), len(body), body)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


class Connection:
    """One keep-alive connection to a server on loopback, with one request under way at a time.

    source: the address that it comes from, any in 127.0.0.0/8; to a node without keys each is a caller of its own.
    """

    def __init__(self, port: int, source: str = LOCAL) -> None:
        self.tag = 0  # for whoever sends: which request is under way
        self._socket = socket.create_connection((LOCAL, port), timeout=ANSWER_S, source_address=(source, 0))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(True)  # the kernel's time-outs cost no system call per read
        limit = struct.pack("ll", int(ANSWER_S), 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._partial = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self, request: bytes) -> bytes:
        """Send, and wait for the body of the answer."""
        self.send(request)
        while (body := self.receive()) is None:
            pass
        return body

    def send(self, request: bytes) -> None:
        self._socket.sendall(request)

    def receive(self) -> bytes | None:
        """Read once; the body when it is complete."""
        try:
            chunk = self._socket.recv(CHUNK_BYTES)
        except BlockingIOError:
            raise Wrong(f"no answer within {ANSWER_S:g} s") from None
        if not chunk:
            raise Wrong(f"the server closed the connection after {self._partial[:200]!r}")
        answer = self._partial + chunk if self._partial else chunk
        end = answer.find(b"\r\n\r\n")
        if end < 0 or len(answer) < end + 4 + _length(answer, end):
            self._partial = answer
            return None
        self._partial = b""
        if answer[9:12] != b"200":
            raise Wrong(f"the server answered {answer[:500]!r}")
        return answer[end + 4 :]


def _length(answer: bytes, end: int) -> int:
    place = answer.find(b"Content-Length: ", 0, end)
    if place < 0:
        raise Wrong(f"an answer without its length: {answer[:500]!r}")
    return int(answer[place + 16 : answer.find(b"\r\n", place)])


def flood(
    port: int,
    connections: int,
    make: Make,
    *,
    seconds: float = math.inf,
    source: str = LOCAL,
    clock: AbstractContextManager[Any] | None = None,
) -> list[tuple[int, bytes]]:
    """Send what `make` gives, for so long or until it gives no more; all answers, each with the tag of its request.

    clock: entered when the connections are open, and left with the last answer.
    """
    answers: list[tuple[int, bytes]] = []
    selector = selectors.DefaultSelector()
    opened = [Connection(port, source) for _ in range(connections)]
    try:
        for connection in opened:
            selector.register(connection, selectors.EVENT_READ, connection)
        with collector_off(), clock or nullcontext():
            _exchange(selector, opened, time.perf_counter() + seconds, make, answers)
            return answers
    finally:
        selector.close()
        for connection in opened:
            connection.close()


def _exchange(
    selector: selectors.BaseSelector,
    opened: list[Connection],
    until: float,
    make: Make,
    answers: list[tuple[int, bytes]],
) -> None:
    def send(connection: Connection) -> bool:
        made = make() if time.perf_counter() < until else None
        if made is None:
            return False
        connection.tag, request = made
        connection.send(request)
        return True

    waiting = sum([send(connection) for connection in opened])
    while waiting:
        events = selector.select(ANSWER_S)
        if not events:
            raise Wrong(f"no answer within {ANSWER_S:g} s")
        for key, _ in events:
            connection = key.data
            body = connection.receive()
            if body is None:
                continue
            answers.append((connection.tag, body))
            waiting -= not send(connection)


@contextmanager
def collector_off() -> Iterator[None]:
    """No pause of the generator's own garbage collector while the clock runs."""
    if not gc.isenabled():  # within another one
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
