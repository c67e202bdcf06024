"""The HTTP application: all doors behind one middleware, and its server."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from node.api.health import Probes
from node.api.identity import Identity
from node.api.infernet import Infernet
from node.api.jobs import Jobs
from node.api.middleware import guard
from node.config import Server
from node.errors import SHOWN_CHARS, StokerError
from node.metrics import Metrics
from node.orchestrator import Orchestrator
from node.store import Limit

log = structlog.get_logger()

MAX_LINE_BYTES = 64 * 1024  # a poll of some 1,600 ids in one query
KEEPALIVE_S = 75.0
CLOSE_S = 5.0  # for requests under way when the server stops


def application(
    orchestrator: Orchestrator, settings: Server, metrics: Metrics, identity: Identity, limit: Limit | None
) -> web.Application:
    app = web.Application(middlewares=[guard(identity, limit)], client_max_size=settings.max_body_bytes)
    app.add_routes(Infernet(orchestrator, settings).routes())
    app.add_routes(Jobs(orchestrator).routes())
    app.add_routes(Probes(orchestrator, metrics).routes())
    return app


@asynccontextmanager
async def serving(app: web.Application, settings: Server) -> AsyncIterator[str]:
    """Serve while entered; yields the base URL."""
    runner = web.AppRunner(
        app,
        access_log=None,  # one line per transition is written instead
        handler_cancellation=True,  # a stream whose client went away must end
        auto_decompress=False,
        keepalive_timeout=KEEPALIVE_S,
        logger=_server_log(),
        max_line_size=MAX_LINE_BYTES,
        shutdown_timeout=CLOSE_S,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        try:
            await site.start()
        except OSError as error:
            reason = (error.strerror or str(error)).rpartition(": ")[2]  # the loop repeats the address before it
            raise StokerError(f"cannot listen on {settings.host}:{settings.port}: {reason}") from None
        host, port = runner.addresses[0][:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def _server_log() -> logging.Logger:
    logger = logging.Logger("server")
    logger.addHandler(_Events())
    return logger


class _Events(logging.Handler):
    """What the server says itself, as events of our log; of what is no HTTP one line, not a traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            log.warning("request_unreadable", reason=error.message.partition("\n")[0].rstrip(":")[:SHOWN_CHARS])
        elif record.levelno > logging.DEBUG:
            log.error("server_failed", reason=record.getMessage(), exc_info=error)
