"""What a job costs the store, counted on the server: it must not creep up. Times are measured by the bench."""

from pathlib import Path

import redis

from tests.support import Echo, Node, RedisServer

JOBS = 600
SLOTS = 64
ROUND_TRIPS = 0.3  # per job, of a chain of three
COMMANDS = 22  # the same; within scripts too


async def test_a_chain_of_three_under_load_costs_few_round_trips_and_commands(tmp_path: Path, echo: Echo) -> None:
    with RedisServer("valkey", tmp_path / "redis") as server:
        containers = echo.containers("a", "b", "c", concurrency=SLOTS)
        async with Node(tmp_path, containers, redis={"url": server.url}) as node:
            body = [{"containers": ["a", "b", "c"], "data": {"i": i}} for i in range(JOBS)]
            before = spent(server)
            ids = [answer["id"] for answer in await node.post("/api/jobs/batch", body)]
            await node.result(ids[-1])
            results = await node.get("/api/jobs?id=" + "&id=".join(ids))
            after = spent(server)
            assert {result["status"] for result in results} == {"success"}
    round_trips, commands = ((now - then) / JOBS for then, now in zip(before, after, strict=True))
    print(f"\nchain of 3, {JOBS} jobs: {round_trips:.3f} round trips and {commands:.1f} commands per job")
    assert round_trips < ROUND_TRIPS
    assert commands < COMMANDS


def spent(server: RedisServer) -> tuple[int, int]:
    """Reads that the server did, which is at least one for each round trip; commands that it ran."""
    with redis.Redis(port=server.port) as client:
        reads = client.info("stats")["total_reads_processed"]
        commands = sum(each["calls"] for each in client.info("commandstats").values())
    return reads, commands
