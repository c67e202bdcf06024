"""What is the same in each process of a node, over its whole life, and how the processes share out what there is."""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.config import Config, ContainerSpec, Server
from node.metrics import Metrics
from node.store import Bounds, Store
from node.store.place import external


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """data_dir: absolute."""

    config: Config
    data_dir: Path
    node_id: str
    tls: ssl.SSLContext | None

    def store(self, url: str, name: str, metrics: Metrics) -> Store:
        """The node's store, for the process of a name. url: where the node's own server is; "" for an external one."""
        config = self.config
        bounds = Bounds(
            lanes={spec.id: spec.max_queued for spec in config.containers},
            pending=config.server.max_pending,
            share=config.server.fair_share,
            look_s=config.runner.check_s,
            remembered_s=config.server.idempotency_s,
        )
        if config.redis:
            return external(config.redis, node_id=name, bounds=bounds, metrics=metrics)
        return Store(url, node_id=name, bounds=bounds, metrics=metrics)

    @property
    def doors(self) -> list[str]:
        """Names of the workers that answer requests; none: the main process does."""
        return [f"d{i + 1}" for i in range(self.config.server.processes)]

    @property
    def runners(self) -> list[str]:
        """The same for those that run steps."""
        return [f"r{i + 1}" for i in range(self.config.runner.processes)]

    def known_as(self, worker: str) -> str:
        """A worker's name in the store; the main process has the node's own there."""
        return f"{self.node_id}/{worker}"

    def slots(self, worker: str) -> dict[str, int]:
        """How many slots of each container are a runner's: together they are its `concurrency`."""
        specs, count = self.config.containers, len(self.runners)
        place = self.runners.index(worker)
        return {spec.id: part(spec.concurrency, count, place + shift) for shift, spec in enumerate(specs)}

    @property
    def door_settings(self) -> Server:
        """With the limits of one of the doors: what all have together is the node's."""
        server, count = self.config.server, max(1, len(self.doors))
        parts = {
            "max_connections": max(1, server.max_connections // count),
            "max_bodies_bytes": max(server.max_body_bytes, server.max_bodies_bytes // count),
        }
        return server if count == 1 else server.model_copy(update=parts)


def part(whole: int, count: int, place: int) -> int:
    """Of `whole` things for `count` takers, those of one. Places go round, so that not all that is left over falls to
    the same one."""
    return whole // count + (place % count < whole % count)


def all_slots(specs: Sequence[ContainerSpec]) -> dict[str, int]:
    return {spec.id: spec.concurrency for spec in specs}
