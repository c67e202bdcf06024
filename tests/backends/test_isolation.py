"""What a container can reach, tried from inside. Each listener is shown to be there by reaching it from this host."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.backends.docker import networks
from node.backends.docker.firewall import Firewall, bridge
from node.backends.docker.plan import NODE, Mark, Network, plan
from tests.backends.grounds import Caller, DockerGround, quiet
from tests.support import ROOT, Node, RedisServer, eventually, stoker, until

pytestmark = pytest.mark.docker

METADATA = "169.254.169.254"


@pytest.fixture
def ground(docker_ground: DockerGround) -> DockerGround:
    return docker_ground


def rules(mark: Mark) -> list[str]:
    """What a node has in the tables that it writes to."""
    tables = [["iptables-save", "-t", "mangle"], ["ip6tables-save", "-t", "mangle"]]
    told = "".join(subprocess.run(table, capture_output=True, text=True, check=True).stdout for table in tables)
    return [line for line in told.splitlines() if chain(mark) in line]


def chain(mark: Mark) -> str:
    return f"STOKER-{bridge(mark, internet=True)[3:-1]}"


def addresses() -> set[str]:
    """All IPv4 addresses of this host, those of bridges included."""
    return {address for address, _ in _addresses("-4")}


def addresses_6() -> set[tuple[str, str]]:
    """All IPv6 addresses of this host but loopback, as this host and as a container calls them."""
    scopes = {(at, f"%{name}" if at.startswith("fe80") else "") for at, name in _addresses("-6") if name != "lo"}
    return {(at + scope, at + ("%eth0" if scope else "")) for at, scope in scopes}


def _addresses(family: str) -> set[tuple[str, str]]:
    told = subprocess.run(["ip", family, "-o", "address"], capture_output=True, text=True, check=True).stdout
    return {(line.split()[3].partition("/")[0], line.split()[1]) for line in told.splitlines()}


def connected(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False


@pytest.fixture
def redis_everywhere(tmp_path: Path) -> Iterator[RedisServer]:
    """An external Redis on every address of this host, as careless people run it."""
    server = RedisServer("valkey", tmp_path / "redis", "--protected-mode", "no")
    server.options += ("--bind", "0.0.0.0")
    with server:
        yield server


async def test_from_inside_there_is_no_way_to_the_node_to_redis_or_to_anything_else_of_this_host(
    ground: DockerGround, tmp_path: Path, outside: tuple[str, int], redis_everywhere: RedisServer
) -> None:
    service = {"build": str(ground.context), "backend": "docker", "concurrency": 50}
    profiles = {"standard": "standard", "neighbour": "standard", "strict": "strict"}
    containers = [{"id": id, "hardening": {"profile": profile}, **service} for id, profile in profiles.items()]
    server = {"host": "0.0.0.0", "insecure": True}
    async with Node(tmp_path, containers, node_id=ground.node_id, server=server) as node:
        await without_a_way(
            node, ground, "standard", redis_everywhere.port, {network(ground, "neighbour")["IPAddress"]}
        )
        assert await tried(node, "standard", "connect", host=outside[0], port=outside[1]) == "connected"
        others = {network(ground, id)["IPAddress"] for id in ("standard", "neighbour")}
        await without_a_way(node, ground, "strict", redis_everywhere.port, others, outside)
        assert (await tried(node, "strict", "look"))["uid"] != 0
        assert await tried(node, "strict", "write", path="/file") == "EROFS"
        assert all(each["loosened"] == [] for each in (await node.get("/info?verbose=true"))["containers"])
        node.kill(15)
    assert not rules(ground.mark)


async def without_a_way(
    node: Node, ground: DockerGround, id: str, redis_port: int, neighbours: set[str], *more: tuple[str, int]
) -> None:
    """Try all places from inside a container of the node, once each is shown to be there."""
    own = network(ground, id)
    ours = {(host, port) for host in addresses() for port in (node.port, redis_port)}
    places = {place for place in ours if connected(*place)}  # an address of others may go away any time
    places |= {(own["Gateway"], redis_port), (own["Gateway"], node.port), (METADATA, 80), *more}
    places |= {(neighbour, 3000) for neighbour in neighbours}
    assert all(connected(*place) for place in places), "a listener that is not there proves nothing"
    assert await tried(node, id, "connect", host=own["IPAddress"], port=3000) == "connected"
    answers = await asyncio.gather(*(tried(node, id, "connect", host=host, port=port) for host, port in places))
    reached = [place for place, answer in zip(places, answers, strict=True) if answer == "connected"]
    assert reached == [], f"of {len(places)} places"
    print(f"{id}: {len(places)} places were tried")
    for path in ("/var/run/docker.sock", "/run/docker.sock", str(node.directory / "data")):
        assert await tried(node, id, "write", path=path + "/x") == "ENOENT"
    assert (await tried(node, id, "look"))["capabilities"] == 0


def network(ground: DockerGround, id: str) -> dict[str, Any]:
    """A container's place in its network, as the engine tells it."""
    (found,) = ground.container(id).attrs["NetworkSettings"]["Networks"].values()
    return found


