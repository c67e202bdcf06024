"""`stoker keys` on every store that a node may have, whether the node runs or not."""

import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from tests.secrets import REDIS_PASSWORD
from tests.support import Echo, Node, RedisServer, eventually, stoker, until

KEY = re.compile(r"stoker_[A-Za-z0-9_-]{43}\n")


def configured(directory: Path, **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "config.json"
    file.write_text(json.dumps({"data_dir": str(directory / "data"), **config}))
    file.chmod(0o600)
    return file


def command(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return stoker("keys", *arguments, "--config", str(file))


def keys(file: Path, *arguments: str) -> Any:
    """What the command prints for programs."""
    result = command(file, *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_without_a_node_the_store_runs_for_a_moment_and_keeps_what_it_was_told(tmp_path: Path) -> None:
    file = configured(tmp_path)
    made = command(file, "create", "shop")
    assert made.returncode == 0
    assert KEY.fullmatch(made.stdout)  # alone, so that a script may take it
    assert re.match(r"id [0-9a-f]{12}, name shop, role submit, expires never\.\nIt is not shown again", made.stderr)
    created = keys(file, "create", "watch", "--role", "read", "--expires-in", "30d")
    assert KEY.fullmatch(created["key"] + "\n")
    first, second = keys(file, "list")
    assert (first["name"], first["role"], first["expires_at"], first["used_at"]) == ("shop", "submit", None, None)
    assert {"key": created["key"], **second} == created
    lifetime = time.mktime(time.strptime(second["expires_at"], "%Y-%m-%dT%H:%M:%SZ")) - time.mktime(
        time.strptime(second["created_at"], "%Y-%m-%dT%H:%M:%SZ")
    )
    assert lifetime == 30 * 86400
    assert keys(file, "revoke", first["id"]) == {"id": first["id"], "revoked": True}
    assert keys(file, "list") == [second]
    assert created["key"] not in (tmp_path / "data" / "valkey" / "valkey.log").read_text()


def test_the_table_is_for_people(tmp_path: Path) -> None:
    file = configured(tmp_path)
    key = keys(file, "create", "shop", "--expires-in", "1s")
    table = until(lambda: shown if "expired" in (shown := command(file, "list").stdout) else "", seconds=10)
    head, row = table.splitlines()
    assert head.split() == ["ID", "NAME", "ROLE", "CREATED", "EXPIRES", "LAST", "USED"]
    assert row.split() == [key["id"], "shop", "submit", key["created_at"], "expired", "never"]


@pytest.mark.parametrize("depth", [1, 12], ids=["short-path", "long-path"])
async def test_beside_a_running_node_its_own_store_is_used(tmp_path: Path, echo: Echo, depth: int) -> None:
    """A long path is more than the name of a socket may be."""
    directory = tmp_path.joinpath(*["a-directory"] * depth)
    directory.mkdir(parents=True)
    async with Node(directory, echo.containers("a")) as node:
        key = keys(directory / "config.json", "create", "shop")
        headers = {"Authorization": f"Bearer {key['key']}"}
        assert requests.get(f"{node.url}/api/jobs", headers=headers, timeout=5).status_code == 200
        assert requests.get(f"{node.url}/api/jobs", timeout=5).status_code == 401
        keys(directory / "config.json", "revoke", key["id"])

        async def refused() -> bool:
            return requests.get(f"{node.url}/api/jobs", headers=headers, timeout=5).status_code == 401

        await eventually(refused, seconds=5, message="the end of the key")


def test_several_commands_at_once_wait_for_each_other(tmp_path: Path) -> None:
    file = configured(tmp_path)
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda name: command(file, "create", name), ["one", "two", "three"]))
    assert [(each.returncode, each.stderr.count("Traceback")) for each in ended] == [(0, 0)] * 3
    assert {key["name"] for key in keys(file, "list")} == {"one", "two", "three"}


def test_an_external_store_is_used_with_its_password(tmp_path: Path) -> None:
    with RedisServer("valkey", tmp_path / "redis") as server:
        with redis.Redis(port=server.port) as client:
            client.config_set("requirepass", REDIS_PASSWORD)
        file = configured(tmp_path, redis={"url": server.url, "password": REDIS_PASSWORD})
        key = keys(file, "create", "shop", "--role", "admin")
        assert [each["id"] for each in keys(file, "list")] == [key["id"]]
        assert not (tmp_path / "data").exists()
        wrong = configured(tmp_path, redis={"url": server.url, "password": "wrong"})
        result = command(wrong, "list")
        assert result.returncode == 1
        assert result.stderr.startswith("stoker keys: The job store ")
        assert "password" in result.stderr  # which one of the two, the server does not say
        assert REDIS_PASSWORD not in result.stderr


def test_a_store_that_is_away_is_one_line(tmp_path: Path) -> None:
    file = configured(tmp_path, redis={"url": "redis://127.0.0.1:1"})
    result = command(file, "list")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("stoker keys: The job store does not answer (")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["create", "127.0.0.1"], 1, "A name is a letter"),
        (["create", "shop", "--role", "root"], 2, "is not one of"),
        (["create", "shop", "--expires-in", "soon"], 2, "is no time; 12h or 30d would be"),
        (["create", "shop", "--expires-in", "0d"], 2, "is no time"),
        (["revoke", "0123456789ab"], 1, "There is no such API key"),
        (["list", "--config", "nowhere.json"], 2, "nowhere.json: found no file"),
    ],
)
def test_mistakes_are_told_in_words(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    file = configured(tmp_path)
    result = stoker("keys", *arguments[:1], "--config", str(file), *arguments[1:])
    assert result.returncode == code
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
