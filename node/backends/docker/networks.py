"""The node's own bridges: one with the Internet and one without.

On neither do containers reach each other (`enable_icc`), nor this host (`firewall`).
"""

import asyncio
import contextlib
import socket
from typing import Any

import structlog
from docker import APIClient
from docker.errors import APIError, NotFound

from node.backends.docker.engine import LEAVE_S, Engine
from node.backends.docker.firewall import Firewall, bridge
from node.backends.docker.plan import HOST, NODE, Mark, Network
from node.config import Isolation
from node.errors import BackendError

log = structlog.get_logger()

OPTIONS = {
    "com.docker.network.bridge.enable_icc": "false",
    "com.docker.network.bridge.host_binding_ipv4": "127.0.0.1",
}
BRIDGE = "com.docker.network.bridge.name"

HOLD_S = 30.0
"""How often is looked whether the rules are still there: whoever loads a firewall anew drops those of all others."""

OUT_OF_REACH = "the bridges of this Docker engine are not in this host's network, where this node could set rules"
ADVICE = (
    'run the node as root or with CAP_NET_ADMIN and iptables; or set rules by hand and `docker_isolation` to "manual" '
    "(docs/isolation.md)"
)


class Networks:
    """Made when first needed, kept while containers are on them.

    `open_because`: nothing while containers on them are cut off from this host, else why they are not, in words.
    """

    def __init__(self, engine: Engine, mark: Mark, isolation: Isolation) -> None:
        self._engine = engine
        self._mark = mark
        self._isolation = isolation
        self._firewall = Firewall(mark=mark)
        self._lock = asyncio.Lock()
        self._used = False
        self._direct = False
        self.open_because = ""

    async def get(self, *, internet: bool) -> Network:
        """The bridge with or without the Internet.

        `BackendError` if its name is somebody else's, or if containers on it must be cut off from this host and cannot.
        """
        self._used = True
        async with self._lock:
            found = await self._engine.call(lambda client: self._ensure(client, internet=internet))
            gateway = next((each["Gateway"] for each in found["IPAM"]["Config"] or () if each.get("Gateway")), "")
            self._direct = _is_ours(gateway)
            await self._cut_off()
        if self.open_because and self._isolation == "require":
            raise BackendError(f'not cut off from this host (`docker_isolation` is "require"): {self.open_because}')
        return Network(name=found["Name"], id=found["Id"], internal=not internet, direct=self._direct)

    async def host(self) -> Network:
        """This host's own network. Nothing is cut off there."""
        return Network(name=HOST, id="", internal=False, direct=True)

    async def isolation(self) -> str:
        """Nothing if this process may set the rules, else why not, in words. Changes nothing."""
        return await self._engine.thread(self._firewall.may)

    async def hold(self) -> None:
        """Put the rules back whenever somebody drops them, for ever."""
        while True:
            await asyncio.sleep(HOLD_S)
            with contextlib.suppress(BackendError):
                async with self._lock:
                    if self._direct:
                        await self._cut_off()

    async def _cut_off(self) -> None:
        if self._isolation == "manual":
            return
        refused = await self._engine.thread(self._firewall.hold) if self._direct else OUT_OF_REACH
        before, self.open_because = self.open_because, f"{refused}: {ADVICE}" if refused else ""
        if refused and before != self.open_because:
            log.warning("containers_not_cut_off", reason=refused, advice=ADVICE, rules=self._firewall.by_hand())

    async def leave(self) -> None:
        """Remove those that no container is on, if any was ever asked for; without waiting long for the engine."""
        if self._used:
            with contextlib.suppress(BackendError, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self.remove()

    async def remove(self) -> None:
        """Remove those that no container is on, and the rules if none is left."""

        def work(client: APIClient) -> bool:
            left = False
            for internet in (True, False):
                name = self._name(internet=internet)
                try:
                    if (client.inspect_network(name)["Labels"] or {}).get(NODE) == self._mark.node_id:
                        client.remove_network(name)
                except NotFound:
                    continue
                except APIError:
                    left = True
            return left

        async with self._lock:
            if not await self._engine.call(work) and self._isolation != "manual":
                self._direct = False
                await self._engine.thread(self._firewall.lift)

    def _name(self, *, internet: bool) -> str:
        return self._mark.name("net" if internet else "net-internal")

    def _ensure(self, client: APIClient, *, internet: bool) -> dict[str, Any]:
        name = self._name(internet=internet)
        try:
            found: dict[str, Any] = client.inspect_network(name)
        except NotFound:
            return self._make(client, name, internet=internet)
        if (found["Labels"] or {}).get(NODE) != self._mark.node_id:
            raise BackendError(
                f"the Docker network {name} is not this node's: remove it, or change `node_id`", retry=False
            )
        options = self._options(internet=internet).items()
        if found["Internal"] == internet or found["EnableIPv6"] or not options <= found["Options"].items():
            # Of an earlier version, or changed by somebody. Containers on it are replaced, for they are on no other.
            for container in found["Containers"]:
                client.disconnect_container_from_network(container, name, force=True)
            client.remove_network(name)
            return self._make(client, name, internet=internet)
        return found

    def _make(self, client: APIClient, name: str, *, internet: bool) -> dict[str, Any]:
        made = client.create_network(
            name,
            driver="bridge",
            options=self._options(internet=internet),
            internal=not internet,
            enable_ipv6=False,
            labels={NODE: self._mark.node_id},
            check_duplicate=True,
        )
        found: dict[str, Any] = client.inspect_network(made["Id"])
        return found

    def _options(self, *, internet: bool) -> dict[str, str]:
        return OPTIONS | {BRIDGE: bridge(self._mark, internet=internet)}


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
