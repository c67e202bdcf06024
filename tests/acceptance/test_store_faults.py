"""The store is killed, frozen, filled and starved under load. Accepted jobs end; others are refused soon."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import redis

from tests.support import Echo, Node, RedisServer, SmallDisk, eventually

pytestmark = pytest.mark.acceptance

FULL = bool(os.environ.get("STOKER_FULL"))
AWAY_S = 10 if FULL else 2.5
CLIENTS = 16
ANSWER_S = 2.0  # the node's own limit for an answer without its store
BUSY_S = 1.5  # more, on a machine that does other things as well
BRISK = {"lease_s": 60, "reclaim_s": 0.5}  # nothing here may wait for the end of a lease
DEBIAN = pytest.mark.redis
KINDS = ["valkey", pytest.param("redis", marks=DEBIAN)]
CASES = [("valkey", "everysec"), pytest.param("redis", "always", marks=DEBIAN)]
if FULL:
    CASES += [("valkey", "always"), pytest.param("redis", "everysec", marks=DEBIAN)]


class Load:
    """Clients that submit without a pause: what was accepted, what else was answered, and the longest answer."""

    def __init__(self, node: Node, containers: list[str], **data: Any) -> None:
        self.node = node
        self.accepted: dict[str, str] = {}  # job id -> the key that it was sent with
        self.refused: Counter[str] = Counter()
        self.longest_s = 0.0
        self.refused_longest_s = 0.0
        self._containers = containers
        self._data = data

    async def __aenter__(self) -> Self:
        self._clients = [asyncio.create_task(self._submit_all(f"{i}")) for i in range(CLIENTS)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.cancel()
        for client in self._clients:
            with contextlib.suppress(asyncio.CancelledError):
                await client

    async def _submit_all(self, name: str) -> None:
        number = 0
        while True:
            number += 1
            if await self.submit(f"{name}-{number}") != 200:
                await asyncio.sleep(0.05)

    async def submit(self, key: str) -> int:
        body = {"containers": self._containers, "data": {"key": key, **self._data}}
        began = time.monotonic()
        async with self.node.session.post("/api/jobs", json=body) as answer:
            told = await answer.json()
            took_s = time.monotonic() - began
        self.longest_s = max(self.longest_s, took_s)
        if answer.status == 200:
            self.accepted[told["id"]] = key
        else:
            self.refused_longest_s = max(self.refused_longest_s, took_s)
            assert answer.status == 503, told
            assert "id" not in told
            self.refused[told["error"]] += 1
        return answer.status

    async def until_accepted(self, more: int) -> None:
        goal = len(self.accepted) + more

        async def reached() -> bool:
            return len(self.accepted) >= goal

        await eventually(reached, message=f"{more} more accepted jobs")

    async def until_refused(self) -> None:
        goal = sum(self.refused.values()) + 1

        async def reached() -> bool:
            return sum(self.refused.values()) >= goal

        await eventually(reached, message="a refusal")

    async def all_succeed(self) -> None:
        """Each accepted job, and with its own data."""
        ids = list(self.accepted)
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            for job in await eventually(
                lambda part=part: self._ended(part), seconds=30, message="the end of all accepted jobs"
            ):
                assert job["status"] == "success", job
                assert job["result"]["output"]["key"] == self.accepted[job["id"]]

    async def _ended(self, ids: list[str]) -> Any:
        jobs = await self.node.get("/api/jobs?" + "&".join(f"id={job_id}" for job_id in ids))
        assert len(jobs) == len(ids), "an accepted job is not known"
        return jobs if all(job["status"] != "running" for job in jobs) else None


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def outside(kind: str, tmp_path: Path, echo: Echo) -> AsyncIterator[tuple[Node, RedisServer]]:
    """A node on a server that the test can stop, freeze and fill."""
    with RedisServer(kind, tmp_path / "redis", "--appendfsync", "always") as server:
        async with Node(tmp_path, echo.containers("a", "b"), redis={"url": server.url}, runner=BRISK) as node:
            yield node, server


def told(figures: str, record: pytest.FixtureRequest) -> None:
    """What was measured, for whoever runs with -s."""
    print(f"\n{record.node.name}: {figures}")


async def test_killed_under_load_it_costs_refusals_and_no_accepted_job(
    outside: tuple[Node, RedisServer], request: pytest.FixtureRequest
) -> None:
    node, server = outside
    async with Load(node, ["a", "b"]) as load:
        await load.until_accepted(200)
        server.kill()
        before = len(load.accepted)
        await load.until_refused()
        await asyncio.sleep(1)  # so long it is away
        await asyncio.to_thread(server.start)
        await load.until_accepted(200)
    await load.all_succeed()
    assert load.refused_longest_s < ANSWER_S + BUSY_S
    told(
        f"{before} accepted before, {len(load.accepted) - before} after; {sum(load.refused.values())} refused; "
        f"longest answer {load.longest_s:.2f} s, longest refusal {load.refused_longest_s:.3f} s",
        request,
    )


async def test_frozen_under_load_it_answers_in_time_and_leaves_nothing_behind(
    outside: tuple[Node, RedisServer], request: pytest.FixtureRequest
) -> None:
    node, server = outside
    with redis.Redis(port=server.port) as raw:
        async with Load(node, ["a", "b"]) as load:
            await load.until_accepted(200)
            connections, received = len(raw.client_list()), raw.info("stats")["total_connections_received"]
            server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(AWAY_S)
            server.process.send_signal(signal.SIGCONT)
            await load.until_accepted(200)
        await load.all_succeed()

        async def settled() -> bool:
            return len(raw.client_list()) <= connections

        await eventually(settled, message="the end of the connections that were given up")
        made = raw.info("stats")["total_connections_received"] - received
    assert load.longest_s < ANSWER_S + BUSY_S
    assert made < 5 * AWAY_S + 10
    told(
        f"{len(load.accepted)} accepted, {sum(load.refused.values())} refused; longest answer {load.longest_s:.2f} s; "
        f"{made} connections made for {AWAY_S} s, {connections} before and after",
        request,
    )


@pytest.mark.parametrize("fault", ["killed", "frozen"] if FULL else ["killed"])
async def test_a_node_without_its_store_waits_quietly(
    tmp_path: Path, echo: Echo, fault: str, request: pytest.FixtureRequest
) -> None:
    """No hot loop: what it uses of the processor, and how much it writes to its log."""
    with RedisServer("valkey", tmp_path / "redis") as server:
        async with Node(tmp_path, echo.containers("a", "b", "c", "d"), redis={"url": server.url}) as node:
            await node.run(["a", "b"], {})
            server.process.send_signal(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
            await node.get("/health/ready", status=503)
            used, lines = processor_s(node), len(node.log.read_text().splitlines())
            await asyncio.sleep(AWAY_S)
            used, lines = processor_s(node) - used, len(node.log.read_text().splitlines()) - lines
            assert used < 0.2 * AWAY_S
            assert lines < 5 * AWAY_S
            told(f"{used / AWAY_S:.1%} of a processor, {lines} log lines in {AWAY_S} s", request)


def processor_s(node: Node) -> float:
    fields = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_out_of_memory_new_jobs_are_refused_and_running_ones_finish(
    outside: tuple[Node, RedisServer], echo: Echo, kind: str
) -> None:
    node, server = outside
    key = f"memory-{kind}"
    running = await node.submit(["a", "b"], {"key": key, "wait_for": key})
    with redis.Redis(port=server.port) as raw:
        raw.config_set("maxmemory", raw.info("memory")["used_memory"])
        refused = await node.post("/api/jobs", {"containers": ["a"], "data": {"x": "x" * 10_000}}, status=503)
        assert refused["error"] == "The job store is full"
        assert (await node.get("/health/ready"))["status"] == "ready"  # results can be had
        echo.release(key)
        assert (await node.result(running))["status"] == "success"
        raw.config_set("maxmemory", 0)
    assert (await node.run(["a", "b"], {}))["status"] == "success"


async def test_unsafe_settings_are_told_at_the_start_and_when_the_server_is_back(tmp_path: Path, echo: Echo) -> None:
    """The node runs all the same: it is the operator's to choose."""
    server = RedisServer("valkey", tmp_path / "redis", "--maxmemory-policy", "allkeys-lru")
    with server:
        async with Node(tmp_path, echo.containers("a"), redis={"url": server.url}) as node:
            told = await eventually(lambda: unsafe(node, "eviction"), message="the warning")
            assert "noeviction" in told["do"]
            assert any("allkeys-lru" in words for words in (await node.get("/health/ready"))["warnings"])
            server.kill()
            server.options = ("--appendonly", "no")
            await asyncio.to_thread(server.start)
            await eventually(lambda: unsafe(node, "append-only", "jobs are lost"), message="the new warning")
            assert [event["check"] for event in node.events("store_safe_again")] == ["eviction"]
            assert len(node.events("store_unsafe")) == len({event["found"] for event in node.events("store_unsafe")})


