"""`stoker doctor` finds what is wrong, says what to do, and leaves everything as it was."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support import Echo, Node, RedisServer, free_port, stoker


def doctor(directory: Path, config: dict[str, Any], *arguments: str) -> tuple[int, dict[str, list[str]]]:
    """The exit code, and by level what was found."""
    file = directory / "doctor.json"
    file.write_text(json.dumps({"data_dir": str(directory / "data"), **config}))
    file.chmod(0o600)
    ended = stoker("doctor", "--json", "--config", str(file), *arguments)
    assert ended.stderr == ""
    found: dict[str, list[str]] = {"ok": [], "warning": [], "fault": []}
    for each in json.loads(ended.stdout)["findings"]:
        assert (each["do"] == "") == (each["level"] == "ok" or each["check"] == "configuration")
        found[each["level"]].append(f"{each['check']}: {each['found']}")
    return ended.returncode, found


def has(found: list[str], *words: str) -> bool:
    return any(all(word in line for word in words) for line in found)


def test_a_machine_that_can_run_a_node_is_well(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, {"server": {"port": free_port()}})
    assert (code, found["fault"]) == (0, [])
    assert has(found["ok"], "store: the node's own server; made at the first start")
    assert has(found["ok"], "access: 127.0.0.1: only this machine can connect")
    assert not (tmp_path / "data").exists()


def test_mistakes_in_the_configuration_end_it_with_code_2(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, {"server": {"port": -1}, "runner": {"lease_s": "x"}})
    assert code == 2
    assert [line.partition(": ")[0] for line in found["fault"]] == ["configuration"] * 2
    assert has(found["fault"], "server.port: found -1, expected a port")


def test_what_is_wrong_is_told_in_a_line_each(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        containers = [
            {"id": "away", "url": "http://127.0.0.1:1"},
            {"id": "missing", "image": "x", "command": "no-such-program {port}", "backend": "process"},
            {"id": "folder", "build": str(tmp_path), "backend": "process"},
        ]
        config = {
            "server": {"host": "0.0.0.0", "port": port, "insecure": True},
            "containers": containers,
            "embedded": {"reserve_bytes": 2**60},
            "forward_stats": True,
        }
        (tmp_path / "data").mkdir(mode=0o755)
        code, found = doctor(tmp_path, config)
    assert code == 1
    assert has(found["warning"], "configuration", "forward_stats")
    assert has(found["warning"], "data directory", "others on this machine may look into")
    assert has(found["warning"], "access", "whoever can connect may submit jobs")
    assert has(found["fault"], "disk", "no job is accepted")
    assert has(found["fault"], "container: away", "does not answer on http://127.0.0.1:1")
    assert has(found["fault"], "container: missing", "no program no-such-program")
    assert has(found["fault"], "container: folder", "app.py")
    assert has(found["fault"], f"ports: {port}, for the node, is taken")


def test_an_open_address_without_a_key_is_a_fault(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, {"server": {"host": "0.0.0.0", "port": free_port()}})
    assert code == 1
    assert has(found["fault"], "access", "others can connect, and there is no API key")


@pytest.mark.parametrize("kind", ["valkey", pytest.param("redis", marks=pytest.mark.redis)])
def test_a_server_that_would_lose_jobs_is_a_fault(tmp_path: Path, kind: str) -> None:
    options = ("--appendonly", "no", "--maxmemory-policy", "allkeys-lru", "--maxmemory", "100mb")
    with RedisServer(kind, tmp_path / "redis", *options) as server:
        code, found = doctor(tmp_path, {"redis": {"url": server.url}, "server": {"port": free_port()}})
    assert code == 1
    assert has(found["ok"], kind.capitalize(), "answers")
    assert has(found["fault"], "append-only", "off")
    assert has(found["fault"], "eviction", "allkeys-lru")


async def test_a_running_node_is_looked_at_and_left_alone(tmp_path: Path, echo: Echo) -> None:
    async with Node(tmp_path, echo.containers("a")) as node:
        job = await node.run(["a"], {"x": 1})
        config = {"server": {"port": node.port}, "containers": node.config["containers"]}
        code, found = doctor(tmp_path, config)
        assert (code, found["fault"]) == (0, [])
        assert has(found["ok"], "node: runs here, and is ready")
        assert has(found["ok"], "store: Valkey")
        assert has(found["ok"], "append-only: on, forced to disk before each answer")
        assert has(found["ok"], "container: a: answers on")
        assert (await node.result(job["id"]))["status"] == "success"
        assert node.events("store_unavailable") == []
        node.kill()
        code, found = doctor(tmp_path, config)
        assert (code, found["fault"]) == (0, [])
        assert has(found["ok"], "store: Valkey")
        await node.start()
        assert (await node.result(job["id"]))["status"] == "success"


def test_it_can_be_read_in_80_columns_without_colour(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"redis": {"url": "redis://127.0.0.1:1"}, "x" * 100: 1}))
    ended = stoker("doctor", cwd=tmp_path)
    assert ended.returncode == 1
    assert "\x1b" not in ended.stdout
    lines = ended.stdout.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert lines[0].split()[:2] == ["warning", "configuration"]
    assert any(line.split() == ["fault", "store", "redis:", "connection", "refused", "127.0.0.1:1"] for line in lines)
    assert lines[-1] == "1 fault, 1 warning"
