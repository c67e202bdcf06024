"""For whoever watches the node: is it alive, should it be sent requests, what has it counted.

`/health` itself is Infernet's, and stands with its routes.
"""

from collections.abc import Awaitable, Callable

from aiohttp import web

from node.api import examples, shapes
from node.api.reply import reply
from node.api.route import Answer, Route
from node.jobs import Role
from node.metrics import CONTENT_TYPE
from node.orchestrator import Orchestrator

MetricsText = Callable[[], Awaitable[bytes]]
"""What all processes of the node have counted, as `CONTENT_TYPE`. Raises `Unavailable`."""


class Probes:
    def __init__(self, orchestrator: Orchestrator, metrics_text: MetricsText) -> None:
        self._orchestrator = orchestrator
        self._metrics_text = metrics_text

    def routes(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/health/live",
                handler=self.live,
                name="get_liveness",
                tag="health",
                summary="Is the node alive",
                role=None,
                answers={200: Answer(about="Yes.", kind=shapes.Live, examples={"live": examples.LIVE})},
            ),
            Route(
                method="GET",
                path="/health/ready",
                handler=self.ready,
                name="get_readiness",
                tag="health",
                summary="Should requests be sent here",
                role=None,
                answers={
                    200: Answer(about="Yes.", kind=shapes.Readiness, examples={"ready": examples.READY}),
                    503: Answer(about="No.", kind=shapes.Readiness, examples={"unready": examples.UNREADY}),
                },
            ),
            Route(
                method="GET",
                path="/metrics",
                handler=self.metrics,
                name="get_metrics",
                tag="node",
                summary="What the node has counted",
                role=Role.ADMIN,
                answers={200: Answer(about="For Prometheus.", kind=str, examples={}, media=CONTENT_TYPE)},
            ),
        ]

    async def live(self, request: web.Request) -> web.StreamResponse:
        """`{"status": "live"}` as long as the node's loop turns; nothing else is asked. No answer: start it anew."""
        return reply({"status": "live"})

    async def ready(self, request: web.Request) -> web.StreamResponse:
        """Should requests be sent here? 200, or 503 with `reasons`; within a second or so, whatever else stands still.

        `warnings` are things that somebody should look at although the node takes jobs.
        """
        readiness = await self._orchestrator.readiness()
        body: shapes.Readiness = {
            "reasons": list(readiness.reasons),
            "status": "unready" if readiness.reasons else "ready",
            "warnings": list(readiness.warnings),
        }
        return reply(body, 503 if readiness.reasons else 200)

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """The counters, in the text format of Prometheus."""
        return web.Response(body=await self._metrics_text(), headers={"Content-Type": CONTENT_TYPE})
