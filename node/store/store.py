"""The store: each method is one operation on jobs, done by one atomic script or one command.

Every method raises `Unavailable` when the server did not answer in time. The caller of a worker's method repeats it:
all of them may be repeated, because the fencing token and the states make the second time harmless.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import redis.asyncio
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from node.config import RateLimit
from node.errors import Unavailable
from node.jobs import Caller, Claim, ContainerError, ContainerOutput, ContainerResult, Job, JobRequest, State
from node.metrics import Metrics
from node.store import keys
from node.store.access import Access
from node.store.commit import Commit, Operation, script, unavailable
from node.store.limit import Limit

T = TypeVar("T")

SUBMIT, OPEN, CLAIM, FINISH = script("submit"), script("open"), script("claim", last=True), script("finish")
RELEASE, RENEW, RECLAIM, END, GET = (script(name) for name in ("release", "renew", "reclaim", "end", "get"))

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
RECLAIM_ENTRIES = 100  # looked at in one call, so that one call stays short


class Store:
    """All jobs, lanes and indexes. Entering starts the sender, leaving closes the connections.

    node_id: the name under which this process claims. timeout_s: longest wait for one round trip.
    """

    def __init__(
        self,
        url: str,
        *,
        node_id: str,
        timeout_s: float = 2.0,
        username: str = "",
        password: str = "",
        metrics: Metrics | None = None,
    ) -> None:
        self._url = url
        self._node_id = node_id
        self._timeout_s = timeout_s
        self._login: dict[str, Any] = {"username": username, "password": password}
        self._client = self._connect()
        self._commit = Commit(self._client, timeout_s, metrics or Metrics())
        self._queued: dict[str, Callable[[], None]] = {}
        self.access = Access(self._commit)

    def _connect(self) -> redis.asyncio.Redis:
        """A client without a time limit of its own for replies: whoever waits has one for the whole round trip."""
        return redis.asyncio.Redis.from_url(
            self._url,
            socket_timeout=None,
            socket_connect_timeout=self._timeout_s,
            retry=Retry(NoBackoff(), 0),  # a hidden retry would double every time-out
            **{name: word for name, word in self._login.items() if word},
        )

    async def __aenter__(self) -> Self:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._sender = self._tasks.create_task(self._commit.serve(), name="store-commit")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sender.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._client.aclose()

    @property
    def round_trips(self) -> int:
        """How many groups were sent so far."""
        return self._commit.round_trips

    async def ping(self) -> None:
        await self._commit.call("PING")

    def limit(self, settings: RateLimit) -> Limit:
        """The windows of the rate limit, on connections of their own."""
        return Limit(self._connect(), settings, self._timeout_s)

    # What doors ask for

    async def submit(self, caller: Caller, requests: Sequence[JobRequest]) -> list[str]:
        """Accept jobs; their ids, in order. When it returns they are in the server's append-only file."""
        ids = [str(uuid.uuid4()) for _ in requests]
        submitted = self._commit.run(
            SUBMIT, [_submission(job_id, caller, request) for job_id, request in zip(ids, requests, strict=True)]
        )
        for container in {request.containers[0] for request in requests}:
            self._tell(container)
        await submitted
        return ids

    async def open(
        self,
        caller: Caller,
        job_id: str,
        containers: Sequence[str],
        state: State,
        *,
        data: bytes = b"",
        error: str = "",
    ) -> bool:
        """Record a job that no lane runs: a stream (state running), or one that is reported. False if the id is known.

        A running one belongs to this node, which ends it with `end`.
        """
        operation = (
            (
                keys.job(job_id),
                keys.LIVE,
                keys.pending(caller.id),
                keys.finished(caller.id),
                keys.ENDED,
                keys.streams(self._node_id),
            ),
            (
                job_id,
                caller.id,
                msgspec.json.encode(list(containers)),
                data,
                state.value,
                self._node_id if data else "",
                error,
            ),
        )
        (recorded,) = await self._commit.run(OPEN, [operation])
        return bool(recorded)

    async def end(
        self, job_id: str, state: State, result: ContainerResult | None = None, *, abort: bool = True
    ) -> State | None:
        """End a job from outside its chain. The state that it had before; None when it is not known.

        A job that was terminal is left as it was. abort: whoever runs it is told to stop; not for its own runner.
        """
        output = result.output if isinstance(result, ContainerOutput) else b""
        error = result.error if isinstance(result, ContainerError) else ""
        container = result.container if result else ""
        operation = (
            (keys.job(job_id), keys.LIVE, keys.ENDED, keys.STOPPED),
            (job_id, state.value, error, container, output, keys.PREFIX, "1" if abort else ""),
        )
        (before,) = await self._commit.run(END, [operation])
        return State(before.decode()) if before else None

    async def get(
        self, job_ids: Sequence[str], *, intermediate: bool = False, caller: str | None = None
    ) -> list[Job | None]:
        """Jobs in the order asked, None for those that are not known, or not the given caller's; one round trip."""
        wanted = ("1" if intermediate else "", "" if caller is None else "1", caller or "")
        rows = await self._commit.run(GET, [((keys.job(job_id),), wanted) for job_id in job_ids])
        return [_job(job_id, *row) if row else None for job_id, row in zip(job_ids, rows, strict=True)]

    async def ids(self, caller: str | None, *, pending: bool | None = None) -> list[str]:
        """A caller's job ids, oldest first: only pending ones, only finished ones, or all.

        None: those of all callers; ended ones stand by the time of their end.
        """
        wanted = [keys.LIVE if caller is None else keys.pending(caller)] if pending is not False else []
        wanted += [keys.ENDED if caller is None else keys.finished(caller)] if pending is not True else []
        found = await asyncio.gather(*(self._commit.call("ZRANGE", key, 0, -1, "WITHSCORES") for key in wanted))
        # Pending is read first: a job that ends between the two is then seen twice, never missed.
        times = {job_id.decode(): float(created) for pairs in found for job_id, created in _pairs(pairs)}
        return sorted(times, key=lambda job_id: times[job_id])

    async def pending_count(self) -> int:
        """Jobs of all callers that are not terminal."""
        return int(await self._commit.call("ZCARD", keys.LIVE))

    # What workers ask for

    def on_queued(self, container: str, told: Callable[[], None]) -> None:
        """Have `told` called as soon as this process queues a step for a container.

        It runs before the group leaves: a claim that it makes travels in the same round trip.
        """
        self._queued[container] = told

    def _tell(self, container: str) -> None:
        told = self._queued.get(container)
        if told:
            told()

    async def claim(self, container: str, count: int) -> tuple[list[Claim], str]:
        """Begin up to `count` waiting steps of a lane. With them its tail: "" while there may be more steps,
        else the place to `wait` from."""
        operation = ((keys.lane(container),), (self._node_id, count, keys.PREFIX))
        ((tail, *rows),) = await self._commit.run(CLAIM, [operation])
        return [_claim(*row) for row in rows], tail.decode()

    async def finish(self, claim: Claim, result: ContainerResult) -> State | None:
        """Record a step's outcome and queue the next step or end the job. The job's state now; None when this attempt
        no longer holds the step, and nothing was changed."""
        following = claim.next_container
        if isinstance(result, ContainerError):
            kind, value = "error", result.error.encode()
        else:
            kind, value = "output" if following else "last", result.output
        operation = (
            (
                keys.job(claim.job_id),
                keys.lane(claim.container),
                keys.lane(following or claim.container),
                keys.LIVE,
                keys.pending(claim.caller),
                keys.finished(claim.caller),
                keys.ENDED,
            ),
            (claim.job_id, claim.entry, claim.attempt, claim.step, claim.container, kind, value),
        )
        finished = self._commit.run(FINISH, [operation])
        if kind == "output" and following:
            self._tell(following)
        (state,) = await finished
        return _state(state)

    async def release(self, claim: Claim) -> State | None:
        """Hand a running step back to its lane. The job's state now, or None as in `finish`."""
        operation = (
            (keys.job(claim.job_id), keys.lane(claim.container)),
            (claim.job_id, claim.entry, claim.attempt, claim.step),
        )
        (state,) = await self._commit.run(RELEASE, [operation])
        return _state(state)

    async def renew(self, claims: Iterable[Claim]) -> list[Claim]:
        """Prolong the leases of running steps. Those that are lost: ended, or taken over by another node."""
        asked = list(claims)
        operations = [
            (
                (keys.job(claim.job_id), keys.lane(claim.container)),
                (self._node_id, claim.entry, claim.attempt),
            )
            for claim in asked
        ]
        held = await self._commit.run(RENEW, operations)
        return [claim for claim, still in zip(asked, held, strict=True) if not still]

    async def reclaim(
        self, container: str, *, idle_s: float, max_deliveries: int, own: bool = False
    ) -> list[tuple[str, State]]:
        """Queue the steps of a lane again whose lease was not renewed for `idle_s`; what became of each job.

        own: only steps that this node's name holds, as it does at its start for those of its earlier life.
        """
        consumer = self._node_id if own else ""
        operation = (
            (keys.lane(container), keys.LIVE, keys.ENDED),
            (int(idle_s * 1000), consumer, RECLAIM_ENTRIES, max_deliveries, container, keys.PREFIX),
        )
        (reply,) = await self._commit.run(RECLAIM, [operation])
        if reply:
            self._tell(container)
        return [(reply[i].decode(), State(reply[i + 1].decode())) for i in range(0, len(reply), 2)]

    async def streams(self) -> list[str]:
        """Ids of the running streams that this node's name holds."""
        return [job_id.decode() for job_id in await self._commit.call("SMEMBERS", keys.streams(self._node_id))]

    async def stopped(self) -> AsyncGenerator[str, None]:
        """Ids of jobs that are ended while a step of theirs runs, as it happens, on a connection of its own.

        A message may be missed while the connection is down; the renewal of a lease finds out in any case.
        """
        client = self._connect()
        try:
            async with client.pubsub(ignore_subscribe_messages=True) as channel:
                await channel.subscribe(keys.STOPPED)
                async for message in channel.listen():
                    yield message["data"].decode()
        except (exceptions.RedisError, OSError) as error:
            raise unavailable(error) from error
        finally:
            await client.aclose()

    def waiter(self, container: str) -> "Waiter":
        """A connection of its own on which one lane waits for entries that other processes queue."""
        return Waiter(self._connect(), keys.lane(container), self._timeout_s)


