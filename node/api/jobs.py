"""Our own additions to a job, beside Infernet's routes."""

from aiohttp import web

from node.api.infernet import job_result
from node.api.middleware import CALLER, reply
from node.orchestrator import Orchestrator


class Jobs:
    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator

    def routes(self) -> list[web.RouteDef]:
        return [web.delete("/api/jobs/{id:[0-9a-f-]{36}}", self.cancel)]

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """Stop a job; its result, `failed` with an error that starts with `cancelled:`. 409 when it has ended."""
        job = await self._orchestrator.cancel(request.match_info["id"], request[CALLER])
        return reply(job_result(job, intermediate=True))
