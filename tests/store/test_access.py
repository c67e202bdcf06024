"""What the store knows of API keys, and what a process remembers of them."""

import asyncio
import hashlib
import json
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio

from node.errors import NotFound, Rejected, Unavailable
from node.jobs import Role
from node.store import Access, Store
from tests.support import RedisServer, eventually

KEYS = "stoker:{0}:access"


@pytest.fixture
async def raw(redis_server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    """The server's own side, empty."""
    async with redis.asyncio.Redis(port=redis_server.port) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def access(redis_server: RedisServer, raw: redis.asyncio.Redis) -> AsyncIterator[Access]:
    """As a command uses it: it asks the store each time."""
    async with Store(redis_server.url, node_id="n1") as store:
        yield store.access


@pytest.fixture
async def remembering(redis_server: RedisServer, access: Access) -> AsyncIterator[Access]:
    """As a node uses it, with a memory that is kept fresh."""
    async with Store(redis_server.url, node_id="n2") as store, store.access as entered:
        assert not await entered.keyed()
        yield entered


async def test_a_key_is_256_random_bits_behind_a_prefix_and_found_by_itself_only(access: Access) -> None:
    made = [await access.create("shop", Role.SUBMIT) for _ in range(3)]
    for secret, key in made:
        assert secret.startswith("stoker_")
        assert len(secret) == len("stoker_") + 43  # 32 bytes in base64
        assert await access.find(secret) == key
        assert (key.name, key.role, key.expires_at) == ("shop", Role.SUBMIT, None)
    assert len({secret for secret, _ in made}) == len({key.id for _, key in made}) == 3
    secret = made[0][0]
    for wrong in ("", "stoker_", secret[:-1], secret + "x", secret.swapcase(), secret[7:], made[0][1].id, "\udcff"):
        assert await access.find(wrong) is None


async def test_the_store_has_only_the_hash(access: Access, raw: redis.asyncio.Redis) -> None:
    secret, key = await access.create("shop", Role.READ)
    everything = str([await raw.dump(name) for name in await raw.keys("*")])
    assert secret not in everything
    assert secret[7:] not in everything
    record = json.loads(await raw.hget(KEYS, key.id))
    assert record["digest"] == hashlib.sha256(secret.encode()).hexdigest()
    assert set(record) == {"digest", "name", "role", "created_at", "expires_at"}


async def test_keys_are_listed_oldest_first_with_what_is_known_of_them(access: Access) -> None:
    began = time.time()
    made = [(await access.create(name, Role.READ, expires_in_s=60))[1] for name in ("b", "a", "c")]
    listed = await access.all()
    assert listed == made
    assert [key.name for key in listed] == ["b", "a", "c"]
    assert all(began <= key.created_at <= time.time() for key in listed)
    assert all(key.expires_at == key.created_at + 60 for key in listed)


@pytest.mark.parametrize("name", ["", "1shop", "127.0.0.1", "::1", "a b", "-a", "a" * 65, "é", "a\n", "a:b", "a/b"])
async def test_a_name_is_short_and_never_looks_like_an_address(access: Access, name: str) -> None:
    with pytest.raises(Rejected):
        await access.create(name, Role.READ)
    assert await access.all() == []


async def test_a_revoked_key_is_gone_and_cannot_be_revoked_again(access: Access) -> None:
    secret, key = await access.create("shop", Role.READ)
    _, other = await access.create("shop", Role.READ)
    await access.revoke(key.id)
    assert await access.find(secret) is None
    assert await access.all() == [other]
    for unknown in (key.id, "ever", "used:" + other.id, "", "*"):
        with pytest.raises(NotFound):
            await access.revoke(unknown)


async def test_an_expired_key_is_none_but_listed(access: Access, remembering: Access) -> None:
    secret, _ = await access.create("shop", Role.READ, expires_in_s=0.5)

    async def expired() -> bool:
        return await remembering.find(secret) is None

    assert not await expired()
    await eventually(expired, seconds=5, message="the end of the key")
    assert [key.expired for key in await access.all()] == [True]
    assert await remembering.keyed()  # to be let in without one now would be odd


async def test_a_new_key_is_found_at_once_and_a_revoked_one_not_after_two_seconds(
    access: Access, remembering: Access
) -> None:
    """Three of them, revoked at different moments between two refreshes."""

    async def last_found(pause_s: float) -> float:
        secret, key = await access.create("shop", Role.READ)
        assert await remembering.find(secret)
        await asyncio.sleep(pause_s)
        await access.revoke(key.id)
        revoked_at = found_at = time.monotonic()
        while time.monotonic() < revoked_at + 2.2:
            if await remembering.find(secret):
                found_at = time.monotonic()
            await asyncio.sleep(0.005)
        return found_at - revoked_at

    worked = await asyncio.gather(*map(last_found, (1.1, 1.4, 1.7)))
    print(f"revoked keys worked for another {', '.join(f'{seconds:.2f}' for seconds in worked)} s")
    assert 0 < max(worked) <= 2.0  # so memory it was


async def test_a_known_key_costs_no_round_trip(redis_server: RedisServer, access: Access) -> None:
    secret, _ = await access.create("shop", Role.READ)
    async with Store(redis_server.url, node_id="n2") as store, store.access as entered:

        async def remembered() -> bool:
            before = store.round_trips
            assert await entered.find(secret)
            return store.round_trips == before

        await eventually(remembered, seconds=5, message="the key in memory")
        before = store.round_trips
        for _ in range(10_000):
            assert await entered.find(secret)
        assert store.round_trips - before <= 10  # the refreshes of some seconds


async def test_wrong_keys_leave_nothing_in_memory(access: Access, remembering: Access) -> None:
    await access.create("shop", Role.READ)

    async def guess(count: int) -> None:
        for number in range(count):
            assert await remembering.find(f"stoker_{number:043}") is None

    await guess(500)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        await guess(2_000)
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()


async def test_there_has_been_a_key_for_ever(
    access: Access, remembering: Access, raw: redis.asyncio.Redis, redis_server: RedisServer
) -> None:
    _, key = await access.create("shop", Role.READ)
    await eventually(remembering.keyed, seconds=3, message="the end of the open door")
    await access.revoke(key.id)
    async with Store(redis_server.url, node_id="n3") as store:
        assert await store.access.keyed()
    await raw.flushall()
    secret, _ = await access.create("later", Role.READ)
    assert await remembering.find(secret)
    await raw.flushall()

    async def forgotten() -> bool:
        return await remembering.find(secret) is None

    await eventually(forgotten, seconds=5, message="a look at the emptied store")
    assert await remembering.keyed()


async def test_what_cannot_be_read_opens_nothing_and_harms_no_other_key(
    access: Access, remembering: Access, raw: redis.asyncio.Redis
) -> None:
    secret, key = await access.create("shop", Role.READ)
    later, odd = await access.create("shop", Role.READ)
    record = json.loads(await raw.hget(KEYS, odd.id))
    for text in ("", "{", "[]", json.dumps(record | {"role": "root"}), json.dumps(record | {"digest": "é"})):
        await raw.hset(KEYS, odd.id, text)
        assert await access.find(later) is None
        assert await remembering.find(later) is None
        assert key in await access.all()
    await raw.hset(KEYS, odd.id, json.dumps(record | {"note": "of a later version"}))
    assert await access.find(later) == odd
    assert await access.find(secret) == key


async def test_the_last_use_is_known_to_a_minute(access: Access, remembering: Access, raw: redis.asyncio.Redis) -> None:
    secret, key = await access.create("shop", Role.READ)
    assert [key.used_at for key in await access.all()] == [None]
    began = time.time()
    assert await remembering.find(secret)

    async def used_at() -> float | None:
        return (await access.all())[0].used_at

    assert began - 1 <= await eventually(used_at, seconds=5, message="the last use") <= time.time()
    await access.revoke(key.id)
    assert await raw.hkeys(KEYS) == [b"ever"]


async def test_without_the_server_nothing_is_known(redis_server: RedisServer, access: Access) -> None:
    async with Store("redis://127.0.0.1:1", node_id="n2") as store, store.access as entered:
        with pytest.raises(Unavailable):
            await entered.keyed()
        with pytest.raises(Unavailable):
            await entered.find("stoker_x")
        with pytest.raises(Unavailable):
            await entered.create("shop", Role.READ)


async def test_a_mark_that_cannot_be_written_stops_nothing(access: Access, remembering: Access, tmp_path: Path) -> None:
    remembering.remember(tmp_path / "missing" / "keyed")
    secret, key = await access.create("shop", Role.READ)
    await eventually(remembering.keyed)
    assert await remembering.find(secret) == key
    await access.revoke(key.id)

    async def forgotten() -> bool:
        return await remembering.find(secret) is None

    await eventually(forgotten)  # it still reads the store
