"""What every request passes, whatever its door: who calls, how often, its request id, and errors as JSON."""

import os
import re
import time
from typing import Any

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from node import payload
from node.config import RateLimit
from node.errors import SHOWN_CHARS, RateLimited, Refusal, TooLarge, UnsupportedMedia
from node.jobs import Caller

log = structlog.get_logger()

STATUS = {
    "rejected": 400,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "too_large": 413,
    "unsupported_media": 415,
    "rate_limited": 429,
    "unavailable": 503,
}
REQUEST_ID = "X-Request-ID"
CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
NUMBER: web.RequestKey[str] = web.RequestKey("request_id", str)

_TOKEN = re.compile(r"[A-Za-z0-9._-]{1,128}")


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer: compact, one newline at the end, as the original node writes it."""
    body = msgspec.json.encode(value) + b"\n"
    return web.Response(body=body, status=status, content_type=payload.MEDIA_TYPE, headers=headers)


def refused(refusal: Refusal) -> web.Response:
    """`{"error", "params"}` with the status of the error's code."""
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(max(1, round(refusal.retry_after_s)))}
    return reply({"error": refusal.message, "params": refusal.params}, STATUS[refusal.code], headers)


async def read_json(request: web.Request) -> bytes:
    """The body of a request that must be JSON; not parsed yet."""
    content_type = request.headers.get("Content-Type", "")
    if not payload.is_json(content_type) or (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMedia("Content-Type must be application/json, in UTF-8", content_type=_shown(content_type))
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia("Compressed bodies are not supported", content_encoding=_shown(encoding))
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise TooLarge("Body too large", limit_bytes=request.client_max_size) from None


def _shown(header: str) -> str:
    """A header's start, without the bytes that were no text."""
    return header[:SHOWN_CHARS].encode("utf-8", "replace").decode()


def guard(rate_limit: RateLimit | None) -> Middleware:
    """The middleware of an application."""
    limiter = _Limiter(rate_limit) if rate_limit else None

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[NUMBER] = request_id = _request_id(request)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            address = request.remote or ""
            request[CALLER] = Caller(id=address, address=address)
            if limiter:
                await limiter.hit(request)
            answer = await handler(request)
        except Refusal as refusal:
            answer = refused(refusal)
        except web.HTTPException as error:
            answer = _framework_error(request, error)
        except Exception:  # the one place: a fault of ours is told to the log, and to the client only its id
            log.exception("request_failed", method=request.method, path=request.path)
            answer = reply({"error": "Internal error", "params": {"request_id": request_id}}, 500)
        if not answer.prepared:
            answer.headers[REQUEST_ID] = request_id
        return answer

    return middleware


def _request_id(request: web.Request) -> str:
    given = request.headers.get(REQUEST_ID)
    return given if given and _TOKEN.fullmatch(given) else os.urandom(8).hex()


def _framework_error(request: web.Request, error: web.HTTPException) -> web.Response:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        if request.method == "OPTIONS":
            return web.Response(headers={"Allow": allowed})
        params = {"method": request.method, "allowed": sorted(error.allowed_methods)}
        return reply({"error": error.reason, "params": params}, error.status, {"Allow": allowed})
    return reply({"error": error.reason, "params": {"path": request.path[:SHOWN_CHARS]}}, error.status)


class _Limiter:
    """A moving window per caller and route."""

    def __init__(self, settings: RateLimit) -> None:
        from limits import RateLimitItemPerSecond  # a slow import, for those who have a limit
        from limits.aio.storage import MemoryStorage
        from limits.aio.strategies import MovingWindowRateLimiter

        self._item = RateLimitItemPerSecond(settings.num_requests, max(1, round(settings.period)))
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def hit(self, request: web.Request) -> None:
        resource = request.match_info.route.resource
        route = resource.canonical if resource else "-"
        if not await self._limiter.hit(self._item, request[CALLER].id, request.method, route):
            reset_at, _ = await self._limiter.get_window_stats(self._item, request[CALLER].id, request.method, route)
            raise RateLimited(
                "Too many requests",
                retry_after_s=max(1.0, reset_at - time.time()),
                limit=self._item.amount,
                period_s=self._item.multiples,
            )
