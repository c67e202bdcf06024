"""Two stores on one server, as two nodes have them, and the server emptied before each test."""

from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from node.store import Store
from tests.support import RedisServer


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
    return redis_server


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    """The server itself, to damage what is in it."""
    with redis.Redis(port=server.port, decode_responses=True) as client:
        yield client


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[Store]:
    async with Store(server.url, node_id="n1") as opened:
        yield opened


@pytest.fixture
async def neighbour(server: RedisServer) -> AsyncIterator[Store]:
    async with Store(server.url, node_id="n2") as opened:
        yield opened
