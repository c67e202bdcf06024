"""The lane of one container on this node: takes its steps from the queue, as many at a time as it has slots.

A lane asks the store when something may be there: this process queued a step (told at once), a slot became free while
more was waiting, or the lane's waiter saw an entry that another process queued. So that a quick container does not
stand still while the store is asked, some steps more are taken than there are slots: about as many as end meanwhile.
"""

import asyncio
import contextlib
import math
import random
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from typing import Any

import structlog

from node.errors import Unavailable, readable
from node.jobs import Claim, ContainerError, ContainerOutput, ContainerResult, State
from node.metrics import Metrics
from node.registry import Container
from node.store import Store, Tails, insist

log = structlog.get_logger()

WAIT_S = 5.0  # one blocking read; also how soon a lost group or entry is noticed
REPEAT_FIRST_S = 0.2  # before a call is repeated; then longer each time
REPEAT_FACTOR = 4
RETRY_S = 0.5  # after a claim or a wait that the store did not answer
PATIENCE_S = 1.0  # for a slot of a step that was taken ahead
OWN_S = 0.005  # between two waits that only tell what this process knows
LITTLE = 0.1  # of a slot that stands still is not worth a step ahead
LATEST = 0.2  # weight of the latest duration in a mean


class Lane:
    def __init__(self, target: Container, slots: int, store: Store, metrics: Metrics) -> None:
        """slots: how many of its steps run here at a time."""
        self.container = target.spec.id
        self._target = target
        self._store = store
        self._retries = metrics.retries.labels(self.container)
        self._slots = slots
        self._slot = asyncio.Semaphore(slots)
        self._maybe_more = True
        self._look = asyncio.Event()
        self._freed = asyncio.Event()
        self._tails: Tails | None = None  # where the lane was last found empty
        self._seen: Tails | None = None  # by the waiter, since the last claim began
        self._wait = asyncio.Event()
        self._claiming = False
        self._open = True
        self._running: dict[asyncio.Task[None], Claim] = {}
        self._calling: set[str] = set()  # entries of the claims whose calls have not ended
        self._streams: dict[asyncio.Task[Any], str] = {}  # whoever holds a slot for a job that is in no lane
        self._claim_s = 0.0  # what a claim takes
        self._call_s = math.inf  # what a call takes
        self._ended_meanwhile = 0  # calls, during the last claim
        self._burst = 0  # the most of them, lately
        store.on_queued(self.container, self._told)
        target.on_ready(self._look.set)

    @property
    def claims(self) -> list[Claim]:
        """The steps that run here now."""
        return list(self._running.values())

    @property
    def streams(self) -> list[str]:
        """Ids of the jobs that hold a slot without being in the lane."""
        return list(self._streams.values())

    async def serve(self) -> None:
        """Take and run steps until `close`; ends when the last of them has ended."""
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(self._wait_for_others(), name=f"wait-{self.container}")
            while self._open:
                if self._room > 0 and self._more and self._target.ready:
                    await self._take(tasks)
                else:
                    self._look.clear()
                    await self._look.wait()
            waiting.cancel()
            while self._streams:
                self._freed.clear()
                await self._freed.wait()

    @property
    def _more(self) -> bool:
        """May there be steps to take. What this process queued itself the waiter sees as well, mostly too late."""
        return self._maybe_more or (self._seen is not None and self._seen.beyond(self._tails))

    @property
    def _room(self) -> int:
        """For how many more claims: each slot has one, and those that end while the store is asked have another."""
        mean = math.ceil(self._slots * min(1.0, self._claim_s / self._call_s) - LITTLE)
        return self._slots + max(mean, self._burst) - len(self._streams) - len(self._calling)

    def close(self) -> None:
        """Take nothing more."""
        self._open = False
        self._look.set()

    def abort(self, job_ids: Collection[str] | None = None) -> None:
        """Stop what runs, all or of those jobs. A step is handed back to the queue if it is still held."""
        for task, claim in self._running.items():
            if (job_ids is None or claim.job_id in job_ids) and not task.cancelling():  # or it hands back already
                task.cancel()
        for task, job_id in self._streams.items():
            if job_ids is None or job_id in job_ids:
                task.cancel()

    def drop(self, lost: Collection[Claim]) -> None:
        """Stop the calls of steps that are not ours any more. One whose outcome is being recorded is left to that."""
        for task, claim in self._running.items():
            if claim in lost and claim.entry in self._calling and not task.cancelling():
                task.cancel()

    @contextlib.asynccontextmanager
    async def slot(self, job_id: str, *, held: bool) -> AsyncIterator[None]:
        """One of the container's slots, for a call that does not come from the queue. Waits until one is free, or takes
        it at once for a call that is already under way (`held`).

        The task that holds it is cancelled by `abort`.
        """
        if not held:
            await self._target.until_ready()
        try:
            async with self._slot:
                task = asyncio.current_task()
                if task is None or not self._open:
                    raise Unavailable("The node is shutting down")
                self._streams[task] = job_id
                try:
                    yield
                finally:
                    del self._streams[task]
        finally:
            self._leave()

    def _told(self) -> None:
        self._maybe_more = True
        self._look.set()

    def _leave(self) -> None:
        self._freed.set()
        self._look.set()

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        self._maybe_more, self._seen = False, None  # before the call: who queues during it sets them again
        self._claiming, self._ended_meanwhile = True, 0
        began = time.monotonic()
        try:
            claims, tails = await self._store.claim(self.container, self._room)
        except Unavailable:
            self._maybe_more = True
            await asyncio.sleep(RETRY_S)
            return
        finally:
            self._claiming = False
        self._claim_s += LATEST * (time.monotonic() - began - self._claim_s)
        self._burst = min(self._slots, max(self._ended_meanwhile, self._burst * 7 // 8))
        for claim in claims:
            self._calling.add(claim.entry)
            task = tasks.create_task(self._run(claim), name=claim.job_id)
            self._running[task] = claim
            task.add_done_callback(self._ended)
        if tails is None:
            self._maybe_more = True
        else:
            self._tails = tails
            self._wait.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._let_go(self._running.pop(task))

    def _let_go(self, claim: Claim) -> None:
        if claim.entry in self._calling:
            self._calling.remove(claim.entry)
            self._ended_meanwhile += 1
            self._leave()

    async def _wait_for_others(self) -> None:
        """Look again when another process has queued something, and once in a while in any case."""
        waiter = self._store.waiter(self.container)
        try:
            while True:
                await self._wait.wait()
                self._wait.clear()
                seen = None
                try:
                    seen = await waiter.wait(self._tails or Tails(), WAIT_S)
                except Unavailable:
                    await asyncio.sleep(RETRY_S)
                if seen is None:
                    self._told()
                    continue
                self._seen = seen
                self._look.set()
                if self._claiming or self._maybe_more:  # this process queued it, and most often queues more
                    await asyncio.sleep(OWN_S)
        finally:
            await waiter.close()

    async def _run(self, claim: Claim) -> None:
        try:
            await self._step(claim)
        except Exception:  # it would end the lane, and with it the node; the claim's lease ends by itself
            log.exception("step_lost", job_id=claim.job_id, step=claim.step, container=claim.container)

    async def _step(self, claim: Claim) -> None:
        began = time.monotonic()
        try:
            if not await self._turn():
                await self._hand_back(claim)
                return
            try:
                began = time.monotonic()
                result = _placed(claim, await self._outcome(claim))
                self._note_call(time.monotonic() - began)
            finally:
                self._slot.release()
            self._let_go(claim)  # the next claim travels with this outcome
            state = await insist(lambda: self._store.finish(claim, result))
        except asyncio.CancelledError:
            await self._hand_back(claim)
            return
        if isinstance(result, ContainerError):
            self._target.note_failed_step()
        _log_step(claim, result, state, time.monotonic() - began)

    async def _turn(self) -> bool:
        """Wait for a slot; False when it takes so long that another node may be quicker."""
        if not self._slot.locked():
            return await self._slot.acquire()
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._slot.acquire()
        except TimeoutError:
            self._call_s, self._burst = math.inf, 0  # nothing more ahead, until calls have told how long they take now
            return False

    def _note_call(self, took_s: float) -> None:
        self._call_s = took_s if self._call_s == math.inf else self._call_s + LATEST * (took_s - self._call_s)

    async def _outcome(self, claim: Claim) -> ContainerResult:
        """Whatever happens: a fault of ours in one step is the end of that job, and of nothing else."""
        try:
            return await self._called(claim)
        except Exception as error:  # as in a door's middleware
            log.exception("step_broke", job_id=claim.job_id, step=claim.step, container=claim.container)
            words = f"container '{claim.container}': internal error: {readable(str(error)) or type(error).__name__}"
            return ContainerError(container=claim.container, error=words)

    async def _called(self, claim: Claim) -> ContainerResult:
        """Of the call, or of one of its repetitions. A container that went down meanwhile is waited for."""
        data = claim.input or await insist(lambda: self._store.input(claim))
        if data is None:
            return ContainerError(container=claim.container, error=f"container '{claim.container}': its input is gone")
        pause_s = REPEAT_FIRST_S
        for _ in range(self._target.spec.retries):
            result = await self._call(claim, data)
            if isinstance(result, ContainerOutput) or not result.again:
                return result
            log.info(
                "step_repeated", job_id=claim.job_id, step=claim.step, container=claim.container, error=result.error
            )
            self._retries.inc()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # apart from the others that failed with it
            pause_s *= REPEAT_FACTOR
            await self._target.until_ready()
        return await self._call(claim, data)

    async def _call(self, claim: Claim, data: bytes) -> ContainerResult:
        return await self._target.service.call(data, requires_proof=claim.requires_proof)

    async def _hand_back(self, claim: Claim) -> None:
        try:
            state = await self._store.release(claim)
        except Unavailable as error:  # its lease ends by itself
            log.warning("step_not_handed_back", job_id=claim.job_id, step=claim.step, error=str(error))
            return
        log.info(
            "step_handed_back" if state else "step_stopped",
            job_id=claim.job_id,
            step=claim.step,
            container=claim.container,
            attempt=claim.attempt,
        )


def _placed(claim: Claim, result: ContainerResult) -> ContainerResult:
    """An error with its place in the chain, where a container may stand more than once."""
    if isinstance(result, ContainerOutput) or len(claim.containers) == 1:
        return result
    return replace(result, error=f"step {claim.step + 1} of {len(claim.containers)}: {result.error}")


def _log_step(claim: Claim, result: ContainerResult, state: State | None, duration_s: float) -> None:
    facts = {"error": result.error} if isinstance(result, ContainerError) else {}
    level = log.warning if facts else log.info
    level(
        "step_finished" if state else "step_refused",
        job_id=claim.job_id,
        caller=claim.caller,
        step=claim.step,
        container=claim.container,
        attempt=claim.attempt,
        state=state.value if state else "stale",
        duration_s=round(duration_s, 6),
        **facts,
    )
