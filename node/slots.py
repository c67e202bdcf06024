"""Slots of containers for streams. A stream runs in a door, its slot is a runner's, and they may be three processes:

    door, `Borrower` ── Want ──> `Lender`, main, `Slots`: the limits, `Borrower`s ── Want ──> `Lender`, runner: a lane

Where a process does two of these parts itself there is nothing in between. A slot goes back when its borrower says so
or dies; a borrower whose runner dies keeps it, and the runner that takes its place is told.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from node.config import ContainerSpec, Server
from node.errors import RateLimited, Refusal, Unavailable
from node.messages import Channel, Got, Leave, Lost, Message, Refused, Want

SHUTTING_DOWN = "The node is shutting down"
REFUSALS = {kind.code: kind for kind in (Unavailable, RateLimited)}


class Slots:
    """The node's rules for streams: how many there may be, and how many of a container's slots one caller may have."""

    def __init__(
        self,
        specs: Mapping[str, ContainerSpec],
        settings: Server,
        take: Callable[[str, str], AbstractAsyncContextManager[None]],
    ) -> None:
        """take: a slot of a container for a job."""
        self._share = {name: (spec.concurrency + 1) // 2 for name, spec in specs.items()}
        self._settings = settings
        self._take = take
        self._streams: Counter[str] = Counter()  # by caller, waiting ones included
        self._held: Counter[tuple[str, str]] = Counter()  # by container and caller
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def slot(self, container: str, job_id: str, caller: str) -> AsyncIterator[None]:
        """`orchestrator.Slots`. Waits also until the caller's streams hold fewer than half of the slots, so that others
        get on. Raises `RateLimited` as well."""
        self._refuse_more(caller)
        self._streams[caller] += 1
        try:
            async with self._shared(container, caller), self._take(container, job_id):
                yield
        finally:
            self._streams -= Counter([caller])  # and what is 0 is dropped

    def wanted(self, want: Want) -> AbstractAsyncContextManager[None]:
        """The same, for a `Lender`."""
        return self.slot(want.container, want.job_id, want.caller)

    def _refuse_more(self, caller: str) -> None:
        limit = self._settings.max_streams
        if self._streams.total() >= limit:
            raise Unavailable("Too many streams", retry_after_s=1, limit=limit, setting="server.max_streams")
        limit = self._settings.max_streams_per_caller
        if self._streams[caller] >= limit:
            setting = "server.max_streams_per_caller"
            raise RateLimited("Too many streams at once", retry_after_s=1, limit=limit, setting=setting)

    @asynccontextmanager
    async def _shared(self, container: str, caller: str) -> AsyncIterator[None]:
        while self._held[container, caller] >= self._share[container]:
            self._freed.clear()
            await self._freed.wait()
        self._held[container, caller] += 1
        try:
            yield
        finally:
            self._held -= Counter([(container, caller)])
            self._freed.set()


class Loan:
    """A slot that is wanted. `got` ends when it is lent, or with a `Refusal`; `holder` is cancelled when it is lost."""

    def __init__(self, borrower: "Borrower", want: Want) -> None:
        self._borrower = borrower
        self.want = want
        self.got: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.holder: asyncio.Task[Any] | None = None
        self.lost = False

    @property
    def refused(self) -> bool:
        return self.got.done() and (self.got.cancelled() or self.got.exception() is not None)

    def leave(self) -> None:
        self._borrower.leave(self)
        if not self.got.done():
            self.got.cancel()
        elif not self.got.cancelled():
            self.got.exception()  # nobody else may look at it


class Borrower:
    """Asks for slots over a channel, which may come and go; what is wanted and held stays so meanwhile."""

    def __init__(self) -> None:
        self._channel: Channel | None = None
        self._numbers = itertools.count(1)
        self._loans: dict[int, Loan] = {}

    def connect(self, channel: Channel) -> None:
        """To a new process, or the one that takes the place of the last."""
        self._channel = channel
        for loan in self._loans.values():
            want = loan.want
            if not loan.refused:
                channel.send(Want(slot=want.slot, container=want.container, job_id=want.job_id, held=loan.got.done()))

    def disconnect(self) -> None:
        self._channel = None

    def end(self) -> None:
        """There will be no other process."""
        for loan in self._loans.values():
            if not loan.got.done():
                loan.got.set_exception(Unavailable(SHUTTING_DOWN))

    def want(self, container: str, job_id: str, caller: str = "") -> Loan:
        want = Want(slot=next(self._numbers), container=container, job_id=job_id, caller=caller)
        loan = self._loans[want.slot] = Loan(self, want)
        self._send(want)
        return loan

    def leave(self, loan: Loan) -> None:
        if self._loans.pop(loan.want.slot, None):
            self._send(Leave(slot=loan.want.slot))

    def _send(self, message: Message) -> None:
        if self._channel:
            self._channel.send(message)

    @asynccontextmanager
    async def slot(self, container: str, job_id: str, caller: str) -> AsyncIterator[None]:
        """`orchestrator.Slots`"""
        async with first([self.want(container, job_id, caller)]):
            yield

    def heard(self, message: Got | Refused | Lost) -> None:
        loan = self._loans.get(message.slot)
        if loan is None:
            return  # left meanwhile
        if isinstance(message, Lost):
            loan.lost = True
            if loan.holder:
                loan.holder.cancel()
            elif not loan.got.done():
                loan.got.set_exception(Unavailable(SHUTTING_DOWN))
        elif isinstance(message, Got):
            if not loan.got.done():
                loan.got.set_result(None)
        elif not loan.got.done():
            kind = REFUSALS.get(message.code, Unavailable)
            loan.got.set_exception(kind(message.message, retry_after_s=message.retry_after_s, **message.params))


@asynccontextmanager
async def first(loans: list[Loan]) -> AsyncIterator[None]:
    """Hold whichever of the loans is lent first; the others are given back. Raises the refusal when all are refused."""
    try:
        won = await _first_lent(loans)
        for loan in loans:
            if loan is not won:
                loan.leave()
        won.holder = asyncio.current_task()
        if won.lost:  # before anybody could be told
            raise Unavailable(SHUTTING_DOWN)
        yield
    finally:
        for loan in loans:
            loan.leave()


async def _first_lent(loans: list[Loan]) -> Loan:
    waiting = {loan.got: loan for loan in loans}
    while True:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            loan = waiting.pop(each)
            if each.exception() is None:
                return loan
            if not waiting:
                each.result()  # raises the refusal


class Lender:
    """Answers the wants of one channel, as long as it lives."""

    def __init__(
        self, channel: Channel, slots: Callable[[Want], AbstractAsyncContextManager[None]], tasks: asyncio.TaskGroup
    ) -> None:
        self._channel = channel
        self._slots = slots
        self._tasks = tasks
        self._lent: dict[int, asyncio.Task[None]] = {}

    def heard(self, message: Want | Leave) -> None:
        if isinstance(message, Want):
            task = self._tasks.create_task(self._lend(message), name=f"lend-{message.job_id}")
            self._lent[message.slot] = task
        elif message.slot in self._lent:
            self._lent.pop(message.slot).cancel()

    def close(self) -> None:
        """The borrower is gone, and with it all that it had."""
        lent, self._lent = self._lent, {}
        for task in lent.values():
            task.cancel()

    async def _lend(self, want: Want) -> None:
        try:
            async with self._slots(want):
                self._channel.send(Got(slot=want.slot))
                await asyncio.Event().wait()
        except Refusal as refusal:
            self._lent.pop(want.slot, None)
            self._channel.send(
                Refused(
                    slot=want.slot,
                    code=refusal.code,
                    message=refusal.message,
                    params=refusal.params,
                    retry_after_s=refusal.retry_after_s,
                )
            )
        finally:
            if want.slot in self._lent:  # not by the borrower's will
                del self._lent[want.slot]
                self._channel.send(Lost(slot=want.slot))
