"""What every request passes, whatever its door: who calls, how often, its request id, and errors as JSON."""

import math
import os
import re
from collections.abc import Callable
from itertools import count

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from node import payload
from node.api.identity import Identity
from node.api.reply import SERVER, framework_error, refused, reply, shown
from node.api.route import Parameter, entry
from node.config import Server
from node.errors import RateLimited, Refusal, Rejected, TooLarge, Unauthorized, Unavailable, UnsupportedMedia
from node.jobs import Caller
from node.log import CURRENT_REQUEST
from node.store import Limit

log = structlog.get_logger()

REQUEST_ID = "X-Request-ID"
IDEMPOTENCY_KEY = "Idempotency-Key"
CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
HEADERS: web.RequestKey[dict[str, str]] = web.RequestKey("headers", dict[str, str])
"""What every answer to the request carries: its id, and how many more may come."""
HELD: web.RequestKey[int] = web.RequestKey("held", int)
"""Bytes of its body that are counted."""

REPORTS = ("PUT", "/api/status")  # not counted: a runner elsewhere reports each of its jobs

SMALL_BODY_BYTES = 64 * 1024

Rule = Callable[[web.Request, Caller], None]
"""Raises the `Refusal` of a request that breaks it."""

_TOKEN = re.compile(r"[A-Za-z0-9._-]{1,128}")


async def read_json(request: web.Request) -> bytes:
    """The body of a request that must be JSON; not parsed yet."""
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
    if content_type != payload.MEDIA_TYPE and not _is_json(request, content_type):
        raise UnsupportedMedia("Content-Type must be application/json, in UTF-8", content_type=shown(content_type))
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia("Compressed bodies are not supported", content_encoding=shown(encoding))
    return await request.app[BODIES].read(request)


def _is_json(request: web.Request, content_type: str) -> bool:
    charset = (request.charset or "utf-8").lower()
    return payload.is_json(content_type) and charset in ("utf-8", "utf8", "us-ascii")


class Bodies:
    """Reads bodies, each up to its limit, and all that are under way or worked on up to another."""

    def __init__(self, settings: Server) -> None:
        self._limit_bytes = settings.max_body_bytes
        self._small_bytes = min(SMALL_BODY_BYTES, settings.max_body_bytes)
        self._together_bytes = settings.max_bodies_bytes
        self._held_bytes = 0

    async def read(self, request: web.Request) -> bytes:
        """Raises `TooLarge`, if it can before the body has come, or `Unavailable`. A small body is always read.

        The bytes are held until `release`.
        """
        content = request.content
        if content.is_eof() and content.total_bytes <= self._small_bytes:  # it came with the head, as most do
            return content.read_nowait()
        if (request.content_length or 0) > self._limit_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        while part := await content.readany():
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
        if self._held_bytes:
            self._held_bytes -= request.get(HELD, 0)

    def _too_large(self) -> TooLarge:
        return TooLarge("Body too large", limit_bytes=self._limit_bytes)


BODIES: web.AppKey[Bodies] = web.AppKey("bodies", Bodies)


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


def guard(identity: Identity, limit: Limit | None, own_site: Rule, bodies: Bodies) -> Middleware:
    """The middleware of an application."""
    process, numbers = os.urandom(4).hex(), count(1)  # of requests that come without an id; nothing has to guess it

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = _given_id(request) or f"{process}{next(numbers):08x}"
        request[HEADERS] = {REQUEST_ID: request_id} | SERVER
        CURRENT_REQUEST.set(request_id)
        try:
            caller = await (_counted(request, identity, limit) if limit else identity.caller(request))
            own_site(request, caller)
            request[CALLER] = caller
            answer = await handler(request)
        except Refusal as refusal:
            answer = refused(refusal)
        except web.HTTPException as error:
            answer = framework_error(request, error)
        except Exception:  # the one place: a fault of ours is told to the log, and to the client only its id
            log.exception("request_failed", method=request.method, path=request.path)
            answer = reply({"error": "Internal error", "params": {"request_id": request_id}}, 500)
        finally:
            bodies.release(request)
        if not answer.prepared:
            answer.headers.update(request[HEADERS])
        return answer

    return middleware


async def _counted(request: web.Request, identity: Identity, limit: Limit) -> Caller:
    """The caller, whose request is counted by method and route; a refused one by its address."""
    asked = entry(request)
    try:
        caller = await identity.caller(request)
    except Unauthorized:
        await _count(request, limit, identity.address(request), Unauthorized.code)
        raise
    if asked.role is not None and (request.method, asked.path) != REPORTS:
        await _count(request, limit, caller.id, request.method, asked.path or "-")
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


def _given_id(request: web.Request) -> str:
    given = request.headers.get(REQUEST_ID)
    return given if given and _TOKEN.fullmatch(given) else ""
