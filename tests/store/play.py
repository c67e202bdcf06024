"""The stage of `test_machine.py`: a server, two nodes' stores, the model, and what is said about them."""

import sys
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import redis
import uvloop
from hypothesis.stateful import RuleBasedStateMachine

from node.jobs import Claim, ContainerError, ContainerOutput, ContainerResult
from node.store import Bounds, Store
from tests.store.model import KEY, Expected, Kept, Model
from tests.support import RedisServer

CONTAINERS = ("a", "b", "c")
NODES = ("n1", "n2")
BOUNDS = Bounds(lane=8, pending=12, share=4, look_s=0)

T = TypeVar("T")


class Play(RuleBasedStateMachine):
    server: RedisServer

    def begin(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.raw = redis.Redis(port=self.server.port, decode_responses=True)
        self.raw.flushall()
        self.model = Model(CONTAINERS)
        self.claims: list[tuple[str, Claim]] = []  # all that were ever given out, with the node
        self.named: dict[tuple[str, str], tuple[Any, dict[int, str]]] = {}  # idempotency keys: request, ids
        self.counted = 0
        self.stores: dict[str, Store] = {}
        for node in NODES:
            self.start(node)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            if sys.exc_info()[0] is None:
                self.drain()
        finally:
            for store in self.stores.values():
                self.do(store.__aexit__(None, None, None))
            self.raw.close()
            self.loop.close()

    def drain(self) -> None:
        """What comes after a play that went well."""
        raise NotImplementedError

    def do(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)

    def start(self, node: str) -> None:
        self.stores[node] = Store(self.server.url, node_id=node, bounds=BOUNDS)
        self.do(self.stores[node].__aenter__())
        self.do(self.stores[node].alive(CONTAINERS, "mark", 3600))

    def stop(self, node: str) -> None:
        self.do(self.stores.pop(node).__aexit__(None, None, None))

    def age(self) -> None:
        """Let the server's clock go on, so that what ended before is older than nothing."""
        time.sleep(0.003)

    def new_id(self) -> str:
        self.counted += 1
        return f"job-{self.counted:05}"

    def job(self, pick: int) -> Expected | None:
        jobs = list(self.model.jobs.values())
        return jobs[pick % len(jobs)] if jobs else None

    def given(self, pick: int) -> tuple[str, Claim | None]:
        """A claim that a node got once; with an even pick one that still counts, if there is one."""
        among = [each for each in self.claims if self.model.holds(each[1])] if pick % 2 == 0 else []
        among = among or self.claims
        return among[pick // 2 % len(among)] if among else ("", None)

    def outcome(self, container: str, *, good: bool) -> ContainerResult:
        """Like no other before it, so that none can be taken for another."""
        self.counted += 1
        if good:
            return ContainerOutput(container=container, output=b'{"y":%d}' % self.counted)
        return ContainerError(container=container, error=f"it broke {self.counted}")

    def place(self, container: str, entry: str) -> tuple[str, str]:
        """The stream of an entry, and its id there."""
        return (f"{KEY}bulk:{container}", entry[1:]) if entry[0] == "b" else (f"{KEY}lane:{container}", entry)

    def see_lanes(self) -> None:
        """Damaged lanes that are well again are held to it from now on."""
        kept = Kept(self.raw)
        for container in list(self.model.damaged):
            records, entries, leases = kept.records(), kept.entries(container), kept.leases(container)
            waiting, running = self.model.waiting[container], self.model.running(container)
            held = {records[job_id]["entry"]: self.model.jobs[job_id].node for job_id in running}
            if leases == held and all(records[job_id]["entry"] in entries for job_id in waiting + running):
                waiting.sort(key=lambda job_id: list(entries).index(records[job_id]["entry"]))
                for job_id in waiting:
                    self.model.jobs[job_id].bulk = records[job_id]["entry"][0] == "b"
                self.model.damaged.remove(container)
