"""The store: each method is one operation on jobs, done by one atomic script or one command.

Every method raises `Unavailable` when the server did not answer in time. The caller of a worker's method repeats it:
all of them may be repeated, because the fencing token and the states make the second time harmless.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import structlog
from redis import exceptions

from node.config import RateLimit
from node.errors import Mismatch, Refusal, Unavailable
from node.jobs import Caller, Claim, ContainerError, ContainerOutput, ContainerResult, Job, JobRequest, State
from node.metrics import Metrics
from node.store import connect, keys, listing, records
from node.store.access import Access
from node.store.commit import Commit, Reach, Turns, script, unavailable
from node.store.limit import Limit
from node.store.reader import Reader, Wanted
from node.store.records import Bounds, BrokenRecord, Change
from node.store.server import Facts, facts
from node.store.waiter import Tails, Waiter

log = structlog.get_logger()

T = TypeVar("T")

SUBMIT, OPEN, CLAIM = script("submit"), script("open"), script("claim", last=True)
FINISH, FAIL = script("finish"), script("fail")
RELEASE, RENEW, RECLAIM, END = (script(name) for name in ("release", "renew", "reclaim", "end"))
LOOK, ALIVE, PURGE, RETRY, HELD = (script(name) for name in ("look", "alive", "purge", "retry", "held"))

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
READS = 2  # groups of reads under way at a time
CLAIMS = 256  # steps begun in one call, which has their inputs as far as they are not large
RECLAIM_ENTRIES = 100  # in one call, so that one call stays short
LOOK_JOBS = 200
PURGE_JOBS = 500
DEAD_PAGE = 500


class Store:
    """All jobs, lanes and indexes. Entering starts the sender, leaving closes the connections.

    node_id: the name under which this process claims and streams; for one of several `NODE/...`.
    timeout_s: longest wait for one round trip.
    replicas: how many of the server's replicas must have a change before it counts as done.
    """

    def __init__(
        self,
        url: str,
        *,
        node_id: str,
        bounds: Bounds | None = None,
        timeout_s: float = 2.0,
        username: str = "",
        password: str = "",
        replicas: int = 0,
        metrics: Metrics | None = None,
    ) -> None:
        self.name = node_id
        self._bounds = bounds or Bounds()
        self._submissions_share = records.submissions_share(self._bounds)
        self._timeout_s = timeout_s
        self._connect = partial(connect.client, url, timeout_s=timeout_s, username=username, password=password)
        self._client = self._connect()
        self._reach = Reach(metrics or Metrics())
        self._commit = Commit(self._client, timeout_s, self._reach, replicas=replicas)
        # Apart from the changes, so that reads and changes do not wait for each other.
        reads = [Commit(self._client, timeout_s, self._reach) for _ in range(READS)]
        self._senders = [self._commit, *reads]
        self._reads = Turns(reads)
        self._queued: dict[str, Callable[[], None]] = {}
        self._streams: set[str] = set()  # opened by this process
        self._reader = Reader(self._reads, self._connect(), timeout_s)
        self._listing = listing.Listing(self._reads)
        self.access = Access(self._commit)

    async def __aenter__(self) -> Self:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._sending = [self._tasks.create_task(each.serve(), name="store-commit") for each in self._senders]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._sending:
            task.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._reader.client.aclose()
            await self._client.aclose()

    @property
    def round_trips(self) -> int:
        """How many groups were sent so far."""
        return self._commit.round_trips + self._reads.round_trips

    async def ping(self) -> None:
        await self._commit.call("PING")

    def limit(self, settings: RateLimit) -> Limit:
        """The windows of the rate limit, on connections of their own."""
        return Limit(self._connect(), settings, self._timeout_s)

    async def facts(self) -> Facts:
        """What the server says of itself."""
        return await facts(self._commit.call)

    def on_return(self, told: Callable[[], None]) -> None:
        """Have `told` called when the server answers for the first time, or again after it was away."""
        self._reach.on_return.append(told)

    # What doors ask for

    async def submit(
        self, caller: Caller, jobs: Sequence[tuple[str, JobRequest]], *, once: str = ""
    ) -> list[str | Refusal]:
        """Accept jobs under the given ids. In the place of each: its id, or why it was refused.

        What is accepted is in the server's append-only file when this returns. once: the caller's name for this very
        request; the same jobs under the same name are accepted once, and answered with the ids that they got then.
        Raises `Mismatch` when they are other jobs.
        """
        name = keys.once(records.digest(caller.id, once)) if once else ""
        if name:
            await self._remember(name, records.fingerprint(request for _, request in jobs))
        operations = [
            records.submission(job_id, caller, request, self._bounds, name and f"{name}:{i}")
            for i, (job_id, request) in enumerate(jobs)
        ]
        submitted = self._commit.run(SUBMIT, operations, shared=self._submissions_share)
        for container in {request.containers[0] for _, request in jobs}:
            self._tell(container)
        replies = await submitted
        answers = [
            records.accepted(job_id, caller, request, self._bounds, reply)
            for (job_id, request), reply in zip(jobs, replies, strict=True)
        ]
        if name and not any(isinstance(answer, str) for answer in answers):
            await self._commit.call("DEL", name)  # nothing came of it, so nothing is left of it
        return answers

    async def _remember(self, name: str, fingerprint: str) -> None:
        """What a named request was. Its jobs are recorded one by one, so what a crash cut off goes on the next time."""
        recorded = self._commit.call("SET", name, fingerprint, "NX", "EX", self._bounds.remembered_s)
        known = self._commit.call("GET", name)
        await recorded
        if (await known) not in (fingerprint.encode(), None):
            raise Mismatch("Idempotency-Key was used for another request")

    async def retry(self, job_id: str, new_id: str) -> str | State | None:
        """Start an ended job again as a new one, from the step that it ended in. The new job's id, or that of an
        earlier retry; the job's state when it has not failed or been cancelled; None when there is nothing to retry.

        Raises `Unavailable` or `RateLimited` where a submit would be refused so.
        """
        bounds = self._bounds
        limits = (bounds.pending, bounds.share, msgspec.json.encode(bounds.lanes), bounds.lane)
        operation = ((keys.job(job_id), keys.job(new_id)), (job_id, new_id, bounds.look_s, *limits))
        ((first, *more),) = await self._commit.run(RETRY, [operation])
        if first == b"full":
            raise records.full(more[0], more[1].decode(), bounds)
        if more:
            return State(more[0].decode())
        return None if first == b"nothing" else str(first.decode())

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
        chain = msgspec.json.encode(list(containers))
        node = self.name if data else ""
        operation = (
            (keys.job(job_id),),
            (job_id, caller.id, chain, data, state.value, node, error, self._bounds.look_s),
        )
        if node:
            self._streams.add(job_id)
        try:
            (recorded,) = await self._commit.run(OPEN, [operation])
        except Unavailable:
            self._streams.discard(job_id)  # it may have been recorded all the same, and is found among those left
            raise
        return bool(recorded)

    async def end(
        self,
        job_id: str,
        state: State,
        result: ContainerResult | None = None,
        *,
        abort: bool = True,
        dead: bool = False,
    ) -> State | None:
        """End a job from outside its chain. The state that it had before; None when it is not known.

        A job that was terminal is left as it was. abort: whoever runs it is told to stop; not for its own runner.
        dead: keep it in the list of dead letters.
        """
        output = result.output if isinstance(result, ContainerOutput) else b""
        error = result.error if isinstance(result, ContainerError) else ""
        container = result.container if result else ""
        operation = (
            (keys.job(job_id), keys.STOPPED),
            (job_id, state.value, error, container, output, "1" if abort else "", "1" if dead else ""),
        )
        (before,) = await self._commit.run(END, [operation])
        self._streams.discard(job_id)
        return State(before.decode()) if before else None

    async def get(
        self,
        job_ids: Sequence[str],
        *,
        intermediate: bool = False,
        caller: str | None = None,
        most_bytes: int | None = None,
    ) -> list[Job | None]:
        """Jobs in the order asked, None for those that are not known, or not the given caller's; one round trip while
        their outputs are small. Raises `TooLarge` when the outputs have more than `most_bytes` together.
        """
        wanted = Wanted(intermediate=intermediate, caller=caller, most_bytes=most_bytes)
        rows = await self._reader.rows(job_ids, wanted)
        return [_job(job_id, row) for job_id, row in zip(job_ids, rows, strict=True)]

    async def ids(self, caller: str | None, *, pending: bool | None = None) -> list[str]:
        """A caller's job ids, oldest first: only pending ones, only finished ones, or all.

        None: those of all callers, in no certain order.
        """
        found = await self._listing.whole(listing.sets(caller, pending))
        return list(found) if caller is None else listing.in_order(found)

    async def some_ids(
        self, caller: str, most: int, *, after: str = "", pending: bool | None = None
    ) -> list[str] | None:
        """At most so many of a caller's ids, from the oldest on or from behind a job; None when that is not listed.

        It takes one round trip, or two with `after`, however long the list is.
        """
        return await self._listing.part(listing.sets(caller, pending), after, most)

    async def pending_count(self) -> int:
        """Jobs of all callers that are not terminal."""
        return int(await self._reads.call("ZCARD", keys.LIVE))

    async def dead(self, most: int, caller: str | None = None) -> list[Job]:
        """The latest dead letters, newest first: jobs that failed because their worker died too often, or their record
        is broken. Of all callers, or of one."""
        found: list[Job] = []
        start, ids = 0, [b""] * DEAD_PAGE
        while len(ids) == DEAD_PAGE and len(found) < most:
            ids = await self._commit.call("ZRANGE", keys.DEAD, start, start + DEAD_PAGE - 1, "REV")
            page = await self.get([job_id.decode() for job_id in ids], caller=caller)
            found += [job for job in page if job is not None]
            start += DEAD_PAGE
        return found[:most]

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

    async def claim(self, container: str, count: int) -> tuple[list[Claim], Tails | None]:
        """Begin up to `count` waiting steps of a lane. With them its tails, to `wait` from; None while there may be
        more steps."""
        operation = ((keys.lane(container), keys.bulk(container)), (self.name, min(count, CLAIMS)))
        ((tail, *rows),) = await self._commit.run(CLAIM, [operation])
        claims = []
        for row in rows:
            try:
                claims.append(records.claim(*row))
            except BrokenRecord:
                await self._bury(row[1].decode(errors="replace"), container)
        return claims, Tails.read(tail) if tail else None

    async def input(self, claim: Claim) -> bytes | None:
        """What a step runs on. None when it is gone from the record."""
        if claim.input is not None:
            return claim.input
        field = f"o{claim.step - 1}" if claim.step else "data"
        found = await self._reader.value(claim.job_id, field, claim.input_bytes)
        if found is None:  # after a failover the connection for large reads may still lead to the former master
            found = await self._commit.call("HGET", keys.job(claim.job_id), field)
        return found

    async def _bury(self, job_id: str, container: str) -> None:
        error = ContainerError(container=container, error="its record is broken")
        await self.end(job_id, State.FAILED, error, abort=False, dead=True)
        log.error("job_broken", job_id=job_id, container=container, state=State.FAILED.value)

    async def finish(self, claim: Claim, result: ContainerResult) -> State | None:
        """Record a step's outcome and queue the next step or end the job. The job's state now; None when this attempt
        no longer holds the step, and nothing was changed."""
        following = claim.next_container
        key = (keys.job(claim.job_id),)
        held = claim.job_id, claim.caller, claim.attempt
        if isinstance(result, ContainerError):
            finished = self._commit.run(FAIL, [(key, (*held, claim.container, result.error.encode()))])
        else:
            outcome = claim.step, claim.container, following or "", result.output
            finished = self._commit.run(FINISH, [(key, (*held, *outcome))])
            if following:
                self._tell(following)
        (state,) = await finished
        return records.state(state)

    async def release(self, claim: Claim) -> State | None:
        """Hand a running step back to its lane. The job's state now, or None as in `finish`."""
        operation = (
            (keys.job(claim.job_id),),
            (claim.job_id, claim.attempt, claim.step, claim.container),
        )
        (state,) = await self._commit.run(RELEASE, [operation])
        return records.state(state)

    async def renew(self, claims: Iterable[Claim]) -> list[Claim]:
        """Prolong the leases of running steps. Those that are lost: ended, or taken over by another node."""
        asked = list(claims)
        operations = [
            (
                (keys.job(claim.job_id),),
                (self.name, claim.job_id, claim.attempt, claim.step, claim.container),
            )
            for claim in asked
        ]
        held = await self._commit.run(RENEW, operations)
        return [claim for claim, still in zip(asked, held, strict=True) if not still]

    async def held(self, container: str, idle_s: float) -> list[str]:
        """Entries that this node's name has had for longer than `idle_s` without renewing them."""
        operation = (
            (keys.lane(container), keys.bulk(container)),
            (self.name, int(idle_s * 1000), RECLAIM_ENTRIES),
        )
        (entries,) = await self._commit.run(HELD, [operation])
        return [entry.decode() for entry in entries]

    async def reclaim(
        self,
        container: str,
        *,
        idle_s: float = 0,
        max_deliveries: int = 0,
        held_by: str = "",
        entries: Sequence[str] = (),
    ) -> list[tuple[str, State]]:
        """Queue the steps of a lane again whose lease was not renewed for `idle_s`; what became of each job.

        held_by: only steps that this name holds; a process takes back those of its earlier life so.
        max_deliveries: 0 for steps that were certainly not begun. entries: these, instead of those that are idle.
        """
        only = msgspec.json.encode(entries) if entries else ""
        operation = (
            (keys.lane(container), keys.bulk(container)),
            (int(idle_s * 1000), held_by, RECLAIM_ENTRIES, max_deliveries, container, only),
        )
        (reply,) = await self._commit.run(RECLAIM, [operation])
        if reply:
            self._tell(container)
        return [(reply[i].decode(), State(reply[i + 1].decode())) for i in range(0, len(reply), 2)]

    async def alive(
        self,
        containers: Sequence[str],
        mark: str,
        gone_s: float,
        *,
        names: Sequence[str] = (),
        owner: str = "",
        owned_s: float = 60,
    ) -> str:
        """Say that this node is there and has these containers. The store's mark: `mark`, if it had none.

        names: those of its other processes, which are there as well. owner: who goes by this node's name here; for
        `owned_s` from now nobody else can. "" when somebody else does.
        """
        operation = (
            (keys.NODES, keys.SERVED, keys.MARK, keys.BACK, keys.owner(self.name)),
            (
                msgspec.json.encode([self.name, *names]),
                msgspec.json.encode(containers),
                mark,
                gone_s,
                owner,
                owned_s,
            ),
        )
        (found,) = await self._commit.run(ALIVE, [operation])
        return str(found.decode())

    async def look(self, *, queue_timeout_s: float, timeout_s: float, gone_s: float) -> tuple[list[Change], bool]:
        """Look at the live jobs whose turn it is; what was changed, and whether there may be more to look at."""
        operation = (
            (keys.LIVE, keys.STOPPED),
            (LOOK_JOBS, self._bounds.look_s, *(f"{limit_s:.15g}" for limit_s in (queue_timeout_s, timeout_s, gone_s))),
        )
        ((looked_at, *rows),) = await self._commit.run(LOOK, [operation])
        changes = [
            Change(job_id=job_id.decode(), change=change.decode(), reason=reason.decode())
            for job_id, change, reason in rows
        ]
        return changes, looked_at == LOOK_JOBS

    async def purge(self, state: State, kept_s: float) -> int:
        """Remove some jobs that ended in a state longer ago than `kept_s`; how many. Called until it is 0."""
        operation = ((keys.ended(state.value),), (kept_s, PURGE_JOBS))
        (removed,) = await self._commit.run(PURGE, [operation])
        return int(removed)

    async def names(self, of: str) -> list[str]:
        """All names that processes of a node have had: its own, and `NAME/...`."""
        known = [name.decode() for name in await self._commit.call("ZRANGE", keys.NODES, 0, -1)]
        return [name for name in known if name == of or name.startswith(f"{of}/")]

    async def left_streams(self, name: str) -> list[str]:
        """Ids of the streams under a name that this process does not run: an earlier life of it did, or their start was
        recorded without an answer."""
        held = [job_id.decode() for job_id in await self._commit.call("SMEMBERS", keys.streams(name))]
        return [job_id for job_id in held if job_id not in self._streams]

    async def stopped(self) -> AsyncGenerator[str, None]:
        """Ids of jobs that are ended while a step of theirs runs, as it happens, on a connection of its own. First "":
        from then on none is missed.

        One may be missed while the connection is down; the renewal of a lease finds out in any case.
        """
        client = self._connect()
        try:
            async with client.pubsub() as channel:
                await channel.subscribe(keys.STOPPED)
                async for message in channel.listen():
                    yield message["data"].decode() if message["type"] == "message" else ""
        except (exceptions.RedisError, OSError) as error:
            raise unavailable(error) from error
        finally:
            await client.aclose()

    def waiter(self, container: str) -> "Waiter":
        """A connection of its own on which one lane waits for entries that other processes queue."""
        return Waiter(self._connect(), (keys.lane(container), keys.bulk(container)), self._timeout_s)


async def insist(operation: Callable[[], Awaitable[T]]) -> T:
    """Repeat a worker's operation until the store answers: what was done must be recorded, however long that takes."""
    pause_s = RETRY_FIRST_S
    while True:
        try:
            return await operation()
        except Unavailable:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_MAX_S)


def _job(job_id: str, row: list[Any]) -> Job | None:
    try:
        return records.job(job_id, *row) if row else None
    except BrokenRecord:
        log.error("job_broken", job_id=job_id)
        return None
