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
from typer.testing import CliRunner

from node.cli.keys import keys_app
from tests.secrets import REDIS_PASSWORD
from tests.support import Echo, Node, RedisServer, eventually, stoker

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
    began, ends = (time.strptime(second[each], "%Y-%m-%dT%H:%M:%SZ") for each in ("created_at", "expires_at"))
    assert time.mktime(ends) - time.mktime(began) == 30 * 86400
    assert keys(file, "revoke", first["id"]) == {"id": first["id"], "revoked": True}
    head, row = command(file, "list").stdout.splitlines()  # for people
    assert head.split() == ["ID", "NAME", "ROLE", "CREATED", "EXPIRES", "LAST", "USED"]
    assert row.split() == [second["id"], "watch", "read", second["created_at"], second["expires_at"], "never"]


async def test_beside_a_running_node_its_own_store_is_used(tmp_path: Path, echo: Echo) -> None:
    """The path is longer than the name of a socket may be."""
    directory = tmp_path.joinpath(*["a-directory"] * 12)
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
        assert keys(file, "create", "shop", "--role", "admin")["role"] == "admin"
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
        (["create", "shop", "--role", "root"], 2, "is not one of"),
        (["create", "shop", "--expires-in", "soon"], 2, "is no time; 12h or 30d would be"),
        (["create", "shop", "--expires-in", "0d"], 2, "is no time"),
        (["list", "--config", "nowhere.json"], 2, "nowhere.json: found no file"),
    ],
)
def test_mistakes_of_a_command_are_told_in_words(arguments: list[str], code: int, words: str) -> None:
    result = CliRunner().invoke(keys_app, arguments)
    assert result.exit_code == code
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["create", "127.0.0.1"], "A name is a letter"), (["revoke", "0123456789ab"], "There is no such API key")],
)
def test_what_the_store_refuses_is_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = command(configured(tmp_path), *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"stoker keys: {words}")
