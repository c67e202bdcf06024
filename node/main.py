"""Puts the node together and runs it. The only module that names a concrete store or backend.

What is entered last is left first, so the stack below is the shutdown order read from bottom to top: refuse new jobs
and drain the runner while the doors still answer, close the doors, stop the containers, close the store.
"""

import asyncio
import os
import signal
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path

import structlog
import uvloop

from node import __version__, log
from node.api import tls
from node.api.place import listening, url
from node.backends.contract import Backend
from node.backends.docker import DockerBackend
from node.backends.process import ProcessBackend
from node.backends.remote import RemoteBackend
from node.config import BackendName, Config, ContainerSpec, Loaded, Server
from node.doors import Doors, House
from node.errors import BackendError, StokerError, Unavailable
from node.janitor import Janitor
from node.keeper import Keepers
from node.metrics import Metrics
from node.registry import Registry
from node.runner import Runner
from node.situation import News
from node.store import Bounds, Store
from node.store.embedded import Embedded
from node.store.inspector import Inspector
from node.store.place import external, held

logger = structlog.get_logger()

Announce = Callable[[str, Config], None]
"""Told the base URL once the node serves."""

RECOVER_PAUSE_S = 1.0
ENGINE_S = 5.0


def serve(loaded: Loaded, announce: Announce) -> None:
    """Run a node until SIGTERM or SIGINT; a second signal leaves at once.

    Raises `StokerError` when it cannot start.
    """
    config = loaded.config
    data_dir = config.data_dir.absolute()
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _only_node(data_dir):
        node_id = config.node_id or _kept(data_dir, "node_id")
        house = House(config=config, data_dir=data_dir, node_id=node_id, tls=tls.context(config.server))
        log.set_up(config.log, node_id=node_id)
        for warning in loaded.warnings:
            logger.warning("configuration", warning=warning)
        uvloop.run(_serve(house, announce))


async def _serve(house: House, announce: Announce) -> None:
    config = house.config
    stop = _stop_on_signals()
    metrics, news = Metrics(), News()
    async with AsyncExitStack() as stack:
        store = await _store(house, news, metrics, stack)
        await _refuse_open_door(store, config.server)
        await stack.enter_async_context(Inspector(store, lambda wrong: news.change(wrong=tuple(wrong))))
        choose = await _backends(house, metrics, stack)
        registry = await stack.enter_async_context(Registry(config.containers))
        news.change(served=not registry.containers)
        for container in registry.containers.values():
            container.on_ready(lambda: news.change(served=True))
        await stack.enter_async_context(Keepers(registry, choose))
        (sockets,) = stack.enter_context(listening(config.server, 1))
        slots = {spec.id: spec.concurrency for spec in config.containers}
        runner = Runner(registry, slots, store, config.runner, metrics)
        doors = await stack.enter_async_context(
            Doors(house, sockets, store=store, registry=registry, slots=runner.slot, news=news, metrics=metrics)
        )
        base = url(sockets, https=house.tls is not None)
        logger.info("node_started", version=__version__, url=base, containers=list(slots))
        announce(base, config)
        janitor = Janitor(
            store,
            list(slots),
            config.runner,
            config.retention_s,
            metrics,
            runner.tidy,
            [house.node_id],
            _kept(house.data_dir, "owner"),
        )
        if await _recovered([janitor.recover, runner.recover, doors.recover], stop):
            news.change(recovering=False)
            await stack.enter_async_context(janitor)  # works on during the drain: this node is still there
            await stack.enter_async_context(runner)
            await stop.wait()
        logger.info("node_stopping", drain_s=config.runner.drain_s)
        news.change(draining=True)
    logger.info("node_stopped")


async def _store(house: House, news: News, metrics: Metrics, stack: AsyncExitStack) -> Store:
    config = house.config
    if config.redis:
        store = external(config.redis, node_id=house.node_id, bounds=_bounds(config), metrics=metrics)
    else:
        embedded = await stack.enter_async_context(Embedded(house.data_dir, config.embedded))
        news.change(full=embedded.full)
        embedded.on_full = lambda words: news.change(full=words)
        store = Store(embedded.url, node_id=house.node_id, bounds=_bounds(config), metrics=metrics)
    return await stack.enter_async_context(store)


def _bounds(config: Config) -> Bounds:
    return Bounds(
        lanes={spec.id: spec.max_queued for spec in config.containers},
        pending=config.server.max_pending,
        share=config.server.fair_share,
        look_s=config.runner.check_s,
        remembered_s=config.server.idempotency_s,
    )


