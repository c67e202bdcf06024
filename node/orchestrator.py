"""What a door may ask of the node. Thin: rules are the guardian's, records the store's, work the runner's."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import structlog

from node.errors import SHOWN_CHARS, Conflict, NotFound, Refusal, Rejected, Unavailable
from node.findings import Level
from node.guardian import Guardian
from node.jobs import Caller, ContainerError, ContainerOutput, ContainerResult, Job, JobRequest, State, new_id, new_ids
from node.registry import Container, Registry
from node.service import StepFailed
from node.situation import News
from node.store import Store, insist
from node.store.server import KIND

log = structlog.get_logger()

DRAIN_RETRY_S = 10.0
FULL_RETRY_S = 10.0
CANCELLED = "cancelled: by request"
SHUTTING_DOWN = "the node is shutting down"
RECOVERING = "recovering: what an earlier life of this node left is put right first"
Slots = Callable[[str, str, str], AbstractAsyncContextManager[None]]
"""A slot of a container for a stream: container, job id, caller. Waits for it; the task that has it is cancelled when
the job is stopped. Raises `Unavailable`."""

READY_S = 1.0  # for the store to answer whether the node is ready; whoever asks waits two or so


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Why no request should be sent here now, and what else is wrong; in words, empty when there is nothing."""

    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


