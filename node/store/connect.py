"""From a URL to connections, with every time limit in the hands of the caller.

    redis://  rediss://  unix://              one server
    redis+sentinel://HOST:PORT,.../NAME       the master that Sentinel names now, asked again at each connection
    redis+cluster://HOST:PORT,...             the node of a cluster that has our keys; they all have one hash tag

The last two also as rediss+..., for TLS, and with `USER:PASSWORD@`. A connection to a server that is no longer the
right one is closed by its first refusal, and the next one is made to the right one.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import unquote

import hiredis
import redis.asyncio
from redis import exceptions
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry

from node.store import keys

SENTINEL_PORT, CLUSTER_PORT = 26379, 6379


class Elsewhere(exceptions.ConnectionError):
    """The server refused, because the jobs are on another one now."""


Guide = Callable[[], Awaitable[tuple[str, int]]]
"""Where the server is now. Raises `RedisError`."""


def client(url: str, *, timeout_s: float, username: str = "", password: str = "") -> redis.asyncio.Redis:
    """A client without a time limit of its own for replies: whoever waits has one for the whole round trip."""
    login: dict[str, Any] = {name: word for name, word in (("username", username), ("password", password)) if word}
    options: dict[str, Any] = {
        "socket_timeout": None,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),  # a hidden retry would double every time-out
    }
    scheme, _, rest = url.partition("://")
    if "+" not in scheme:
        return redis.asyncio.Redis.from_url(url, **options, **login)
    given, _, place = rest.rpartition("@")
    if given:
        username, _, password = given.partition(":")
        login = {"username": unquote(username) or None, "password": unquote(password)}
    hosts, _, name = place.partition("/")
    guide = _by_sentinel(hosts, name, timeout_s) if scheme.endswith("sentinel") else _by_cluster(hosts, login, options)
    connection = GuidedTLSConnection if scheme.startswith("rediss") else GuidedConnection
    pool: ConnectionPool = ConnectionPool(connection_class=connection, guide=guide, **options, **login)
    return redis.asyncio.Redis.from_pool(pool)


def _by_sentinel(hosts: str, name: str, timeout_s: float) -> Guide:
    places = _places(hosts, SENTINEL_PORT)
    options = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "retry": Retry(NoBackoff(), 0)}

    async def guide() -> tuple[str, int]:
        async with Sentinel(places, sentinel_kwargs=options) as sentinel:  # type: ignore[no-untyped-call]
            host, port = await sentinel.discover_master(name)
            return host, int(port)

    return guide


def _by_cluster(hosts: str, login: dict[str, Any], options: dict[str, Any]) -> Guide:
    places = _places(hosts, CLUSTER_PORT)

    async def guide() -> tuple[str, int]:
        nodes = [ClusterNode(host, port) for host, port in places]
        found = RedisCluster(startup_nodes=nodes, require_full_coverage=False, **options, **login)
        try:
            node = (await found.initialize()).get_node_from_key(keys.PREFIX)
        finally:
            await found.aclose()
        if node is None:
            raise exceptions.ConnectionError("no node of the cluster has the slot of the jobs")
        return node.host, int(node.port)

    return guide


def _places(hosts: str, usual: int) -> list[tuple[str, int]]:
    found = []
    for place in hosts.split(","):
        host, _, port = place.rpartition(":") if place.rpartition(":")[2].isdigit() else (place, "", "")
        found.append((host.strip("[]"), int(port or usual)))
    return found


class Line:
    """One connection of a client, kept by one user. Commands go out together, past redis-py's pipelines, which take
    several times as long to write."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._connection: Connection | None = None

    async def exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands and read their replies, in order; one that the server refused is an exception in its place."""
        if self._connection is None:
            self._connection = await self._client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        if self._ended:
            await self._connection.disconnect(nowait=True)
        if not self._connection.is_connected:
            await self._connection.connect()
        try:
            await self._connection.send_packed_command(b"".join(_packed(words) for words in commands))
        except RuntimeError as error:  # uvloop, of a transport that has just closed
            raise exceptions.ConnectionError(str(error)) from error
        return [await self._reply(self._connection, words[0]) for words in commands]

    @property
    def _ended(self) -> bool:
        """Did it end while nobody used it: asked of its streams, for redis-py would read to find out."""
        reader, writer = (self._connection._reader, self._connection._writer) if self._connection else (None, None)
        if reader is None or writer is None:
            return False
        return reader.at_eof() or reader.exception() is not None or writer.transport.is_closing()

    async def _reply(self, connection: Connection, command: str) -> Any:
        try:
            return await self._client.parse_response(connection, command)
        except exceptions.ResponseError as error:
            return error


def _packed(words: tuple[Any, ...]) -> bytes:
    packed: bytes = hiredis.pack_command((*words[0].split(), *words[1:]))
    return packed


class GuidedConnection(Connection):
    """A connection to wherever its guide says, asked each time that it connects."""

    def __init__(self, *, guide: Guide, **options: Any) -> None:
        super().__init__(**options)
        self._guide = guide

    async def connect(self) -> None:
        if not self.is_connected:
            self.host, self.port = await self._guide()
        await super().connect()  # type: ignore[no-untyped-call]

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except (exceptions.ReadOnlyError, exceptions.MovedError) as error:
            await self.disconnect()
            raise Elsewhere(f"the jobs are on another server now: {error}") from error


class GuidedTLSConnection(GuidedConnection, SSLConnection):
    """The same over TLS."""
