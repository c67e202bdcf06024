"""One running container over HTTP: Infernet's container contract, and how each way of breaking it is told.

The contract (Infernet v1.4): `POST /service_output` with `{"source", "destination", "data", "requires_proof"}` answers
JSON; a stream answers bytes in chunks. `GET /service-resources` is optional. Any answer to `GET /` means that it is up.
"""

import asyncio
import errno
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import IntEnum
from io import BytesIO
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from node import payload
from node.config import ContainerSpec
from node.config.faults import masked
from node.errors import readable
from node.jobs import ContainerError, ContainerOutput, ContainerResult

EXCERPT_CHARS = 500  # of a container's error text
KEEPALIVE_S = 15.0
PROBE_S = 2.0
RESOURCES_S = 0.5
NOT_NOW = (502, 503, 504)  # statuses that say: not begun, try again
CHUNK_BYTES = 64 * 1024
LARGE_BYTES = 1024 * 1024  # a larger body is sent piece by piece, so that the loop is not held up


class Location(IntEnum):
    """Where a payload comes from or goes to, in the container contract."""

    ONCHAIN = 0
    OFFCHAIN = 1
    STREAM = 2


class StepFailed(Exception):
    """A container broke the contract; the text names the container and the fact. It becomes a `ContainerError`."""

    def __init__(self, message: str, *, again: bool = False, broke: bool = False) -> None:
        """broke: there was no connection, or it broke; whoever keeps the container may know why."""
        super().__init__(readable(message))
        self.again = again
        self.broke = broke


