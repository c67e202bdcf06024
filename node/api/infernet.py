"""The Infernet node API (v1.4 and the v0.1 page it comes from), answered as its clients expect it.

Where the original breaks its own documentation, this door keeps the documentation: errors are JSON with the right
status, results come in the order asked, a bad item of a batch has its own error in its own place.
"""

import asyncio
import contextlib
import time
from typing import Any

import structlog
from aiohttp import web

from node import __version__
from node.api import body, examples, shapes
from node.api.middleware import CALLER, HEADERS, ONCE, once, read_json
from node.api.reply import reply
from node.api.route import Answer, Body, Parameter, Route
from node.config import Server
from node.errors import SHOWN_CHARS, Forbidden, NotFound, Refusal, Rejected, Unavailable
from node.guardian import demand, within
from node.jobs import JobRequest, Role
from node.orchestrator import Orchestrator
from node.service import StepFailed

log = structlog.get_logger()

ID_ALONE_S = 0.05  # nothing follows a stream's id sooner: all that infernet-client's first read finds is the id to it
STREAM = "application/octet-stream"


class Infernet:
    def __init__(self, orchestrator: Orchestrator, settings: Server) -> None:
        self._orchestrator = orchestrator
        self._settings = settings

    def routes(self) -> list[Route]:
        return [*self._about_jobs(), *self._about_the_node()]

    def _about_jobs(self) -> list[Route]:
        return [
            Route(
                method="POST",
                path="/api/jobs",
                handler=self.submit,
                name="submit_job",
                tag="jobs",
                summary="Submit a job",
                role=Role.SUBMIT,
                parameters=(ONCE,),
                body=Body(kind=shapes.JobRequest, examples={"chain": examples.CHAIN}),
                answers={
                    200: Answer(
                        about="Accepted.",
                        kind=shapes.Accepted,
                        examples={"accepted": examples.ACCEPTED},
                        leads_to=("find_jobs", "cancel_job", "retry_job"),
                    )
                },
                errors=(*examples.OF_SUBMITS, examples.TOO_MANY_JOBS, examples.QUEUE_FULL, examples.USED_BEFORE),
            ),
            Route(
                method="POST",
                path="/api/jobs/batch",
                handler=self.submit_batch,
                name="submit_jobs",
                tag="jobs",
                summary="Submit many jobs at once",
                role=Role.SUBMIT,
                parameters=(ONCE,),
                body=Body(kind=list[shapes.JobRequest], examples={"two": [examples.CHAIN, examples.CHAIN]}),
                answers={
                    200: Answer(
                        about="One answer for each item, in its place: accepted, or why not.",
                        kind=list[shapes.Accepted | shapes.Error],
                        examples={"one_of_two": [examples.ACCEPTED, shapes.error(examples.NO_CONTAINER)]},
                    )
                },
                errors=(*examples.OF_BODIES, examples.NOT_A_LIST, examples.BATCH_TOO_LARGE, examples.USED_BEFORE),
            ),
            Route(
                method="POST",
                path="/api/jobs/stream",
                handler=self.stream,
                name="stream_job",
                tag="jobs",
                summary="Run one container and relay what it sends",
                role=Role.SUBMIT,
                body=Body(kind=shapes.StreamRequest, examples={"one": examples.STREAM}),
                answers={
                    200: Answer(
                        about="The job's id on a line of its own, then the container's bytes.",
                        kind=Any,
                        examples={},
                        media=STREAM,
                    )
                },
                errors=(
                    *examples.OF_SUBMITS,
                    examples.ONE_CONTAINER,
                    examples.NOT_READY,
                    examples.TOO_MANY_STREAMS,
                    examples.OWN_STREAMS,
                ),
            ),
            Route(
                method="GET",
                path="/api/jobs",
                handler=self.find,
                name="find_jobs",
                tag="jobs",
                summary="Results by id, or one's job ids",
                role=Role.READ,
                parameters=(
                    Parameter(name="id", where="query", about="An id, as often as there are.", kind=list[str]),
                    Parameter(
                        name="intermediate",
                        where="query",
                        about="`true`: with the results of the steps before the last.",
                        kind=bool,
                    ),
                    Parameter(
                        name="pending",
                        where="query",
                        about="Without `id`. `true`: only jobs that have not ended; `false`: only those that have.",
                        kind=bool,
                    ),
                    Parameter(
                        name="limit",
                        where="query",
                        about="Without `id`. At most so many of one's own, the oldest first.",
                        kind=shapes.PageSize,
                    ),
                    Parameter(
                        name="after",
                        where="query",
                        about="An id of that list: only what stands behind it, at most 10,000 without `limit`.",
                        kind=shapes.JobId,
                    ),
                ),
                answers={
                    200: Answer(
                        about="With `id` results in the order asked, unknown ids left out; else ids, oldest first.",
                        kind=list[shapes.JobResult] | list[str],
                        examples={"results": [examples.RESULT], "ids": [examples.ID]},
                    )
                },
                errors=(examples.NO_PAGE, examples.UNKNOWN_ALL, examples.ANSWER_TOO_LARGE),
            ),
            Route(
                method="PUT",
                path="/api/status",
                handler=self.report,
                name="report_status",
                tag="jobs",
                summary="Report the state of a job that somebody else runs",
                role=Role.ADMIN,
                body=Body(
                    kind=shapes.StatusReport,
                    examples={"ended": examples.STATUS_REPORT},
                ),
                answers={200: Answer(about="Recorded.", kind=None, examples={"null": None})},
                errors=(*examples.OF_BODIES, examples.NO_SUCH_STATUS, examples.OTHER_NETWORK),
            ),
        ]

    def _about_the_node(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/health",
                handler=self.health,
                name="get_health",
                tag="health",
                summary="Could a job be accepted",
                role=None,
                answers={
                    200: Answer(about="Yes.", kind=shapes.Health, examples={"healthy": examples.HEALTHY}),
                    503: Answer(
                        about="No.",
                        kind=shapes.Health,
                        examples={"unhealthy": examples.UNHEALTHY},
                    ),
                },
            ),
            Route(
                method="GET",
                path="/info",
                handler=self.info,
                name="get_info",
                tag="node",
                summary="The containers, and jobs pending",
                role=Role.READ,
                parameters=(
                    Parameter(
                        name="verbose",
                        where="query",
                        about="`true`: every container and how it is. Role: `admin`.",
                        kind=bool,
                    ),
                ),
                answers={200: Answer(about="The node.", kind=shapes.Info, examples={"one_container": examples.INFO})},
                errors=(examples.SMALL_KEY,),
            ),
            Route(
                method="GET",
                path="/resources",
                handler=self.resources,
                name="get_resources",
                tag="node",
                summary="What the containers offer",
                role=Role.READ,
                parameters=(
                    Parameter(name="model_id", where="query", about="Whether they support this model, instead."),
                ),
                answers={
                    200: Answer(
                        about="By container; those that say nothing are left out.",
                        kind=dict[str, Any],
                        examples={"language": examples.RESOURCES},
                    )
                },
            ),
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
        containers = self._orchestrator.containers.values()
        verbose = request.query.get("verbose") == "true"
        if verbose:
            demand(request[CALLER], Role.ADMIN)
        told: shapes.Info = {
            "chain": {"address": "", "enabled": False},
            "containers": [shapes.container(each) for each in containers if each.ready],
            "pending": {"offchain": await self._pending(verbose), "onchain": 0},
            "version": __version__,
        }
        if verbose:
            told["containers"] = [shapes.container_health(each) for each in containers]
        return reply(told)

    async def _pending(self, verbose: bool) -> int | None:
        """Who looks at the containers wants to see them without the store as well; then the number is null."""
        try:
            return await self._orchestrator.pending_count()
        except Unavailable:
            if verbose:
                return None
            raise

    async def resources(self, request: web.Request) -> web.StreamResponse:
        """What each container that is ready says of itself; all are asked, for half a second."""
        return reply(await self._orchestrator.resources(request.query.get("model_id")))

    async def submit(self, request: web.Request) -> web.StreamResponse:
        """Answered once the job is on disk; what became of it is found by its id."""
        job = body.job_request(await read_json(request))
        return reply({"id": await self._orchestrator.submit(job, request[CALLER], once=once(request))})

    async def submit_batch(self, request: web.Request) -> web.StreamResponse:
        """A bad item has its error in its own place and does not harm the others."""
        jobs = await body.job_requests(await read_json(request), self._settings.max_batch_items)
        answers = await self._orchestrator.submit_batch(jobs, request[CALLER], once=once(request))
        return reply([shapes.answer(answer) for answer in answers])

    async def find(self, request: web.Request) -> web.StreamResponse:
        """With `id`: those jobs' results, in the order asked. Without: the caller's job ids."""
        caller = request[CALLER]
        job_ids = request.query.getall("id", [])
        if not job_ids:
            pending = {"true": True, "false": False}.get(request.query.get("pending", ""))
            most, after = _page(request)
            return reply(await self._orchestrator.ids(caller, pending=pending, most=most, after=after))
        intermediate = request.query.get("intermediate") == "true"
        most = self._settings.max_answer_bytes
        jobs = await self._orchestrator.jobs(job_ids, caller, intermediate=intermediate, most_bytes=most)
        if not jobs and self._settings.unknown_ids == "404":
            raise NotFound("Job not found", id=[job_id[:SHOWN_CHARS] for job_id in job_ids[:10]])
        return reply([shapes.job_result(job, intermediate=intermediate) for job in jobs])

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """The job's id on a line of its own, then the container's bytes as they come.

        When the container fails midway the connection is aborted, so that no client takes what it has for the whole.
        """
        job = body.job_request(await read_json(request), delegated="Streaming only supported for OffchainJob requests.")
        return await self._relay(job, request)

    async def _relay(self, job: JobRequest, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": STREAM} | request[HEADERS])
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
        job_id, state, containers = body.report(await read_json(request))
        await self._orchestrator.report(job_id, state, containers, request[CALLER])
        return reply(None)


def _page(request: web.Request) -> tuple[int | None, str]:
    """Which part of a list is asked for: how many, behind which id. None and '' for all of it."""
    most, after = request.query.get("limit"), request.query.get("after", "")
    if most is None:
        return (shapes.MAX_PAGE if after else None), after
    if not most.isascii() or not most.isdigit() or not 1 <= int(most[:9]) <= shapes.MAX_PAGE:
        raise Rejected("limit is invalid", expected=f"1 to {shapes.MAX_PAGE}")
    return int(most[:9]), after