class Waiter:
    """Waits for a lane to get another entry. Blocks one connection, so each reader has its own."""

    def __init__(self, client: redis.asyncio.Redis, lane: str, grace_s: float) -> None:
        self._client = client
        self._lane = lane
        self._grace_s = grace_s

    async def wait(self, tail: str, seconds: float) -> None:
        """Return when the lane has an entry later than `tail`, or after `seconds`."""
        try:
            async with asyncio.timeout(seconds + self._grace_s):
                await self._client.xread({self._lane: tail}, count=1, block=int(seconds * 1000))
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            raise unavailable(error) from error

    async def close(self) -> None:
        await self._client.aclose()


async def insist(operation: Callable[[], Awaitable[T]]) -> T:
    """Repeat a worker's operation until the store answers: what was done must be recorded, however long that takes."""
    pause_s = RETRY_FIRST_S
    while True:
        try:
            return await operation()
        except Unavailable:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_MAX_S)


def _submission(job_id: str, caller: Caller, request: JobRequest) -> Operation:
    containers = msgspec.json.encode(request.containers)
    return (
        (keys.job(job_id), keys.lane(request.containers[0]), keys.LIVE, keys.pending(caller.id)),
        (job_id, caller.id, containers, request.data, "1" if request.requires_proof else ""),
    )


