"""Puts the node together and runs it. The only module that names a concrete store or backend.

What is entered last is left first, so the stack below is the shutdown order read from bottom to top: refuse new jobs
and drain the runner while the doors still answer, close the doors, stop the containers, close the store.
"""

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any

import structlog
import uvloop

from node import __version__, log, worker
from node.api import tls
from node.api.app import CLOSE_S
from node.api.place import listening, url
from node.backends.contract import Backend
from node.backends.docker import DockerBackend
from node.backends.process import ProcessBackend
from node.backends.remote import RemoteBackend
from node.config import BackendName, Config, ContainerSpec, Loaded, Server
from node.crew import Crew
from node.doors import Doors
from node.errors import BackendError, StokerError, Unavailable
from node.house import House, all_slots
from node.janitor import Janitor
from node.keeper import Keepers
from node.leases import recovered
from node.metrics import Metrics
from node.registry import Registry
from node.runner import HAND_BACK_S, Runner
from node.situation import News
from node.slots import Slots
from node.store import Store
from node.store.embedded import Embedded
from node.store.inspector import Inspector
from node.store.place import held, orphaned
from node.zygote import Zygote

logger = structlog.get_logger()

Announce = Callable[[str, Config], None]
"""Told the base URL once the node serves."""

ENGINE_S = 5.0
LEAVE_S = 5.0  # for a worker to end once it has nothing more to do
LEFT_S = 5.0  # for processes of a node that was killed to be gone
LEFT_LOOK_S = 0.01


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
        zygote = Zygote(partial(worker.run, house)) if house.doors or house.runners else None
        try:
            log.set_up(config.log, node_id=node_id)
            for warning in loaded.warnings:
                logger.warning("configuration", warning=warning)
            uvloop.run(_serve(house, zygote, announce))
        finally:
            if zygote:
                zygote.end()


async def _serve(house: House, zygote: Zygote | None, announce: Announce) -> None:
    stop = _stop_on_signals()
    async with AsyncExitStack() as stack:
        node = Node(house, zygote, stop, stack)
        await node.open()
        announce(node.url, house.config)
        if await _unless(stop, recovered([node.recover], stop)):
            await node.work()
        logger.info("node_stopping", drain_s=house.config.runner.drain_s)
        await node.refuse()
    logger.info("node_stopped")
    if zygote and zygote.gone:
        raise StokerError("the process that starts the workers has ended; start the node again")


