"""arq: jobs in a sorted set, a transaction for each job. Its default serializer, pickle, is written in C."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job
from arq.worker import Worker

from bench.peers import program

SETTINGS = RedisSettings(unix_socket_path=program.STORE)
POLL_S = 0.01  # between two looks at the queue; half a second by default


class Queue:
    _pool: ArqRedis | None = None

    async def enqueue(self, data: str) -> Any:
        return await (await self._connected()).enqueue_job("step", data)

    async def waiting(self) -> int:
        return int(await (await self._connected()).zcard("arq:queue"))

    async def results(self, tickets: Sequence[Job]) -> list[str | None]:
        found = await asyncio.gather(*(ticket.result_info() for ticket in tickets))
        return [each.result if each else None for each in found]

    async def _connected(self) -> ArqRedis:
        self._pool = self._pool or await create_pool(SETTINGS)
        return self._pool


async def step(context: dict[str, Any], data: str) -> str:
    return await program.call(context["session"], data)


async def startup(context: dict[str, Any]) -> None:
    context["session"] = program.session()


async def work() -> None:
    worker = Worker(
        [step],
        redis_settings=SETTINGS,
        max_jobs=program.AT_ONCE,
        poll_delay=POLL_S,
        log_results=False,
        on_startup=startup,
    )
    await worker.async_run()


if __name__ == "__main__":
    if sys.argv[1] == "work":
        uvloop.run(work())
    else:
        program.main(Queue())
