"""Where the node listens: the sockets of its address, open before anybody serves there."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from node.config import Server
from node.errors import StokerError

BACKLOG = 1024  # connections that the system holds until they are accepted


@contextmanager
def listening(settings: Server, count: int) -> Iterator[list[list[socket.socket]]]:
    """For each of `count` processes a socket on each address of the host. The system spreads connections over them.

    Whoever connects waits there until a process accepts. They stay open here while entered, so that what waits at the
    socket of a process that died is there for the one that takes its place. Raises `StokerError` when somebody else has
    the address.
    """
    bound: list[list[socket.socket]] = [[] for _ in range(count)]
    try:
        for family, address in _addresses(settings):
            address = _free(family, address)
            for each in bound:
                each.append(_bound(family, address, shared=count > 1))
                each[-1].listen(BACKLOG)
    except OSError as error:
        _close(bound)
        reason = error.strerror or str(error)
        words = reason if isinstance(error, socket.gaierror) else reason.lower()
        raise StokerError(f"cannot listen on {settings.host}:{settings.port}: {words}") from None
    try:
        yield bound
    finally:
        _close(bound)


def url(bound: Sequence[socket.socket], *, https: bool) -> str:
    """The base URL of the first of a process's sockets."""
    host, port = bound[0].getsockname()[:2]
    return f"{'https' if https else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _addresses(settings: Server) -> list[tuple[int, tuple[str, int]]]:
    found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, (str(address[0]), int(address[1]))) for family, _, _, _, address in found))


def _free(family: int, address: tuple[str, int]) -> tuple[str, int]:
    """The address with its port; a free one for 0. A port that is shared tells nobody that it is taken, this does."""
    with _bound(family, address, shared=False) as probe:
        return address[0], int(probe.getsockname()[1])


def _bound(family: int, address: tuple[str, int], *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def _close(bound: Sequence[Sequence[socket.socket]]) -> None:
    for sockets in bound:
        for each in sockets:
            each.close()