async def tried(node: Node, id: str, action: str, **more: Any) -> Any:
    """What came of an action inside a container, done by a job."""
    ended = await node.run([id], {"action": action, **more})
    assert ended["status"] == "success", ended
    return ended["result"]["output"]


async def test_a_datagram_to_this_host_does_not_arrive(ground: DockerGround, caller: Caller) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("0.0.0.0", 0))
        listener.setblocking(False)
        port = listener.getsockname()[1]
        async with ground.backend() as backend:
            instance = await backend.start(ground.spec(), quiet)
            gateway = ground.container().attrs["NetworkSettings"]["Networks"][ground.mark.name("net")]["Gateway"]
            for host in (gateway, "255.255.255.255"):
                await caller.get(instance, "send", host=host, port=port)
            with pytest.raises(BlockingIOError):
                listener.recv(100)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"from here", (gateway, port))
            assert listener.recv(100) == b"from here"
            await instance.stop(1)


async def test_nothing_of_this_host_is_reached_by_ipv6(ground: DockerGround, caller: Caller) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        async with ground.backend() as backend:
            instance = await backend.start(ground.spec(), quiet)
            await caller.get(instance)
            own = f"%{bridge(ground.mark, internet=True)}"
            (gateway,) = until(lambda: [here for here, _ in addresses_6() if here.endswith(own)])
            until(lambda: connected(gateway, port), message="the address of the bridge")
            places = [(here, inside) for here, inside in addresses_6() if connected(here, port)]
            tries = (caller.get(instance, "connect", host=inside, port=port) for _, inside in places)
            assert "connected" not in await asyncio.gather(*tries)
            await instance.stop(1)


async def test_what_another_container_publishes_on_this_host_is_not_reached(
    ground: DockerGround, caller: Caller
) -> None:
    command = ["python3", "-m", "http.server", "80"]
    foreign = ground.client.containers.run("stoker-test-base", command, detach=True, ports={80: ("0.0.0.0", None)})
    try:
        foreign.reload()
        port = int(foreign.ports["80/tcp"][0]["HostPort"])
        network = foreign.attrs["NetworkSettings"]["Networks"]["bridge"]
        async with ground.backend() as backend:
            instance = await backend.start(ground.spec(), quiet)
            await caller.get(instance)
            gateway = ground.container().attrs["NetworkSettings"]["Networks"][ground.mark.name("net")]["Gateway"]
            places = [(network["IPAddress"], 80), (network["Gateway"], port), (gateway, port)]
            assert all(connected(*place) for place in places)
            tries = (caller.get(instance, "connect", host=host, port=port) for host, port in places)
            assert "connected" not in await asyncio.gather(*tries)
            await instance.stop(1)
    finally:
        foreign.remove(force=True)


# What is allowed on purpose.


