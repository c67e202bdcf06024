"""What the store promises, as a plain model, and what a server really holds; `agree` compares the two."""

from dataclasses import dataclass, field, replace
from typing import Any

import redis

from node.jobs import Claim, ContainerError, ContainerOutput, ContainerResult, State

KEY = "stoker:{0}:"
ENDS = (State.SUCCEEDED, State.FAILED, State.CANCELLED)

DUMP = """
local read = {
  hash = function(key) return redis.call('HGETALL', key) end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1) end,
  set = function(key) return redis.call('SMEMBERS', key) end,
  string = function(key) return redis.call('GET', key) end,
  stream = function(key)
    local held = redis.pcall('XPENDING', key, 'nodes', '-', '+', 1000)
    return { redis.call('XRANGE', key, '-', '+'), held.err and {} or held }
  end,
}
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do found[#found + 1] = { key, read[redis.call('TYPE', key).ok](key) } end
return found
"""


@dataclass(slots=True, kw_only=True)
class Expected:
    """A job as it must be. stream: the node that streams it; outputs: of finished steps, the last one's is the result.

    hasty: the timeout that it brought, of a length that every look finds over. bulk: it waits behind everybody's.
    """

    id: str
    caller: str
    chain: tuple[str, ...]
    data: bytes
    in_lane: bool = True
    stream: str = ""
    hasty: str = ""
    state: State = State.QUEUED
    step: int = 0
    attempt: int = 0
    lost: int = 0
    node: str = ""
    outputs: list[bytes] = field(default_factory=list)
    result: ContainerResult | None = None
    bulk: bool = False
    dead: bool = False
    retried_as: str = ""

    @property
    def container(self) -> str:
        return self.chain[self.step]

    @property
    def input(self) -> bytes:
        return self.outputs[-1] if self.outputs else self.data


class Model:
    """All jobs in the order of their creation, and each lane's waiting jobs in theirs."""

    def __init__(self, containers: tuple[str, ...]) -> None:
        self.jobs: dict[str, Expected] = {}
        self.waiting: dict[str, list[str]] = {container: [] for container in containers}
        self.damaged: set[str] = set()  # lanes that may have lost something
        self.regrouped: set[str] = set()  # lanes that may hand out entries a second time, of which a claim finds less
        self.littered: set[str] = set()  # lanes that may have entries too many

    def live(self) -> list[Expected]:
        return [job for job in self.jobs.values() if not job.state.terminal]

    def running(self, container: str) -> list[str]:
        return [
            job.id for job in self.live() if job.state is State.RUNNING and job.in_lane and job.container == container
        ]

    def holds(self, claim: Claim) -> bool:
        """Whether this claim's word about its step still counts."""
        job = self.jobs.get(claim.job_id)
        return job is not None and job.state is State.RUNNING and job.attempt == claim.attempt

    def in_turn(self, container: str, *, bulk: bool) -> list[str]:
        return [job_id for job_id in self.waiting[container] if self.jobs[job_id].bulk is bulk]

    # Transitions

    def accept(self, job: Expected) -> None:
        self.jobs[job.id] = job
        if job.in_lane and not job.state.terminal:
            self.waiting[job.container].append(job.id)

    def begin(self, claim: Claim, node: str) -> None:
        job = self.jobs[claim.job_id]
        assert job.state is State.QUEUED, "a step that did not wait was begun"
        assert (claim.step, claim.attempt) == (job.step, job.attempt + 1)
        assert (claim.input, claim.containers, claim.caller) == (job.input, job.chain, job.caller)
        self.waiting[job.container].remove(job.id)
        job.state, job.attempt, job.node = State.RUNNING, claim.attempt, node

    def finish(self, claim: Claim, result: ContainerResult) -> State:
        job = self.jobs[claim.job_id]
        if isinstance(result, ContainerError):
            return self.end(job.id, State.FAILED, result)
        if claim.next_container is None:
            return self.end(job.id, State.SUCCEEDED, result)
        job.outputs.append(result.output)
        job.step, job.lost = job.step + 1, 0
        return self.queue(job.id)

    def queue(self, job_id: str) -> State:
        job = self.jobs[job_id]
        job.state = State.QUEUED
        self.waiting[job.container].append(job_id)
        return job.state

    def lose(self, job_id: str, most: int) -> State:
        """The worker of its step died once more."""
        job = self.jobs[job_id]
        assert job.state is State.RUNNING, "a step that did not run was taken back"
        job.lost += 1
        if job.lost < most:
            return self.queue(job_id)
        job.dead = True
        error = f"container '{job.container}': its worker died {job.lost} times"
        return self.end(job_id, State.FAILED, ContainerError(container=job.container, error=error))

    def end(self, job_id: str, state: State, result: ContainerResult | None) -> State:
        job = self.jobs[job_id]
        assert not job.state.terminal, "a terminal state changed"
        if job.state is State.QUEUED:
            self.waiting[job.container].remove(job_id)
        job.state, job.result = state, _named(result, job.chain)
        return state

    def purge(self, state: State) -> int:
        gone = [job.id for job in self.jobs.values() if job.state is state]
        for job_id in gone:
            del self.jobs[job_id]
        return len(gone)


