"""From a `ContainerSpec` to what the engine is told. Every limit, permission and label is chosen here, nowhere else.

Nothing here calls the engine.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from docker.types import DeviceRequest, LogConfig

from node.config import ContainerSpec
from node.errors import BackendError

PORT = 3000
"""Where a service listens inside its container (Infernet's contract)."""

NOBODY = "65534:65534"

HOST = "host"
"""The engine's name for the network of its host."""

LOG_FILES = {"max-size": "5m", "max-file": "2"}
"""All that one container's output may occupy on disk: 10 MB."""

NODE, CONTAINER, HASH = "stoker.node", "stoker.container", "stoker.hash"
"""Labels: whose it is, which container id it serves, and the hash of everything it was made with."""

KERNEL_TREES = ("/proc", "/sys", "/dev")
ENGINE_TREES = ("/run/docker.sock", "/var/run/docker.sock", "/run/containerd", "/var/lib/docker", "/var/lib/containerd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How a node marks what it makes in an engine, so that it knows it again and touches nothing else."""

    node_id: str
    prefix: str

    def name(self, container: str) -> str:
        return re.sub("[^a-zA-Z0-9_.-]", "-", f"{self.prefix}-{self.node_id}-{container}")

    def image(self, container: str) -> str:
        """Name of a built image, for people. Nodes share it, and with it the engine's cache: containers run by id."""
        return re.sub("[^a-z0-9]+", "-", f"{self.prefix}-{container}".lower()).strip("-")

    def labels(self, container: str) -> dict[str, str]:
        return {NODE: self.node_id, CONTAINER: container}

    def is_on(self, labels: Mapping[str, str] | None, container: str) -> bool:
        """Whether something with these labels was made by this node for this container id."""
        return bool(labels) and self.labels(container).items() <= dict(labels or {}).items()


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One of the node's bridges, or `HOST`. `direct`: this host reaches containers by their address on it."""

    name: str
    id: str
    internal: bool
    direct: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One container as it shall be. `config` and `host` are arguments of the SDK's two `create_*` calls."""

    name: str
    labels: dict[str, str]
    config: dict[str, Any]
    host: dict[str, Any]

    @property
    def hash(self) -> str:
        """Changes whenever anything does that the container is made with, the image's content included."""
        return hashlib.sha256(json.dumps([self.config, self.host], sort_keys=True).encode()).hexdigest()


def plan(spec: ContainerSpec, *, mark: Mark, image: str, network: Network, cpus: int) -> Plan:
    """The plan for `spec`. `image` is an id, `cpus` what the engine has: it refuses a limit above that."""
    config: dict[str, Any] = {"image": image, "environment": dict(spec.env)}
    host = _limits(spec, cpus) | _permissions(spec) | {"network_mode": network.name, "init": True}
    if spec.command:
        config["command"] = spec.command
    if user := _user(spec):
        config["user"] = user
    if spec.hardening.rootfs_read_only:
        config["environment"].setdefault("HOME", "/tmp")
    if spec.volumes:
        host["binds"] = list(spec.volumes)
    if spec.gpu:
        host["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    if _published(spec, network):
        config["ports"] = [PORT]
        host["port_bindings"] = {PORT: ("127.0.0.1", spec.port) if spec.port else ("127.0.0.1",)}
    return Plan(name=mark.name(spec.id), labels=mark.labels(spec.id), config=config, host=host)


def _limits(spec: ContainerSpec, cpus: int) -> dict[str, Any]:
    hardening = spec.hardening
    return {
        "mem_limit": hardening.memory_bytes,
        "memswap_limit": hardening.memory_bytes,
        "nano_cpus": int(min(hardening.cpus, cpus) * 1e9),
        "pids_limit": hardening.pids,
        "log_config": LogConfig(type=LogConfig.types.JSON, config=LOG_FILES),
    }


def _permissions(spec: ContainerSpec) -> dict[str, Any]:
    hardening = spec.hardening
    host: dict[str, Any] = {"cap_drop": ["ALL"], "cap_add": list(hardening.cap_add)}
    if hardening.privileged:
        host["privileged"] = True
    if not hardening.privileges:
        host["security_opt"] = ["no-new-privileges:true"]
    if hardening.rootfs_read_only:
        host["read_only"] = True
        host["tmpfs"] = {"/tmp": f"size={hardening.tmpfs_bytes},mode=1777"}
    return host


def _user(spec: ContainerSpec) -> str:
    return spec.hardening.user or (NOBODY if spec.hardening.profile == "strict" else "")


def _published(spec: ContainerSpec, network: Network) -> bool:
    """Whether a port on 127.0.0.1 is needed or wanted. Docker publishes none from an internal network."""
    if network.internal:
        if not network.direct:
            raise BackendError(
                f"container {spec.id} has no Internet, and this Docker engine does not let its host reach such a "
                "container: set `hardening.internet` to true, or use an engine on this machine",
                retry=False,
            )
        return False
    return network.name != HOST and (bool(spec.port) or not network.direct)


def refuse_mounts(spec: ContainerSpec, engine: str) -> None:
    """Raise `BackendError` for a volume that would hand over the host. `engine` is the engine's address.

    Looks at the file system, because a symbolic link may lead to such a place.
    """
    sockets = (engine.removeprefix("unix://"),) if engine.startswith("unix://") else ()
    for volume in spec.volumes:
        source = volume.split(":")[0]
        if source.startswith("/") and (reason := _danger(source, (*ENGINE_TREES, *sockets))):
            raise BackendError(
                f"container {spec.id}: volume {volume} is refused: {source} {reason}; no setting allows it, "
                "mount a narrower folder",
                retry=False,
            )


def _danger(source: str, engine_trees: tuple[str, ...]) -> str:
    for path in {PurePosixPath(os.path.normpath(source)), PurePosixPath(os.path.realpath(source))}:
        if any(path.is_relative_to(tree) for tree in KERNEL_TREES):
            return "belongs to the kernel"
        if path == PurePosixPath("/"):
            return "is the whole file system"
        if any(path.is_relative_to(tree) or PurePosixPath(tree).is_relative_to(path) for tree in engine_trees):
            return "gives control of the Docker engine"
    return ""
