"""One server, by its URL: finds it, connects to it, keeps connections for the next request."""

import asyncio
import socket
import ssl
from base64 import b64encode
from collections.abc import Sequence
from errno import errorcode
from functools import cache, cached_property
from os import strerror
from typing import cast

import aiohappyeyeballs
from aiohappyeyeballs import AddrInfoType
from yarl import URL

from node.wire.answer import Answer, Broken
from node.wire.connection import Connection

KEEPALIVE_S = 15.0
FOUND_S = 10.0  # how long a name's addresses are used
NEXT_ADDRESS_S = 0.25  # before the next address of a name is tried as well


class Unreachable(Exception):
    """No connection could be made; the text says why."""


class Peer:
    """Connections to the server at `url`, http or https; a user and password in it are sent with each request.

    There is no limit to their number: who asks has one. Redirects are not followed, cookies not kept, proxies not used.
    """

    def __init__(self, url: str, *, bearer: str = "") -> None:
        """Raises `ValueError` when url or token cannot be used."""
        self._url = URL(url)
        if not self._url.raw_host or not self._url.port:
            raise ValueError("no host in it")
        lines = [f"Host: {self._url.host_port_subcomponent}", "Accept: */*", "Accept-Encoding: identity"]
        if credentials := _credentials(self._url, bearer):
            lines.append(f"Authorization: {credentials}")
        self._lines = "\r\n".join(lines)
        self._addresses: Sequence[AddrInfoType] = ()
        self._found_at = 0.0
        self._idle: list[Connection] = []  # the one that was used last stands last
        self._sweeping: asyncio.TimerHandle | None = None
        self._open = True

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """Asked for once: Python 3.11 makes a system call for each time."""
        return asyncio.get_running_loop()

    def head(self, method: str, path: str, query: dict[str, str] | None = None, *, media_type: str = "") -> bytes:
        """The head of a request that stays the same; `path` comes after that of the URL."""
        target = URL(str(self._url) + path).update_query(query or {}).raw_path_qs
        content = f"Content-Type: {media_type}\r\n" if media_type else ""
        return f"{method} {target} HTTP/1.1\r\n{self._lines}\r\n{content}".encode()

    async def ask(self, head: bytes, body: bytes | None, seconds: float) -> Answer:
        """Send a request and wait for the head of its answer, which must be closed.

        seconds: for all of it, up to the last byte of the answer. Without a body it may be sent twice: a kept
        connection may turn out closed. Raises `Unreachable`, `Broken`, `TimeoutError`.
        """
        head += b"\r\n" if body is None else b"Content-Length: %d\r\n\r\n" % len(body)
        deadline = self._loop.time() + seconds
        kept = self._kept()
        connection = kept or await self._connect(deadline)
        while True:
            answer = connection.send(head, body or b"", deadline)
            try:
                await answer.head()
            except Broken as error:
                answer.close()
                if body is not None or kept is None or not error.unheard:
                    raise
                kept, connection = None, await self._connect(deadline)
            except BaseException:
                answer.close()
                raise
            else:
                return answer

    def close(self) -> None:
        """Close what is idle now, and the rest when it has brought its answer."""
        self._open = False
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in self._idle:
            connection.close()

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return None

    def _keep(self, connection: Connection) -> None:
        if not self._open:
            connection.close()
            return
        self._idle.append(connection)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(KEEPALIVE_S, self._sweep)

    def _lost(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def _sweep(self) -> None:
        self._sweeping = None
        oldest = self._loop.time() - KEEPALIVE_S
        stale = [connection for connection in self._idle if connection.idle_since <= oldest]
        self._idle = self._idle[len(stale) :]
        for connection in stale:
            connection.close()
        if self._idle:
            self._sweeping = self._loop.call_at(self._idle[0].idle_since + KEEPALIVE_S, self._sweep)

    async def _connect(self, deadline: float) -> Connection:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._connected()
        except TimeoutError as error:
            if error.errno is None:
                raise
            raise Unreachable(_reason(error)) from error
        except (OSError, UnicodeError) as error:  # the latter of a name that cannot be one
            self._addresses = ()
            raise Unreachable(_reason(error)) from error

    async def _connected(self) -> Connection:
        tls = await asyncio.to_thread(_tls) if self._url.scheme == "https" else None  # it reads the authorities
        link = await aiohappyeyeballs.start_connection(
            await self._found(), happy_eyeballs_delay=NEXT_ADDRESS_S, loop=self._loop
        )
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(self._keep, self._lost),
                sock=link,
                ssl=tls,
                server_hostname=self._url.raw_host if tls else None,
            )
        except BaseException:
            link.close()
            raise
        return connection

    async def _found(self) -> Sequence[AddrInfoType]:
        if not self._addresses or self._loop.time() > self._found_at + FOUND_S:
            found = await self._loop.getaddrinfo(self._url.raw_host, self._url.port, type=socket.SOCK_STREAM)
            self._addresses = cast(Sequence[AddrInfoType], found)
            self._found_at = self._loop.time()
        return self._addresses


@cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _credentials(url: URL, bearer: str) -> str:
    """The token goes before what stands in the URL."""
    if bearer:
        if not bearer.isascii() or not bearer.isprintable():
            raise ValueError("its token has characters that cannot be sent")
        return f"Bearer {bearer}"
    if url.user is None and url.password is None:
        return ""
    return "Basic " + b64encode(f"{url.user or ''}:{url.password or ''}".encode()).decode()


def _reason(error: OSError | UnicodeError) -> str:
    """The loops put addresses, or nothing, where the system's words are expected."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, OSError) and error.errno and error.errno in errorcode:
        return strerror(error.errno)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
