"""Between the values of the job model and what the scripts take and give; see the heads of the scripts."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec

from node.errors import RateLimited, Refusal, Unavailable
from node.jobs import Caller, Claim, ContainerError, ContainerOutput, ContainerResult, Job, JobRequest, State
from node.store import keys
from node.store.commit import Operation

FULL_RETRY_S = 5.0
CHAINS = 1000  # that are kept read and written; most jobs go through few

_STATES = {state.value.encode(): state for state in State}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a look did to a live job: `queued` (its entry was lost), `held` (its lease was), `failed` or `forgotten`."""

    job_id: str
    change: str
    reason: str


class BrokenRecord(Exception):
    """A job's record was damaged from outside; the job cannot go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a submit may fill.

    lanes: most steps that wait or run, per container; lane: for those not named. pending: most live jobs of a caller.
    share: live jobs of a caller from which on its further ones queue behind everybody's.
    look_s: how often the janitor looks at a live job. remembered_s: how long idempotency keys are.
    """

    lanes: Mapping[str, int] = field(default_factory=dict)
    lane: int = 1_000_000
    pending: int = 100_000
    share: int = 100
    look_s: float = 60
    remembered_s: int = 86_400


def submission(job_id: str, caller: Caller, request: JobRequest, bounds: Bounds, once: str) -> Operation:
    """The operation of `submit.lua`. once: the key of the record that makes it be accepted only once, if any."""
    first = request.containers[0]
    return (
        (keys.job(job_id),),
        (
            job_id,
            caller.id,
            _chain_text(request.containers),
            request.data,
            first,
            bounds.lanes.get(first, bounds.lane),
            _rare(request, once),
        ),
    )


def _rare(request: JobRequest, once: str) -> bytes:
    """What few jobs have."""
    if not (request.requires_proof or request.queue_timeout_s or request.timeout_s or once):
        return b""
    facts = {
        "proof": request.requires_proof,
        "queue_s": request.queue_timeout_s,
        "total_s": request.timeout_s,
        "once": once,
    }
    return msgspec.json.encode({name: value for name, value in facts.items() if value})


def submissions_share(bounds: Bounds) -> tuple[Any, ...]:
    """What all operations of `submit.lua` share."""
    return bounds.pending, bounds.share, bounds.remembered_s, bounds.look_s


@lru_cache(CHAINS)
def _chain_text(containers: tuple[str, ...]) -> bytes:
    return msgspec.json.encode(containers)


@lru_cache(CHAINS)
def _chain(text: bytes) -> tuple[str, ...]:
    return msgspec.json.decode(text, type=tuple[str, ...])


def accepted(job_id: str, caller: Caller, request: JobRequest, bounds: Bounds, reply: Any) -> str | Refusal:
    """What `submit.lua` answered: the job's id, or that of the same request before it, or why it was refused."""
    if reply == 1:
        return job_id
    what, _, is_full = reply.partition(b" ")
    return full(what, request.containers[0], bounds) if is_full else str(what.decode())


def full(what: bytes, container: str, bounds: Bounds) -> Refusal:
    """Why there is no room: in the `lane` of a container, or for the `caller`."""
    if what == b"caller":
        return RateLimited("Too many jobs at once", retry_after_s=FULL_RETRY_S, limit=bounds.pending)
    limit = bounds.lanes.get(container, bounds.lane)
    return Unavailable("Queue full", retry_after_s=FULL_RETRY_S, container=container, limit=limit)


def digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def fingerprint(requests: Iterable[JobRequest]) -> str:
    """The same for the same requests only."""
    found = hashlib.sha256()
    for each in requests:
        facts = (each.containers, each.requires_proof, each.queue_timeout_s, each.timeout_s, len(each.data))
        found.update(msgspec.json.encode(facts) + each.data)
    return found.hexdigest()


def state(reply: bytes) -> State | None:
    return _STATES.get(reply)  # or "stale"


def claim(
    entry: bytes,
    job_id: bytes,
    caller: bytes,
    containers: bytes,
    step: bytes,
    attempt: bytes,
    proof: bytes,
    data: bytes | int | None,
) -> Claim:
    """A row of `claim.lua`. Raises `BrokenRecord`."""
    try:
        chain = _chain(containers)
        if data is None or int(step) >= len(chain):
            raise BrokenRecord
        return Claim(
            job_id=job_id.decode(),
            caller=caller.decode(),
            containers=chain,
            step=int(step),
            attempt=int(attempt),
            entry=entry.decode(),
            input=data if isinstance(data, bytes) else None,
            input_bytes=len(data) if isinstance(data, bytes) else data,
            requires_proof=bool(proof),
        )
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise BrokenRecord from error


def job(
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
    """The reply of `get.lua`. Raises `BrokenRecord`."""
    try:
        chain = _chain(containers)
        return Job(
            id=job_id,
            caller=caller.decode(),
            containers=chain,
            state=_STATES[state],
            step=int(step),
            attempt=int(attempt),
            created_at=float(created),
            ended_at=float(ended) if ended else None,
            result=_result(chain, output, error, failed_in),
            intermediate=tuple(
                ContainerOutput(container=each, output=raw)
                for each, raw in zip(chain, intermediate, strict=False)  # the last one's output is the result
                if raw is not None
            ),
        )
    except (msgspec.DecodeError, LookupError, ValueError, TypeError, AttributeError) as fault:
        raise BrokenRecord from fault


def _result(
    chain: tuple[str, ...], output: bytes | None, error: bytes | None, failed_in: bytes | None
) -> ContainerResult | None:
    if output is not None:
        return ContainerOutput(container=chain[-1], output=output)
    if error is None:
        return None
    return ContainerError(container=failed_in.decode() if failed_in else next(iter(chain), ""), error=error.decode())


def pairs(flat: list[Any]) -> list[tuple[bytes, Any]]:
    """`WITHSCORES` as pairs, whichever protocol the connection speaks."""
    if flat and isinstance(flat[0], (list, tuple)):
        return [(pair[0], pair[1]) for pair in flat]
    return list(zip(flat[::2], flat[1::2], strict=True))
