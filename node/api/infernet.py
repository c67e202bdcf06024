"""The Infernet node API (v1.4 and the v0.1 page it comes from), answered as its clients expect it.

Where the original breaks its own documentation, this door keeps the documentation: errors are JSON with the right
status, results come in the order asked, a bad item of a batch has its own error in its own place.
"""

import asyncio
import contextlib
import time
from typing import Any, TypeGuard

import msgspec
import structlog
from aiohttp import web

from node import __version__, payload
from node.api.middleware import CALLER, HEADERS, once, read_json, reply
from node.config import Server
from node.errors import SHOWN_CHARS, Forbidden, NotFound, Refusal, Rejected, TooLarge, Unavailable
from node.guardian import demand, within
from node.jobs import ContainerError, ContainerResult, Job, JobRequest, Role, State
from node.orchestrator import Orchestrator
from node.registry import Health, Keeper
from node.service import StepFailed

log = structlog.get_logger()

STATUS = {
    State.QUEUED: "running",  # Infernet has three words, and its client polls while it reads this one
    State.RUNNING: "running",
    State.SUCCEEDED: "success",
    State.FAILED: "failed",
    State.CANCELLED: "failed",
}
MAX_TIMEOUT_S = 1e9
MAX_ID_CHARS = 128  # of an id that somebody else chose
ID_ALONE_S = 0.05  # nothing follows a stream's id sooner: all that infernet-client's first read finds is the id to it
TURN_BYTES = 64 * 1024  # of a batch, read at one go
REPORTED = {"running": State.RUNNING, "success": State.SUCCEEDED, "failed": State.FAILED}


class _Envelope(msgspec.Struct):
    containers: list[str]
    data: msgspec.Raw
    requires_proof: bool | None = None


