"""The store moves to another server while jobs run: by Sentinel, or inside a cluster. Nothing accepted is lost."""

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from node.store.embedded import server_binary
from tests.support import Echo, Node, RedisServer, eventually, free_port, until

pytestmark = pytest.mark.acceptance

FULL = bool(os.environ.get("STOKER_FULL"))
BATCHES = 100 if FULL else 20
BATCH = 50
NAME = "jobs"
DOWN_AFTER_MS = 800
BACK_S = 60.0  # for a busy machine; the figure is printed


class Sentinels:
    """Three of them, and the servers that they watch."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = [free_port() for _ in range(3)]

    def start(self, stack: ExitStack, master: RedisServer) -> None:
        for number, port in enumerate(self.ports):
            folder = self.directory / f"sentinel-{number}"
            folder.mkdir(parents=True)
            (folder / "sentinel.conf").write_text(
                f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
                f"sentinel monitor {NAME} 127.0.0.1 {master.port} 2\n"
                f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}\nsentinel failover-timeout {NAME} 3000\n"
            )
            command = [str(server_binary()), str(folder / "sentinel.conf"), "--sentinel"]
            log = stack.enter_context((folder / "log").open("wb"))
            process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
        until(self._know, message="that the sentinels know each other and the replicas")

    def _know(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            for port in self.ports:
                with redis.Redis(port=port) as client:
                    state = client.sentinel_masters()[NAME]
                    if (state["num-other-sentinels"], state["num-slaves"]) != (2, 2):
                        return False
            return True
        return False

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+sentinel://{hosts}/{NAME}"


class Flow:
    """Batches, one after the other; each is sent until it is answered."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.ids: list[str] = []
        self.refused = 0
        self.longest_gap_s = 0.0

    async def run(self) -> None:
        answered_at = time.monotonic()
        for _ in range(BATCHES):
            while not await self._sent():
                self.refused += 1
            self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - answered_at)
            answered_at = time.monotonic()

    async def _sent(self) -> bool:
        body = [{"containers": ["a", "b"], "data": {"i": i}} for i in range(BATCH)]
        async with self.node.session.post("/api/jobs/batch", json=body) as answer:
            assert answer.status in (200, 503), await answer.text()
            if answer.status == 200:
                self.ids += [each["id"] for each in await answer.json()]
            return answer.status == 200

    async def results(self) -> list[dict[str, Any]]:
        async def ended() -> bool:
            async with self.node.session.get("/api/jobs?pending=true") as answer:
                return answer.status == 200 and not await answer.json()

        await eventually(ended, seconds=120, message="the end of all jobs")
        parts = [self.ids[i : i + 500] for i in range(0, len(self.ids), 500)]
        found = [await self.node.get("/api/jobs?id=" + "&id=".join(part)) for part in parts]
        return [job for part in found for job in part]

    def told(self, what: str, results: list[dict[str, Any]]) -> None:
        good = [job for job in results if job["status"] == "success"]
        print(
            f"\n{what}: {len(self.ids)} jobs accepted, {self.refused} batches refused with 503, no write for "
            f"{self.longest_gap_s:.1f} s, {len(self.ids) - len(results)} lost, {len(results) - len(good)} failed"
        )
        assert len(self.ids) == BATCHES * BATCH
        assert len(good) == len(self.ids)
        assert self.longest_gap_s < BACK_S


