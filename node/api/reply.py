"""What the doors answer: JSON, with errors as `{"error", "params"}`, as the original node writes it."""

import math
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Any

import msgspec
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from node import payload
from node.errors import SHOWN_CHARS, Refusal, Unauthorized, readable

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
SERVER: dict[str, str] = {hdrs.SERVER: "stoker"}  # else the framework tells its version, and Python's
HEAD: dict[str, str] = {hdrs.CONTENT_TYPE: payload.MEDIA_TYPE} | SERVER

_JSON = msgspec.json.Encoder()


class Reply(web.StreamResponse):
    """An answer that is known whole. The framework's own one takes half of what a small answer costs to write its head:
    it must be ready for chunks, cookies and compression."""

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status=status, headers=headers)
        self.body = body
        self._stays_open: bool | None = None

    @property
    def keep_alive(self) -> bool | None:
        return self._stays_open

    def force_close(self) -> None:
        self._stays_open = False

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Write all of it."""
        if self._stays_open is None:
            self._stays_open = request.keep_alive
        major, minor = request.version
        self.headers[hdrs.CONTENT_LENGTH] = str(len(self.body))
        self.headers[hdrs.DATE] = _date(int(time.time()))
        if self._stays_open == (minor == 0):  # what the version alone does not say
            self.headers[hdrs.CONNECTION] = "keep-alive" if self._stays_open else "close"
        writer = request.writer
        await writer.write_headers(f"HTTP/{major}.{minor} {self.status} {self.reason}", self.headers)
        await writer.write_eof(b"" if request.method == hdrs.METH_HEAD else self.body)
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    """A JSON answer: compact, one newline at the end, as the original node writes it."""
    return Reply(_JSON.encode(value) + b"\n", status, HEAD | headers if headers else HEAD)


def refused(refusal: Refusal) -> Reply:
    """`{"error", "params"}` with the status of the error's code."""
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(refusal.retry_after_s)))}
    if isinstance(refusal, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return reply({"error": refusal.message, "params": refusal.params}, STATUS[refusal.code], headers)


def framework_error(request: web.BaseRequest, error: web.HTTPException) -> web.StreamResponse:
    """What the framework refuses by itself, as JSON."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        if request.method == "OPTIONS":
            return web.Response(headers={"Allow": allowed})
        params = {"method": request.method, "allowed": sorted(error.allowed_methods)}
        return reply({"error": error.reason, "params": params}, error.status, {"Allow": allowed})
    return reply({"error": error.reason, "params": {"path": request.path[:SHOWN_CHARS]}}, error.status)


def shown(header: str) -> str:
    """A header's start, without the bytes that were no text."""
    return readable(header[:SHOWN_CHARS])
