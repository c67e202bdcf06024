"""The node's own bridges: one with the Internet and one without. On neither do containers reach each other."""

import asyncio
import contextlib
import socket
from typing import Any

from docker import APIClient
from docker.errors import APIError, NotFound

from node.backends.docker.engine import LEAVE_S, Engine
from node.backends.docker.plan import NODE, Mark, Network
from node.errors import BackendError

OPTIONS = {
    "com.docker.network.bridge.enable_icc": "false",
    "com.docker.network.bridge.host_binding_ipv4": "127.0.0.1",
}


class Networks:
    """Made when first needed, kept while containers are on them."""

    def __init__(self, engine: Engine, mark: Mark) -> None:
        self._engine = engine
        self._mark = mark
        self._lock = asyncio.Lock()
        self._used = False

    async def get(self, *, internet: bool) -> Network:
        """The bridge with or without the Internet. `BackendError` if its name is somebody else's."""
        name = self._name(internet=internet)
        self._used = True
        async with self._lock:
            found = await self._engine.call(lambda client: self._ensure(client, name, internal=not internet))
        gateway = next((each["Gateway"] for each in found["IPAM"]["Config"] or () if each.get("Gateway")), "")
        return Network(name=name, internal=not internet, direct=_is_ours(gateway))

    async def leave(self) -> None:
        """Remove those that no container is on, if any was ever asked for; without waiting long for the engine."""
        if self._used:
            with contextlib.suppress(BackendError, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self.remove()

    async def remove(self) -> None:
        """Remove those that no container is on."""

        def work(client: APIClient) -> None:
            for internet in (True, False):
                name = self._name(internet=internet)
                with contextlib.suppress(APIError):
                    if (client.inspect_network(name)["Labels"] or {}).get(NODE) == self._mark.node_id:
                        client.remove_network(name)

        await self._engine.call(work)

    def _name(self, *, internet: bool) -> str:
        return self._mark.name("net" if internet else "net-internal")

    def _ensure(self, client: APIClient, name: str, *, internal: bool) -> dict[str, Any]:
        try:
            found: dict[str, Any] = client.inspect_network(name)
        except NotFound:
            labels = {NODE: self._mark.node_id}
            made = client.create_network(
                name, driver="bridge", options=OPTIONS, internal=internal, labels=labels, check_duplicate=True
            )
            found = client.inspect_network(made["Id"])
        if (found["Labels"] or {}).get(NODE) != self._mark.node_id:
            raise BackendError(
                f"the Docker network {name} is not this node's: remove it, or change `node_id`", retry=False
            )
        if found["Internal"] != internal or not OPTIONS.items() <= found["Options"].items():
            raise BackendError(
                f"the Docker network {name} was changed: remove it (docker network rm {name})", retry=False
            )
        return found


def _is_ours(gateway: str) -> bool:
    """Whether the bridge is in this host's network, which is so exactly if its gateway is an address of ours.

    With Docker Desktop and rootless engines it is in another one, and only published ports lead to containers.
    """
    if not gateway:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((gateway, 0))
        except OSError:
            return False
    return True