class Service:
    """HTTP client of one container. `url` is set by the registry each time the container comes up somewhere.

    `why_down` is asked when a connection broke: how the container ended, or what else befell it, in words, or nothing.
    """

    def __init__(self, spec: ContainerSpec, why_down: Callable[[], Awaitable[str]] | None = None) -> None:
        self.spec = spec
        self.url = ""
        self._why_down = why_down

    @property
    def address(self) -> str:
        """`url` for a reader: a user and password in it are masked."""
        return str(masked(self.url))

    async def __aenter__(self) -> Self:
        bearer = self.spec.bearer.get_secret_value()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),  # the lane's slots are the limit
            timeout=aiohttp.ClientTimeout(total=None),  # each call has its own deadline
            headers={"Authorization": f"Bearer {bearer}"} if bearer else {},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def call(self, data: bytes, *, requires_proof: bool) -> ContainerResult:
        """Run one step: `data` in, the container's JSON out, both as exact text."""
        try:
            async with asyncio.timeout(self.spec.timeout_s):
                output = await self._output(_body(data, Location.OFFCHAIN, requires_proof))
        except TimeoutError:
            return ContainerError(container=self.spec.id, error=self._too_late, again=self.spec.idempotent)
        except StepFailed as failure:
            return ContainerError(container=self.spec.id, error=await self._cause(failure), again=failure.again)
        return ContainerOutput(container=self.spec.id, output=output)

    async def _output(self, body: bytes) -> bytes:
        async with self._post(body) as answer:
            if answer.status >= 300:
                raise await self._refused(answer)
            raw = await self._read(answer, self.spec.max_output_bytes)
            self._check(raw, answer.headers.get("Content-Type", ""))
            return raw

    async def _refused(self, answer: aiohttp.ClientResponse) -> StepFailed:
        raw = await self._read(answer, CHUNK_BYTES, cut=True)
        words = f"{self._name}: answered HTTP {answer.status}: {_excerpt(raw)}"
        return StepFailed(words, again=answer.status in NOT_NOW)

    def _check(self, raw: bytes, content_type: str) -> None:
        if not raw:
            raise StepFailed(f"{self._name}: answered with an empty body")
        if not payload.is_json(content_type):
            raise StepFailed(f"{self._name}: answered {content_type or 'no content type'}, not JSON: {_excerpt(raw)}")
        try:
            payload.check(raw)
        except payload.NotStrict as error:
            raise StepFailed(f"{self._name}: its answer is not valid JSON ({error}): {_excerpt(raw)}") from None

    async def stream(self, data: bytes, *, requires_proof: bool) -> AsyncGenerator[bytes, None]:
        """The bytes that the container sends, as they come. Raises `StepFailed`."""
        size = 0
        # Not asyncio.timeout: it would strike whoever consumes this generator, outside of it.
        timeout = aiohttp.ClientTimeout(total=self.spec.timeout_s)
        try:
            async with self._post(_body(data, Location.STREAM, requires_proof), timeout=timeout) as answer:
                if answer.status != 200:
                    raise await self._refused(answer)
                async for chunk in answer.content.iter_any():
                    size += len(chunk)
                    if size > self.spec.max_output_bytes:
                        raise StepFailed(self._too_long)
                    yield chunk
        except TimeoutError:
            raise StepFailed(self._too_late) from None
        except StepFailed as failure:
            raise StepFailed(await self._cause(failure)) from failure

    async def _cause(self, failure: StepFailed) -> str:
        """What to tell of a failure: rather how the container ended than that its connection broke."""
        if failure.broke and self._why_down is not None and (ended := await self._why_down()):
            return readable(f"{self._name}: {ended} during the step")
        return str(failure)

    async def resources(self, model_id: str | None) -> Any:
        """What `GET /service-resources` says; None when it says nothing usable within half a second.

        It is optional for a service, and the clients of `GET /resources` wait for one second only.
        """
        query = {} if model_id is None else {"model_id": model_id}
        try:
            async with asyncio.timeout(RESOURCES_S), self._request("GET", "/service-resources", params=query) as answer:
                raw = await self._read(answer, self.spec.max_output_bytes)
                return payload.check(raw) if answer.status == 200 else None
        except (StepFailed, TimeoutError, payload.NotStrict):
            return None

    async def answers(self) -> bool:
        """Is it up: does it answer HTTP at all."""
        try:
            async with asyncio.timeout(PROBE_S), self._request("GET", "/"):
                return True
        except (StepFailed, TimeoutError):
            return False

    def _post(self, body: bytes, **options: Any) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        headers = {"Content-Type": payload.MEDIA_TYPE}
        data = BytesIO(body) if len(body) > LARGE_BYTES else body
        return self._request("POST", "/service_output", data=data, headers=headers, **options)

    @asynccontextmanager
    async def _request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        replied = False
        try:
            async with self._session.request(method, self.url + path, allow_redirects=False, **options) as answer:
                replied = True
                yield answer
        except aiohttp.ClientConnectorError as error:
            raise StepFailed(
                f"{self._name}: cannot connect: {_reason(error.os_error)}", again=True, broke=True
            ) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            words = " ".join(str(error).split())[:EXCERPT_CHARS] or type(error).__name__
            cut_off = isinstance(error, aiohttp.ServerDisconnectedError | ConnectionError) and not replied
            raise StepFailed(f"{self._name}: the connection broke: {words}", again=cut_off, broke=True) from error

    async def _read(self, answer: aiohttp.ClientResponse, limit: int, *, cut: bool = False) -> bytes:
        """The body, at most `limit` bytes; more is an error, or is left out if `cut`."""
        declared = answer.content_length
        if declared is not None and declared > limit and not cut:
            raise StepFailed(self._too_long)
        parts = []
        size = 0
        async for part in answer.content.iter_chunked(CHUNK_BYTES):
            parts.append(part)
            size += len(part)
            if size > limit:
                if cut:
                    break
                raise StepFailed(self._too_long)
        return b"".join(parts)

    @property
    def _name(self) -> str:
        return f"container '{self.spec.id}'"

    @property
    def _too_late(self) -> str:
        return f"{self._name}: timeout after {self.spec.timeout_s:g} s (timeout_s)"

    @property
    def _too_long(self) -> str:
        return f"{self._name}: its answer is over the limit of {self.spec.max_output_bytes} bytes (max_output_bytes)"


def _body(data: bytes, destination: Location, requires_proof: bool) -> bytes:
    return b'{"source":%d,"destination":%d,"data":%b,"requires_proof":%b}' % (
        Location.OFFCHAIN,
        destination,
        data,
        b"true" if requires_proof else b"false",
    )


def _reason(error: OSError) -> str:
    """Of a failed connection: the loops put addresses, or nothing, where the system's words are expected."""
    if error.errno and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _excerpt(raw: bytes) -> str:
    """The start of an error body for a reader; of the services' own error shape only the description."""
    try:
        told = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        told = None
    if isinstance(told, dict):
        words = next((told[key] for key in ("description", "error", "detail", "message") if told.get(key)), None)
        if words:
            return (words if isinstance(words, str) else json.dumps(words))[:EXCERPT_CHARS]
    return " ".join(raw[: EXCERPT_CHARS * 4].decode("utf-8", "replace").split())[:EXCERPT_CHARS] or "no text"
