"""What only the process backend promises: Python environments, ports, and that nothing outlives the node."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import uvloop

from node.backends.process import ProcessBackend
from node.errors import BackendError
from tests.backends.grounds import APP, Caller, ProcessGround, quiet, soon
from tests.support import eventually, free_port, until


@pytest.fixture
def ground(process_ground: ProcessGround) -> ProcessGround:
    return process_ground


def require(ground: ProcessGround, version: str) -> None:
    """Make the service need a package, which lies beside it, and say its version instead of serving."""
    wheel = f"thing-{version}-py3-none-any.whl"
    for former in ground.context.glob("*.whl"):
        former.unlink()
    with zipfile.ZipFile(ground.context / wheel, "w") as archive:
        archive.writestr("thing.py", f"VERSION = '{version}'\n")
        archive.writestr(
            f"thing-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n"
        )
        archive.writestr(
            f"thing-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"thing-{version}.dist-info/RECORD", "")
    (ground.context / "requirements.txt").write_text(f"./{wheel}\n")
    (ground.context / "app.py").write_text("import thing, sys; print(thing.VERSION, sys.prefix)")


async def environment(ground: ProcessGround) -> tuple[str, Path]:
    """Run the service that `require` made: the version it found, and its environment."""
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(), quiet)
        assert await soon(instance.exited()) == "exited with code 0"
        version, folder = (await instance.log_tail(1))[0].split()
        await instance.stop(1)
    return version, Path(folder)


async def test_an_environment_is_made_once_and_again_when_the_requirements_change(ground: ProcessGround) -> None:
    require(ground, "1.0")
    version, first = await environment(ground)
    assert version == "1.0"
    made_at = (first / "pyvenv.cfg").stat().st_mtime_ns
    assert await environment(ground) == (version, first)
    assert (first / "pyvenv.cfg").stat().st_mtime_ns == made_at
    require(ground, "2.0")
    version, second = await environment(ground)
    assert version == "2.0"
    assert second != first
    assert not first.exists()


async def test_an_environment_that_is_half_made_is_made_again(ground: ProcessGround) -> None:
    (ground.context / "app.py").write_text("import sys; print('none', sys.prefix)")
    _, folder = await environment(ground)
    (folder / ".complete").unlink()
    (folder / "pyvenv.cfg").unlink()
    assert (await environment(ground))[1] == folder
    assert (folder / "pyvenv.cfg").is_file()


async def test_a_command_is_told_its_port(ground: ProcessGround, caller: Caller) -> None:
    async with ground.backend() as backend:
        instance = await backend.start(
            ground.spec(build=None, command=f"{sys.executable} {APP} --port={{port}}"), quiet
        )
        answer = await caller.get(instance)
        assert answer["arguments"] == [f"--port={instance.url.rpartition(':')[2]}"]
        await instance.stop(5)


async def test_a_port_that_is_asked_for_is_used(ground: ProcessGround, caller: Caller) -> None:
    port = free_port()
    async with ground.backend() as backend:
        for _ in range(2):  # and again at once, while connections of the former life linger
            instance = await backend.start(ground.spec(port=port), quiet)
            assert instance.url == f"http://127.0.0.1:{port}"
            assert await caller.get(instance)
            await instance.stop(5)


async def test_a_port_that_is_taken_is_named(ground: ProcessGround) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with ground.backend() as backend:
            with pytest.raises(BackendError, match=f"service.*port {port} .* taken") as caught:
                await backend.start(ground.spec(port=port), quiet)
            assert caught.value.retry
    assert ground.left() == []


async def test_a_program_that_is_not_there_is_named(ground: ProcessGround) -> None:
    async with ground.backend() as backend:
        with pytest.raises(BackendError, match="no program no-such-program"):
            await backend.start(ground.spec(build=None, command="no-such-program --x"), quiet)
        instance = await backend.start(ground.spec(build=None, command="./no-such-program"), quiet)
        assert await soon(instance.exited()) == "exited with code 1"
        assert "cannot run ./no-such-program" in (await instance.log_tail(1))[0]
        await instance.stop(1)
    assert ground.left() == []


async def test_an_image_with_arguments_is_not_taken_for_a_local_command(ground: ProcessGround, caller: Caller) -> None:
    more: dict[str, Any] = {"build": None, "image": "any", "command": f"{sys.executable} {APP}"}
    async with ground.backend() as backend:
        with pytest.raises(BackendError, match="needs Docker"):
            await backend.start(ground.spec(**more), quiet)
        instance = await backend.start(ground.spec(**more, backend="process"), quiet)
        assert await caller.get(instance)
        await instance.stop(1)


async def test_a_folder_without_a_program_is_named(ground: ProcessGround) -> None:
    (ground.context / "app.py").unlink()
    async with ground.backend() as backend:
        with pytest.raises(BackendError, match=r"app\.py"):
            await backend.start(ground.spec(), quiet)


async def test_leaving_ends_what_still_runs(ground: ProcessGround, caller: Caller) -> None:
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(), quiet)
        await caller.get(instance, "heir", session="own")
    assert ground.left() == []


async def test_an_end_leaves_no_zombie_and_no_heirs(ground: ProcessGround, caller: Caller) -> None:
    async with ground.backend() as backend:
        instance = await backend.start(ground.spec(), quiet)
        await caller.get(instance, "heir", session="same")
        ground.kill()
        await soon(instance.exited())
        assert zombies() == []
        await instance.stop(1)
        assert ground.left() == []


def zombies() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                found.append(entry.parent.name)
    return found


NODE = """
import asyncio, sys
from pathlib import Path
from node.backends.process import ProcessBackend
from node.config import ContainerSpec