class Orchestrator:
    def __init__(
        self,
        *,
        store: Store,
        guardian: Guardian,
        registry: Registry,
        slots: Slots,
        news: News,
    ) -> None:
        self._store = store
        self._guardian = guardian
        self._registry = registry
        self._slots = slots
        self._news = news

    async def submit(self, request: JobRequest, caller: Caller, *, once: str = "") -> str:
        """Accept a job; its id. Raises `Rejected`, or `Unavailable` when it could not be made durable.

        once: the caller's name for this request; when it comes again, the answer is the id of the first time.
        """
        self._admit(request, caller)
        (answer,) = await self._accept([request], caller, once)
        if isinstance(answer, Refusal):
            raise answer
        return answer

    async def submit_batch(
        self, items: Sequence[JobRequest | Refusal], caller: Caller, *, once: str = ""
    ) -> list[str | Refusal]:
        """Accept the good ones of a batch: in its place each one's id, or why it was refused."""
        self._refuse_when_closed()
        checked = [item if isinstance(item, Refusal) else self._checked(item, caller) for item in items]
        good = [item for item in checked if isinstance(item, JobRequest)]
        answers = iter(await self._accept(good, caller, once) if good else [])
        return [item if isinstance(item, Refusal) else next(answers) for item in checked]

    async def _accept(self, requests: Sequence[JobRequest], caller: Caller, once: str) -> list[str | Refusal]:
        jobs = list(zip(new_ids(len(requests)), requests, strict=True))
        answers = await self._store.submit(caller, jobs, once=once)
        accepted = [job for job, answer in zip(jobs, answers, strict=True) if answer == job[0]]
        asyncio.get_running_loop().call_soon(_log_queued, accepted, caller)  # the answer goes first
        return answers

    def _checked(self, request: JobRequest, caller: Caller) -> JobRequest | Refusal:
        try:
            self._admit(request, caller)
        except Refusal as refusal:
            return refusal
        return request

    def _admit(self, request: JobRequest, caller: Caller) -> None:
        self._refuse_when_closed()
        self._guardian.admit(request, caller)

    def _refuse_when_closed(self) -> None:
        if self._news.now.draining:
            raise Unavailable(SHUTTING_DOWN.capitalize(), retry_after_s=DRAIN_RETRY_S)
        if reason := self._news.now.full:
            raise Unavailable("The job store is full", retry_after_s=FULL_RETRY_S, reason=reason)

    async def jobs(
        self, job_ids: Sequence[str], caller: Caller, *, intermediate: bool = False, most_bytes: int | None = None
    ) -> list[Job]:
        """Those of these ids that the caller may see, in the order asked; unknown ones, and another's, are left out.

        Raises `TooLarge` when their outputs have more than `most_bytes` together.
        """
        found = await self._store.get(job_ids, intermediate=intermediate, caller=_whose(caller), most_bytes=most_bytes)
        return [job for job in found if job is not None]

    async def ids(
        self, caller: Caller, *, pending: bool | None = None, most: int | None = None, after: str = ""
    ) -> list[str]:
        """Ids of the jobs that the caller may see, oldest first; only pending, only finished, or all.

        most: so many of its own, from behind the job `after` on; raises `NotFound` when that is not in the list.
        """
        if most is None:
            return await self._store.ids(_whose(caller), pending=pending)
        ids = await self._store.some_ids(caller.id, most, after=after, pending=pending)
        if ids is None:
            raise NotFound("Job not found", id=after[:SHOWN_CHARS])
        return ids

    async def cancel(self, job_id: str, caller: Caller) -> Job:
        """Stop a job that waits or runs; a running container call is aborted. The job as it is then.

        Raises `NotFound`, or `Conflict` when it has ended already.
        """
        await self._job(job_id, caller)
        before = await self._store.end(job_id, State.CANCELLED, ContainerError(container="", error=CANCELLED))
        if before and before.terminal:
            raise Conflict("Job has ended", id=job_id, state=before.value)
        log.info("job_cancelled", job_id=job_id, caller=caller.id, state=State.CANCELLED.value)
        return await self._job(job_id, caller)

    async def retry(self, job_id: str, caller: Caller) -> str:
        """Start a failed or cancelled job again from the step that it ended in. A new job does that, and begins with
        the outputs of the finished steps; its id, the same when it is asked for again. The old one stays as it is.

        Raises `NotFound`, `Conflict` when it has not failed, or `Rejected` when the caller may not run it (any more).
        """
        job = await self._job(job_id, caller)
        self._admit(JobRequest(containers=job.containers, data=b"{}"), caller)
        answer = await self._store.retry(job_id, new_id())
        if answer is None:
            raise Conflict("Job has nothing to run on", id=job_id)
        if isinstance(answer, State):
            raise Conflict("Job has not failed", id=job_id, state=answer.value)
        log.info("job_retried", job_id=answer, caller=caller.id, retry_of=job_id, state=State.QUEUED.value)
        return answer

    async def dead(self, caller: Caller, most: int) -> list[Job]:
        """The latest dead letters that the caller may see, newest first."""
        return await self._store.dead(most, _whose(caller))

    async def _job(self, job_id: str, caller: Caller) -> Job:
        found = await self.jobs([job_id], caller)
        if not found:
            raise NotFound("Job not found", id=job_id[:SHOWN_CHARS])
        return found[0]

    async def stream(self, request: JobRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        """Run a chain of one container and relay what it sends. The first item is the job's id, alone.

        The job is recorded from its start to its end, however that comes. Raises `StepFailed` with the cause when
        the container fails; closing the iterator early, as for a client that went away, cancels the job.
        """
        self._admit(request, caller)
        if len(request.containers) > 1:
            raise Rejected("Streaming supports one container", containers=list(request.containers))
        container = request.containers[0]
        if not self._registry[container].ready:
            raise Unavailable("Container not ready", retry_after_s=1, container=container)
        job_id = new_id()
        async with self._slots(container, job_id, caller.id):
            await self._open_stream(job_id, request, caller)
            result: ContainerResult | None = None
            try:
                yield job_id.encode()
                kept: list[bytes] = []
                service = self._registry[container].service
                async with aclosing(service.stream(request.data, requires_proof=request.requires_proof)) as parts:
                    async for part in parts:
                        kept.append(part)
                        yield part
                result = _streamed(container, kept)
            except StepFailed as failure:
                result = ContainerError(container=container, error=str(failure))
                raise
            finally:
                await self._end_stream(job_id, container, caller, result)

    async def _open_stream(self, job_id: str, request: JobRequest, caller: Caller) -> None:
        container = request.containers[0]
        try:
            await self._store.open(caller, job_id, request.containers, State.RUNNING, data=request.data)
        except asyncio.CancelledError:  # it may have been recorded all the same
            await self._end_stream(job_id, container, caller, None)
            raise
        log.info("stream_started", job_id=job_id, caller=caller.id, container=container, state="running")

    async def _end_stream(self, job_id: str, container: str, caller: Caller, result: ContainerResult | None) -> None:
        """Without a result it was closed early."""
        state = State.FAILED if isinstance(result, ContainerError) else State.SUCCEEDED
        if result is None:
            reason = SHUTTING_DOWN if self._news.now.draining else "the client disconnected"
            state, result = State.CANCELLED, ContainerError(container=container, error=f"cancelled: {reason}")
        await _undisturbed(insist(partial(self._store.end, job_id, state, result, abort=False)))
        log.info("stream_ended", job_id=job_id, caller=caller.id, container=container, state=state.value)

    async def report(self, job_id: str, state: State, containers: Sequence[str], caller: Caller) -> None:
        """Record the state of a job that was run by somebody else, or end one of ours. A terminal state stays."""
        error = "reported as failed" if state is State.FAILED else ""
        opened = await self._store.open(caller, job_id, containers, state, error=error)
        if not opened and state.terminal:
            result = ContainerError(container=containers[0] if containers else "", error=error) if error else None
            await self._store.end(job_id, state, result)
        log.info("job_reported", job_id=job_id, caller=caller.id, state=state.value)

    @property
    def containers(self) -> Mapping[str, Container]:
        return self._registry.containers

    async def pending_count(self) -> int:
        return await self._store.pending_count()

    async def resources(self, model_id: str | None) -> dict[str, Any]:
        """What each container says of its resources; those that say nothing are left out."""
        return await self._registry.resources(model_id)

    async def check(self) -> None:
        """Can this node accept jobs now? Raises `Unavailable` with the reason."""
        self._refuse_when_closed()
        await self._store.ping()

    async def readiness(self) -> Readiness:
        """Should requests be sent to this node? Answers within `READY_S`, whatever stands still.

        Containers that fail later are a warning only: their jobs wait, and results can still be had here.
        """
        now = self._news.now
        down = [f"container {name}: {each.health.reason}" for name, each in self.containers.items() if not each.ready]
        reasons = [SHUTTING_DOWN] if now.draining else []
        if trouble := await self._store_trouble():
            reasons.append(trouble)
        elif now.recovering:
            reasons.append(RECOVERING)
        if not now.served:
            reasons.append(f"no container is ready yet: {len(down)} of {len(self.containers)} are not")
        wrong = [str(finding) for finding in now.wrong]
        wrong += [f"disk: {now.full}"] if now.full else []
        return Readiness(reasons=tuple(reasons), warnings=(*down, *wrong))

    async def _store_trouble(self) -> str:
        try:
            async with asyncio.timeout(READY_S):
                await self._store.ping()
        except Unavailable as error:
            return f"redis: {error.params['reason']}"
        except TimeoutError:
            return f"redis: no answer within {READY_S:g} s"
        wrong = (each.found for each in self._news.now.wrong if each.check == KIND and each.level is Level.FAULT)
        return next((f"redis: {words}" for words in wrong), "")


def _whose(caller: Caller) -> str | None:
    """Whose jobs the caller may see, list and cancel; None: everybody's."""
    return None if caller.sees_all else caller.id


async def _undisturbed(work: Coroutine[Any, Any, Any]) -> None:
    """Await to the end although cancelled meanwhile: a client may go away while the end of its job is recorded."""
    task = asyncio.create_task(work, name="stream-end")
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def _streamed(container: str, parts: list[bytes]) -> ContainerResult:
    """What is kept of a stream: Infernet's `{"output": text}`."""
    text = b"".join(parts).decode("utf-8", "replace")
    return ContainerOutput(container=container, output=msgspec.json.encode({"output": text}))


def _log_queued(jobs: Sequence[tuple[str, JobRequest]], caller: Caller) -> None:
    for job_id, request in jobs:
        log.info("job_queued", job_id=job_id, caller=caller.id, containers=request.containers, state="queued")
