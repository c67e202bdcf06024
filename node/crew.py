"""The workers of one kind, as the main process has them: it starts them, tells them, asks them, and replaces those that
die. What a worker does is in `worker`.
"""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Self

import structlog

from node import log
from node.errors import StokerError, Unavailable
from node.house import House
from node.messages import (
    Any_,
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
    Message,
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
from node.registry import Container, Registry
from node.situation import News
from node.slots import Borrower, Lender, Slots, first
from node.zygote import Life, Zygote

logger = structlog.get_logger()

COUNT_S = 1.0  # longest wait for what a worker has counted
TIDY_S = 5.0  # for the renewal of what it runs; a worker that stands still loses it in any case
AGAIN_FIRST_S = 0.1  # before a worker is started again that did not last
AGAIN_MAX_S = 5.0
LASTED_S = 10.0
END_S = 1.0  # for a worker to end by itself that has closed its channel; it may have to tell why
LOG_S = 1.0  # for the last lines of a worker that has ended
LINE_BYTES = 1024 * 1024  # of one line; a longer one is cut


class Crew:
    """Entering starts the workers; leaving has them stop, waits for `patience_s`, and ends who is left.

    seats: the name of each worker, and the files that it is given. slots: those that doors ask for. show: the text of
    the node's metrics.
    """

    def __init__(
        self,
        house: House,
        seats: Mapping[str, Sequence[int]],
        *,
        zygote: Zygote,
        store_url: str,
        registry: Registry,
        news: News,
        metrics: Metrics,
        patience_s: float,
        slots: Slots | None = None,
        show: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self.house = house
        self.zygote = zygote
        self.metrics = metrics
        self.registry = registry
        self.slots = slots
        self.show = show
        self.begun = False
        self.stopping = asyncio.Event()
        self._store_url = store_url
        self._news = news
        self._patience_s = patience_s
        self._seats = [Seat(self, name, files) for name, files in seats.items()]
        news.on_change(lambda: self._tell(Told(situation=news.now)))
        for container in registry.containers.values():
            container.on_change(self._teller(container))

    async def __aenter__(self) -> Self:
        self.tasks = await asyncio.TaskGroup().__aenter__()
        self._keeping = [self.tasks.create_task(seat.keep(), name=f"worker-{seat.name}") for seat in self._seats]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._tell(Stop())
        _, late = await asyncio.wait(self._keeping, timeout=self._patience_s)
        for seat in self._seats if late else []:
            seat.kill()
        await self.tasks.__aexit__(None, None, None)

    @property
    def hello(self) -> Hello:
        standings = {name: container.standing for name, container in self.registry.containers.items()}
        return Hello(store_url=self._store_url, situation=self._news.now, standings=standings)

    async def recover(self) -> None:
        """Have each worker put right what an earlier life of it left, and work; returns when all have."""
        if not self.begun:
            self.begun = True
            self._tell(Begin())
        for seat in self._seats:
            await seat.recovered.wait()

    def slot(self, container: str, job_id: str) -> AbstractAsyncContextManager[None]:
        """A slot of whichever runner has one first."""
        serving = [seat for seat in self._seats if self.house.slots(seat.name)[container]]
        return first([seat.borrower.want(container, job_id) for seat in serving])

    async def tidy(self) -> None:
        """`Runner.tidy`, of all that live."""
        answers = await self._ask(lambda ask: Tidy(ask=ask), TIDY_S)
        if error := next((answer.error for answer in answers if answer.error), ""):
            raise Unavailable(error)

    async def count(self) -> None:
        """Hear what was counted until now; and whatever was told before has been heard then."""
        await self._ask(lambda ask: Count(ask=ask), COUNT_S)

    async def _ask(self, question: Callable[[int], Message], within_s: float) -> list[Done]:
        channels = [seat.channel for seat in self._seats if seat.channel]
        answers = await asyncio.gather(*(each.ask(question, within_s) for each in channels), return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, Done)]

    def _tell(self, message: Message) -> None:
        for seat in self._seats:
            if seat.channel:
                seat.channel.send(message)

    def _teller(self, container: Container) -> Callable[[], None]:
        return lambda: self._tell(Stands(container=container.spec.id, standing=container.standing))


class Seat:
    """The place of one worker. Who takes it has its name, and so what the one before it held."""

    def __init__(self, crew: Crew, name: str, files: Sequence[int]) -> None:
        self.name = name
        self.borrower = Borrower()
        self.channel: Channel | None = None
        self.recovered = asyncio.Event()
        self._crew = crew
        self._files = files
        self._life: Life | None = None

    async def keep(self) -> None:
        """Have a worker there until the crew stops."""
        pause_s = 0.0
        while True:
            began = time.monotonic()
            try:
                ended = await self._live()
            except StokerError as error:
                ended = str(error)
            if self._crew.stopping.is_set() or self._crew.zygote.gone:
                self.borrower.end()
                return
            pause_s = 0.0 if time.monotonic() - began > LASTED_S else min(max(pause_s * 2, AGAIN_FIRST_S), AGAIN_MAX_S)
            logger.error("worker_replaced", worker=self.name, reason=ended, again_s=pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._crew.stopping.wait()

    def kill(self) -> None:
        if self._life:
            self._crew.zygote.kill(self._life)

    async def _live(self) -> str:
        """One worker's life; how it ended, once it has."""
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        lines = Lines()
        await asyncio.get_running_loop().connect_read_pipe(lambda: lines, os.fdopen(read, "rb", 0))
        try:
            self._life = life = await self._crew.zygote.fork(self.name, [theirs.fileno(), write, *self._files])
        finally:
            theirs.close()
            os.close(write)
        await self._talk(await Channel.over(ours))
        await asyncio.wait([life.ended], timeout=END_S)
        self.kill()  # if it has closed its channel only
        ended = await life.ended
        with suppress(TimeoutError):
            async with asyncio.timeout(LOG_S):
                await lines.ended.wait()
        return ended

    async def _talk(self, channel: Channel) -> None:
        crew = self._crew
        lender = Lender(channel, crew.slots.wanted, crew.tasks) if crew.slots else None
        channel.send(crew.hello)
        self.borrower.connect(channel)
        if crew.begun:
            channel.send(Begin())
        if crew.stopping.is_set():
            channel.send(Stop())
        self.channel = channel
        try:
            async for message in _messages(channel):
                self._heard(message, channel, lender)
        finally:
            self.channel = None
            self.borrower.disconnect()
            if lender:
                lender.close()
            channel.close()

    def _heard(self, message: Any_, channel: Channel, lender: Lender | None) -> None:
        crew = self._crew
        match message:
            case Counted():
                crew.metrics.add(message.grown)
            case Recovered():
                self.recovered.set()
            case Got() | Refused() | Lost():
                self.borrower.heard(message)
            case Want() | Leave() if lender:
                lender.heard(message)
            case StepFailed():
                crew.registry[message.container].note_failed_step()
            case WhyDown():
                crew.tasks.create_task(_answer_why(message, channel, crew.registry), name=f"why-{message.container}")
            case Show() if crew.show:
                crew.tasks.create_task(_answer_show(message, channel, crew.show), name="metrics")


async def _messages(channel: Channel) -> AsyncIterator[Any_]:
    with suppress(Gone):
        while True:
            yield await channel.receive()


async def _answer_why(question: WhyDown, channel: Channel, registry: Registry) -> None:
    care = registry[question.container].care
    channel.send(Done(ask=question.ask, words=await care.why_down() if care else ""))


async def _answer_show(question: Show, channel: Channel, show: Callable[[], Awaitable[bytes]]) -> None:
    channel.send(Done(ask=question.ask, words=(await show()).decode()))


class Lines(asyncio.Protocol):
    """Puts the lines that a worker writes among the node's own, each one whole."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            log.pass_on(line)
        if len(self._rest) > LINE_BYTES:
            self._pass_rest()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pass_rest()
        self.ended.set()

    def _pass_rest(self) -> None:
        rest, self._rest = self._rest, b""
        if rest:
            log.pass_on(rest)
