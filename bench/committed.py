"""The yardstick for a door that loses nothing: the bare handler, and each job in Valkey before it is answered.

XADD and HSET of all requests that wait leave in one pipeline, one round trip at a time, to a server with
`appendfsync always`. No rules, no indexes, nothing runs.
"""

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator
from functools import partial

import redis.asyncio
import uvloop
from aiohttp import web

from bench.bare import decoder, encoder, index

LANE = "lane"
Waiting = tuple[str, str, bytes, asyncio.Future[None]]


class Group:
    """Jobs that wait for the next round trip."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._waiting: list[Waiting] = []
        self._wanted = asyncio.Event()

    async def keep(self, job_id: str, container: str, data: bytes) -> None:
        kept = asyncio.get_running_loop().create_future()
        self._waiting.append((job_id, container, data, kept))
        self._wanted.set()
        await kept

    async def serve(self) -> None:
        while True:
            await self._wanted.wait()
            await asyncio.sleep(0)  # whoever runs in this turn of the loop still joins
            group, self._waiting = self._waiting, []
            self._wanted.clear()
            pipeline = self._client.pipeline(transaction=False)
            for job_id, container, data, _ in group:
                pipeline.execute_command("XADD", LANE, "*", "j", job_id)
                pipeline.execute_command("HSET", f"job:{job_id}", "container", container, "data", data)
            await pipeline.execute()
            for _, _, _, kept in group:
                if not kept.done():  # else its client went away
                    kept.set_result(None)


async def submit(group: Group, request: web.Request) -> web.Response:
    job, job_id = decoder.decode(await request.read()), str(uuid.uuid4())
    await group.keep(job_id, job.containers[0], bytes(job.data))
    return web.Response(body=encoder.encode({"id": job_id}), content_type="application/json")


async def serving(group: Group, _: web.Application) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(group.serve(), name="group")
        yield
        task.cancel()


def main(port: int, server: str) -> None:
    group = Group(redis.asyncio.Redis(unix_socket_path=server))
    app = web.Application()
    app.cleanup_ctx.append(partial(serving, group))
    app.add_routes([web.get("/", index), web.post("/api/jobs", partial(submit, group))])
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