def _named(result: ContainerResult | None, chain: tuple[str, ...]) -> ContainerResult | None:
    """As a reader is told it: a job's output is its last container's; an error that names none, its first one's."""
    if isinstance(result, ContainerOutput):
        return ContainerOutput(container=chain[-1], output=result.output)
    return replace(result, container=result.container or chain[0]) if result else None


class Kept:
    """All that a server holds, read at one moment."""

    def __init__(self, raw: redis.Redis) -> None:
        self.keys: dict[str, Any] = {key.removeprefix(KEY): value for key, value in raw.eval(DUMP, 0)}

    def index(self, name: str) -> list[str]:
        return self.keys.get(name, [])

    def records(self) -> dict[str, dict[str, str]]:
        found = {key.removeprefix("job:"): flat for key, flat in self.keys.items() if key.startswith("job:")}
        return {job_id: dict(zip(flat[::2], flat[1::2], strict=True)) for job_id, flat in found.items()}

    def entries(self, container: str) -> dict[str, tuple[str, str]]:
        """Of a lane, then of its bulk queue: entry, as a record names it -> job and step; "" for what is not ours."""
        found = {
            mark + entry: dict(zip(flat[::2], flat[1::2], strict=True))
            for mark, (entries, _) in self._streams(container)
            for entry, flat in entries
        }
        return {entry: (fields.get("j", ""), fields.get("s", "")) for entry, fields in found.items()}

    def leases(self, container: str) -> dict[str, str]:
        """The same entries -> the nodes that run them."""
        return {mark + row[0]: row[1] for mark, (_, held) in self._streams(container) for row in held}

    def _streams(self, container: str) -> list[tuple[str, Any]]:
        nothing: list[Any] = [[], []]
        return [(mark, self.keys.get(f"{name}:{container}", nothing)) for mark, name in (("", "lane"), ("b", "bulk"))]


def agree(model: Model, kept: Kept) -> None:
    """Records, indexes and lanes are what they must be."""
    records = kept.records()
    assert records.keys() == model.jobs.keys()
    for job_id, job in model.jobs.items():
        _record_agrees(job, records[job_id])
    _indexes_agree(model, kept)
    for container in model.waiting:
        _lane_agrees(model, kept, container)


def _record_agrees(job: Expected, record: dict[str, str]) -> None:
    outputs = {name: value for name, value in record.items() if name[0] == "o" and name[1:].isdigit()}
    assert outputs == {f"o{i}": output.decode() for i, output in enumerate(job.outputs)}
    assert (record["state"], int(record["step"]), int(record["attempt"])) == (job.state, job.step, job.attempt)
    result = job.result
    assert record.get("out", record.get("big")) == (
        result.output.decode() if isinstance(result, ContainerOutput) else None
    )
    assert record.get("error") == (result.error if isinstance(result, ContainerError) else None)
    assert ("ended" in record) == job.state.terminal
    assert ("entry" in record) == job.in_lane


def _indexes_agree(model: Model, kept: Kept) -> None:
    """A job is in each index that it belongs to, in none other, and in a caller's own ones by its age."""
    jobs = model.jobs.values()
    live = [job for job in jobs if not job.state.terminal]
    expected = {"live": {job.id for job in live}, "dead": {job.id for job in jobs if job.dead}}
    expected |= {f"ended:{state.value}": {job.id for job in jobs if job.state is state} for state in ENDS}
    for node in {job.stream for job in jobs if job.stream}:
        expected[f"streams:{node}"] = {job.id for job in live if job.stream == node}
    for name, ids in expected.items():
        assert set(kept.index(name)) == ids, name
    for caller in {job.caller for job in jobs}:
        mine = [job for job in jobs if job.caller == caller]
        assert kept.index(f"pending:{caller}") == [job.id for job in mine if not job.state.terminal]
        assert kept.index(f"finished:{caller}") == [job.id for job in mine if job.state.terminal]
    callers = {job.caller for job in jobs}
    for key in kept.keys:
        if key.startswith(("pending:", "finished:")):
            assert key.partition(":")[2] in callers, f"{key} outlived its jobs"


def _lane_agrees(model: Model, kept: Kept, container: str) -> None:
    """Each waiting or running step has one entry, each running one a lease of its node; unless the lane is damaged."""
    records, entries, leases = kept.records(), kept.entries(container), kept.leases(container)
    running = model.running(container)
    expected = {
        records[job_id]["entry"]: (job_id, str(model.jobs[job_id].step))
        for job_id in model.waiting[container] + running
    }
    held = {records[job_id]["entry"]: model.jobs[job_id].node for job_id in running}
    if container in model.damaged:
        return
    if container in model.littered:
        assert expected.items() <= entries.items()
    else:
        assert entries == expected
        for bulk in (False, True):
            order = [each for entry, (each, _) in entries.items() if entry not in held and (entry[0] == "b") is bulk]
            assert order == model.in_turn(container, bulk=bulk)
    assert leases == held
