"""What is bounded: queues, a caller's jobs, the time that results are kept; and requests that come twice."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
import redis

from node.errors import Mismatch, RateLimited, Unavailable
from node.jobs import ContainerError, ContainerOutput, State
from node.store import Bounds, Store
from tests.store.support import ME, OTHER, accept, claimed, output, request, state_of, submitted
from tests.support import RedisServer, eventually

KEY = "stoker:{0}:"


@pytest.fixture
async def small(server: RedisServer) -> AsyncIterator[Store]:
    bounds = Bounds(lanes={"a": 3, "b": 100}, pending=5)
    async with Store(server.url, node_id="n1", bounds=bounds) as opened:
        yield opened


async def test_a_full_lane_refuses_and_others_accept(small: Store) -> None:
    answers = await accept(small, [request("a")] * 4 + [request("b")])
    assert [isinstance(answer, str) for answer in answers] == [True, True, True, False, True]
    assert isinstance(answers[3], Unavailable)
    assert (answers[3].message, answers[3].params) == ("Queue full", {"container": "a", "limit": 3})
    await small.finish(await claimed(small, "a"), output("a"))
    assert isinstance((await accept(small, [request("a")]))[0], str)


async def test_a_chain_goes_on_into_a_full_lane(small: Store) -> None:
    await accept(small, [request("a")] * 3)
    job_id = await submitted(small, "b", "a")
    assert await small.finish(await claimed(small, "b"), output("b")) is State.QUEUED
    assert await state_of(small, job_id) is State.QUEUED


async def test_a_caller_with_too_many_live_jobs_is_refused_and_others_are_not(small: Store) -> None:
    answers = await accept(small, [request("b")] * 6)
    assert isinstance(answers[5], RateLimited)
    assert answers[5].params == {"limit": 5}
    await submitted(small, "b", caller=OTHER)
    await small.end(str(answers[0]), State.CANCELLED)
    await submitted(small, "b")


async def test_what_is_over_a_callers_share_waits_behind_the_others(server: RedisServer, raw: redis.Redis) -> None:
    async with Store(server.url, node_id="n1", bounds=Bounds(share=3)) as store:
        flood = [str(answer) for answer in await accept(store, [request("a")] * 50)]
        other = await submitted(store, "a", caller=OTHER)
        assert (raw.xlen(KEY + "lane:a"), raw.xlen(KEY + "bulk:a")) == (4, 47)
        taken: list[str] = []
        while len(taken) < 51:
            claims, _ = await store.claim("a", 4)
            assert claims
            taken += [claim.job_id for claim in claims]
        assert [job_id for job_id in taken if job_id in flood[3:]] == flood[3:]
        # One claim in four begins with the bulk queue; so many in a row do not.
        assert taken.index(other) < 4 * 10


async def test_a_bulk_step_is_renewed_taken_back_handed_back_and_finished_like_any_other(
    server: RedisServer, raw: redis.Redis
) -> None:
    async with Store(server.url, node_id="n1", bounds=Bounds(share=0, look_s=0)) as store:
        job_id = await submitted(store, "a", "b")
        claim = await claimed(store, "a")
        assert await store.renew([claim]) == []
        assert await store.look(queue_timeout_s=60, timeout_s=60, gone_s=60) == ([], False)
        assert await store.reclaim("a", idle_s=0, max_deliveries=3) == [(job_id, State.QUEUED)]
        assert await store.finish(claim, output("a")) is None
        await store.release(await claimed(store, "a"))
        assert await store.finish(await claimed(store, "a"), output("a")) is State.QUEUED
        assert await store.finish(await claimed(store, "b"), output("b")) is State.SUCCEEDED
        waiting = await submitted(store, "a")
        assert await store.end(waiting, State.CANCELLED) is State.QUEUED
        assert [raw.xlen(KEY + name) for name in ("lane:a", "bulk:a", "lane:b")] == [0, 0, 0]


@pytest.mark.parametrize("lost", ["stream", "group", "lease"])
async def test_a_bulk_step_that_lost_its_place_gets_it_back(server: RedisServer, raw: redis.Redis, lost: str) -> None:
    async with Store(server.url, node_id="n1", bounds=Bounds(share=0, look_s=0)) as store:
        await submitted(store, "a")
        claim = await claimed(store, "a")
        await submitted(store, "a")
        if lost == "stream":
            raw.delete(KEY + "bulk:a")
        elif lost == "group":
            raw.xgroup_destroy(KEY + "bulk:a", "nodes")
        else:
            raw.xack(KEY + "bulk:a", "nodes", claim.entry[1:])
        changes, _ = await store.look(queue_timeout_s=60, timeout_s=60, gone_s=60)
        assert "held" in {each.change for each in changes}
        assert await store.look(queue_timeout_s=60, timeout_s=60, gone_s=60) == ([], False)
        assert await store.finish(claim, output("a")) is State.SUCCEEDED
        assert await store.finish(await claimed(store, "a"), output("a")) is State.SUCCEEDED
        assert await store.pending_count() == 0


async def test_a_named_request_is_accepted_once_however_often_it_comes(store: Store, neighbour: Store) -> None:
    answers = await asyncio.gather(*(accept(each, [request("a")], once="k") for each in [store, neighbour] * 25))
    assert len({answer for (answer,) in answers}) == 1
    assert await store.pending_count() == 1


async def test_the_same_name_with_another_request_is_refused(store: Store) -> None:
    (first,) = await accept(store, [request("a")], once="k")
    for other in (request("b"), request("a", data=b'{"x":2}'), request("a", proof=True), request("a", timeout_s=5)):
        with pytest.raises(Mismatch):
            await accept(store, [other], once="k")
    with pytest.raises(Mismatch):
        await accept(store, [request("a"), request("a")], once="k")
    assert await accept(store, [request("a")], once="k") == [first]
    assert await store.pending_count() == 1


async def test_a_name_is_its_callers_own(store: Store) -> None:
    mine = await accept(store, [request("a")], ME, once="k")
    assert await accept(store, [request("b")], OTHER, once="k") != mine


async def test_a_named_batch_is_accepted_once(store: Store) -> None:
    batch = [request("a", data=b'{"i":%d}' % i) for i in range(700)]
    first = await accept(store, batch, once="k")
    assert await accept(store, batch, once="k") == first
    assert len(set(first)) == 700
    assert await store.pending_count() == 700


async def test_what_was_refused_of_a_named_batch_is_accepted_when_it_comes_again(small: Store) -> None:
    first = await accept(small, [request("a")] * 4, once="k")
    await small.finish(await claimed(small, "a"), output("a"))
    again = await accept(small, [request("a")] * 4, once="k")
    assert again[:3] == first[:3]
    assert isinstance(again[3], str)


async def test_a_name_is_forgotten_in_time(server: RedisServer, raw: redis.Redis) -> None:
    async with Store(server.url, node_id="n1", bounds=Bounds(remembered_s=1)) as store:
        (first,) = await accept(store, [request("a")], once="k")

        async def forgotten() -> bool:
            return (await accept(store, [request("a")], once="k")) != [first]

        await eventually(forgotten, seconds=10)


async def test_ended_jobs_are_removed_in_time_from_everywhere_at_once(store: Store, raw: redis.Redis) -> None:
    good, bad, stopped, live = [await submitted(store, "a") for _ in range(4)]
    await store.finish(await claimed(store, "a"), output("a"))
    await store.finish(await claimed(store, "a"), ContainerError(container="a", error="it broke"))
    await store.end(stopped, State.CANCELLED, dead=True)
    assert await store.purge(State.SUCCEEDED, 3600) == 0
    for state, job_id in ((State.SUCCEEDED, good), (State.FAILED, bad), (State.CANCELLED, stopped)):
        assert await state_of(store, job_id) is state
        assert await store.purge(state, 0) == 1
        assert await state_of(store, job_id) is None
    assert await store.ids(ME.id) == [live]
    assert set(raw.keys()) - {KEY + "bulk:a"} == {
        KEY + name for name in (f"job:{live}", "lane:a", "live", f"pending:{ME.id}")
    }


async def test_a_retry_goes_on_from_the_step_that_failed_and_leaves_the_old_job(store: Store) -> None:
    old = await submitted(store, "a", "b", "c")
    await store.finish(await claimed(store, "a"), output("a", b'"one"'))
    error = ContainerError(container="b", error="it broke")
    await store.finish(await claimed(store, "b"), error)
    new = str(uuid.uuid4())
    assert await store.retry(old, new) == new
    assert await store.retry(old, str(uuid.uuid4())) == new
    claim = await claimed(store, "b")
    assert (claim.job_id, claim.input, claim.attempt, claim.step) == (new, b'"one"', 1, 1)
    await store.finish(claim, output("b", b'"two"'))
    await store.finish(await claimed(store, "c"), output("c", b'"three"'))
    before, after = await store.get([old, new], intermediate=True)
    assert before is not None
    assert (before.state, before.result) == (State.FAILED, error)
    assert after is not None
    assert (after.state, after.result) == (State.SUCCEEDED, output("c", b'"three"'))
    assert after.intermediate == (
        ContainerOutput(container="a", output=b'"one"'),
        ContainerOutput(container="b", output=b'"two"'),
    )


async def test_only_what_failed_or_was_cancelled_is_retried(store: Store) -> None:
    job_id = await submitted(store, "a")
    assert await store.retry(job_id, "x") is State.QUEUED
    claim = await claimed(store, "a")
    assert await store.retry(job_id, "x") is State.RUNNING
    await store.finish(claim, output("a"))
    assert await store.retry(job_id, "x") is State.SUCCEEDED
    assert await store.retry("nobody", "x") is None
    await store.open(ME, "r-1", ["a"], State.FAILED, error="reported as failed")
    assert await store.retry("r-1", "x") is None
    waiting = await submitted(store, "a")
    await store.end(waiting, State.CANCELLED)
    assert await store.retry(waiting, "x") == "x"
    assert (await claimed(store, "a")).job_id == "x"


async def test_a_retried_dead_letter_is_off_the_list(store: Store) -> None:
    job_id = await submitted(store, "a")
    await claimed(store, "a")
    await store.reclaim("a", idle_s=0, max_deliveries=1)
    assert [job.id for job in await store.dead(10)] == [job_id]
    await store.retry(job_id, "x")
    assert await store.dead(10) == []


async def test_dead_letters_are_listed_to_whom_they_belong_newest_first(store: Store, raw: redis.Redis) -> None:
    mine = [await submitted(store, "a") for _ in range(3)]
    theirs = [str(answer) for answer in await accept(store, [request("a")] * 700, OTHER)]
    for job_id in mine + theirs:
        await store.end(job_id, State.FAILED, ContainerError(container="a", error="it broke"), dead=True)
    assert [job.id for job in await store.dead(10, ME.id)] == mine[::-1]
    assert [job.id for job in await store.dead(2, ME.id)] == [mine[2], mine[1]]
    assert len(await store.dead(1000)) == 703
    assert [job.id for job in await store.dead(1)] == theirs[-1:]


async def test_a_job_over_its_callers_share_stays_so_in_every_step_and_retry(
    server: RedisServer, raw: redis.Redis
) -> None:
    bounds = Bounds(share=1, lanes={"a": 100, "b": 2}, pending=5)
    async with Store(server.url, node_id="n1", bounds=bounds) as store:
        ids = [str(answer) for answer in await accept(store, [request("a", "b")] * 4)]
        for _ in range(4):
            await store.finish(await claimed(store, "a"), output("a"))
        assert (raw.xlen(KEY + "lane:b"), raw.xlen(KEY + "bulk:b")) == (1, 3)
        await submitted(store, "b", caller=OTHER)
        answer = (await accept(store, [request("b")]))[0]
        assert isinstance(answer, Unavailable), "more than its share, and the container is full"
        await store.end(ids[3], State.CANCELLED)
        with pytest.raises(Unavailable, match="Queue full"):
            await store.retry(ids[3], "x")
        await store.end(ids[2], State.CANCELLED)
        await store.end(ids[1], State.CANCELLED)
        for _ in range(2):
            await store.finish(await claimed(store, "b"), output("b"))
        await accept(store, [request("a")] * 5)
        with pytest.raises(RateLimited):
            await store.retry(ids[3], "x")


async def test_a_claim_has_small_inputs_with_it_and_asks_for_large_ones_alone(store: Store) -> None:
    large = b'"' + b"x" * (3 * 1024 * 1024) + b'"'
    await accept(store, [request("a", "b", data=large)] * 2 + [request("a", "b")] * 2)
    claims, _ = await store.claim("a", 10)
    assert [claim.input for claim in claims] == [None, None, b'{"x":1}', b'{"x":1}']
    assert [claim.input_bytes for claim in claims] == [len(large), len(large), 7, 7]
    assert [await store.input(claim) for claim in claims] == [large, large, b'{"x":1}', b'{"x":1}']
    for claim, raw in zip(claims, (b"1", large, b"2", large), strict=True):
        await store.finish(claim, output("a", raw))
    following, _ = await store.claim("b", 10)
    assert [claim.input is None for claim in following] == [False, True, False, True]
    assert [await store.input(claim) for claim in following] == [b"1", large, b"2", large]
    await store.release(following[1])
    (again,), _ = await store.claim("b", 10)
    assert again.input is None
    assert await store.input(again) == large


async def test_a_request_of_which_nothing_was_accepted_leaves_nothing(small: Store, raw: redis.Redis) -> None:
    await accept(small, [request("b")] * 5)
    assert isinstance((await accept(small, [request("a")], once="k"))[0], RateLimited)
    assert raw.keys(KEY + "once:*") == []
