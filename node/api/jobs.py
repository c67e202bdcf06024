"""Our own additions to a job, beside Infernet's routes."""

from aiohttp import web

from node.api import examples, shapes
from node.api.middleware import CALLER
from node.api.reply import reply
from node.api.route import Answer, Parameter, Route
from node.jobs import Role
from node.orchestrator import Orchestrator

DEAD_SHOWN = 1000

JOB_ID = Parameter(name="id", where="path", about="The job's id.", pattern="[0-9a-f-]{36}")


class Jobs:
    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator

    def routes(self) -> list[Route]:
        return [
            Route(
                method="DELETE",
                path="/api/jobs/{id}",
                handler=self.cancel,
                name="cancel_job",
                tag="jobs",
                summary="Cancel a job",
                role=Role.SUBMIT,
                parameters=(JOB_ID,),
                answers={
                    200: Answer(about="Cancelled.", kind=shapes.JobResult, examples={"cancelled": examples.CANCELLED})
                },
                errors=(examples.UNKNOWN, examples.ENDED),
            ),
            Route(
                method="POST",
                path="/api/jobs/{id}/retry",
                handler=self.retry,
                name="retry_job",
                tag="jobs",
                summary="Run a failed job on",
                role=Role.SUBMIT,
                parameters=(JOB_ID,),
                answers={
                    200: Answer(
                        about="The job that goes on from there.",
                        kind=shapes.Accepted,
                        examples={"accepted": examples.ACCEPTED},
                        leads_to=("find_jobs", "cancel_job"),
                    )
                },
                errors=(examples.NO_CONTAINER, examples.UNKNOWN, examples.NOT_FAILED, examples.STOPPING),
            ),
            Route(
                method="GET",
                path="/api/dead",
                handler=self.dead,
                name="get_dead_jobs",
                tag="jobs",
                summary="Jobs that somebody should look at",
                role=Role.READ,
                answers={
                    200: Answer(about="Newest first.", kind=list[shapes.JobResult], examples={"one": [examples.DEAD]})
                },
            ),
        ]

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """Stop a job; its result, `failed` with an error that starts with `cancelled:`. 409 when it has ended."""
        job = await self._orchestrator.cancel(request.match_info["id"], request[CALLER])
        return reply(shapes.job_result(job, intermediate=True))

    async def retry(self, request: web.Request) -> web.StreamResponse:
        """`{"id"}` of the job that goes on from the step in which this one failed. 409 when it has not failed."""
        return reply({"id": await self._orchestrator.retry(request.match_info["id"], request[CALLER])})

    async def dead(self, request: web.Request) -> web.StreamResponse:
        """The latest jobs that failed by no fault that their container told of: their worker died too often, or their
        record is broken. Newest first, each as a result."""
        jobs = await self._orchestrator.dead(request[CALLER], DEAD_SHOWN)
        return reply([shapes.job_result(job, intermediate=False) for job in jobs])
