"""The HTTP application: all doors behind one middleware, and its server."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from node.api.connections import MAX_HEADERS, MAX_LINE_BYTES, Connections
from node.api.health import MetricsText, Probes
from node.api.identity import Identity
from node.api.infernet import Infernet
from node.api.jobs import Jobs
from node.api.middleware import BODIES, Bodies, guard
from node.api.openapi import OpenApi
from node.api.origin import own_site
from node.api.place import BACKLOG
from node.api.route import serve
from node.config import Server
from node.orchestrator import Orchestrator
from node.store import Limit

KEEPALIVE_S = 75.0
LINGER_S = 5.0  # for the rest of a body that nobody wants, so that its sender gets to read the answer
CLOSE_S = 5.0  # for requests under way when the server stops


def application(
    orchestrator: Orchestrator, settings: Server, metrics_text: MetricsText, identity: Identity, limit: Limit | None
) -> web.Application:
    bodies = Bodies(settings)
    app = web.Application(middlewares=[guard(identity, limit, own_site(settings), bodies)])
    app[BODIES] = bodies
    doors = (Infernet(orchestrator, settings), Jobs(orchestrator), Probes(orchestrator, metrics_text))
    routes = [route for door in doors for route in door.routes()]
    serve(app, [*routes, *OpenApi(routes).routes()])
    return app


@asynccontextmanager
async def serving(
    app: web.Application, settings: Server, tls: ssl.SSLContext | None, sockets: Sequence[socket.socket]
) -> AsyncIterator[None]:
    """Serve while entered, on sockets that are bound; they are closed afterwards."""
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # a stream whose client went away must end
        shutdown_timeout=CLOSE_S,
    )
    await runner.setup()
    try:
        assert runner.server
        connections = Connections(
            runner.server,
            settings,
            access_log=None,  # one line per transition is written instead
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            max_headers=MAX_HEADERS,
            max_line_size=MAX_LINE_BYTES,
        )
        servers = [await _listening(connections, settings, tls, each) for each in sockets]
        try:
            yield
        finally:
            for server in servers:
                server.close()
    finally:
        await runner.cleanup()


async def _listening(
    connections: Connections, settings: Server, tls: ssl.SSLContext | None, bound: socket.socket
) -> asyncio.Server:
    return await asyncio.get_running_loop().create_server(
        connections,
        sock=bound,
        ssl=tls,
        backlog=BACKLOG,
        ssl_handshake_timeout=settings.request_timeout_s if tls else None,
        ssl_shutdown_timeout=CLOSE_S if tls else None,
    )
