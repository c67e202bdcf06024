"""The store's promises, on both servers: each operation is one atomic step, and a step has one outcome."""

import asyncio
import contextlib
import signal
from pathlib import Path

import pytest
import redis

from node.errors import Unavailable
from node.jobs import Claim, ContainerError, State
from node.store import Store, Tails
from tests.store.support import ME, OTHER, accept, claimed, output, request, state_of, submitted
from tests.support import RedisServer, eventually


async def test_a_job_is_visible_as_queued_once_submitted(store: Store) -> None:
    job_id = await submitted(store, "a", "b")
    (job,) = await store.get([job_id])
    assert job is not None
    assert (job.state, job.containers, job.caller, job.result) == (State.QUEUED, ("a", "b"), ME.id, None)


async def test_a_claim_carries_the_input_byte_for_byte(store: Store) -> None:
    raw = b'{ "n": 115792089237316195423570985008687907853269984665640564039457584007913129639935, "s":"\\u00e9"}'
    await accept(store, [request("a", data=raw, proof=True)])
    claim = await claimed(store, "a")
    assert (claim.input, claim.requires_proof, claim.step, claim.attempt) == (raw, True, 0, 1)


async def test_an_output_becomes_the_input_of_the_next_step(store: Store) -> None:
    job_id = await submitted(store, "a", "b")
    assert await store.finish(await claimed(store, "a"), output("a", b'"one"')) is State.QUEUED
    claim = await claimed(store, "b")
    assert (claim.input, claim.step, claim.next_container) == (b'"one"', 1, None)
    assert await store.finish(claim, output("b", b'"two"')) is State.SUCCEEDED
    (job,) = await store.get([job_id], intermediate=True)
    assert job is not None
    assert job.result == output("b", b'"two"')
    assert job.intermediate == (output("a", b'"one"'),)
    assert job.ended_at is not None
    assert job.ended_at >= job.created_at


async def test_an_error_ends_the_job_and_keeps_what_was_before_it(store: Store) -> None:
    job_id = await submitted(store, "a", "b", "c")
    await store.finish(await claimed(store, "a"), output("a"))
    error = ContainerError(container="b", error="it broke")
    assert await store.finish(await claimed(store, "b"), error) is State.FAILED
    (job,) = await store.get([job_id], intermediate=True)
    assert job is not None
    assert (job.result, job.intermediate) == (error, (output("a"),))
    assert await store.claim("c", 5) == ([], Tails())


async def test_a_chain_may_name_a_container_twice(store: Store) -> None:
    job_id = await submitted(store, "a", "a", "b")
    for container, value in (("a", b"1"), ("a", b"2"), ("b", b"3")):
        await store.finish(await claimed(store, container), output(container, value))
    (job,) = await store.get([job_id], intermediate=True)
    assert job is not None
    assert [each.output for each in job.intermediate] == [b"1", b"2"]


async def test_a_lane_hands_each_step_to_one_claimer(store: Store, neighbour: Store) -> None:
    ids = await accept(store, [request("a")] * 100)
    parts = await asyncio.gather(*(each.claim("a", 10) for each in [store, neighbour] * 5))
    taken = [claim.job_id for claims, _ in parts for claim in claims]
    assert sorted(taken) == sorted(ids)


async def test_a_lane_is_first_in_first_out(store: Store) -> None:
    ids = await accept(store, [request("a")] * 20)
    claims, tail = await store.claim("a", 20)
    assert [claim.job_id for claim in claims] == ids
    assert tail is None  # as many as asked for: there may be more
    last, number = map(int, claims[-1].entry.split("-"))
    assert await store.claim("a", 1) == ([], Tails(lane=(last, number)))


async def test_a_finished_step_is_not_finished_twice(store: Store) -> None:
    job_id = await submitted(store, "a")
    claim = await claimed(store, "a")
    await store.finish(claim, output("a", b'"first"'))
    assert await store.finish(claim, output("a", b'"second"')) is None
    assert await store.finish(claim, ContainerError(container="a", error="late")) is None
    (job,) = await store.get([job_id])
    assert job is not None
    assert job.result == output("a", b'"first"')


async def test_a_late_outcome_of_a_lost_step_is_refused(store: Store, neighbour: Store) -> None:
    job_id = await submitted(store, "a", "b")
    old = await claimed(store, "a")
    assert await neighbour.reclaim("a", idle_s=0, max_deliveries=3) == [(job_id, State.QUEUED)]
    new = await claimed(neighbour, "a")
    assert new.attempt > old.attempt
    assert await store.finish(old, output("a", b'"late"')) is None
    assert await store.release(old) is None
    assert await store.renew([old]) == [old]
    assert await neighbour.finish(new, output("a", b'"kept"')) is State.QUEUED
    assert (await claimed(store, "b")).input == b'"kept"'


