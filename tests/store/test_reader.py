"""Results that are large together: read in parts, beside those who submit, and up to a limit."""

import asyncio
import time

import pytest
import redis

from node.errors import TooLarge
from node.jobs import ContainerOutput, State
from node.store import Store
from node.store.reader import PART_BYTES, ROOM_BYTES
from tests.store.support import claimed, submitted
from tests.support import RedisServer

LARGE = b'"' + b"x" * (2 * 2**20) + b'"'


async def done(store: Store, output: bytes) -> str:
    job_id = await submitted(store, "a")
    state = await store.finish(await claimed(store, "a"), ContainerOutput(container="a", output=output))
    assert state is State.SUCCEEDED
    return job_id


async def outputs(store: Store, job_ids: list[str]) -> list[bytes]:
    found = await store.get(job_ids)
    return [job.result.output for job in found if job and isinstance(job.result, ContainerOutput)]


async def test_small_results_come_in_one_round_trip(store: Store) -> None:
    job_ids = [await done(store, b"%d" % number) for number in range(30)]
    await store.get(job_ids)  # from now on the server has the script
    before = store.round_trips
    assert await outputs(store, job_ids) == [b"%d" % number for number in range(30)]
    assert store.round_trips == before + 1


async def test_large_results_come_whole_in_their_order_among_small_ones(store: Store, raw: redis.Redis) -> None:
    wanted = [LARGE, b"1", LARGE[:-1] + b'y"', b"2", b'"' + b"z" * (2 * PART_BYTES) + b'"', b"3"]
    job_ids = [await done(store, output) for output in wanted]
    assert await outputs(store, job_ids) == wanted
    raw.script_flush()
    assert await outputs(store, [*job_ids, job_ids[0]]) == [*wanted, LARGE]


async def test_no_reply_is_larger_than_a_part_and_an_id_asked_again_is_read_once(
    store: Store, raw: redis.Redis, server: RedisServer
) -> None:
    job_id, other = await done(store, LARGE), await done(store, LARGE)
    before = raw.info("stats")["total_net_output_bytes"]
    assert await outputs(store, [job_id, other] * 100) == [LARGE] * 200
    sent = raw.info("stats")["total_net_output_bytes"] - before
    assert sent < 2 * len(LARGE) + ROOM_BYTES


async def test_more_than_the_limit_is_refused_before_it_is_read(store: Store, raw: redis.Redis) -> None:
    job_id = await done(store, LARGE)
    assert await store.get([job_id] * 2, most_bytes=2 * len(LARGE))
    before = raw.info("stats")["total_net_output_bytes"]
    with pytest.raises(TooLarge, match="fewer ids") as refused:
        await store.get([job_id] * 2, most_bytes=2 * len(LARGE) - 1)
    assert refused.value.params["setting"] == "server.max_answer_bytes"
    assert raw.info("stats")["total_net_output_bytes"] - before < ROOM_BYTES


async def test_intermediate_outputs_count_and_come_whole(store: Store) -> None:
    job_id = await submitted(store, "a", "b")
    await store.finish(await claimed(store, "a"), ContainerOutput(container="a", output=LARGE))
    assert await store.get([job_id], most_bytes=len(LARGE) - 1)
    with pytest.raises(TooLarge):
        await store.get([job_id], intermediate=True, most_bytes=len(LARGE) - 1)
    (job,) = await store.get([job_id], intermediate=True)
    assert job
    assert [each.output for each in job.intermediate] == [LARGE]


async def test_who_submits_does_not_wait_for_who_reads(store: Store) -> None:
    job_ids = [await done(store, LARGE) for _ in range(60)]
    reading = [asyncio.create_task(outputs(store, job_ids)) for _ in range(3)]
    longest = 0.0
    while not all(each.done() for each in reading):
        began = time.monotonic()
        await submitted(store, "b")
        longest = max(longest, time.monotonic() - began)
    print(f"\n3 readers of {len(job_ids) * len(LARGE) // 2**20} MiB each: a submit took {longest:.3f} s at most")
    for each in reading:
        assert len(await each) == len(job_ids)
    assert longest < 1.5
