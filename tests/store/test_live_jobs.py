"""The look at live jobs: whatever is lost of a job but its record, it goes on; what cannot ends with its cause."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis

from node.jobs import ContainerError, State
from node.store import Bounds, Store
from node.store.records import Change
from tests.store.support import ME, OTHER, claimed, output, state_of, submitted
from tests.support import RedisServer, eventually

KEY = "stoker:{0}:"
LONG = {"queue_timeout_s": 3600, "timeout_s": 3600, "gone_s": 3600}


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[Store]:
    """One that looks at every live job each time."""
    async with Store(server.url, node_id="n1", bounds=Bounds(look_s=0)) as opened:
        yield opened


@pytest.fixture
async def neighbour(server: RedisServer) -> AsyncIterator[Store]:
    async with Store(server.url, node_id="n2", bounds=Bounds(look_s=0)) as opened:
        yield opened


async def look(store: Store, **limits: float) -> list[Change]:
    changes, more = await store.look(**(LONG | limits))
    assert not more
    return changes


async def failed_with(store: Store, job_id: str, **limits: float) -> ContainerError:
    """The error with which a look ends the job, once it does."""

    async def ended() -> bool:
        return [each.change for each in await look(store, **limits)] == ["failed"]

    await eventually(ended, message=f"the end of job {job_id}")
    (job,) = await store.get([job_id])
    assert job is not None
    assert job.state is State.FAILED
    assert isinstance(job.result, ContainerError)
    assert await store.ids(ME.id, pending=True) == []
    assert await store.pending_count() == 0
    return job.result


async def test_what_is_well_is_left_alone(store: Store) -> None:
    await submitted(store, "a")
    await submitted(store, "b")
    await claimed(store, "a")
    assert await look(store) == []


async def test_a_job_is_not_looked_at_before_its_turn(server: RedisServer, raw: redis.Redis) -> None:
    async with Store(server.url, node_id="n1") as store:
        job_id = await submitted(store, "a")
        raw.delete(KEY + "lane:a")
        assert await look(store) == []
        raw.zadd(KEY + "live", {job_id: 0})
        assert len(await look(store)) == 1
        assert await look(store) == []


async def test_a_queued_job_whose_lane_was_lost_is_queued_again(store: Store, raw: redis.Redis) -> None:
    ids = [await submitted(store, "a") for _ in range(3)]
    raw.delete(KEY + "lane:a")
    assert {(each.job_id, each.change) for each in await look(store)} == {(job_id, "queued") for job_id in ids}
    assert await look(store) == []
    claims, _ = await store.claim("a", 5)
    assert {claim.job_id for claim in claims} == set(ids)


@pytest.mark.parametrize("lost", ["group", "entry", "lease"])
async def test_a_running_step_that_lost_its_lease_is_held_again_and_run_once(
    store: Store, neighbour: Store, raw: redis.Redis, lost: str
) -> None:
    job_id = await submitted(store, "a")
    claim = await claimed(store, "a")
    if lost == "group":
        raw.xgroup_destroy(KEY + "lane:a", "nodes")
    elif lost == "entry":
        raw.delete(KEY + "lane:a")
    else:
        raw.xack(KEY + "lane:a", "nodes", claim.entry)
    assert [(each.job_id, each.change) for each in await look(store)] == [(job_id, "held")]
    assert await look(store) == []
    assert (await neighbour.claim("a", 5))[0] == []
    assert await neighbour.reclaim("a", idle_s=60, max_deliveries=3) == []
    assert await store.renew([claim]) == []
    assert await store.finish(claim, output("a")) is State.SUCCEEDED
    assert raw.xlen(KEY + "lane:a") == 0


@pytest.mark.parametrize("lost", ["group", "entry"])
async def test_a_renewal_makes_a_lost_lease_again(store: Store, raw: redis.Redis, lost: str) -> None:
    await submitted(store, "a")
    claim = await claimed(store, "a")
    if lost == "group":
        raw.xgroup_destroy(KEY + "lane:a", "nodes")
    else:
        raw.delete(KEY + "lane:a")
    assert await store.renew([claim]) == []
    assert await look(store) == []
    assert await store.finish(claim, output("a")) is State.SUCCEEDED


async def test_a_lease_held_again_ends_like_any_other(store: Store, neighbour: Store, raw: redis.Redis) -> None:
    job_id = await submitted(store, "a")
    old = await claimed(store, "a")
    raw.delete(KEY + "lane:a")
    await look(store)
    assert await neighbour.reclaim("a", idle_s=0, max_deliveries=3) == [(job_id, State.QUEUED)]
    assert (await claimed(neighbour, "a")).attempt == old.attempt + 1
    assert await store.finish(old, output("a")) is None


async def test_a_lost_group_does_not_run_a_step_twice(store: Store, neighbour: Store, raw: redis.Redis) -> None:
    await submitted(store, "a")
    claim = await claimed(store, "a")
    raw.xgroup_destroy(KEY + "lane:a", "nodes")
    assert (await neighbour.claim("a", 5))[0] == []
    (pending,) = raw.xpending_range(KEY + "lane:a", "nodes", "-", "+", 5)
    assert pending["consumer"] == "n1"
    assert await store.finish(claim, output("a")) is State.SUCCEEDED


async def test_a_job_that_waits_too_long_fails(store: Store) -> None:
    job_id = await submitted(store, "a")
    error = await failed_with(store, job_id, queue_timeout_s=0.05)
    assert error == ContainerError(container="a", error="container 'a': waited in its queue for more than 0.05 s")
    assert (await store.claim("a", 5))[0] == []


async def test_a_step_that_runs_is_not_waiting(store: Store) -> None:
    job_id = await submitted(store, "a", "b")
    await store.finish(await claimed(store, "a"), output("a"))
    claim = await claimed(store, "b")
    for _ in range(20):
        assert await look(store, queue_timeout_s=0.001) == []
    assert await store.finish(claim, output("b")) is State.SUCCEEDED
    assert await state_of(store, job_id) is State.SUCCEEDED


@pytest.mark.parametrize("running", [True, False])
async def test_a_job_that_takes_too_long_in_all_fails_and_its_runner_is_told(store: Store, running: bool) -> None:
    job_id = await submitted(store, "a", "b")
    await store.finish(await claimed(store, "a"), output("a"))
    claim = await claimed(store, "b") if running else None
    error = await failed_with(store, job_id, timeout_s=0.05)
    state = "running" if running else "queued"
    words = f"not done 0.05 s after it was accepted; it was {state} in step 2"
    assert error == ContainerError(container="b", error=words)
    if claim:
        assert await store.renew([claim]) == [claim]
        assert await store.finish(claim, output("b")) is None


async def test_a_jobs_own_timeouts_hold_and_do_not_widen_the_nodes(store: Store) -> None:
    job_id = await submitted(store, "a", queue_timeout_s=0.05)
    assert (await failed_with(store, job_id)).error == "container 'a': waited in its queue for more than 0.05 s"
    job_id = await submitted(store, "a", timeout_s=0.05)
    assert "not done 0.05 s after" in (await failed_with(store, job_id)).error
    job_id = await submitted(store, "a", timeout_s=100, queue_timeout_s=100)
    assert "more than 0.01 s" in (await failed_with(store, job_id, queue_timeout_s=0.01)).error


async def test_a_job_for_a_container_that_no_node_has_fails(store: Store, neighbour: Store) -> None:
    await neighbour.alive(["a"], "m", 60)
    await store.alive(["b"], "m", 60)
    served, unserved = await submitted(store, "a"), await submitted(store, "c")
    error = await failed_with_other_pending(store, unserved)
    assert error.error == "container 'c': no node has had it for 0.05 s (runner.gone_s)"
    assert await state_of(store, served) is State.QUEUED


async def failed_with_other_pending(store: Store, job_id: str) -> ContainerError:
    async def ended() -> bool:
        await store.alive(["a", "b"], "m", 60)
        return job_id in {each.job_id for each in await look(store, gone_s=0.05)}

    await eventually(ended)
    (job,) = await store.get([job_id])
    assert job is not None
    assert isinstance(job.result, ContainerError)
    return job.result


async def test_a_stream_ends_with_its_node(store: Store, neighbour: Store, raw: redis.Redis) -> None:
    await neighbour.alive([], "m", 60)
    await neighbour.open(ME, "s-1", ["a"], State.RUNNING, data=b"{}")
    assert await look(store) == []
    assert (await failed_with(store, "s-1", gone_s=0.05)).error == "the node stopped while it streamed"
    assert raw.smembers(KEY + "streams:n2") == set()


async def test_a_stream_that_takes_too_long_is_no_longer_its_nodes(store: Store, raw: redis.Redis) -> None:
    await store.alive([], "m", 60)
    await store.open(ME, "s-1", ["a"], State.RUNNING, data=b"{}")
    assert "not done 0.05 s" in (await failed_with(store, "s-1", timeout_s=0.05)).error
    assert raw.smembers(KEY + "streams:n1") == set()


async def test_a_job_that_somebody_reported_as_running_ends_in_time(store: Store) -> None:
    await store.open(ME, "r-1", ["a"], State.RUNNING)
    assert await look(store, gone_s=0.001) == []
    assert "not done 0.05 s" in (await failed_with(store, "r-1", timeout_s=0.05)).error


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        {"containers": "no JSON"},
        {"containers": "{}"},
        {"step": "7"},
        {"step": "x"},
        {"created": "yesterday"},
        {"entry": "x"},
        {"caller": None},
        {"attempt": None},
    ],
    ids=str,
)
async def test_a_broken_record_is_buried_and_its_neighbours_go_on(
    store: Store, raw: redis.Redis, damage: dict[str, str | None], running: bool
) -> None:
    job_id = await submitted(store, "a")
    other = await submitted(store, "a")
    if running:
        await claimed(store, "a")
    for name, value in damage.items():
        if value is None:
            raw.hdel(KEY + "job:" + job_id, name)
        else:
            raw.hset(KEY + "job:" + job_id, name, value)
    changes = await look(store)
    assert [(each.job_id, each.change, each.reason) for each in changes] == [(job_id, "failed", "its record is broken")]
    assert await store.pending_count() == 1
    assert raw.zrange(KEY + "dead", 0, -1) == [job_id]
    assert [claim.job_id for claim in (await store.claim("a", 5))[0]] == [other]


@pytest.mark.parametrize("damage", ["containers", "data", "caller"])
async def test_a_broken_record_that_is_claimed_is_buried(store: Store, raw: redis.Redis, damage: str) -> None:
    job_id, other = await submitted(store, "a"), await submitted(store, "a")
    raw.hdel(KEY + "job:" + job_id, damage)
    claims, _ = await store.claim("a", 5)
    assert [claim.job_id for claim in claims] == [other]
    assert raw.hget(KEY + "job:" + job_id, "error") == "its record is broken"
    assert raw.zrange(KEY + "dead", 0, -1) == [job_id]
    assert await store.pending_count() == 1
    await store.get([job_id])


async def test_a_broken_index_costs_no_other_job_its_own(store: Store, raw: redis.Redis) -> None:
    await submitted(store, "a", caller=OTHER)
    fine = await submitted(store, "a")
    claims, _ = await store.claim("a", 5)
    raw.delete(KEY + f"pending:{OTHER.id}")
    raw.set(KEY + f"pending:{OTHER.id}", "no index")
    await asyncio.gather(*(store.finish(claim, output("a")) for claim in claims), return_exceptions=True)
    assert await store.ids(ME.id, pending=True) == []
    assert await store.ids(ME.id, pending=False) == [fine]


async def test_entries_of_another_make_do_not_stop_a_lane(store: Store, raw: redis.Redis) -> None:
    for fields in ({"x": "1"}, {"j": "nobody", "s": "0"}, {"s": "0", "j": "nobody"}, {"j": "x", "s": "first"}):
        raw.xadd(KEY + "lane:a", fields)
    job_id = await submitted(store, "a")
    raw.xadd(KEY + "lane:a", {"s": "0", "new": "field", "j": job_id})
    assert [claim.job_id for claim in (await store.claim("a", 10))[0]] == [job_id]
    raw.xadd(KEY + "lane:a", {"x": "1"})
    raw.xreadgroup("nodes", "n9", {KEY + "lane:a": ">"})
    assert await store.reclaim("a", idle_s=0, max_deliveries=3) == [(job_id, State.QUEUED)]
    assert raw.xlen(KEY + "lane:a") == 1


async def test_a_live_entry_without_a_record_is_forgotten(store: Store, raw: redis.Redis) -> None:
    job_id = await submitted(store, "a")
    raw.delete(KEY + "job:" + job_id)
    assert [(each.job_id, each.change) for each in await look(store)] == [(job_id, "forgotten")]
    assert await store.pending_count() == 0


async def test_a_late_outcome_in_an_emptied_store_makes_no_ghost(store: Store, raw: redis.Redis) -> None:
    await submitted(store, "a", "b")
    claim = await claimed(store, "a")
    raw.flushall()
    assert await store.finish(claim, output("a")) is None
    assert await store.renew([claim]) == [claim]
    assert await store.release(claim) is None
    assert raw.keys() == []


async def test_an_emptied_store_has_another_mark(store: Store, neighbour: Store, raw: redis.Redis) -> None:
    assert [
        await store.alive([], "one", 60),
        await neighbour.alive([], "two", 60),
        await store.alive([], "three", 60),
    ] == ["one"] * 3
    raw.flushall()
    assert [await neighbour.alive([], "four", 60), await store.alive([], "five", 60)] == ["four", "four"]


async def test_after_a_time_in_which_no_node_was_heard_all_get_their_time_to_come_back(
    store: Store, neighbour: Store, raw: redis.Redis
) -> None:
    await neighbour.alive(["a"], "m", 60)
    await neighbour.open(ME, "s-1", ["a"], State.RUNNING, data=b"{}")
    job_id = await submitted(store, "a")
    raw.delete(KEY + "lane:a")
    raw.xadd(KEY + "lane:a", {"j": job_id, "s": "0"}, id="1-1")  # it waits since long ago
    raw.hset(KEY + "job:" + job_id, "entry", "1-1")
    for index in ("nodes", "served"):
        raw.zadd(KEY + index, dict.fromkeys(raw.zrange(KEY + index, 0, -1), 1000))
    await store.alive(["b"], "m", 60)
    long_wait = {"queue_timeout_s": 1e12, "timeout_s": 1e12, "gone_s": 60}
    assert await look(store, **long_wait) == []
    raw.set(KEY + "back", 1000)
    for ended in (job_id, "s-1"):
        raw.zadd(KEY + "live", {ended: 0})
    assert {each.job_id for each in await look(store, **long_wait)} == {job_id, "s-1"}


async def test_a_running_step_whose_node_and_container_are_gone_fails(store: Store, raw: redis.Redis) -> None:
    job_id = await submitted(store, "a")
    claim = await claimed(store, "a")
    raw.xclaim(KEY + "lane:a", "nodes", "n1", 0, [claim.entry], idle=100_000)
    await store.alive(["b"], "m", 0.001)
    raw.delete(KEY + "back")
    assert (await failed_with(store, job_id, gone_s=60)).error.endswith("no node has had it for 60 s (runner.gone_s)")


@pytest.mark.parametrize("damage", ["a text", "queue_s"])
async def test_what_is_no_record_at_all_does_not_keep_the_others_waiting(
    store: Store, raw: redis.Redis, damage: str
) -> None:
    bad, other = await submitted(store, "a"), await submitted(store, "a")
    claim = await claimed(store, "a")
    assert claim.job_id == bad
    if damage == "a text":
        raw.delete(KEY + "job:" + bad)
        raw.set(KEY + "job:" + bad, "x")
    else:
        raw.hset(KEY + "job:" + bad, "total_s", "abc")
    raw.zadd(KEY + "live", {other: 1e15})
    assert [each.job_id for each in await look(store)] == [bad]
    raw.zadd(KEY + "live", {other: 0})
    raw.delete(KEY + "lane:a")
    assert [(each.job_id, each.change) for each in await look(store)] == [(other, "queued")]
    assert await store.renew([claim]) == [claim]


async def test_a_renewal_makes_an_entry_that_the_record_lost(store: Store, raw: redis.Redis) -> None:
    await submitted(store, "a")
    claim = await claimed(store, "a")
    raw.hdel(KEY + "job:" + claim.job_id, "entry")
    assert await store.renew([claim]) == []
    assert await look(store) == []


async def test_only_what_is_held_without_being_renewed_is_listed_and_taken_back(
    store: Store, neighbour: Store, raw: redis.Redis
) -> None:
    first, second, third = [await submitted(store, "a") for _ in range(3)]
    for _ in range(2):
        await claimed(store, "a")
    await claimed(neighbour, "a")
    entries = [raw.hget(KEY + "job:" + job_id, "entry") for job_id in (first, second, third)]
    assert await store.held("a", 0) == entries[:2]
    assert await store.held("a", 60) == []
    assert await store.reclaim("a", entries=entries[:1]) == [(first, State.QUEUED)]
    assert [await state_of(store, job_id) for job_id in (first, second, third)] == [
        State.QUEUED,
        State.RUNNING,
        State.RUNNING,
    ]