class Infernet:
    def __init__(self, orchestrator: Orchestrator, settings: Server) -> None:
        self._orchestrator = orchestrator
        self._settings = settings
        self._streams = 0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self.health),
            web.get("/info", self.info),
            web.get("/resources", self.resources),
            web.post("/api/jobs", self.submit),
            web.post("/api/jobs/batch", self.submit_batch),
            web.post("/api/jobs/stream", self.stream),
            web.get("/api/jobs", self.find),
            web.put("/api/status", self.report),
        ]

    async def health(self, request: web.Request) -> web.StreamResponse:
        """`{"status": "healthy"}`, or 503 with a reason while no job could be accepted."""
        try:
            await self._orchestrator.check()
        except Unavailable as error:
            return reply({"reason": error.message, "status": "unhealthy"}, 503)
        return reply({"status": "healthy"})

    async def info(self, request: web.Request) -> web.StreamResponse:
        """The containers that are ready, and jobs pending. `?verbose=true`: every container and how it is."""
        keepers = self._orchestrator.keepers.values()
        verbose = request.query.get("verbose") == "true"
        if verbose:
            demand(request[CALLER], Role.ADMIN)
        if verbose:
            containers = [_container(keeper) | _health(keeper) for keeper in keepers]
        else:
            containers = [_container(keeper) for keeper in keepers if keeper.ready]
        return reply(
            {
                "chain": {"address": "", "enabled": False},
                "containers": containers,
                "pending": {"offchain": await self._pending(verbose), "onchain": 0},
                "version": __version__,
            }
        )

    async def _pending(self, verbose: bool) -> int | None:
        """Who looks at the containers wants to see them without the store as well; then the number is null."""
        try:
            return await self._orchestrator.pending_count()
        except Unavailable:
            if verbose:
                return None
            raise

    async def resources(self, request: web.Request) -> web.StreamResponse:
        return reply(await self._orchestrator.resources(request.query.get("model_id")))

    async def submit(self, request: web.Request) -> web.StreamResponse:
        job = _job_request(await read_json(request))
        return reply({"id": await self._orchestrator.submit(job, request[CALLER], once=once(request))})

    async def submit_batch(self, request: web.Request) -> web.StreamResponse:
        items = await _items(await read_json(request), self._settings.max_batch_items)
        jobs = await _read_all(items)
        answers = await self._orchestrator.submit_batch(jobs, request[CALLER], once=once(request))
        return reply([_answer(answer) for answer in answers])

    async def find(self, request: web.Request) -> web.StreamResponse:
        """With `id`: those jobs' results, in the order asked. Without: the caller's job ids."""
        caller = request[CALLER]
        job_ids = request.query.getall("id", [])
        if not job_ids:
            pending = {"true": True, "false": False}.get(request.query.get("pending", ""))
            return reply(await self._orchestrator.ids(caller, pending=pending))
        intermediate = request.query.get("intermediate") == "true"
        jobs = await self._orchestrator.jobs(job_ids, caller, intermediate=intermediate)
        if not jobs and self._settings.unknown_ids == "404":
            raise NotFound("Job not found", id=[job_id[:SHOWN_CHARS] for job_id in job_ids[:10]])
        return reply([job_result(job, intermediate=intermediate) for job in jobs])

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """The job's id on a line of its own, then the container's bytes as they come.

        Told the honest way: when the container fails midway the connection is aborted, so that no client takes what
        it has for the whole.
        """
        body = await read_json(request)
        job = _job_request(body, delegated="Streaming only supported for OffchainJob requests.")
        if self._streams >= self._settings.max_streams:
            limit = self._settings.max_streams
            raise Unavailable("Too many streams", retry_after_s=1, limit=limit, setting="server.max_streams")
        self._streams += 1
        try:
            return await self._relay(job, request)
        finally:
            self._streams -= 1

    async def _relay(self, job: JobRequest, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/octet-stream"} | request[HEADERS])
        async with contextlib.aclosing(self._orchestrator.stream(job, request[CALLER])) as parts:
            try:
                job_id = await anext(parts)
                await answer.prepare(request)
                await answer.write(job_id + b"\n")
                alone_until = time.monotonic() + ID_ALONE_S
                async for part in parts:
                    if (early := alone_until - time.monotonic()) > 0:
                        await asyncio.sleep(early)
                    await answer.write(part)
                await answer.write_eof()
            except (StepFailed, Refusal):
                if not answer.prepared:
                    raise
                if request.transport is not None:
                    request.transport.abort()
            except ConnectionError:  # the client went away; closing the iterator ends the job
                pass
        return answer

    async def report(self, request: web.Request) -> web.StreamResponse:
        """Record a job's state as somebody else's runner saw it. From the configured networks only."""
        if not within(request[CALLER].address, self._settings.status_networks):
            raise Forbidden("Unauthorized")
        body = _checked(await read_json(request))
        job_id, status, containers = body.get("id"), body.get("status"), body.get("containers")
        if not isinstance(status, str) or status not in REPORTED:
            raise Rejected("Status is invalid", allowed=sorted(REPORTED))
        if not isinstance(job_id, str) or not 0 < len(job_id) <= MAX_ID_CHARS or not _strings(containers):
            raise Rejected("Could not store job status", reason="expected id (a string) and containers (strings)")
        await self._orchestrator.report(job_id, REPORTED[status], containers, request[CALLER])
        return reply(None)


async def _items(body: bytes, limit: int) -> list[bytes]:
    try:
        items = await payload.split(body, limit)
    except payload.NotStrict as error:
        raise Rejected("Expected a list", reason=str(error)) from None
    if len(items) > limit:
        raise TooLarge("Batch too large", limit=limit)
    return items


async def _read_all(items: list[bytes]) -> list[JobRequest | Refusal]:
    """Each item as a request, or why it is none. Others have their turns meanwhile."""
    read: list[JobRequest | Refusal] = []
    size = 0
    for item in items:
        read.append(_read(item))
        size += len(item)
        if size > TURN_BYTES:
            size = 0
            await asyncio.sleep(0)
    return read


def _read(item: bytes) -> JobRequest | Refusal:
    try:
        return _job_request(item)
    except Refusal as refusal:
        return refusal


def _job_request(body: bytes, *, delegated: str = "Chain not enabled") -> JobRequest:
    """A body as a request. Other fields, such as `id`, `ip` or `status`, are not looked at."""
    value = _checked(body)
    if "signature" in value and "subscription" in value:
        raise Rejected(delegated)
    if not _strings(value.get("containers")):
        raise _unreadable("containers: expected a list of strings")
    if not isinstance(value.get("data"), dict):
        raise _unreadable("data: expected an object")
    if not isinstance(value.get("requires_proof"), bool | None):
        raise _unreadable("requires_proof: expected true, false or null")
    queue_s, total_s = _timeouts(value.get("timeouts"))
    envelope = msgspec.json.decode(body, type=_Envelope)
    return JobRequest(
        containers=tuple(envelope.containers),
        data=bytes(envelope.data),
        requires_proof=bool(envelope.requires_proof),
        queue_timeout_s=queue_s,
        timeout_s=total_s,
    )


def _timeouts(value: Any) -> tuple[float | None, float | None]:
    """Our own addition to a request: `{"queue_s": 60, "total_s": 600}`, both optional; the node's own hold as well."""
    if value is None:
        return None, None
    if not isinstance(value, dict) or not value.keys() <= {"queue_s", "total_s"}:
        raise _unreadable("timeouts: expected an object with queue_s and total_s")
    for name, seconds in value.items():
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < MAX_TIMEOUT_S:
            raise _unreadable(f"timeouts.{name}: expected seconds, more than 0")
    return value.get("queue_s"), value.get("total_s")


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


def _answer(answer: str | Refusal) -> dict[str, Any]:
    if isinstance(answer, Refusal):
        return {"error": answer.message, "params": answer.params}
    return {"id": answer}


def job_result(job: Job, *, intermediate: bool) -> dict[str, Any]:
    """Infernet's JobResult: `{"id", "intermediate_results"?, "result", "status"}`."""
    shown: dict[str, Any] = {"id": job.id}
    if intermediate:
        shown["intermediate_results"] = [_outcome(output) for output in job.intermediate]
    return shown | {"result": _outcome(job.result) if job.result else None, "status": STATUS[job.state]}


def _outcome(result: ContainerResult) -> dict[str, Any]:
    if isinstance(result, ContainerError):
        return {"container": result.container, "error": result.error}
    return {"container": result.container, "output": msgspec.Raw(result.output)}


def _container(keeper: Keeper) -> dict[str, Any]:
    spec = keeper.spec
    return {"description": spec.description, "external": spec.external, "id": spec.id, "image": spec.image}


def _health(keeper: Keeper) -> dict[str, Any]:
    health: Health = keeper.health
    return {
        "backend": keeper.backend_name,
        "last_error": health.last_error,
        "log_tail": list(health.log_tail),
        "loosened": list(keeper.loosened),
        "reason": health.reason,
        "restarts": health.restarts,
        "since": health.since,
        "state": health.phase.value,
    }
