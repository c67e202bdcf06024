"""What every request passes, whatever its door: who calls, how often, its request id, and errors as JSON."""

import math
import os
import re
from typing import Any

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from node import payload
from node.api.identity import Identity
from node.api.route import Parameter, needed, pattern_of
from node.config import Server
from node.errors import (
    SHOWN_CHARS,
    RateLimited,
    Refusal,
    Rejected,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
    readable,
)
from node.jobs import Caller
from node.store import Limit

log = structlog.get_logger()

STATUS = {
    "rejected": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "too_slow": 408,
    "too_large": 413,
    "uri_too_long": 414,
    "unsupported_media": 415,
    "mismatch": 422,
    "rate_limited": 429,
    "headers_too_large": 431,
    "unavailable": 503,
}
SERVER = {"Server": "stoker"}  # else the framework tells its version, and Python's
REQUEST_ID = "X-Request-ID"
IDEMPOTENCY_KEY = "Idempotency-Key"
CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
HEADERS: web.RequestKey[dict[str, str]] = web.RequestKey("headers", dict[str, str])
"""What every answer to the request carries: its id, and how many more may come."""
HELD: web.RequestKey[int] = web.RequestKey("held", int)
"""Bytes of its body that are counted."""

REPORTS = ("PUT", "/api/status")  # not counted: a runner elsewhere reports each of its jobs

SMALL_BODY_BYTES = 64 * 1024

_TOKEN = re.compile(r"[A-Za-z0-9._-]{1,128}")


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer: compact, one newline at the end, as the original node writes it."""
    body = msgspec.json.encode(value) + b"\n"
    return web.Response(body=body, status=status, content_type=payload.MEDIA_TYPE, headers=SERVER | (headers or {}))


def refused(refusal: Refusal) -> web.Response:
    """`{"error", "params"}` with the status of the error's code."""
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(refusal.retry_after_s)))}
    if isinstance(refusal, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return reply({"error": refusal.message, "params": refusal.params}, STATUS[refusal.code], headers)


async def read_json(request: web.Request) -> bytes:
    """The body of a request that must be JSON; not parsed yet."""
    content_type = request.headers.get("Content-Type", "")
    if not payload.is_json(content_type) or (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMedia("Content-Type must be application/json, in UTF-8", content_type=shown(content_type))
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia("Compressed bodies are not supported", content_encoding=shown(encoding))
    return await request.app[BODIES].read(request)


class Bodies:
    """Reads bodies, each up to its limit, and all that are under way or worked on up to another."""

    def __init__(self, settings: Server) -> None:
        self._limit_bytes = settings.max_body_bytes
        self._together_bytes = settings.max_bodies_bytes
        self._held_bytes = 0

    async def read(self, request: web.Request) -> bytes:
        """Raises `TooLarge`, if it can before the body has come, or `Unavailable`. A small body is always read.

        The bytes are held until `release`.
        """
        if (request.content_length or 0) > self._limit_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        while part := await request.content.readany():
            parts.append(part)
            size += len(part)
            if size > self._limit_bytes:
                raise self._too_large()
            if size > SMALL_BODY_BYTES:
                self._hold(request, size)
        return b"".join(parts)

    def _hold(self, request: web.Request, size: int) -> None:
        more = size - request.get(HELD, 0)
        if self._held_bytes + more > self._together_bytes:
            limit, setting = self._together_bytes, "server.max_bodies_bytes"
            raise Unavailable("Too many large bodies", retry_after_s=1, limit_bytes=limit, setting=setting)
        self._held_bytes += more
        request[HELD] = size

    def release(self, request: web.Request) -> None:
        """The request is answered, or given up."""
        self._held_bytes -= request.get(HELD, 0)

    def _too_large(self) -> TooLarge:
        return TooLarge("Body too large", limit_bytes=self._limit_bytes)


BODIES: web.AppKey[Bodies] = web.AppKey("bodies", Bodies)


def shown(header: str) -> str:
    """A header's start, without the bytes that were no text."""
    return readable(header[:SHOWN_CHARS])


ONCE = Parameter(
    name=IDEMPOTENCY_KEY,
    where="header",
    about="A name for this request. When it comes again within a day or so, the answer is that of the first time.",
    pattern="[!-~]{1,255}",
)


def once(request: web.Request) -> str:
    """The `Idempotency-Key` of a request, or ""."""
    name = request.headers.get(IDEMPOTENCY_KEY)
    if name is None:
        return ""
    if not re.fullmatch(ONCE.pattern, name):
        raise Rejected("Idempotency-Key is invalid", expected="1 to 255 visible ASCII characters")
    return name


def guard(identity: Identity, limit: Limit | None) -> Middleware:
    """The middleware of an application."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = _request_id(request)
        request[HEADERS] = {REQUEST_ID: request_id} | SERVER
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            request[CALLER] = await (_counted(request, identity, limit) if limit else identity.caller(request))
            answer = await handler(request)
        except Refusal as refusal:
            answer = refused(refusal)
        except web.HTTPException as error:
            answer = framework_error(request, error)
        except Exception:  # the one place: a fault of ours is told to the log, and to the client only its id
            log.exception("request_failed", method=request.method, path=request.path)
            answer = reply({"error": "Internal error", "params": {"request_id": request_id}}, 500)
        finally:
            request.app[BODIES].release(request)
        if not answer.prepared:
            answer.headers.update(request[HEADERS])
        return answer

    return middleware


async def _counted(request: web.Request, identity: Identity, limit: Limit) -> Caller:
    """The caller, whose request is counted by method and route; a refused one by its address."""
    path = pattern_of(request)
    try:
        caller = await identity.caller(request)
    except Unauthorized:
        await _count(request, limit, identity.address(request), Unauthorized.code)
        raise
    if needed(request) is not None and (request.method, path) != REPORTS:
        await _count(request, limit, caller.id, request.method, path or "-")
    return caller


async def _count(request: web.Request, limit: Limit, *names: str) -> None:
    """Raises `RateLimited`; in any case the answer tells how many more may come."""
    standing = await limit.hit(*names)
    if standing is None:
        return
    request[HEADERS].update(
        {
            "RateLimit-Limit": str(standing.limit),
            "RateLimit-Remaining": str(standing.remaining),
            "RateLimit-Reset": str(math.ceil(standing.reset_s)),
        }
    )
    if not standing.allowed:
        again = max(1.0, standing.reset_s)
        raise RateLimited("Too many requests", retry_after_s=again, limit=standing.limit, period_s=limit.period_s)


def _request_id(request: web.Request) -> str:
    given = request.headers.get(REQUEST_ID)
    return given if given and _TOKEN.fullmatch(given) else os.urandom(8).hex()


def framework_error(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    """What the framework refuses by itself, as JSON."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        if request.method == "OPTIONS":
            return web.Response(headers={"Allow": allowed})
        params = {"method": request.method, "allowed": sorted(error.allowed_methods)}
        return reply({"error": error.reason, "params": params}, error.status, {"Allow": allowed})
    return reply({"error": error.reason, "params": {"path": request.path[:SHOWN_CHARS]}}, error.status)
