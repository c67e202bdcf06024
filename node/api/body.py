"""What the bodies of the Infernet dialect ask, read strictly into the job model. The words are Infernet's."""

import asyncio
from typing import Any, TypeGuard

import msgspec

from node import payload
from node.api import shapes
from node.errors import Refusal, Rejected, TooLarge
from node.jobs import JobRequest, State

TURN_BYTES = 64 * 1024  # of a batch, read at one go
REPORTED = {"running": State.RUNNING, "success": State.SUCCEEDED, "failed": State.FAILED}


class _Envelope(msgspec.Struct):
    containers: tuple[str, ...]
    data: msgspec.Raw
    requires_proof: bool | None = None
    timeouts: dict[str, Any] | None = None


_ENVELOPE = msgspec.json.Decoder(_Envelope)


async def job_requests(body: bytes, limit: int) -> list[JobRequest | Refusal]:
    """A list of at most `limit` requests, each one, or why it is none. Others have their turns meanwhile."""
    read: list[JobRequest | Refusal] = []
    size = 0
    for item in await _items(body, limit):
        read.append(_read(item))
        size += len(item)
        if size > TURN_BYTES:
            size = 0
            await asyncio.sleep(0)
    return read


async def _items(body: bytes, limit: int) -> list[bytes]:
    try:
        items = await payload.split(body, limit)
    except payload.NotStrict as error:
        raise Rejected("Expected a list", reason=str(error)) from None
    if len(items) > limit:
        raise TooLarge("Batch too large", limit=limit)
    return items


def _read(item: bytes) -> JobRequest | Refusal:
    try:
        return job_request(item)
    except Refusal as refusal:
        return refusal


def job_request(body: bytes, *, delegated: str = "Chain not enabled") -> JobRequest:
    """A body as a request. Other fields, such as `id`, `ip` or `status`, are not looked at."""
    value = _checked(body)
    if "signature" in value and "subscription" in value:
        raise Rejected(delegated)
    if not isinstance(value.get("data"), dict):
        raise _fault(value)
    try:
        envelope = _ENVELOPE.decode(body)
    except msgspec.ValidationError:
        raise _fault(value) from None
    queue_s, total_s = _timeouts(envelope.timeouts) if envelope.timeouts else (None, None)
    return JobRequest(
        containers=envelope.containers,
        data=bytes(envelope.data),
        requires_proof=bool(envelope.requires_proof),
        queue_timeout_s=queue_s,
        timeout_s=total_s,
    )


def _fault(value: dict[str, Any]) -> Rejected:
    """The first field that is not as it must be."""
    if not _strings(value.get("containers")):
        return _unreadable("containers: expected a list of strings")
    if not isinstance(value.get("data"), dict):
        return _unreadable("data: expected an object")
    if not isinstance(value.get("requires_proof"), bool | None):
        return _unreadable("requires_proof: expected true, false or null")
    return _unreadable("timeouts: expected an object with queue_s and total_s")


def _timeouts(value: dict[str, Any]) -> tuple[float | None, float | None]:
    """Our own addition to a request: `{"queue_s": 60, "total_s": 600}`, both optional; the node's own hold as well."""
    if not value.keys() <= {"queue_s", "total_s"}:
        raise _unreadable("timeouts: expected an object with queue_s and total_s")
    for name, seconds in value.items():
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < shapes.MAX_TIMEOUT_S:
            raise _unreadable(f"timeouts.{name}: expected seconds, more than 0")
    return value.get("queue_s"), value.get("total_s")


def report(body: bytes) -> tuple[str, State, list[str]]:
    """Id, state and containers of a job that somebody else runs."""
    value = _checked(body)
    job_id, status, containers = value.get("id"), value.get("status"), value.get("containers")
    if not isinstance(status, str) or status not in REPORTED:
        raise Rejected("Status is invalid", allowed=sorted(REPORTED))
    if not isinstance(job_id, str) or not 0 < len(job_id) <= shapes.MAX_ID_CHARS or not _strings(containers):
        raise Rejected("Could not store job status", reason="expected id (a string) and containers (strings)")
    return job_id, REPORTED[status], containers


def _checked(body: bytes) -> dict[str, Any]:
    try:
        value = payload.check(body)
    except payload.NotStrict as error:
        raise _unreadable(str(error)) from None
    if not isinstance(value, dict):
        raise _unreadable("expected an object")
    return value


def _unreadable(reason: str) -> Rejected:
    return Rejected("Could not parse message", reason=reason)


def _strings(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
