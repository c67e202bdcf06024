"""For the tests of the doors: clients with addresses of their own, and a container that a test plays itself."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDictProxy

from tests.support import Node, eventually

JSON = "application/json"
UNREADABLE = "Could not parse message"
DELEGATED = {
    "signature": {"nonce": 1, "expiry": 1, "v": 27, "r": 2**255, "s": 1},
    "subscription": {"owner": "0x0", "containers": "0x0"},
    "data": {},
}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["Content-Type"] == JSON, self.body[:200]
        return json.loads(self.body)


class Client:
    """Asks a node from one source address, which is who it is to the node."""

    def __init__(self, node: Node, address: str = "127.0.0.1") -> None:
        self.node = node
        self.address = address

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(local_addr=(self.address, 0))
        self.session = aiohttp.ClientSession(self.node.url, connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.close()

    async def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> Answer:
        """A request and its whole answer. Bytes are sent as they are, anything else as JSON.

        headers: by name, with `_` for `-`; a body is `application/json` unless they say otherwise, None for no type.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
        if body is not None and "Content_Type" not in headers:
            named["Content-Type"] = JSON
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        async with self.session.request(
            method, path, data=data, headers=named, skip_auto_headers=["Content-Type"]
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def get(self, path: str) -> Any:
        answer = await self.ask("GET", path)
        assert answer.status == 200, answer.body
        return answer.json

    async def submit(self, *containers: str, data: Any = None, **more: Any) -> str:
        answer = await self.ask("POST", "/api/jobs", {"containers": containers, "data": data or {}, **more})
        assert answer.status == 200, answer.body
        return answer.json["id"]

    async def job(self, job_id: str) -> dict[str, Any]:
        (job,) = await self.get(f"/api/jobs?id={job_id}&intermediate=true")
        return job

    async def result(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended."""

        async def ended() -> Any:
            job = await self.job(job_id)
            return job if job["status"] != "running" else None

        return await eventually(ended, seconds=20, message=f"the end of job {job_id}")


Play = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class Stage:
    """A container whose answers a test plays. A job's `data` from `play` leads its call to the test's function."""

    def __init__(self) -> None:
        self._plays: dict[str, Play] = {}
        self._names = map(str, itertools.count())
        self.resources: Play = self._no_resources

    def play(self, play: Play, **data: Any) -> dict[str, Any]:
        """`data` for a job that `play(request, envelope)` answers."""
        scene = next(self._names)
        self._plays[scene] = play
        return {"scene": scene, **data}

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**26)
        app.add_routes(
            [
                web.get("/", self._up),
                web.post("/service_output", self._output),
                web.get("/service-resources", self._resources),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _up(self, request: web.Request) -> web.Response:
        return web.Response(text="up")

    async def _output(self, request: web.Request) -> web.StreamResponse:
        envelope = await request.json()
        return await self._plays[envelope["data"]["scene"]](request, envelope)

    async def _resources(self, request: web.Request) -> web.StreamResponse:
        return await self.resources(request, {})

    async def _no_resources(self, request: web.Request, envelope: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=404)


class Raw:
    """A TCP connection to a node, for what no HTTP client sends or shows."""

    def __init__(self, node: Node, address: str = "127.0.0.1") -> None:
        self._node = node
        self._address = address

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self._node.port, local_addr=(self._address, 0)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()

    def send(self, *lines: str, body: bytes = b"") -> None:
        """Write a request: its first line and headers, then the body."""
        self.writer.write("\r\n".join([*lines, "Host: localhost", "", ""]).encode("latin-1") + body)

    async def head(self) -> tuple[int, str]:
        """The status and the header block of the answer."""
        head = (await self.until(b"\r\n\r\n")).decode("latin-1")
        return int(head.split(" ", 2)[1]), head

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readuntil(end)

    async def chunk(self) -> bytes:
        """The next chunk of a chunked answer."""
        size = int(await self.until(b"\r\n"), 16)
        async with asyncio.timeout(10):
            return (await self.reader.readexactly(size + 2))[:-2]

    async def rest(self) -> bytes:
        """All up to the end of the connection, however that comes."""
        return await self.rest_of(15)

    async def rest_of(self, seconds: float) -> bytes:
        parts = []
        async with asyncio.timeout(seconds):
            while True:
                try:
                    part = await self.reader.read(65536)
                except ConnectionError:
                    break
                if not part:
                    break
                parts.append(part)
        return b"".join(parts)