async def _refuse_open_door(store: Store, settings: Server) -> None:
    """Others can reach the node, and there is no key to tell them apart: that must be somebody's will."""
    if not settings.reachable or settings.insecure:
        return
    try:
        made = await store.access.all()
    except Unavailable:  # no harm: nobody is let in without a key, whether there is one or not
        return
    if not made:
        raise StokerError(
            f"server.host: others can reach {settings.host}, and there is no API key. "
            "Make one with `stoker keys create NAME`, or let everybody in with --insecure (server.insecure)"
        )


async def _backends(
    house: House, metrics: Metrics, stack: AsyncExitStack
) -> Callable[[ContainerSpec], tuple[str, Backend]]:
    """Which backend keeps a container running. `auto` is Docker when its engine answers now, else a local process."""
    config = house.config
    remote = await stack.enter_async_context(RemoteBackend(host=service_host()))
    process = await stack.enter_async_context(ProcessBackend(data_dir=house.data_dir))
    docker = await stack.enter_async_context(
        DockerBackend(
            node_id=house.node_id, registry=config.docker, isolation=config.docker_isolation, drifted=metrics.drift.inc
        )
    )
    backends: dict[BackendName, Backend] = {
        BackendName.REMOTE: remote,
        BackendName.PROCESS: process,
        BackendName.DOCKER: docker,
    }
    wanted = {spec.id: backend_of(spec, config) for spec in config.containers}
    version, silent = await _asked(docker)
    if BackendName.AUTO in wanted.values():
        chosen = BackendName.PROCESS if silent else BackendName.DOCKER
        logger.info("backend_chosen", backend=chosen.value, reason=silent or f"Docker {version} answers")
        wanted = {container: chosen if name is BackendName.AUTO else name for container, name in wanted.items()}
    for name, backend in backends.items():
        known = [container for container, chosen in wanted.items() if chosen is name]
        if backend is docker and silent:
            _not_swept(known, silent)
        else:
            await _sweep(backend, known, metrics)
    return lambda spec: (wanted[spec.id].value, backends[wanted[spec.id]])


def backend_of(spec: ContainerSpec, config: Config) -> BackendName:
    """How the configuration wants a container kept running; `AUTO` is for the machine to decide."""
    if spec.url or not config.manage_containers:
        return BackendName.REMOTE
    return BackendName(config.backend) if spec.backend is BackendName.AUTO else spec.backend


async def _sweep(backend: Backend, known: list[str], metrics: Metrics) -> None:
    """End what an earlier life of this node left; a backend that is of no use now says so itself when it is needed."""
    try:
        for ended in await backend.sweep(known):
            metrics.drift.inc()
            logger.warning("container_left_over", ended=ended)
    except BackendError as error:
        _not_swept(known, str(error))


def _not_swept(known: list[str], reason: str) -> None:
    level = logger.warning if known else logger.debug
    level("container_sweep_failed", reason=reason)


async def _asked(docker: DockerBackend) -> tuple[str, str]:
    """The version of Docker's engine, or why it is of no use now. A stuck one must not keep the doors closed."""
    try:
        async with asyncio.timeout(ENGINE_S):
            return await docker.probe(), ""
    except (BackendError, TimeoutError) as error:
        return "", str(error) or f"Docker's engine did not answer within {ENGINE_S:g} s"


def service_host() -> str:
    """Where containers that somebody else runs are reached; Infernet's own image sets RUNTIME."""
    return "host.docker.internal" if os.environ.get("RUNTIME") == "docker" else "127.0.0.1"


async def _recovered(steps: Sequence[Callable[[], Awaitable[None]]], stop: asyncio.Event) -> bool:
    """Wait until the store answers and what this node's earlier life left is put right; False when stopped before."""
    while not stop.is_set():
        try:
            for recover in steps:
                await recover()
            return True
        except Unavailable:  # told by the store, once
            with suppress(TimeoutError):
                async with asyncio.timeout(RECOVER_PAUSE_S):
                    await stop.wait()
    return False


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            logger.warning("node_left_at_once", signal=number.name)
            log.flush()
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return stop


@contextmanager
def _only_node(data_dir: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(held(data_dir))
        except BlockingIOError:
            raise StokerError(f"{data_dir}: another node uses this data directory") from None
        yield


def _kept(data_dir: Path, name: str) -> str:
    """The node's name, say: made once, kept in its data directory."""
    file = data_dir / name
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        file.write_text(f"n-{uuid.uuid4()}")
        return file.read_text()