async def test_a_lease_that_is_not_over_is_left_alone(store: Store, neighbour: Store) -> None:
    await submitted(store, "a")
    claim = await claimed(store, "a")
    assert await neighbour.reclaim("a", idle_s=60, max_deliveries=3) == []
    assert await store.renew([claim]) == []


async def test_only_own_steps_are_taken_back_at_a_start(store: Store, neighbour: Store) -> None:
    mine, theirs = await submitted(store, "a"), await submitted(store, "a")
    await store.claim("a", 1)
    await neighbour.claim("a", 1)
    assert await store.reclaim("a", idle_s=0, max_deliveries=3, held_by=store.name) == [(mine, State.QUEUED)]
    assert await state_of(store, theirs) is State.RUNNING


async def test_a_step_whose_worker_dies_each_time_fails_its_job(store: Store) -> None:
    job_id = await submitted(store, "a", "b")
    for _ in range(2):
        await claimed(store, "a")
        assert await store.reclaim("a", idle_s=0, max_deliveries=3) == [(job_id, State.QUEUED)]
    await claimed(store, "a")
    assert await store.reclaim("a", idle_s=0, max_deliveries=3) == [(job_id, State.FAILED)]
    (job,) = await store.get([job_id])
    assert job is not None
    assert job.result == ContainerError(container="a", error="container 'a': its worker died 3 times")
    assert await store.ids(ME.id, pending=True) == []
    assert await store.claim("a", 5) != ([], "")


async def test_a_step_that_got_on_is_counted_anew(store: Store) -> None:
    job_id = await submitted(store, "a", "b")
    await claimed(store, "a")
    await store.reclaim("a", idle_s=0, max_deliveries=2)
    await store.finish(await claimed(store, "a"), output("a"))
    await claimed(store, "b")
    assert await store.reclaim("b", idle_s=0, max_deliveries=2) == [(job_id, State.QUEUED)]


async def test_a_step_handed_back_is_queued_again_with_its_input(store: Store) -> None:
    await submitted(store, "a")
    claim = await claimed(store, "a")
    assert await store.release(claim) is State.QUEUED
    again = await claimed(store, "a")
    assert (again.input, again.attempt) == (claim.input, claim.attempt + 1)


@pytest.mark.parametrize("running", [False, True])
async def test_an_ended_job_is_out_of_its_lane_and_keeps_its_state(store: Store, running: bool) -> None:
    job_id = await submitted(store, "a", "b")
    claim = await claimed(store, "a") if running else None
    reason = ContainerError(container="a", error="cancelled: enough")
    assert await store.end(job_id, State.CANCELLED, reason) is (State.RUNNING if running else State.QUEUED)
    if claim:
        assert await store.renew([claim]) == [claim]
        assert await store.finish(claim, output("a")) is None
    assert await store.claim("a", 5) == ([], (await store.claim("a", 5))[1])
    assert await store.reclaim("a", idle_s=0, max_deliveries=3) == []
    assert await store.end(job_id, State.FAILED) is State.CANCELLED
    (job,) = await store.get([job_id])
    assert job is not None
    assert (job.state, job.result) == (State.CANCELLED, reason)


async def test_an_unknown_job_cannot_be_ended(store: Store) -> None:
    assert await store.end("nobody", State.FAILED) is None


async def test_lists_are_the_callers_own_oldest_first(store: Store) -> None:
    first, second, third = [await submitted(store, "a") for _ in range(3)]
    await accept(store, [request("a")], OTHER)
    await store.finish((await store.claim("a", 1))[0][0], output("a"))
    assert await store.ids(ME.id) == [first, second, third]
    assert await store.ids(ME.id, pending=True) == [second, third]
    assert await store.ids(ME.id, pending=False) == [first]
    assert await store.pending_count() == 3


async def test_jobs_come_in_the_order_asked_and_unknown_ones_as_none(store: Store) -> None:
    first, second = await submitted(store, "a"), await submitted(store, "a")
    jobs = await store.get([second, "nobody", first, second])
    assert [job.id if job else None for job in jobs] == [second, None, first, second]


async def test_a_job_that_no_lane_runs_is_listed_until_it_is_ended(store: Store, server: RedisServer) -> None:
    assert await store.open(ME, "s-1", ["a"], State.RUNNING, data=b"{}")
    assert not await store.open(OTHER, "s-1", ["a"], State.RUNNING, data=b"{}")
    assert await store.left_streams(store.name) == []
    async with Store(server.url, node_id="n1") as later_life:
        assert await later_life.left_streams("n1") == ["s-1"]
    assert await store.claim("a", 5) == ([], Tails())
    assert await store.end("s-1", State.SUCCEEDED, output("a")) is State.RUNNING
    async with Store(server.url, node_id="n1") as later_life:
        assert await later_life.left_streams("n1") == []
    assert await store.ids(ME.id, pending=False) == ["s-1"]