@pytest.mark.timeout(300)
async def test_a_sentinel_failover_under_load_loses_no_accepted_job(tmp_path: Path, echo: Echo) -> None:
    with ExitStack() as stack:
        master = stack.enter_context(RedisServer("valkey", tmp_path / "one"))
        for name in ("two", "three"):
            follow = ("--replicaof", f"127.0.0.1 {master.port}")
            stack.enter_context(RedisServer("valkey", tmp_path / name, *follow))
        sentinels = Sentinels(tmp_path)
        sentinels.start(stack, master)
        store = {"url": sentinels.url, "min_replicas": 1}
        async with Node(tmp_path, echo.containers("a", "b"), redis=store) as node:
            flow = Flow(node)
            running = asyncio.create_task(flow.run())
            await eventually(lambda: reached(flow, BATCHES * BATCH // 4), message="a quarter of the jobs")
            master.kill()
            await running
            flow.told(f"Sentinel failover (down after {DOWN_AFTER_MS} ms)", await flow.results())


async def reached(flow: Flow, count: int) -> bool:
    return len(flow.ids) >= count


async def test_a_job_that_no_replica_has_is_not_accepted(tmp_path: Path, echo: Echo) -> None:
    with RedisServer("valkey", tmp_path / "one") as server:
        store = {"url": server.url, "min_replicas": 1, "timeout_s": 0.4}
        node = Node(tmp_path, echo.containers("a"), redis=store)
        async with contextlib.AsyncExitStack() as stack:
            node.session = await stack.enter_async_context(aiohttp.ClientSession(node.url))
            await node.start(ready=False)
            stack.callback(node.kill)
            await node.post("/api/jobs", {"containers": ["a"], "data": {}}, status=503)
            with RedisServer("valkey", tmp_path / "two", "--replicaof", f"127.0.0.1 {server.port}"):

                async def accepted() -> bool:
                    async with node.session.post("/api/jobs", json={"containers": ["a"], "data": {}}) as answer:
                        return answer.status == 200

                await eventually(accepted, message="an accepted job")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[RedisServer]]:
    """Three masters, a replica of the one that has the jobs, which is the first, and one more server."""
    with ExitStack() as stack:
        servers = []
        buses = [free_port() for _ in range(5)]  # the usual one, the port + 10,000, may be none
        for name, bus in zip(("one", "two", "three", "four", "five"), buses, strict=True):
            options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", str(bus))
            servers.append(stack.enter_context(RedisServer("valkey", tmp_path / name, *options)))
        clients = [stack.enter_context(redis.Redis(port=each.port, decode_responses=True)) for each in servers]
        slot = clients[0].execute_command("CLUSTER KEYSLOT", "{0}")
        ranges = [(slot, slot), (0, slot - 1), (slot + 1, 16383)]
        for client, (first, last) in zip(clients, ranges, strict=False):
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER MEET", "127.0.0.1", servers[0].port, buses[0])
        owner = clients[0].execute_command("CLUSTER MYID")
        for client in clients[3:]:
            client.execute_command("CLUSTER MEET", "127.0.0.1", servers[0].port, buses[0])
        until(lambda: follows(clients[3], owner), message="the replica")
        until(lambda: all(client.cluster("INFO")["cluster_state"] == "ok" for client in clients), message="the cluster")
        yield servers


def follows(client: redis.Redis, owner: str) -> bool:
    """Whether it is that node's replica; it is told to be. Refused until it has heard of that node."""
    with contextlib.suppress(redis.RedisError):
        state = client.info("replication")
        if state["role"] == "master":
            client.execute_command("CLUSTER REPLICATE", owner)
        return state.get("master_link_status") == "up"
    return False


def replace_replica(old: RedisServer, spare: RedisServer) -> None:
    """Once the replica has taken over it has none itself; until it gets one, no job is accepted."""
    with redis.Redis(port=old.port, decode_responses=True) as master, redis.Redis(port=spare.port) as replica:
        until(lambda: master.info("replication")["role"] == "master", message="the takeover")
        owner = master.execute_command("CLUSTER MYID")
        until(lambda: follows(replica, owner), message="the new replica")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ["handed over", "killed"])
async def test_a_cluster_whose_node_changes_under_load_loses_no_accepted_job(
    tmp_path: Path, echo: Echo, cluster: list[RedisServer], fault: str
) -> None:
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in cluster[1:3])
    async with Node(tmp_path, echo.containers("a", "b"), redis={"url": url, "min_replicas": 1}) as node:
        flow = Flow(node)
        running = asyncio.create_task(flow.run())
        await eventually(lambda: reached(flow, BATCHES * BATCH // 4), message="a quarter of the jobs")
        if fault == "handed over":
            with redis.Redis(port=cluster[3].port) as replica:
                replica.execute_command("CLUSTER FAILOVER")
        else:
            cluster[0].kill()
            await asyncio.to_thread(replace_replica, cluster[3], cluster[4])
        await running
        flow.told(f"cluster node {fault}", await flow.results())
