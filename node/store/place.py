"""Where the store is: on a server that the configuration names, or on one of the node's own under its data directory.

For the node, which runs that server, and for commands beside it, which use it or run it for a moment.
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from node.config import Config, Redis
from node.errors import StokerError, Unavailable
from node.metrics import Metrics
from node.store.embedded import Embedded, socket_url
from node.store.records import Bounds
from node.store.store import Store

REACH_S = 30.0  # for a node that just starts or stops, or for another command
PAUSE_S = 0.05


def external(settings: Redis, *, node_id: str, bounds: Bounds | None = None, metrics: Metrics | None = None) -> Store:
    return Store(
        settings.url or f"redis://{settings.host}:{settings.port}",
        node_id=node_id,
        bounds=bounds,
        timeout_s=settings.timeout_s,
        username=settings.username,
        password=settings.password.get_secret_value(),
        replicas=settings.min_replicas,
        metrics=metrics,
    )


@contextmanager
def held(data_dir: Path) -> Iterator[None]:
    """Hold the directory's lock: two nodes never share a data directory. `BlockingIOError` when another one does.

    Processes forked meanwhile hold it too, so none of an earlier life of the node works any more when it is had.
    """
    with (data_dir / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def orphaned(data_dir: Path) -> bool:
    """Whether the lock is held only by what a process that is gone has forked; that ends in a moment."""
    try:
        holder = int((data_dir / "lock").read_text())
        os.kill(holder, 0)
    except (OSError, ValueError):
        return True
    return False


@asynccontextmanager
async def reached(config: Config) -> AsyncIterator[Store]:
    """The store of a node that runs or does not, for a command. Raises `StokerError` when it cannot be had."""
    async with AsyncExitStack() as stack:
        if config.redis:
            store = await stack.enter_async_context(external(config.redis, node_id="command"))
            await store.ping()
        else:
            data_dir = config.data_dir.absolute()
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            store = await _own(config, data_dir, stack)
        yield store


async def _own(config: Config, data_dir: Path, stack: AsyncExitStack) -> Store:
    """The store on the server that a node runs here, or else on one that runs until the stack is left."""
    directory = data_dir / "valkey"
    try:
        async with asyncio.timeout(REACH_S):
            while True:
                try:
                    stack.enter_context(held(data_dir))
                except BlockingIOError:
                    if store := await _running(directory, stack):
                        return store
                    await asyncio.sleep(PAUSE_S)
                else:
                    break
    except TimeoutError:
        reason = "its node holds it, but the node's store does not answer"
        raise StokerError(f"{data_dir}: {reason}; see {directory / 'valkey.log'}") from None
    server = await stack.enter_async_context(Embedded(data_dir, config.embedded))
    return await stack.enter_async_context(Store(server.url, node_id="command"))


async def _running(directory: Path, stack: AsyncExitStack) -> Store | None:
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return None
    async with AsyncExitStack() as attempt:
        attempt.callback(os.close, descriptor)
        store = await attempt.enter_async_context(Store(socket_url(directory, descriptor), node_id="command"))
        try:
            await store.ping()
        except Unavailable:
            return None
        stack.push_async_exit(attempt.pop_all())
    return store