async def unsafe(node: Node, check: str, words: str = "") -> Any:
    told = (event for event in node.events("store_unsafe") if event["check"] == check and words in event["found"])
    return next(told, None)


@pytest.mark.mount
@pytest.mark.parametrize(("kind", "fsync"), CASES)
async def test_with_a_full_disk_under_the_server_nothing_accepted_is_lost(
    tmp_path: Path, echo: Echo, kind: str, fsync: str, request: pytest.FixtureRequest
) -> None:
    """With `always` the server ends when it cannot write, and somebody must start it again; here the test does."""
    with SmallDisk(tmp_path / "disk") as disk:
        server = RedisServer(kind, disk.place, "--appendfsync", fsync)
        with server:
            async with Node(tmp_path, echo.containers("a"), redis={"url": server.url}) as node:
                load = Load(node, ["a"], filler="x" * 10_000, body='{"key": ""}')
                await fill(load)
                if fsync == "everysec":
                    reasons = (await node.get("/health/ready", status=503))["reasons"]
                    assert "No space left on device" in reasons[0]
                    assert "The job store cannot write" in load.refused
                assert await load.submit("again") == 503
                disk.grow()
                if fsync == "always":
                    server.process.wait(10)
                    await asyncio.to_thread(server.start)
                await eventually(lambda: accepts(load), message="jobs are accepted again")
                await all_ended(load)
                told(f"{len(load.accepted)} accepted, refusals {dict(load.refused)}", request)


