"""What only the Docker backend promises: adoption, hardening, and that nothing of others is touched."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from node.backends.contract import Instance
from node.backends.docker import DockerBackend, watch
from node.backends.docker.plan import HASH
from node.errors import BackendError
from tests.backends.grounds import Caller, DockerGround, quiet, soon
from tests.support import free_port

pytestmark = pytest.mark.docker

NOBODY = 65534

CGROUP_2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
CPU_QUOTA = "/sys/fs/cgroup/cpu.max" if CGROUP_2 else "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"
"""Microseconds of processor time in a tenth of a second, as a container sees it."""


@pytest.fixture
def ground(docker_ground: DockerGround) -> DockerGround:
    return docker_ground


# Adoption.


async def test_a_running_container_with_the_same_configuration_is_adopted(ground: DockerGround, caller: Caller) -> None:
    told: list[str] = []
    async with ground.backend() as backend:
        first = await backend.start(ground.spec(), quiet)
        await caller.get(first)
    before = ground.container().id
    async with ground.backend() as backend:
        second = await backend.start(ground.spec(), told.append)
        assert ground.container().id == before
        assert second.url == first.url
        assert any("adopting" in line for line in told)
        await caller.leave(second, 4)
        assert await soon(second.exited()) == "exited with code 4"
        await second.stop(5)


@pytest.mark.parametrize(
    "change",
    [
        {"env": {"GREETING": "new"}},
        {"command": "python3 /app.py new"},
        {"hardening": {"memory_bytes": 128 * 2**20}},
        {"hardening": {"profile": "strict"}},
        {"volumes": ("/usr/share:/data:ro",)},
        {"port": free_port()},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_container_whose_configuration_changed_is_replaced(
    ground: DockerGround, caller: Caller, change: dict[str, Any]
) -> None:
    async with ground.backend() as backend:
        await backend.start(ground.spec(), quiet)
    before = ground.container().id
    drift: list[str] = []
    async with ground.backend(drifted=lambda: drift.append("")) as backend:
        instance = await backend.start(ground.spec(**change), quiet)
        assert len(drift) == 1
        assert await caller.get(instance)
        assert ground.container().id != before
        assert len(ground.left_running()) == 1
        await instance.stop(5)


async def test_a_container_whose_folder_changed_is_replaced(ground: DockerGround, caller: Caller) -> None:
    async with ground.backend() as backend:
        await backend.start(ground.spec(), quiet)
        before = ground.container().id
        ground.change()
        instance = await backend.start(ground.spec(), quiet)
        assert await caller.get(instance)
        assert ground.container().id != before
        await instance.stop(5)


async def test_a_container_that_has_ended_is_replaced(ground: DockerGround, caller: Caller) -> None:
    async with ground.backend() as backend:
        ended = await backend.start(ground.spec(), quiet)
        await caller.leave(ended, 0)
        await soon(ended.exited())
        instance = await backend.start(ground.spec(), quiet)
        assert await caller.get(instance)
        await ended.stop(5)  # a late call for the former one
        assert await caller.get(instance)
        await instance.stop(5)


# What is somebody else's.


async def test_a_foreign_container_with_our_name_is_named_and_not_touched(ground: DockerGround) -> None:
    name = ground.mark.name("service")
    foreign = ground.client.containers.create("stoker-test-base", ["true"], name=name)
    try:
        async with ground.backend() as backend:
            with pytest.raises(BackendError, match=f"{name}.*docker rm") as caught:
                await backend.start(ground.spec(), quiet)
            assert not caught.value.retry
            assert await backend.sweep([]) == []
        assert ground.container().id == foreign.id
    finally:
        foreign.remove()


async def test_a_foreign_network_with_our_name_is_named_and_not_used(ground: DockerGround) -> None:
    foreign = ground.client.networks.create(ground.mark.name("net"))
    try:
        async with ground.backend() as backend:
            with pytest.raises(BackendError, match=foreign.name):
                await backend.start(ground.spec(), quiet)
        foreign.reload()
    finally:
        foreign.remove()


async def test_what_another_node_runs_is_not_swept(ground: DockerGround, caller: Caller) -> None:
    async with ground.backend() as backend, DockerBackend(node_id="another") as other:
        instance = await backend.start(ground.spec(), quiet)
        assert await other.sweep([]) == []
        assert await caller.get(instance)
        await instance.stop(5)


async def test_a_container_that_somebody_removes_is_missed(ground: DockerGround) -> None:
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(), quiet)
        ground.container().remove(force=True)
        # The engine kills it before it removes it; which of the two is seen is a matter of luck.
        assert await soon(instance.exited()) in ("removed by somebody else", "killed by SIGKILL (exit code 137)")
        assert await instance.log_tail(5) == []
        await instance.stop(5)


# Ports.


async def test_nothing_is_published_unless_asked_for(ground: DockerGround, caller: Caller) -> None:
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(), quiet)
        await caller.get(instance)
        assert ground.container().ports == {}
        await instance.stop(5)


async def test_a_port_is_published_on_loopback_only(ground: DockerGround, caller: Caller) -> None:
    port = free_port()
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(port=port), quiet)
        await caller.get(instance)
        assert ground.container().ports == {"3000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}
        assert await caller.get_url(f"http://127.0.0.1:{port}/")
        await instance.stop(5)


async def test_a_taken_port_is_named_and_nothing_is_left(ground: DockerGround, caller: Caller) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with ground.backend() as backend:
            with pytest.raises(BackendError, match=f"service.*port {port} .* taken") as caught:
                await backend.start(ground.spec(port=port), quiet)
            assert caught.value.retry
        assert ground.left() == []


async def test_a_port_taken_by_another_container_is_named(ground: DockerGround, caller: Caller) -> None:
    port = free_port()
    async with ground.backend() as backend:
        first = await backend.start(ground.spec("first", port=port), quiet)
        with pytest.raises(BackendError, match=f"second.*port {port} .* taken"):
            await backend.start(ground.spec("second", port=port), quiet)
        assert ground.left_running() == [ground.mark.name("first")]
        await first.stop(5)


# Hardening, as the engine tells it and as it is seen from inside.


async def test_the_standard_profile(ground: DockerGround, caller: Caller) -> None:
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(), quiet)
        seen = await caller.get(instance, "look")
        host = ground.container().attrs["HostConfig"]
        assert await caller.get(instance, "write", path="/file") == "ok"
        quota = await caller.get(instance, "read", path=CPU_QUOTA)
        await instance.stop(5)
    assert seen["capabilities"] == 0
    assert seen["no_new_privileges"] == 1
    assert "init" in seen["init"]
    assert host["Memory"] == host["MemorySwap"] == 2048 * 2**20
    assert 0 < host["NanoCpus"] <= 2e9
    assert quota.split()[0] == str(host["NanoCpus"] * 100_000 // 10**9)
    assert host["PidsLimit"] == 512
    assert host["CapDrop"] == ["ALL"]
    assert host["Init"]
    assert not host["Privileged"]
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "5m", "max-file": "2"}}
    assert host["RestartPolicy"]["Name"] in ("", "no")


async def test_the_strict_profile(ground: DockerGround, caller: Caller) -> None:
    spec = ground.spec(hardening={"profile": "strict", "tmpfs_bytes": 8 * 2**20})
    async with ground.backend() as backend:
        instance = await backend.start(spec, quiet)
        seen = await caller.get(instance, "look")
        assert await caller.get(instance, "write", path="/file") == "EROFS"
        assert await caller.get(instance, "write", path="/tmp/file", mib=4) == "ok"
        assert await caller.get(instance, "write", path="/tmp/more", mib=8) == "ENOSPC"
        await instance.stop(5)
    assert seen["capabilities"] == 0
    assert seen["no_new_privileges"] == 1
    assert seen["uid"] == NOBODY


async def test_every_loosening_is_explicit(ground: DockerGround, caller: Caller) -> None:
    hardening = {"profile": "strict", "user": "33", "cap_add": ["NET_RAW"], "privileges": True, "internet": True}
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(hardening=hardening), quiet)
        seen = await caller.get(instance, "look")
        added = ground.container().attrs["HostConfig"]["CapAdd"]
        await instance.stop(5)
    assert seen["uid"] == 33
    assert seen["no_new_privileges"] == 0
    assert [name.removeprefix("CAP_") for name in added] == ["NET_RAW"]


@pytest.mark.parametrize(
    ("hardening", "answer"),
    [
        ({}, "connected"),
        ({"internet": False}, "timed out"),
        ({"profile": "strict"}, "timed out"),
        ({"profile": "strict", "internet": True}, "connected"),
    ],
    ids=["standard", "standard-without", "strict", "strict-with"],
)
async def test_the_internet_is_there_by_profile_or_as_told(
    ground: DockerGround, caller: Caller, outside: tuple[str, int], hardening: dict[str, Any], answer: str
) -> None:
    host, port = outside
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(hardening=hardening), quiet)
        assert await caller.get(instance, "connect", host=host, port=port) == answer
        await instance.stop(5)


async def test_processes_are_limited(ground: DockerGround, caller: Caller) -> None:
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(hardening={"pids": 30}), quiet)
        assert await caller.get(instance, "threads", count=100) < 30
        await instance.stop(5)


async def test_running_out_of_memory_is_named_with_the_limit(ground: DockerGround, caller: Caller) -> None:
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(hardening={"memory_bytes": 48 * 2**20}), quiet)
        await caller.fail(instance, "eat", mib=200)
        assert await soon(instance.exited()) == "out of memory (limit 48 MiB, hardening.memory_bytes)"
        await instance.stop(5)


async def test_an_earlier_want_of_memory_is_not_taken_for_the_cause_of_an_end(
    ground: DockerGround, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LATELY_S", 0.0)
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(hardening={"memory_bytes": 48 * 2**20}), quiet)
        await caller.fail(instance, "worker", mib=200)  # another process is killed, it itself runs on
        await caller.leave(instance, 4)
        assert await soon(instance.exited()) == "exited with code 4"
        await instance.stop(5)


async def test_more_processors_than_there_are_is_no_error(ground: DockerGround, caller: Caller) -> None:
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(hardening={"cpus": 10_000}), quiet)
        assert await caller.get(instance)
        await instance.stop(5)


async def test_containers_do_not_reach_each_other(ground: DockerGround, caller: Caller) -> None:
    specs = [
        ground.spec(f"{profile}-{n}", hardening={"profile": profile})
        for profile in ("standard", "strict")
        for n in "ab"
    ]
    async with ground.backend() as backend:
        instances = await asyncio.gather(*(backend.start(spec, quiet) for spec in specs))
        await asyncio.gather(*(caller.get(instance) for instance in instances))

        async def check(one: Instance, other: Instance) -> None:
            host, port = other.url.removeprefix("http://").split(":")
            answer = await caller.get(one, "connect", host=host, port=port)
            assert (answer == "connected") == (one is other), (one.url, other.url, answer)

        await asyncio.gather(*(check(one, other) for one in instances for other in instances))
        await asyncio.gather(*(instance.stop(5) for instance in instances))


async def test_a_flood_of_output_is_bounded_on_disk(ground: DockerGround, caller: Caller) -> None:
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(), quiet)
        await caller.get(instance, "flood", mib=1024 if os.environ.get("STOKER_FULL") else 50)
        log = Path(ground.container().attrs["LogPath"])
        size = sum(file.stat().st_size for file in log.parent.glob(f"{log.name}*"))
        print(f"the log is {size / 2**20:.1f} MiB")
        assert 0 < size < 12 * 2**20
        await instance.stop(5)


async def test_a_container_with_a_gpu_says_that_there_is_none(ground: DockerGround) -> None:
    async with ground.backend() as backend:
        with pytest.raises(BackendError, match=r"service.*GPU.*`gpu`") as caught:
            await backend.start(ground.spec(gpu=True), quiet)
        assert not caught.value.retry
    assert ground.left() == []


# Volumes.


async def test_a_volume_is_mounted(ground: DockerGround, caller: Caller, tmp_path: Path) -> None:
    (tmp_path / "word").write_text("hello")
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(volumes=[f"{tmp_path}:/data:ro"]), quiet)
        assert await caller.get(instance, "read", path="/data/word") == "hello"
        assert await caller.get(instance, "write", path="/data/other") == "EROFS"
        await instance.stop(5)


KERNEL = ["/proc", "/proc/sys", "/sys", "/dev"]
ENGINE = ["/run", "/var", "/var/run/docker.sock", "/run/docker.sock", "/var/lib/docker"]


@pytest.mark.parametrize("source", ["/", "//", "/usr/..", *KERNEL, *ENGINE, "LINK"])
async def test_a_volume_that_would_hand_over_the_host_is_refused(
    ground: DockerGround, tmp_path: Path, source: str
) -> None:
    if source == "LINK":
        source = str(tmp_path / "innocent")
        Path(source).symlink_to("/proc")
    async with ground.backend() as backend:
        with pytest.raises(BackendError, match=f"volume {source}:/data is refused") as caught:
            await backend.start(ground.spec(volumes=[f"{source}:/data"]), quiet)
        assert not caught.value.retry
    assert ground.left() == []


# The engine itself.


async def test_an_engine_that_is_not_there_is_named(tmp_path: Path, ground: DockerGround) -> None:
    address = f"unix://{tmp_path}/no.sock"
    async with ground.backend(base_url=address) as backend:
        with pytest.raises(BackendError, match=f"{address} does not answer: No such file or directory"):
            await backend.probe()
        with pytest.raises(BackendError, match=f"{address} does not answer") as caught:
            await backend.start(ground.spec(), quiet)
        assert caught.value.retry


async def test_probe_tells_the_engines_version(ground: DockerGround) -> None:
    async with ground.backend() as backend:
        assert await backend.probe() == ground.client.version()["Version"]


async def test_the_hash_of_the_configuration_is_on_the_container_but_no_secret(ground: DockerGround) -> None:
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(env={"KEY": "s3cret"}), quiet)
        labels = ground.container().labels
        assert len(labels[HASH]) == 64
        assert "s3cret" not in str(labels)
        await instance.stop(5)