async def test_an_allowed_override_is_in_force_and_is_seen(ground: DockerGround, tmp_path: Path) -> None:
    hardening = {"host_network": True, "cap_add": ["NET_RAW"]}
    spec = {"id": "service", "build": str(ground.context), "backend": "docker", "hardening": hardening}
    async with Node(tmp_path, [spec], node_id=ground.node_id, docker_allow=["host_network"]) as node:
        assert ground.container().attrs["HostConfig"]["NetworkMode"] == "host"
        ended = await node.run(["service"], {"action": "connect", "host": "127.0.0.1", "port": node.port})
        assert ended["result"]["output"] == "connected"
        expected = ["hardening.host_network", "hardening.cap_add: NET_RAW"]
        assert (await node.get("/info?verbose=true"))["containers"][0]["loosened"] == expected
        (logged,) = node.events("container_loosened")
        assert logged["loosened"] == expected
        node.kill(15)


def test_a_privileged_container_is_one_for_the_engine_and_is_seen(ground: DockerGround) -> None:
    """Not started: it would take a machine that has every capability itself."""
    spec = ground.spec(hardening={"privileged": True})
    network = Network(name="any", id="any", internal=False, direct=True)
    assert plan(spec, mark=ground.mark, image="any", network=network, cpus=1).host["privileged"] is True
    assert spec.hardening.loosened == ("hardening.privileged",)


async def test_a_node_does_not_start_with_an_override_that_is_not_allowed(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    hardening = {"privileged": True}
    file.write_text(json.dumps({"containers": [{"id": "a", "image": "any", "hardening": hardening}]}))
    refused = await asyncio.to_thread(stoker, "serve", "--config", str(file), cwd=tmp_path)
    assert refused.returncode == 2
    assert 'containers[0].hardening.privileged: found true, expected false, unless docker_allow lists "privileged"' in (
        refused.stdout + refused.stderr
    )


async def test_a_read_only_root_bounds_what_a_container_writes(ground: DockerGround, caller: Caller) -> None:
    spec = ground.spec(hardening={"read_only": True, "tmpfs_bytes": 8 * 2**20})
    async with ground.backend() as backend:
        instance = await backend.start(spec, quiet)
        for path, answer in (("/file", "EROFS"), ("/tmp/file", "ENOSPC"), ("/dev/shm/file", "ENOSPC")):
            assert await caller.get(instance, "write", path=path, mib=100) == answer
        assert instance.loosened == ()
        await instance.stop(1)


async def test_a_network_of_an_earlier_version_is_made_anew_with_what_is_on_it(
    ground: DockerGround, caller: Caller
) -> None:
    async with ground.backend() as backend:
        await caller.get(await backend.start(ground.spec(), quiet))
    container, network = ground.container(), ground.client.networks.get(ground.mark.name("net"))
    network.disconnect(container)
    network.remove()
    former = ground.client.networks.create(network.name, labels={NODE: ground.node_id})
    former.connect(container)
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(), quiet)
        assert await caller.get(instance)
        assert ground.container().id != container.id
        options = ground.client.networks.get(network.name).attrs["Options"]
        assert options["com.docker.network.bridge.enable_icc"] == "false"
        await instance.stop(1)
    assert ground.left() == []


# The rules themselves.