async def fill(load: Load) -> None:
    """Submit until it is refused."""
    for number in range(500):
        if await load.submit(f"{number}") != 200:
            return
    raise AssertionError("the disk was never full")


async def accepts(load: Load) -> bool:
    return await load.submit("again") == 200


async def all_ended(load: Load) -> None:
    ids = list(load.accepted)
    jobs = await eventually(lambda: load._ended(ids), message="the end of all accepted jobs")
    assert {job["status"] for job in jobs} == {"success"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Where a node with a server of its own keeps its data."""
    with SmallDisk(tmp_path / "data") as mounted:
        yield mounted


@pytest.mark.mount
async def test_with_a_nearly_full_disk_new_jobs_are_refused_and_running_ones_finish(
    tmp_path: Path, echo: Echo, disk: SmallDisk
) -> None:
    async with Node(tmp_path, echo.containers("a"), embedded={"reserve_bytes": 300_000}) as node:
        pid = (disk.place / "valkey" / "valkey.pid").read_text()
        running = await node.submit(["a"], {"key": "nearly", "wait_for": "nearly"})
        load = Load(node, ["a"], filler="x" * 10_000, body='{"key": ""}')
        await fill(load)
        refused = await node.post("/api/jobs", {"containers": ["a"], "data": {}}, status=503)
        assert refused["error"] == "The job store is full"
        assert "disk full" in refused["params"]["reason"]
        assert any("disk full" in words for words in (await node.get("/health/ready"))["warnings"])
        assert len(node.events("disk_full")) == 1
        echo.release("nearly")
        assert (await node.result(running))["status"] == "success"
        await all_ended(load)
        disk.grow()
        await eventually(lambda: accepts(load), message="jobs are accepted again")
        assert (disk.place / "valkey" / "valkey.pid").read_text() == pid, "the server ended meanwhile"


@pytest.mark.mount
async def test_with_a_full_disk_the_embedded_server_ends_and_comes_back_with_all_jobs(
    tmp_path: Path, echo: Echo, disk: SmallDisk, request: pytest.FixtureRequest
) -> None:
    async with Node(tmp_path, echo.containers("a"), embedded={"reserve_bytes": 0}) as node:
        large = await node.submit(["a"], {"key": "large", "wait_for": "large", "bytes": 100_000})
        load = Load(node, ["a"], filler="x" * 10_000, body='{"key": ""}')
        await fill(load)
        echo.release("large")  # there is no room for its output
        died = await eventually(lambda: deaths(node), message="the end of the server")
        assert "disk full" in died[0]["reason"]
        await asyncio.sleep(AWAY_S)
        await eventually(lambda: knows(node, load), message="the accepted jobs can be read on the full disk")
        died = await deaths(node)
        assert len(died) < 3 * AWAY_S
        assert node.process.poll() is None
        disk.grow()
        assert (await node.result(large))["status"] == "success"
        await eventually(lambda: accepts(load), message="jobs are accepted again")
        await all_ended(load)
        told(f"{len(load.accepted)} accepted; the server ended {len(died)} times in {AWAY_S} s", request)


async def deaths(node: Node) -> list[dict[str, Any]]:
    return node.events("embedded_server_died")


async def knows(node: Node, load: Load) -> bool:
    path = "/api/jobs?" + "&".join(f"id={job_id}" for job_id in load.accepted)
    async with node.session.get(path) as answer:
        return answer.status == 200 and len(await answer.json()) == len(load.accepted)


async def test_while_the_server_reads_its_file_jobs_are_refused_and_then_all_are_there(
    tmp_path: Path, echo: Echo
) -> None:
    with RedisServer("valkey", tmp_path / "redis") as server:
        async with Node(tmp_path, echo.containers("a"), redis={"url": server.url}) as node:
            job_id = await node.submit(["a"], {"x": 1})
            await node.result(job_id)
            with redis.Redis(port=server.port) as raw, raw.pipeline(transaction=False) as many:
                for i in range(12_000):  # it answers between every thousand commands of its file
                    many.set("other", i)
                many.execute()
            server.kill()
            server.options = ("--key-load-delay", "100")  # microseconds for each of them
            starting = asyncio.create_task(asyncio.to_thread(server.start))
            reason = await eventually(lambda: loading(node), message="the reason")
            assert reason == "redis: Valkey is loading the dataset in memory"
            assert await node.metric("stoker_store_up") == 0
            refused = await node.post("/api/jobs", {"containers": ["a"], "data": {}}, status=503)
            assert refused["error"] == "The job store does not answer"
            await starting
            assert (await node.result(job_id))["status"] == "success"


async def loading(node: Node) -> str:
    async with node.session.get("/health/ready") as answer:
        return next((words for words in (await answer.json())["reasons"] if "loading" in words), "")


async def test_a_server_that_is_a_replica_is_a_reason_not_to_be_ready(tmp_path: Path, echo: Echo) -> None:
    with (
        RedisServer("valkey", tmp_path / "redis") as server,
        RedisServer("valkey", tmp_path / "other") as other,
        redis.Redis(port=server.port) as raw,
    ):
        raw.replicaof("127.0.0.1", other.port)
        async with Node(tmp_path, echo.containers("a"), redis={"url": server.url}) as node:
            refused = await node.post("/api/jobs", {"containers": ["a"], "data": {}}, status=503)
            assert refused["error"] == "The job store refused the operation"
            await eventually(lambda: reasons(node, "is a replica, which takes no jobs"), message="the reason")
            raw.replicaof("NO", "ONE")
            assert (await node.run(["a"], {}))["status"] == "success"


async def reasons(node: Node, words: str) -> bool:
    async with node.session.get("/health/ready") as answer:
        return any(words in reason for reason in (await answer.json())["reasons"])


async def test_a_stream_that_was_refused_does_not_stay_running(tmp_path: Path, echo: Echo) -> None:
    stream = {"containers": ["a"], "data": {"parts": ["x"]}}
    with RedisServer("valkey", tmp_path / "redis") as server:
        redis = {"url": server.url, "timeout_s": 0.5}
        async with Node(tmp_path, echo.containers("a"), redis=redis, runner=BRISK) as node:
            async with node.session.post("/api/jobs/stream", json=stream) as answer:
                assert answer.status == 200
                await answer.read()

            async def answered() -> bool:
                async with node.session.get("/api/jobs") as answer:
                    return answer.status == 200

            for _ in range(3):  # another round trip may be the one under way when the store stops
                server.process.send_signal(signal.SIGSTOP)
                async with node.session.post("/api/jobs/stream", json=stream) as answer:
                    assert answer.status == 503
                server.process.send_signal(signal.SIGCONT)
                await eventually(answered, message="the store")

            async def ended() -> bool:
                return await node.get("/api/jobs?pending=true") == [] and len(await node.get("/api/jobs")) > 1

            await eventually(ended, seconds=20, message="the end of the refused streams")


class Proxy:
    """Between a node and its server. `reset` ends all connections as a firewall does that has forgotten them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._clients: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.reset()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def reset(self) -> None:
        no_linger = struct.pack("ii", 1, 0)
        for client in self._clients:
            client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
            client.transport.abort()
        self._clients.clear()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._port)
        answers = asyncio.create_task(pump(theirs, writer))
        await pump(reader, ours)
        ours.close()
        await answers


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while part := await reader.read(1 << 16):
            writer.write(part)


async def test_connections_that_are_reset_while_idle_stop_nothing(tmp_path: Path, echo: Echo) -> None:
    with RedisServer("valkey", tmp_path / "redis") as server:
        async with (
            Proxy(server.port) as proxy,
            Node(tmp_path, echo.containers("a"), redis={"url": proxy.url}, runner=BRISK) as node,
        ):

            async def accepted() -> bool:
                async with node.session.post("/api/jobs", json={"containers": ["a"], "data": {}}) as answer:
                    return answer.status == 200

            for _ in range(5):
                assert (await node.run(["a"], {"x": 1}))["status"] == "success"
                proxy.reset()
                await eventually(accepted, seconds=10, message="an accepted job")
            assert await asyncio.to_thread(node.kill, signal.SIGTERM) == 0
