"""The yardstick for a node: the smallest that does the work on this stack, as fast as its few lines allow.

One process, everything in memory, nothing durable, no rules: it takes jobs and batches, runs chains by calling the
containers over keep-alive connections with so many slots each, and answers results. A container without a URL is never
called, so its jobs wait.
"""

import asyncio
import gc
import sys
import uuid
from collections.abc import AsyncIterator, Iterable

import aiohttp
import msgspec
import uvloop
from aiohttp import web
from yarl import URL

HEADERS = {"Content-Type": "application/json"}


class Body(msgspec.Struct):
    containers: list[str]
    data: msgspec.Raw


class Output(msgspec.Struct):
    container: str
    output: msgspec.Raw


class Brief(msgspec.Struct):
    id: str
    status: str
    result: Output | None


class Job(Brief):
    intermediate_results: list[Output]


Entry = tuple[Job, list[str], int, bytes]  # a step that waits: its job, the chain, which step, its input

decode_job = msgspec.json.Decoder(Body).decode
decode_batch = msgspec.json.Decoder(list[Body]).decode
encode = msgspec.json.Encoder().encode


class Node:
    def __init__(self, slots: int, urls: dict[str, str]) -> None:
        self._slots = slots
        self._urls = urls
        self._jobs: dict[str, Job] = {}
        self._lanes: dict[str, asyncio.Queue[Entry]] = {container: asyncio.Queue() for container in urls}
        self._ended = 0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/jobs", self.submit),
            web.post("/api/jobs/batch", self.submit_batch),
            web.get("/api/jobs", self.find),
            web.get("/info", self.info),
        ]

    async def submit(self, request: web.Request) -> web.Response:
        return _json(self._accept(decode_job(await request.read())))

    async def submit_batch(self, request: web.Request) -> web.Response:
        return _json([self._accept(body) for body in decode_batch(await request.read())])

    async def find(self, request: web.Request) -> web.Response:
        found: Iterable[Brief] = map(self._jobs.__getitem__, request.query.getall("id"))
        if request.query.get("intermediate") != "true":
            found = (Brief(job.id, job.status, job.result) for job in found)
        return _json(list(found))

    async def info(self, request: web.Request) -> web.Response:
        return _json({"pending": {"offchain": len(self._jobs) - self._ended}})

    def _accept(self, body: Body) -> dict[str, str]:
        job = Job(str(uuid.uuid4()), "running", None, [])
        self._jobs[job.id] = job
        self._lanes[body.containers[0]].put_nowait((job, body.containers, 0, bytes(body.data)))
        return {"id": job.id}

    async def run(self, _: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        quick = {"cookie_jar": aiohttp.DummyCookieJar(), "timeout": aiohttp.ClientTimeout(total=None)}
        async with aiohttp.ClientSession(
            connector=connector, headers=HEADERS, auto_decompress=False, **quick
        ) as session:
            slots = [
                asyncio.create_task(self._slot(session, URL(f"{url}/service_output"), lane), name=f"slot-{container}")
                for (container, url), lane in zip(self._urls.items(), self._lanes.values(), strict=True)
                for _ in range(self._slots if url else 0)
            ]
            yield
            for slot in slots:
                slot.cancel()
            await asyncio.gather(*slots, return_exceptions=True)

    async def _slot(self, session: aiohttp.ClientSession, url: URL, lane: asyncio.Queue[Entry]) -> None:
        while True:
            job, chain, step, data = await lane.get()
            body = b'{"source":1,"destination":1,"data":%b,"requires_proof":false}' % data
            try:
                async with session.post(url, data=body) as answer:
                    output = await answer.read()
                    fine = answer.status == 200
            except aiohttp.ClientError:
                fine = False
            if not fine:
                job.status, self._ended = "failed", self._ended + 1
            elif step + 1 < len(chain):
                job.intermediate_results.append(Output(chain[step], msgspec.Raw(output)))
                self._lanes[chain[step + 1]].put_nowait((job, chain, step + 1, output))
            else:
                job.result, job.status = Output(chain[step], msgspec.Raw(output)), "success"
                self._ended += 1


def _json(value: object) -> web.Response:
    return web.Response(body=encode(value), content_type="application/json")


def main(port: int, slots: int, urls: dict[str, str]) -> None:
    gc.freeze()
    gc.set_threshold(10_000)  # else Python's collector looks at all jobs under way again and again
    node = Node(slots, urls)
    app = web.Application(client_max_size=1 << 28, handler_args={"max_line_size": 1 << 20})  # batches, lists of ids
    app.cleanup_ctx.append(node.run)
    app.add_routes(node.routes())
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), msgspec.json.decode(sys.argv[3], type=dict[str, str]))
