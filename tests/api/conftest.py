"""One node for all tests of the doors. Each test asks as a caller of its own, so it sees no other test's jobs."""

import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.api.support import Client, Stage
from tests.support import Echo, Node, free_port

MAX_BODY_BYTES = 1_000_000
MAX_BATCH_ITEMS = 20
MAX_OUTPUT_BYTES = 1_000_000
GUARDED = ["127.0.0.2", "127.7.0.0/16"]
STATUS_NETWORKS = ["127.0.0.0/15"]

_callers = itertools.count(1)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage() -> AsyncIterator[Stage]:
    async with Stage() as stage:
        yield stage


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def node(tmp_path_factory: pytest.TempPathFactory, echo: Echo, stage: Stage) -> AsyncIterator[Node]:
    """Echoes: a, b, d; c (internal), guarded (for few addresses), proof (generates proofs). Down: gone.

    Played by the test: stage; one (one slot); hasty (a time-out of 0.3 s); brief (small outputs).
    """
    containers = [
        *echo.containers("a", "b", "d"),
        *echo.containers("c", external=False),
        *echo.containers("guarded", allowed_ips=GUARDED),
        *echo.containers("proof", generates_proofs=True, description="proves", image="echo:1"),
        {"id": "gone", "url": f"http://127.0.0.1:{free_port()}"},
        {"id": "stage", "url": stage.url},
        {"id": "one", "url": stage.url, "concurrency": 1},
        {"id": "hasty", "url": stage.url, "timeout_s": 0.3},
        {"id": "brief", "url": stage.url, "max_output_bytes": MAX_OUTPUT_BYTES},
    ]
    server = {
        "max_body_bytes": MAX_BODY_BYTES,
        "max_batch_items": MAX_BATCH_ITEMS,
        "max_chain": 4,
        "status_networks": STATUS_NETWORKS,
    }
    directory = tmp_path_factory.mktemp("node")
    async with Node(directory, containers, down=("gone",), server=server) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def caller(node: Node) -> AsyncIterator[Client]:
    """Somebody who has no jobs yet, from the networks that may report statuses."""
    number = next(_callers)
    async with Client(node, f"127.1.{number // 250}.{number % 250 + 1}") as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def stranger(node: Node) -> AsyncIterator[Client]:
    """Somebody else, from an address that is in no list."""
    async with Client(node, "127.9.9.9") as client:
        yield client