class Node:
    """What the main process enters, one after the other; the stack is left in the opposite order.

    The doors and the runner are either here or in workers; whoever is told, asked or left does not see the difference.
    """

    def __init__(self, house: House, zygote: Zygote | None, stop: asyncio.Event, stack: AsyncExitStack) -> None:
        self._house = house
        self._zygote = zygote
        self._stop = stop
        self._stack = stack
        self._metrics = Metrics()
        self._news = News()
        self._crews: list[Crew] = []
        self.url = ""

    async def open(self) -> None:
        """All up to the doors, which serve then."""
        house, enter = self._house, self._stack.enter_async_context
        config = house.config
        self._store_url = await self._own_server()
        self._store = await enter(house.store(self._store_url, house.node_id, self._metrics))
        await _refuse_open_door(self._store, config.server)
        await enter(Inspector(self._store, lambda wrong: self._news.change(wrong=tuple(wrong))))
        choose = await _backends(house, self._metrics, self._stack)
        self._registry = await enter(Registry(config.containers))
        self._news.change(served=not self._registry.containers)
        for container in self._registry.containers.values():
            container.on_ready(lambda: self._news.change(served=True))
        await enter(Keepers(self._registry, choose))
        if self._zygote:
            self._zygote.on_end = self._stop.set
            await enter(self._zygote)
        self._runner = self._make_runner()
        sockets = self._stack.enter_context(listening(config.server, max(1, len(house.doors))))
        self._doors = self._make_doors(sockets)
        await enter(self._doors)
        self.url = url(sockets[0], https=house.tls is not None)
        self._janitor = self._make_janitor()
        logger.info("node_started", version=__version__, url=self.url, containers=list(self._registry.containers))

    async def recover(self) -> None:
        """What an earlier life left is put right, by each process for its own name and here for names that none has."""
        await self._janitor.recover()
        await self._doors.recover()
        if isinstance(self._runner, Runner):
            await self._runner.recover()

    async def work(self) -> None:
        """Until somebody says stop. The janitor works on during the drain: this node is still there."""
        await self._stack.enter_async_context(self._janitor)
        await self._stack.enter_async_context(self._runner)
        if isinstance(self._runner, Crew):
            await _unless(self._stop, self._runner.recover())
        self._news.change(recovering=False)
        await self._stop.wait()

    async def refuse(self) -> None:
        """Accept no more jobs, in any process; everything else goes on."""
        self._news.change(draining=True)
        await self._count()

    async def _own_server(self) -> str:
        config = self._house.config
        if config.redis:
            return ""
        embedded = await self._stack.enter_async_context(Embedded(self._house.data_dir, config.embedded))
        self._news.change(full=embedded.full)
        embedded.on_full = lambda words: self._news.change(full=words)
        return embedded.url

    def _make_runner(self) -> Runner | Crew:
        config = self._house.config
        if not self._house.runners:
            return Runner(self._registry, all_slots(config.containers), self._store, config.runner, self._metrics)
        seats: dict[str, list[int]] = {name: [] for name in self._house.runners}
        return self._crew(seats, config.runner.drain_s + HAND_BACK_S + LEAVE_S)

    def _make_doors(self, sockets: list[list[socket]]) -> Doors | Crew:
        house = self._house
        slots = Slots({spec.id: spec for spec in house.config.containers}, house.config.server, self._runner.slot)
        if house.doors:
            seats = {name: [each.fileno() for each in own] for name, own in zip(house.doors, sockets, strict=True)}
            return self._crew(seats, CLOSE_S + LEAVE_S, slots=slots, show=self._metrics_text)
        return Doors(
            house,
            sockets[0],
            store=self._store,
            registry=self._registry,
            slots=slots.slot,
            news=self._news,
            metrics_text=self._metrics_text,
        )

    def _crew(self, seats: dict[str, list[int]], patience_s: float, **more: Any) -> Crew:
        assert self._zygote
        crew = Crew(
            self._house,
            seats,
            zygote=self._zygote,
            store_url=self._store_url,
            registry=self._registry,
            news=self._news,
            metrics=self._metrics,
            patience_s=patience_s,
            **more,
        )
        self._crews.append(crew)
        return crew

    def _make_janitor(self) -> Janitor:
        house = self._house
        return Janitor(
            self._store,
            list(self._registry.containers),
            house.config.runner,
            house.config.retention_s,
            self._metrics,
            self._runner.tidy,
            doors=[house.known_as(worker) for worker in house.doors] or [house.node_id],
            runners=[house.known_as(worker) for worker in house.runners] or [house.node_id],
            owner=_kept(house.data_dir, "owner"),
        )

    async def _count(self) -> None:
        await asyncio.gather(*(crew.count() for crew in self._crews))

    async def _metrics_text(self) -> bytes:
        await self._count()
        return self._metrics.text()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Wait for work, or for the stop; whether it was done."""
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(work, name="first-work")
        stopping = tasks.create_task(stop.wait(), name="stop")
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in (working, stopping):
            task.cancel()
    return working.done() and not stop.is_set()


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
    end = time.monotonic() + LEFT_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held(data_dir))
                break
            except BlockingIOError:
                if not orphaned(data_dir) or time.monotonic() > end:
                    raise StokerError(f"{data_dir}: another node uses this data directory") from None
                time.sleep(LEFT_LOOK_S)
        yield


def _kept(data_dir: Path, name: str) -> str:
    """The node's name, say: made once, kept in its data directory."""
    file = data_dir / name
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        file.write_text(f"n-{uuid.uuid4()}")
        return file.read_text()
