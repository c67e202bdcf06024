"""A process beside the main one: a door, or a runner. It has its own loop, store and name; all that is the node's it
hears from the main process, and it ends when that does.
"""

import asyncio
import faulthandler
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import structlog
import uvloop

from node import log
from node.doors import Doors
from node.errors import Unavailable
from node.house import House
from node.leases import recovered
from node.messages import (
    Begin,
    Channel,
    Count,
    Counted,
    Done,
    Gone,
    Got,
    Hello,
    Leave,
    Lost,
    Recovered,
    Refused,
    Show,
    Stands,
    StepFailed,
    Stop,
    Tidy,
    Told,
    Want,
    WhyDown,
)
from node.metrics import Metrics
from node.registry import Registry
from node.runner import Runner
from node.situation import News
from node.slots import Borrower, Lender
from node.store import Store

logger = structlog.get_logger()

COUNT_S = 0.5  # how often what was counted is told: so much of it is lost with a process that is killed
ANSWER_S = 5.0  # longest wait for an answer of the main process
STDOUT, STDERR = 1, 2


def run(house: House, name: str, files: Sequence[int]) -> None:
    """The whole life of a worker. files: its channel, where its log goes, and the sockets that it serves."""
    look = log.look(house.config.log)
    channel, lines, *sockets = files
    for stream in (STDOUT, STDERR):
        os.dup2(lines, stream)
    os.close(lines)
    log.set_up_worker(house.config.log, look, node_id=house.node_id, worker=name)
    faulthandler.enable()
    try:
        uvloop.run(_serve(house, name, channel, sockets))
    finally:
        log.flush()


async def _serve(house: House, name: str, file: int, sockets: Sequence[int]) -> None:
    channel = await Channel.over(socket.socket(fileno=file))
    try:
        hello = await channel.receive()
    except Gone:
        return
    assert isinstance(hello, Hello)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(house.store(hello.store_url, house.known_as(name), metrics))
        registry = await stack.enter_async_context(Registry(house.config.containers))
        worker = Worker(house, channel, store, registry, metrics, hello)
        if sockets:
            await worker.be(worker.door([socket.socket(fileno=each) for each in sockets]))
        else:
            await worker.be(worker.runner(house.slots(name)))


class Worker:
    """What doors and runners have in common: they hear of the node, count, begin when they are told to, and stop."""

    def __init__(
        self, house: House, channel: Channel, store: Store, registry: Registry, metrics: Metrics, hello: Hello
    ) -> None:
        self._house = house
        self._channel = channel
        self._store = store
        self._registry = registry
        self._metrics = metrics
        self._news = News()
        self._news.tell(hello.situation)
        for container, standing in hello.standings.items():
            registry[container].stands(standing)
            registry[container].care = Care(channel, container)
        self._begun = asyncio.Event()
        self._stop = asyncio.Event()
        self._hears: dict[type, Callable[[Any], None]] = {
            Told: lambda message: self._news.tell(message.situation),
            Stands: lambda message: registry[message.container].stands(message.standing),
            Begin: lambda message: self._begun.set(),
            Stop: self._stops,
            Count: self._counts,
        }

    async def be(self, work: Awaitable[None]) -> None:
        """Do the work, and hear meanwhile what the main process says."""
        async with asyncio.TaskGroup() as self._tasks:
            beside = [
                self._tasks.create_task(self._hear(), name="main-process"),
                self._tasks.create_task(self._count(), name="counting"),
            ]
            await work
            for task in beside:
                task.cancel()
        self._tell_counted()
        await self._channel.finish()

    async def door(self, sockets: Sequence[socket.socket]) -> None:
        borrower = Borrower()
        borrower.connect(self._channel)
        self._hears |= dict.fromkeys((Got, Refused, Lost), borrower.heard)
        doors = Doors(
            self._house,
            sockets,
            store=self._store,
            registry=self._registry,
            slots=borrower.slot,
            news=self._news,
            metrics_text=self._metrics_text,
        )
        async with doors:
            await self._begin(doors.recover)
            await self._stop.wait()

    async def runner(self, slots: dict[str, int]) -> None:
        runner = Runner(self._registry, slots, self._store, self._house.config.runner, self._metrics)
        lender = Lender(
            self._channel, lambda want: runner.slot(want.container, want.job_id, held=want.held), self._tasks
        )
        self._hears |= dict.fromkeys((Want, Leave), lender.heard)
        self._hears[Tidy] = partial(self._tidies, runner)
        if await self._begin(runner.recover):
            async with runner:
                await self._stop.wait()
        lender.close()  # those that still wait for a container

    async def _begin(self, recover: Callable[[], Awaitable[None]]) -> bool:
        await self._begun.wait()
        if done := await recovered([recover], self._stop):
            self._channel.send(Recovered())
        return done

    def _stops(self, message: Stop) -> None:
        self._stop.set()
        self._begun.set()

    async def _hear(self) -> None:
        while True:
            try:
                message = await self._channel.receive()
            except Gone:  # killed: nobody is left to wait for, or to tell
                os._exit(1)
            self._hears[type(message)](message)

    def _tidies(self, runner: Runner, message: Tidy) -> None:
        self._tasks.create_task(self._tidied(runner, message), name="tidying")

    async def _tidied(self, runner: Runner, message: Tidy) -> None:
        try:
            await runner.tidy()
        except Unavailable as error:
            self._channel.send(Done(ask=message.ask, error=str(error)))
        else:
            self._channel.send(Done(ask=message.ask))

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(COUNT_S)
            self._tell_counted()

    def _counts(self, message: Count) -> None:
        self._tell_counted()
        self._channel.send(Done(ask=message.ask))

    def _tell_counted(self) -> None:
        if grown := self._metrics.grown():
            self._channel.send(Counted(grown=grown))

    async def _metrics_text(self) -> bytes:
        try:
            return (await self._channel.ask(lambda ask: Show(ask=ask), ANSWER_S)).words.encode()
        except Gone:
            raise Unavailable("The main process does not answer", retry_after_s=1) from None


class Care:
    """`registry.Care` of a container that the main process keeps."""

    def __init__(self, channel: Channel, container: str) -> None:
        self._channel = channel
        self._container = container

    def note_failed_step(self) -> None:
        self._channel.send(StepFailed(container=self._container))

    async def why_down(self) -> str:
        try:
            answer = await self._channel.ask(lambda ask: WhyDown(ask=ask, container=self._container), ANSWER_S)
        except Gone:
            return ""
        return answer.words
