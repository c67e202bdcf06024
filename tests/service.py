"""The service that tests run as a container. It echoes its input byte for byte, unless the input says otherwise.

    {"sleep_s": 1}                  waits before it answers
    {"status": 500, "body": "x", "type": "text/plain"}     answers so (each key on its own too)
    {"bytes": 1000}                 answers a JSON string of that many characters
    {"fail_first": 2, "status": 503, "key": "x"}           does so for the first two calls of that key only
    {"drop": true}                  closes the connection without an answer
    {"wait_for": "x"}               answers after somebody has GET /release?key=x
    {"parts": ["a", "b"], "gap_s": 0.1, "drop": true}      for streams: these parts, then the end or a broken connection

It counts the calls per value of `key` in its input: GET /calls answers `{key: calls}`, the most at once, and the keys
of those that waited and were given up.
"""

import asyncio
import collections
import sys

import msgspec
from aiohttp import web


class Envelope(msgspec.Struct):
    data: msgspec.Raw
    destination: int


class Service:
    def __init__(self) -> None:
        self.calls: collections.Counter[str] = collections.Counter()
        self.now = 0
        self.most = 0
        self.aborted: list[str] = []  # keys of calls that were given up while they waited
        self.released: dict[str, asyncio.Event] = collections.defaultdict(asyncio.Event)

    async def output(self, request: web.Request) -> web.StreamResponse:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._output(request)
        finally:
            self.now -= 1

    async def _output(self, request: web.Request) -> web.StreamResponse:
        envelope = msgspec.json.decode(await request.read(), type=Envelope)
        raw = bytes(envelope.data)
        wish = msgspec.json.decode(raw)
        if not isinstance(wish, dict):
            wish = {}
        if "key" in wish:
            self.calls[str(wish["key"])] += 1
        if self.calls[str(wish.get("key"))] > wish.get("fail_first", sys.maxsize):
            wish = {}
        if "wait_for" in wish:
            await self._until_released(wish)
        await asyncio.sleep(wish.get("sleep_s", 0))
        if "parts" in wish:
            return await self._stream(request, wish)
        if wish.get("drop"):
            request.transport.abort()
        if "bytes" in wish:
            raw = b'"' + b"x" * wish["bytes"] + b'"'
        return web.Response(
            body=wish["body"].encode("latin-1") if "body" in wish else raw,
            status=wish.get("status", 200),
            headers={"Content-Type": wish.get("type", "application/json")},
        )

    async def _until_released(self, wish: dict) -> None:
        try:
            await self.released[wish["wait_for"]].wait()
        except asyncio.CancelledError:
            self.aborted.append(str(wish.get("key")))
            raise

    async def _stream(self, request: web.Request, wish: dict) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for part in wish["parts"]:
            await answer.write(part.encode("latin-1"))
            await asyncio.sleep(wish.get("gap_s", 0.01))
        if wish.get("drop"):
            request.transport.abort()
        return answer

    async def release(self, request: web.Request) -> web.Response:
        self.released[request.query["key"]].set()
        return web.json_response({})

    async def counts(self, request: web.Request) -> web.Response:
        return web.json_response({"calls": self.calls, "most": self.most, "now": self.now, "aborted": self.aborted})

    async def resources(self, request: web.Request) -> web.Response:
        if "model_id" in request.query:
            return web.json_response({"supported": request.query["model_id"] == "org/model:1"})
        return web.json_response({"service_id": "echo", "version": "0.1.0"})

    async def index(self, request: web.Request) -> web.Response:
        return web.json_response({"service": "echo"})


def application() -> web.Application:
    service = Service()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.add_routes(
        [
            web.get("/", service.index),
            web.post("/service_output", service.output),
            web.get("/service-resources", service.resources),
            web.get("/calls", service.counts),
            web.get("/release", service.release),
        ]
    )
    return app


if __name__ == "__main__":
    web.run_app(
        application(), host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None, handler_cancellation=True
    )