async def test_a_reported_end_is_a_finished_job(store: Store) -> None:
    assert await store.open(ME, "r-1", ["a", "b"], State.FAILED, error="reported as failed")
    (job,) = await store.get(["r-1"])
    assert job is not None
    assert (job.state, job.result) == (State.FAILED, ContainerError(container="a", error="reported as failed"))
    assert await store.ids(ME.id, pending=True) == []


async def test_scripts_that_the_server_forgot_are_given_again(store: Store, server: RedisServer) -> None:
    await submitted(store, "a")
    with redis.Redis(port=server.port) as client:
        client.script_flush()
    job_id = await submitted(store, "a")
    assert await state_of(store, job_id) is State.QUEUED
    assert len((await store.claim("a", 5))[0]) == 2


async def test_a_lane_that_lost_its_group_gets_it_back_with_all_its_entries(store: Store, server: RedisServer) -> None:
    ids = [await submitted(store, "a"), await submitted(store, "a")]
    await store.claim("b", 1)
    with redis.Redis(port=server.port) as client:
        client.xgroup_create("stoker:{0}:lane:a", "nodes", id="0")
        client.xgroup_destroy("stoker:{0}:lane:a", "nodes")
    claims, _ = await store.claim("a", 5)
    assert [claim.job_id for claim in claims] == ids


async def test_who_serves_a_lane_is_told_when_this_process_queues_for_it(store: Store) -> None:
    told: list[str] = []
    store.on_queued("a", lambda: told.append("a"))
    store.on_queued("b", lambda: told.append("b"))
    await submitted(store, "a", "b")
    assert told == ["a"]
    await store.finish(await claimed(store, "a"), output("a"))
    assert told == ["a", "b"]


async def test_a_claim_made_when_told_travels_in_the_same_round_trip(store: Store) -> None:
    await submitted(store, "a")
    await store.claim("a", 1)  # scripts are known now
    claims: list[asyncio.Task[tuple[list[Claim], str]]] = []
    store.on_queued("a", lambda: claims.append(asyncio.create_task(store.claim("a", 1))))
    before = store.round_trips
    job_id = await submitted(store, "a")
    ((claim,), _) = await claims[0]
    assert claim.job_id == job_id
    assert store.round_trips - before == 1


async def test_calls_of_one_moment_share_a_round_trip(store: Store) -> None:
    await submitted(store, "a")
    before = store.round_trips
    await asyncio.gather(*(accept(store, [request("a")]) for _ in range(100)))
    assert store.round_trips - before <= 2


async def test_a_waiter_returns_when_another_process_queues(store: Store, neighbour: Store) -> None:
    _, tail = await store.claim("a", 1)
    waiter = store.waiter("a")
    waiting = asyncio.create_task(waiter.wait(tail, 30))
    await accept(neighbour, [request("a")])
    async with asyncio.timeout(10):
        await waiting
    await waiter.close()


async def test_no_answer_is_an_error_within_the_time_limit(tmp_path: Path) -> None:
    with RedisServer("valkey", tmp_path) as mine:
        async with Store(mine.url, node_id="n1", timeout_s=0.3) as frozen:
            await accept(frozen, [request("a")])
            mine.process.send_signal(19)  # SIGSTOP
            began = asyncio.get_running_loop().time()
            outcomes = await asyncio.gather(
                *(accept(frozen, [request("a")]) for _ in range(20)), return_exceptions=True
            )
            assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
            assert asyncio.get_running_loop().time() - began < 1.5
            mine.process.send_signal(18)  # SIGCONT
            (job_id,) = await accept(frozen, [request("a")])
            assert await state_of(frozen, job_id) is State.QUEUED


async def test_a_full_server_refuses_new_jobs_and_lets_running_ones_finish(tmp_path: Path) -> None:
    with (
        RedisServer("valkey", tmp_path, "--maxmemory-policy", "noeviction") as mine,
        redis.Redis(port=mine.port) as raw,
    ):
        async with Store(mine.url, node_id="n1") as store:
            job_id = await submitted(store, "a")
            claim = await claimed(store, "a")
            raw.config_set("maxmemory", "1mb")
            with pytest.raises(Unavailable, match="full"):
                await submitted(store, "a")
            assert await store.finish(claim, output("a")) is State.SUCCEEDED
            assert await state_of(store, job_id) is State.SUCCEEDED


async def test_a_stream_recorded_without_an_answer_is_among_those_left(store: Store, server: RedisServer) -> None:
    assert await store.open(ME, "s-1", ["a"], State.RUNNING, data=b"{}")  # from now on the server has the script
    server.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable):
            await store.open(ME, "s-2", ["a"], State.RUNNING, data=b"{}")
    finally:
        server.process.send_signal(signal.SIGCONT)

    async def recorded() -> bool:
        with contextlib.suppress(Unavailable):
            return await state_of(store, "s-2") is State.RUNNING
        return False

    await eventually(recorded, message="the stream's record")
    assert await store.left_streams(store.name) == ["s-2"]
