"""A node that is given many secrets, on good and bad ways: whatever it writes, none of them is in it."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis

from node.jobs import Role
from node.store import Key, Store
from tests import secrets
from tests.api.support import Client, Raw
from tests.support import ROOT, Echo, Node, RedisServer, eventually, stoker

pytestmark = pytest.mark.acceptance

UNKNOWN = "00000000-0000-4000-8000-000000000000"


class Written:
    """All that a node, its commands and its answers say, and the secrets that must not be in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.secrets = list(secrets.ALL)
        self.parts: dict[str, bytes] = {}

    def add(self, name: str, text: str | bytes) -> None:
        text = text if isinstance(text, bytes) else text.encode()
        self.parts[name] = self.parts.get(name, b"") + b"\n" + text

    def command(self, *arguments: str, code: int | None) -> str:
        done = stoker(*arguments)
        assert code in (None, done.returncode), done.stderr
        self.add(" ".join(["stoker", *arguments[:2]]), done.stdout + done.stderr)
        return done.stdout

    async def create(self, role: Role, server: RedisServer) -> tuple[str, Key]:
        async with Store(server.url, node_id="test", password=secrets.REDIS_URL_PASSWORD) as store:
            made = await store.access.create("shop", role)
        self.secrets.append(made[0])
        return made

    def add_files(self) -> None:
        """Every file that the node or its store wrote."""
        for file in self.directory.rglob("*"):
            if file.is_file() and not file.is_relative_to(self.directory / "given"):
                self.add(f"file {file.relative_to(self.directory)}", file.read_bytes())

    def add_processes(self, pid: int) -> None:
        """The command lines of a process and all below it, as `ps` shows them."""
        with contextlib.suppress(FileNotFoundError):
            self.add("ps", Path(f"/proc/{pid}/cmdline").read_bytes())
            for task in Path(f"/proc/{pid}/task").iterdir():
                for child in (task / "children").read_text().split():
                    self.add_processes(int(child))

    def found(self) -> list[tuple[str, str]]:
        """Where which secret was written; the end of it is enough."""
        return [
            (name, secret)
            for name, text in self.parts.items()
            for secret in self.secrets
            if secret[-12:].encode() in text
        ]


FAULTY = """
import structlog
from node import log
from node.config import Log

def fail(key):
    raise ValueError("a fault of ours")

log.set_up(Log(format="{form}"))
try:
    fail("{key}")
except ValueError:
    structlog.get_logger().exception("request_failed")
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_values(form: str) -> None:
    script = FAULTY.replace("{form}", form).replace('"{key}"', f'"".join({list(secrets.NO_KEY)})')
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "ValueError: a fault of ours" in done.stderr
    assert secrets.NO_KEY not in done.stderr


@pytest.fixture
async def broken() -> AsyncIterator[int]:
    """A service that answers what is no HTTP; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def configured(tmp_path: Path, echo: Echo, server: RedisServer, broken: int) -> Node:
    given = tmp_path / "given"
    given.mkdir()
    (given / "password").write_text(secrets.DOCKER_PASSWORD)
    login = f"u:{secrets.SERVICE_URL_PASSWORD}@"
    containers = [
        *echo.containers("a", bearer=secrets.BEARER, env={"API_TOKEN": secrets.CONTAINER_TOKEN}),
        {"id": "login", "url": echo.url.replace("://", f"://{login}")},
        {"id": "gone", "url": f"http://{login}127.0.0.1:1", "bearer": secrets.BEARER, "startup_timeout_s": 0.5},
        {"id": "broken", "url": f"http://{login}127.0.0.1:{broken}", "bearer": secrets.BEARER},
    ]
    node = Node(
        given,
        containers,
        redis={"url": server.url.replace("://", f"://:{secrets.REDIS_URL_PASSWORD}@")},
        docker={"username": "u", "password": "", "password_file": "password"},
        log={"path": str(tmp_path / "rotated.log"), "level": "debug"},
        server={"rate_limit": {"num_requests": 1000, "period": 60}},
        data_dir=str(tmp_path / "data"),
    )
    node.log = tmp_path / "node.log"
    return node


async def ask(client: Client, written: Written, method: str, path: str, body: Any = None, **headers: str) -> int:
    answer = await client.ask(method, path, body, **headers)
    head = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
    written.add(f"{method} {path.partition('?')[0]}", head.encode() + b"\n" + answer.body)
    return answer.status


