"""taskiq with a list in Redis, the fastest of its brokers (it confirms nothing), and orjson."""

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
from redis.asyncio import Redis
from taskiq import TaskiqEvents, TaskiqState
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend
from taskiq_redis.exceptions import ResultIsMissingError

from bench.peers import program

URL = f"unix://{program.STORE}"
backend: RedisAsyncResultBackend[str] = RedisAsyncResultBackend(
    URL, max_connection_pool_size=program.AT_ONCE, serializer=ORJSONSerializer()
)
broker = (
    ListQueueBroker(URL, max_connection_pool_size=program.AT_ONCE, socket_timeout=None)
    .with_result_backend(backend)
    .with_serializer(ORJSONSerializer())
)
sessions: list[aiohttp.ClientSession] = []


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def startup(state: TaskiqState) -> None:
    sessions.append(program.session())


@broker.task("step")  # named: in the client this module is `__main__`
async def step(data: str) -> str:
    return await program.call(sessions[0], data)


class Queue:
    async def enqueue(self, data: str) -> Any:
        return (await step.kiq(data)).task_id

    async def waiting(self) -> int:
        async with Redis.from_url(URL) as client:
            return int(await client.llen(broker.queue_name))

    async def results(self, tickets: Sequence[str]) -> list[str | None]:
        return list(await asyncio.gather(*(self._result(ticket) for ticket in tickets)))

    async def _result(self, ticket: str) -> str | None:
        try:
            return (await backend.get_result(ticket)).return_value
        except ResultIsMissingError:
            return None


if __name__ == "__main__":
    program.main(Queue())