async def test_rules_are_set_once_put_back_when_dropped_and_leave_with_the_network(
    ground: DockerGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def complete() -> bool:
        return sorted(rules(ground.mark)) == sorted(first)

    monkeypatch.setattr(networks, "HOLD_S", 0.5)
    foreign = "PREROUTING -i nothing0 -j ACCEPT"
    mangle = ["iptables", "-t", "mangle"]
    subprocess.run([*mangle, "-A", *foreign.split()], check=True)
    try:
        async with ground.backend() as backend:
            instance = await backend.start(ground.spec(), quiet)
            first = rules(ground.mark)
            assert (
                len([line for line in first if f"-j {chain(ground.mark)}" in line]) == 2
            )  # one for each version of IP
            again = await backend.start(ground.spec(), quiet)
            assert rules(ground.mark) == first
            for command in ("iptables", "ip6tables"):
                drop = f"{command} -t mangle -D PREROUTING -i {bridge(ground.mark, internet=True)[:-1]}+"
                subprocess.run([*drop.split(), "-j", chain(ground.mark)], check=True)
            await eventually(complete, message="the rules")
            await asyncio.gather(instance.stop(1), again.stop(1))
        assert not rules(ground.mark)
        subprocess.run([*mangle, "-C", *foreign.split()], check=True)
    finally:
        subprocess.run([*mangle, "-D", *foreign.split()], check=True)


async def test_the_rules_of_one_node_leave_those_of_another_alone() -> None:
    one, other = (Firewall(mark=Mark(node_id=f"rules-{name}", prefix="stoker")) for name in "ab")
    try:
        assert one.may() == ""
        assert not rules(one.mark)
        assert one.hold() == other.hold() == ""
        one.lift()
        assert rules(other.mark)
        assert not rules(one.mark)
    finally:
        one.lift()
        other.lift()


async def test_rules_set_by_hand_as_told_are_the_same() -> None:
    firewall = Firewall(mark=Mark(node_id="n1", prefix="stoker"))
    assert "\n".join(firewall.by_hand()) in (ROOT / "docs" / "isolation.md").read_text()
    try:
        for command in firewall.by_hand():
            subprocess.run(command.split(), check=True)
        by_hand = rules(firewall.mark)
        assert firewall.hold() == ""
        assert rules(firewall.mark) == by_hand
    finally:
        firewall.lift()
    assert not rules(firewall.mark)


def test_a_bridge_that_is_not_filtered_is_told() -> None:
    told = """
from node.backends.docker.firewall import Firewall
from node.backends.docker.plan import Mark
print(Firewall(mark=Mark(node_id="any", prefix="stoker")).hold())
"""
    for value, expected in (
        ("1", ""),
        ("0", "containers reach each other, because net.bridge.bridge-nf-call-iptables"),
    ):
        shell = f'echo {value} > /proc/sys/net/bridge/bridge-nf-call-iptables && exec "$@"'
        command = ["unshare", "--net", "sh", "-c", shell, "sh", sys.executable, "-c", told]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
        assert done.stdout.strip().startswith(expected)
        assert bool(done.stdout.strip()) == bool(expected), done.stdout


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


UNPRIVILEGED = """
import asyncio, json, sys
from node.backends.docker import DockerBackend
from node.config import ContainerSpec
from node.errors import BackendError

async def main():
    node_id, context, *isolations = sys.argv[1:]
    spec = ContainerSpec.model_validate({"id": "service", "build": {"context": context}})
    for isolation in isolations:
        async with DockerBackend(node_id=node_id, isolation=isolation) as backend:
            try:
                instance = await backend.start(spec, lambda line: None)
            except BackendError as error:
                print("TOLD", json.dumps({"error": str(error)}))
                continue
            told = {"open_because": backend.open_because, "loosened": instance.loosened}
            print("TOLD", json.dumps(told | {"isolation": await backend.isolation()}))
            await instance.stop(1)

asyncio.run(main())
"""


async def test_a_node_that_may_not_set_rules_says_so_loudly_or_starts_nothing_or_leaves_it_to_its_operator(
    ground: DockerGround,
) -> None:
    command = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", UNPRIVILEGED]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, ground.node_id, str(ground.context), "auto", "require", "manual"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    lines = done.stdout.splitlines()
    auto, require, manual = [json.loads(line.removeprefix("TOLD ")) for line in lines if line.startswith("TOLD ")]
    assert "Permission denied" in auto["isolation"]
    assert "Permission denied" in auto["open_because"]
    assert '`docker_isolation` to "manual"' in auto["open_because"]
    assert auto["loosened"] == [f"not cut off: {auto['open_because']}"]
    loud, _ = done.stdout.split("TOLD ", 1)
    assert "containers_not_cut_off" in loud
    assert f"iptables -t mangle -N {chain(ground.mark)}" in loud
    assert '`docker_isolation` is "require"' in require["error"]
    assert "Permission denied" in require["error"]
    assert manual["open_because"] == ""
    assert manual["loosened"] == []
    assert lines[-2].startswith("TOLD "), "manual is quiet"
    assert ground.left() == []
    assert not rules(ground.mark)
