"""One running container over HTTP: Infernet's container contract, and how each way of breaking it is told.

The contract (Infernet v1.4): `POST /service_output` with `{"source", "destination", "data", "requires_proof"}` answers
JSON; a stream answers bytes in chunks. `GET /service-resources` is optional. Any answer to `GET /` means that it is up.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from enum import IntEnum
from types import TracebackType
from typing import Any, Self

import msgspec

from node import payload
from node.config import ContainerSpec
from node.config.faults import masked
from node.errors import BackendError, readable
from node.jobs import ContainerError, ContainerOutput, ContainerResult
from node.wire import Answer, Broken, Peer, Unreachable

EXCERPT_CHARS = 500  # of a container's error text
PROBE_S = 2.0
RESOURCES_S = 0.5
NOT_NOW = (502, 503, 504)  # statuses that say: not begun, try again
REFUSAL_BYTES = 64 * 1024  # of the body of a refusal that are read
JSON = payload.MEDIA_TYPE.encode()


class Location(IntEnum):
    """Where a payload comes from or goes to, in the container contract."""

    ONCHAIN = 0
    OFFCHAIN = 1
    STREAM = 2


def _opening(destination: Location) -> bytes:
    return b'{"source":%d,"destination":%d,"data":' % (Location.OFFCHAIN, destination)


TO_NODE = _opening(Location.OFFCHAIN)
TO_STREAM = _opening(Location.STREAM)
PROVED = b',"requires_proof":true}'
UNPROVED = b',"requires_proof":false}'


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
        self._why_down = why_down
        self._url = ""
        self._peer: Peer | None = None
        self._head = b""  # of each step's request

    @property
    def url(self) -> str:
        return self._url

    @url.setter
    def url(self, url: str) -> None:
        """Empty: nowhere. Connections to where it was are dropped. Raises `BackendError` if it is of no use."""
        try:
            peer = Peer(url, bearer=self.spec.bearer.get_secret_value()) if url else None
        except ValueError as error:
            raise BackendError(f"its url {masked(url)} cannot be used: {error}", retry=False) from None
        self._leave()
        self._url, self._peer = url, peer
        self._head = peer.head("POST", "/service_output", media_type=payload.MEDIA_TYPE) if peer else b""

    @property
    def address(self) -> str:
        """`url` for a reader: a user and password in it are masked."""
        return str(masked(self.url))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._peer is not None:
            self._peer.close()

    async def call(self, data: bytes, *, requires_proof: bool) -> ContainerResult:
        """Run one step: `data` in, the container's JSON out, both as exact text."""
        try:
            output = await self._output(_body(data, TO_NODE, requires_proof))
        except TimeoutError:
            return ContainerError(container=self.spec.id, error=self._too_late, again=self.spec.idempotent)
        except (StepFailed, Broken, Unreachable) as error:
            failure = self._failure(error)
            return ContainerError(container=self.spec.id, error=await self._cause(failure), again=failure.again)
        return ContainerOutput(container=self.spec.id, output=output)

    async def _output(self, body: bytes) -> bytes:
        answer = await self._post(body)
        try:
            if answer.status >= 300:
                raise await self._refused(answer)
            raw = await self._read(answer)
            self._check(raw, answer)
            return raw
        finally:
            answer.close()

    def _post(self, body: bytes) -> Awaitable[Answer]:
        return self._reached.ask(self._head, body, self.spec.timeout_s)

    def _get(self, path: str, query: dict[str, str], seconds: float) -> Awaitable[Answer]:
        peer = self._reached
        return peer.ask(peer.head("GET", path, query), None, seconds)

    @property
    def _reached(self) -> Peer:
        if self._peer is None:
            raise Unreachable("it has no address yet")
        return self._peer

    async def _refused(self, answer: Answer) -> StepFailed:
        raw = b""
        while len(raw) < REFUSAL_BYTES and (part := await answer.more()):
            raw += part
        words = f"{self._name}: answered HTTP {answer.status}: {_excerpt(raw)}"
        return StepFailed(words, again=answer.status in NOT_NOW)

    def _check(self, raw: bytes, answer: Answer) -> None:
        if not raw:
            raise StepFailed(f"{self._name}: answered with an empty body")
        if answer.headers.get(b"content-type") != JSON and not payload.is_json(
            content_type := answer.header(b"content-type")
        ):
            said = content_type[:EXCERPT_CHARS] or "no content type"
            raise StepFailed(f"{self._name}: answered {said}, not JSON: {_excerpt(raw)}")
        try:
            payload.check(raw)
        except payload.NotStrict as error:
            raise StepFailed(f"{self._name}: its answer is not valid JSON ({error}): {_excerpt(raw)}") from None

    async def stream(self, data: bytes, *, requires_proof: bool) -> AsyncGenerator[bytes, None]:
        """The bytes that the container sends, as they come. Raises `StepFailed`."""
        try:
            answer = await self._post(_body(data, TO_STREAM, requires_proof))
            try:
                if answer.status != 200:
                    raise await self._refused(answer)
                size = 0
                while part := await self._more(answer, size):
                    size += len(part)
                    yield part
            finally:
                answer.close()
        except TimeoutError:
            raise StepFailed(self._too_late) from None
        except (StepFailed, Broken, Unreachable) as error:
            raise StepFailed(await self._cause(self._failure(error))) from error

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
            answer = await self._get("/service-resources", query, RESOURCES_S)
            try:
                return payload.check(await self._read(answer)) if answer.status == 200 else None
            finally:
                answer.close()
        except (StepFailed, Broken, Unreachable, TimeoutError, payload.NotStrict):
            return None

    async def answers(self) -> bool:
        """Is it up: does it answer HTTP at all."""
        try:
            answer = await self._get("/", {}, PROBE_S)
        except (Broken, Unreachable, TimeoutError):
            return False
        answer.close()
        return True

    async def _read(self, answer: Answer) -> bytes:
        raw = answer.whole()
        if raw is None:
            parts = []
            size = 0
            while part := await self._more(answer, size):
                parts.append(part)
                size += len(part)
            return b"".join(parts)
        if len(raw) > self.spec.max_output_bytes:
            raise StepFailed(self._too_long)
        return raw

    async def _more(self, answer: Answer, size: int) -> bytes:
        """What comes after the first `size` bytes. Raises `StepFailed` when it is over the limit, or will be."""
        if answer.length > self.spec.max_output_bytes:
            raise StepFailed(self._too_long)
        part = await answer.more()
        if size + len(part) > self.spec.max_output_bytes:
            raise StepFailed(self._too_long)
        return part

    def _failure(self, error: StepFailed | Broken | Unreachable) -> StepFailed:
        if isinstance(error, Unreachable):
            return StepFailed(f"{self._name}: cannot connect: {error}", again=True, broke=True)
        if isinstance(error, Broken):
            return StepFailed(f"{self._name}: the connection broke: {error}", again=error.unheard, broke=True)
        return error

    @property
    def _name(self) -> str:
        return f"container '{self.spec.id}'"

    @property
    def _too_late(self) -> str:
        return f"{self._name}: timeout after {self.spec.timeout_s:g} s (timeout_s)"

    @property
    def _too_long(self) -> str:
        return f"{self._name}: its answer is over the limit of {self.spec.max_output_bytes} bytes (max_output_bytes)"


def _body(data: bytes, opening: bytes, requires_proof: bool) -> bytes:
    return b"".join((opening, data, PROVED if requires_proof else UNPROVED))


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