async def good_ways(client: Client, written: Written, admin: str, submit: str) -> None:
    shown = {"Authorization": f"Bearer {submit}"}
    bodies = [{"containers": [name], "data": {"x": 1}} for name in ("a", "login", "broken", "gone")]
    for body in bodies:
        assert await ask(client, written, "POST", "/api/jobs", body, **shown) == 200
    assert await ask(client, written, "POST", "/api/jobs/batch", bodies, **shown) == 200
    await ask(client, written, "POST", "/api/jobs/stream", {"containers": ["a"], "data": {"parts": ["x"]}}, **shown)
    await ask(client, written, "POST", "/api/jobs/stream", bodies[2], **shown)

    async def ended() -> bool:
        answer = await client.ask("GET", "/api/jobs?pending=true", **shown)
        return len(answer.json) <= 4  # those for what is gone or broken wait

    await eventually(ended, seconds=20, message="the jobs")
    ids = (await client.ask("GET", "/api/jobs", **shown)).json
    query = "&".join(f"id={job_id}" for job_id in ids)
    assert await ask(client, written, "GET", f"/api/jobs?intermediate=true&{query}", **shown) == 200
    for path in ("/info?verbose=true", "/info", "/metrics", "/resources", "/health", "/health/ready", "/api/dead"):
        await ask(client, written, "GET", path, Authorization=f"Bearer {admin}")


async def bad_ways(client: Client, node: Node, written: Written, key: str) -> None:
    wrong = (secrets.NO_KEY, key + "x", "x" + key, key[:-1], f"{key} {key}", key.swapcase())
    for value in (*(f"Bearer {each}" for each in wrong), f"Basic {key}", key, f"Bearer {key}" * 30):
        assert await ask(client, written, "GET", "/api/jobs", Authorization=value) == 401
    assert await ask(client, written, "GET", f"/api/jobs?key={key}&api_key={key}", X_API_Key=key) == 401
    shown = {"Authorization": f"Bearer {key}"}
    assert await ask(client, written, "POST", "/api/jobs", {"containers": ["a"], "data": key}, **shown) == 400
    assert await ask(client, written, "POST", "/api/jobs", b'{"key": "' + key.encode() + b'" nul', **shown) == 400
    assert await ask(client, written, "GET", "/info?verbose=true", **shown) == 403
    assert await ask(client, written, "PUT", "/api/status", {"token": key}, **shown) == 403
    assert await ask(client, written, "DELETE", f"/api/jobs/{UNKNOWN}", **shown) == 404
    for header in (
        f"Authorization: Bearer {key}\x01",
        f"Authorization: Bearer {key}{'x' * 10_000}",
        f"{key}",
        f"{key} : x",
    ):
        async with Raw(node) as raw:
            raw.send("GET /api/jobs HTTP/1.1", header)
            written.add("no HTTP", await raw.rest())


async def without_the_store(client: Client, server: RedisServer, written: Written, key: str) -> None:
    """It lets nobody in any more, then it is gone."""
    with redis.Redis(port=server.port, password=secrets.REDIS_URL_PASSWORD) as direct:
        direct.config_set("requirepass", "changed")
        direct.client_kill_filter(_type="normal", skipme=False)

    async def away() -> bool:
        return await ask(client, written, "GET", "/api/jobs", Authorization=f"Bearer {key}") == 503

    await eventually(away, seconds=10, message="the refusal by the store")
    for path in ("/health", "/health/ready", "/info"):
        await ask(client, written, "GET", path, Authorization=f"Bearer {key}")
    server.kill()
    await eventually(away, seconds=10, message="the end of the store")
    await ask(client, written, "GET", "/health/ready")


async def test_no_secret_is_written_anywhere(tmp_path: Path, echo: Echo, broken: int) -> None:
    written = Written(tmp_path)
    with RedisServer("valkey", tmp_path / "redis") as server:
        node = configured(tmp_path, echo, server, broken)
        file = tmp_path / "given" / "config.json"
        file.touch(0o600)
        file.write_text(json.dumps(node.config))
        with redis.Redis(port=server.port) as direct:
            direct.config_set("requirepass", secrets.REDIS_URL_PASSWORD)
        roles = (Role.ADMIN, Role.SUBMIT, Role.SUBMIT)
        (admin, _), (submit, _), (revoked, key) = [await written.create(role, server) for role in roles]
        written.command("keys", "list", "--config", str(file), code=0)
        written.command("keys", "revoke", key.id, "--json", "--config", str(file), code=0)
        try:
            async with Client(node) as client:
                node.session = client.session
                await node.start(ready=False)
                written.add_processes(node.process.pid)
                await good_ways(client, written, admin, submit)
                await bad_ways(client, node, written, submit)
                assert await ask(client, written, "GET", "/info", Authorization=f"Bearer {revoked}") == 401
                written.command("config", "show", str(file), code=0)
                written.command("doctor", "--config", str(file), code=None)
                await without_the_store(client, server, written, submit)
                assert node.kill(signal.SIGTERM) == 0
        finally:
            await node.__aexit__(None, None, None)
        written.command("keys", "list", "--config", str(file), code=1)
        file.write_text(json.dumps(node.config | {"redis": {"url": ["x"], "password": {"p": secrets.REDIS_PASSWORD}}}))
        written.command("serve", "--config", str(file), code=2)
    written.add_files()
    seen = b"".join(written.parts.values())
    for proof in (
        b"job_queued",
        b"caller_refused",
        b"store_unavailable",
        b"container_",
        b"stoker_build_info",
        b"127.0.0.1",
    ):
        assert proof in seen  # so the search had something to search in
    assert written.found() == []