def _state(reply: bytes) -> State | None:
    return None if reply == b"stale" else State(reply.decode())


def _claim(
    entry: bytes,
    job_id: bytes,
    caller: bytes,
    containers: bytes,
    step: bytes,
    attempt: bytes,
    proof: bytes,
    data: bytes,
) -> Claim:
    return Claim(
        job_id=job_id.decode(),
        caller=caller.decode(),
        containers=msgspec.json.decode(containers, type=tuple[str, ...]),
        step=int(step),
        attempt=int(attempt),
        entry=entry.decode(),
        input=data,
        requires_proof=bool(proof),
    )


def _pairs(flat: list[Any]) -> list[tuple[bytes, Any]]:
    """`WITHSCORES` as pairs, whichever protocol the connection speaks."""
    if flat and isinstance(flat[0], (list, tuple)):
        return [(pair[0], pair[1]) for pair in flat]
    return list(zip(flat[::2], flat[1::2], strict=True))


def _job(
    job_id: str,
    caller: bytes,
    containers: bytes,
    state: bytes,
    step: bytes,
    attempt: bytes,
    created: bytes,
    ended: bytes | None,
    output: bytes | None,
    error: bytes | None,
    failed_in: bytes | None,
    *intermediate: bytes | None,
) -> Job:
    chain = msgspec.json.decode(containers, type=tuple[str, ...])
    result: ContainerResult | None = None
    if output is not None:
        result = ContainerOutput(container=chain[-1], output=output)
    elif error is not None:
        container = failed_in.decode() if failed_in else next(iter(chain), "")
        result = ContainerError(container=container, error=error.decode())
    return Job(
        id=job_id,
        caller=caller.decode(),
        containers=chain,
        state=State(state.decode()),
        step=int(step),
        attempt=int(attempt),
        created_at=float(created),
        ended_at=float(ended) if ended else None,
        result=result,
        intermediate=tuple(
            ContainerOutput(container=each, output=raw)
            for each, raw in zip(chain, intermediate, strict=False)  # the last one's output is the result
            if raw is not None
        ),
    )
