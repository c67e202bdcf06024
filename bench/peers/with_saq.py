"""saq: jobs in a list, a script for each job. orjson as its documents advise."""

import sys
from collections.abc import Sequence
from typing import Any

import orjson
import uvloop
from redis.asyncio import Redis
from saq import Worker
from saq.job import Job, Status
from saq.queue.redis import RedisQueue

from bench.peers import program


def queue() -> Any:
    redis = Redis.from_url(f"unix://{program.STORE}")
    return RedisQueue(redis, dump=orjson.dumps, load=orjson.loads, max_concurrent_ops=program.AT_ONCE)


class Queue:
    def __init__(self) -> None:
        self._queue = queue()

    async def enqueue(self, data: str) -> Any:
        job = await self._queue.enqueue("step", data=data)
        return job.key

    async def waiting(self) -> int:
        return int(await self._queue.count("queued"))

    async def results(self, tickets: Sequence[str]) -> list[str | None]:
        found: list[Job | None] = await self._queue.jobs(tickets)
        return [each.result if each and each.status is Status.COMPLETE else None for each in found]


async def step(context: Any, *, data: str) -> str:
    return await program.call(context["session"], data)


async def startup(context: Any) -> None:
    context["session"] = program.session()


if __name__ == "__main__":
    if sys.argv[1] == "work":
        uvloop.run(Worker(queue(), [step], concurrency=program.AT_ONCE, startup=startup).start())
    else:
        program.main(Queue())