async def main():
    async with ProcessBackend(data_dir=Path(sys.argv[1])) as backend:
        spec = ContainerSpec.model_validate({"id": "service", "build": {"context": sys.argv[2]}})
        instance = await backend.start(spec, lambda line: None)
        print(instance.url, flush=True)
        await instance.exited()

asyncio.run(main())
"""


async def test_services_die_with_a_node_that_is_killed_and_their_heirs_are_swept(
    ground: ProcessGround, caller: Caller
) -> None:
    command = [sys.executable, "-c", NODE, str(ground.folder / "data"), str(ground.context)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        url = (await asyncio.to_thread(node.stdout.readline)).strip()

        async def heir() -> Any:
            with contextlib.suppress(Exception):
                return await caller.get_url(f"{url}/heir", session="own")

        pid = await eventually(heir, message="the service of the node")
        node.kill()
    until(lambda: ground.left_running() == [str(pid)], message="the end of the service")
    async with ground.backend() as backend:
        assert await backend.sweep(["service"]) == [f"process {pid}"]
        until(lambda: not ground.left(), message="the end of the heir")


async def test_services_of_a_node_that_lives_are_not_swept(
    ground: ProcessGround, caller: Caller, tmp_path: Path
) -> None:
    async with ground.backend() as backend, ProcessBackend(data_dir=tmp_path / "other") as other:
        instance = await backend.start(ground.spec(), quiet)
        assert await backend.sweep([]) == []
        assert await other.sweep([]) == []
        assert await caller.get(instance)
        await instance.stop(1)


def test_it_works_on_uvloop(ground: ProcessGround) -> None:
    async def life() -> None:
        async with ground.backend() as backend:
            first = await backend.start(ground.spec(), quiet)
            fails = f"{sys.executable} -c 'raise SystemExit(\"no model found\")'"
            second = await backend.start(ground.spec("second", command=fails), quiet)
            assert await soon(second.exited()) == "exited with code 1"
            assert await second.log_tail(5) == ["no model found"]
            exited = asyncio.ensure_future(first.exited())
            await asyncio.gather(first.stop(0.5), second.stop(1))
            assert (await soon(exited)) in ("killed by SIGKILL", "killed by SIGTERM")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(life())
    assert ground.left() == []
