"""Our own additions to a job, beside Infernet's routes."""

from aiohttp import web

from node.api.infernet import job_result
from node.api.middleware import CALLER, reply
from node.orchestrator import Orchestrator

DEAD_SHOWN = 1000


class Jobs:
    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator

    def routes(self) -> list[web.RouteDef]:
        return [
            web.delete("/api/jobs/{id:[0-9a-f-]{36}}", self.cancel),
            web.post("/api/jobs/{id:[0-9a-f-]{36}}/retry", self.retry),
            web.get("/api/dead", self.dead),
        ]

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """Stop a job; its result, `failed` with an error that starts with `cancelled:`. 409 when it has ended."""
        job = await self._orchestrator.cancel(request.match_info["id"], request[CALLER])
        return reply(job_result(job, intermediate=True))

    async def retry(self, request: web.Request) -> web.StreamResponse:
        """`{"id"}` of the job that goes on from the step in which this one failed. 409 when it has not failed."""
        return reply({"id": await self._orchestrator.retry(request.match_info["id"], request[CALLER])})

    async def dead(self, request: web.Request) -> web.StreamResponse:
        """The latest jobs that failed by no fault that their container told of: their worker died too often, or their
        record is broken. Newest first, each as a result."""
        jobs = await self._orchestrator.dead(request[CALLER], DEAD_SHOWN)
        return reply([job_result(job, intermediate=False) for job in jobs])
