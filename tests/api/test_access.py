"""API keys at the door: who is let in, who may do what, whose jobs are whose; and that nothing opens it again."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.api.support import Answer, Client
from tests.support import Echo, Node, RedisServer, stoker

pytestmark = pytest.mark.asyncio(loop_scope="session")

JOB = {"containers": ["a"], "data": {}}
KEYS = "stoker:{0}:access"
REFUSED = {"error": "A valid API key is needed, as `Authorization: Bearer KEY`", "params": {}}


def keys(node: Node, *arguments: str) -> Any:
    """`stoker keys` on the store of a node."""
    done = stoker("keys", *arguments, "--json", "--config", str(node.directory / "config.json"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Keyed(Client):
    """A client that shows a key."""

    def __init__(self, node: Node, name: str = "", role: str = "submit", **options: str) -> None:
        super().__init__(node)
        more = [word for option, value in options.items() for word in (f"--{option.replace('_', '-')}", value)]
        self.made = keys(node, "create", name, "--role", role, *more)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> Answer:
        return await super().ask(method, path, body, **{"Authorization": f"Bearer {self.made['key']}"} | headers)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer("valkey", tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def node(tmp_path_factory: pytest.TempPathFactory, echo: Echo, server: RedisServer) -> AsyncIterator[Node]:
    directory = tmp_path_factory.mktemp("keyed")
    async with Node(directory, echo.containers("a", "b"), redis={"url": server.url}) as node:
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shop(node: Node) -> AsyncIterator[Keyed]:
    async with Keyed(node, "shop") as client:
        assert (await client.ask("GET", "/api/jobs")).status == 200  # the first key is also the end of the open door
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def rival(node: Node) -> AsyncIterator[Keyed]:
    async with Keyed(node, "rival") as client:
        yield client


async def test_smoke(node: Node, shop: Keyed, rival: Keyed) -> None:
    async with Client(node) as nobody:
        answer = await nobody.ask("GET", "/api/jobs")
        assert (answer.status, answer.json) == (401, REFUSED)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert keys(node, "list")
