"""API keys at the door: who is let in, who may do what, whose jobs are whose; and that nothing opens it again."""

import asyncio
import json
import signal
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import pytest
import pytest_asyncio
import redis

from node.jobs import Role
from node.store import Key, Store
from tests.api.support import Answer, Client
from tests.secrets import NO_KEY
from tests.support import Echo, Node, RedisServer, eventually, stoker

pytestmark = pytest.mark.asyncio(loop_scope="session")

JOB = {"containers": ["a"], "data": {}}
REFUSED = {"error": "A valid API key is needed, as `Authorization: Bearer KEY`", "params": {}}
UNKNOWN = "00000000-0000-4000-8000-000000000000"
LARGE = "x" * 1_000_000


class Keyed(Client):
    """A client that shows a key of its own."""

    key: Key
    secret: str

    def __init__(
        self, node: Node, server: RedisServer, name: str, role: Role = Role.SUBMIT, *, expires_in_s: float | None = None
    ) -> None:
        super().__init__(node)
        self._server, self._name, self._role, self._expires_in_s = server, name, role, expires_in_s

    async def __aenter__(self) -> Self:
        async with Store(self._server.url, node_id="test") as store:
            made = await store.access.create(self._name, self._role, expires_in_s=self._expires_in_s)
        self.secret, self.key = made
        return await super().__aenter__()

    async def revoke(self) -> None:
        async with Store(self._server.url, node_id="test") as store:
            await store.access.revoke(self.key.id)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> Answer:
        return await super().ask(method, path, body, **{"Authorization": f"Bearer {self.secret}"} | headers)


class Stage:
    """A node on a server of its own; its door is closed, because there has been a key."""

    def __init__(self, directory: Path, echo: Echo, **more: Any) -> None:
        self.server = RedisServer("valkey", directory / "redis")
        self.node = Node(directory, echo.containers("a", "b"), redis={"url": self.server.url}, **more)

    async def __aenter__(self) -> Self:
        self.server.start()
        try:
            await self.node.__aenter__()
            async with self.keyed("first", Role.ADMIN) as first:
                await first.get("/info")
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.node.__aexit__(None, None, None)
        self.server.__exit__()

    def keyed(self, name: str, role: Role = Role.SUBMIT, **more: Any) -> Keyed:
        return Keyed(self.node, self.server, name, role, **more)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> AsyncIterator[Stage]:
    async with Stage(tmp_path_factory.mktemp("keyed"), echo) as stage:
        yield stage


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def nobody(stage: Stage) -> AsyncIterator[Client]:
    async with Client(stage.node) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shop(stage: Stage) -> AsyncIterator[Keyed]:
    async with stage.keyed("shop") as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def watch(stage: Stage) -> AsyncIterator[Keyed]:
    """Of the same name, to look only."""
    async with stage.keyed("shop", Role.READ) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def rival(stage: Stage) -> AsyncIterator[Keyed]:
    async with stage.keyed("rival") as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def admin(stage: Stage) -> AsyncIterator[Keyed]:
    async with stage.keyed("boss", Role.ADMIN) as client:
        yield client


# Who is let in

ROUTES = [
    ("GET", "/info"),
    ("GET", "/resources"),
    ("GET", "/metrics"),
    ("GET", "/api/jobs"),
    ("GET", f"/api/jobs?id={UNKNOWN}"),
    ("POST", "/api/jobs"),
    ("POST", "/api/jobs/batch"),
    ("POST", "/api/jobs/stream"),
    ("DELETE", f"/api/jobs/{UNKNOWN}"),
    ("POST", f"/api/jobs/{UNKNOWN}/retry"),
    ("GET", "/api/dead"),
    ("PUT", "/api/status"),
    ("OPTIONS", "/api/jobs"),
    ("PATCH", "/api/jobs"),
    ("GET", "/no/such/path"),
    ("GET", "/health/no/such/path"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_but_health_needs_a_key(nobody: Client, method: str, path: str) -> None:
    answer = await nobody.ask(method, path, JOB if method in ("POST", "PUT") else None)
    assert (answer.status, answer.json) == (401, REFUSED)
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "X-Request-ID" in answer.headers


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_health_needs_none(nobody: Client, path: str) -> None:
    assert (await nobody.ask("GET", path)).status == 200
    assert (await nobody.ask("GET", path, Authorization=f"Bearer {NO_KEY}")).status == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer stoker_",
        "Basic {key}",
        "Bearer {key}x",
        "Bearer {id}",
        "{key}",
        "Bearer {key} x",
    ],
)
async def test_what_is_no_valid_key_is_401(nobody: Client, shop: Keyed, header: str) -> None:
    value = header.format(key=shop.secret, id=shop.key.id)
    answer = await nobody.ask("GET", "/api/jobs", Authorization=value)
    assert (answer.status, answer.json) == (401, REFUSED)


@pytest.mark.parametrize("header", ["Bearer {key}", "bearer {key}", "BEARER  {key} "])
async def test_the_scheme_is_read_as_http_says(nobody: Client, shop: Keyed, header: str) -> None:
    assert (await nobody.ask("GET", "/api/jobs", Authorization=header.format(key=shop.secret))).status == 200


async def test_a_client_that_can_only_be_given_a_url_shows_the_key_as_its_password(stage: Stage, shop: Keyed) -> None:
    """Such as `infernet-client` 1.4.0."""
    for login, status in ((f"any:{shop.secret}", 200), (f":{shop.secret}", 200), (shop.secret, 401), ("any:x", 401)):
        url = stage.node.url.replace("://", f"://{login}@")
        async with aiohttp.ClientSession() as session, session.get(f"{url}/api/jobs") as answer:
            assert answer.status == status


@pytest.mark.parametrize(
    "header", ["Basic", "Basic ", "Basic %%%", "Basic {key}", "Basic é", "Basic /w==", "Basic Og=="]
)
async def test_a_password_that_is_none_is_401(nobody: Client, shop: Keyed, header: str) -> None:
    answer = await nobody.ask("GET", "/api/jobs", Authorization=header.format(key=shop.secret))
    assert (answer.status, answer.json) == (401, REFUSED)


async def test_an_unread_body_is_no_way_to_hold_the_refusal_back(nobody: Client) -> None:
    answer = await nobody.ask("POST", "/api/jobs", {"containers": ["a"], "data": {"x": LARGE}})
    assert (answer.status, answer.json) == (401, REFUSED)


async def test_missing_wrong_revoked_and_expired_keys_are_told_alike_and_as_fast(stage: Stage, nobody: Client) -> None:
    async with stage.keyed("old", expires_in_s=0.1) as expired, stage.keyed("old") as revoked:
        await revoked.revoke()
        headers: dict[str, str | None] = {
            "missing": None,
            "wrong": f"Bearer {NO_KEY}",
            "revoked": f"Bearer {revoked.secret}",
            "expired": f"Bearer {expired.secret}",
        }

        async def all_refused() -> bool:
            return all(
                [(await nobody.ask("GET", "/info", Authorization=header)).status == 401 for header in headers.values()]
            )

        await eventually(all_refused, seconds=5, message="the end of the keys")
        times: dict[str, list[float]] = {kind: [] for kind in headers}
        for _ in range(100):
            for kind, header in headers.items():
                began = time.perf_counter()
                answer = await nobody.ask("GET", "/info", Authorization=header)
                times[kind].append(time.perf_counter() - began)
                assert (answer.status, answer.json) == (401, REFUSED)
    medians = {kind: statistics.median(each) * 1000 for kind, each in times.items()}
    print("401 after ms: " + ", ".join(f"{kind} {median:.2f}" for kind, median in medians.items()))
    assert max(medians.values()) < 1.5 * min(medians.values())


# Who may do what


@pytest.mark.parametrize(
    ("method", "path", "smallest"),
    [
        ("GET", "/info", Role.READ),
        ("GET", "/resources", Role.READ),
        ("GET", "/api/jobs", Role.READ),
        ("GET", f"/api/jobs?id={UNKNOWN}", Role.READ),
        ("OPTIONS", "/api/jobs", Role.READ),
        ("POST", "/api/jobs", Role.SUBMIT),
        ("POST", "/api/jobs/batch", Role.SUBMIT),
        ("POST", "/api/jobs/stream", Role.SUBMIT),
        ("DELETE", f"/api/jobs/{UNKNOWN}", Role.SUBMIT),
        ("POST", f"/api/jobs/{UNKNOWN}/retry", Role.SUBMIT),
        ("GET", "/api/dead", Role.READ),
        ("GET", "/info?verbose=true", Role.ADMIN),
        ("GET", "/metrics", Role.ADMIN),
        ("HEAD", "/metrics", Role.ADMIN),
        ("GET", "/%6Detrics", Role.ADMIN),
        ("PUT", "/api/status", Role.ADMIN),
    ],
)
async def test_each_route_has_a_smallest_role(
    watch: Keyed, shop: Keyed, admin: Keyed, method: str, path: str, smallest: Role
) -> None:
    for client, role in ((watch, Role.READ), (shop, Role.SUBMIT), (admin, Role.ADMIN)):
        answer = await client.ask(method, path, [] if method in ("POST", "PUT") else None)
        assert answer.status != 401
        assert (answer.status == 403) is not role.covers(smallest)
        if answer.status == 403 and method != "HEAD":
            params = {"role": role.value, "needed": smallest.value}
            assert answer.json == {"error": "The key may not do this", "params": params}


# Whose jobs are whose


async def test_a_job_belongs_to_the_name_of_the_key(
    stage: Stage, shop: Keyed, watch: Keyed, rival: Keyed, admin: Keyed
) -> None:
    job_id = await shop.submit("a")
    await shop.result(job_id)
    async with stage.keyed("shop") as successor:
        for client in (shop, watch, successor, admin):
            assert (await client.job(job_id))["id"] == job_id
            assert job_id in await client.get("/api/jobs")
            assert job_id in await client.get("/api/jobs?pending=false")
    assert job_id not in await rival.get("/api/jobs")
    (event,) = [event for event in stage.node.events("job_queued") if event["job_id"] == job_id]
    assert event["caller"] == "shop"


async def test_another_ones_job_is_as_an_unknown_one(shop: Keyed, rival: Keyed, echo: Echo) -> None:
    running = await shop.submit("a", data={"key": "others", "wait_for": "others"})
    for path in (f"/api/jobs?id={running}", f"/api/jobs?id={running}&intermediate=true"):
        answer = await rival.ask("GET", path)
        unknown = await rival.ask("GET", path.replace(running, UNKNOWN))
        assert (answer.status, answer.body.replace(running.encode(), UNKNOWN.encode())) == (404, unknown.body)
    for method, path in (("DELETE", "/api/jobs/{}"), ("POST", "/api/jobs/{}/retry")):
        answer = await rival.ask(method, path.format(running))
        unknown = await rival.ask(method, path.format(UNKNOWN))
        assert (answer.status, answer.body.replace(running.encode(), UNKNOWN.encode())) == (404, unknown.body)
    for path in ("/api/jobs", "/api/jobs?pending=true", "/api/jobs?pending=false"):
        assert running not in await rival.get(path)
    assert (await shop.job(running))["status"] == "running"
    own = await rival.submit("a")
    assert [job["id"] for job in await rival.get(f"/api/jobs?id={running}&id={own}&id={UNKNOWN}")] == [own]
    echo.release("others")
    assert (await shop.result(running))["status"] == "success"


async def test_another_ones_job_takes_no_longer_than_an_unknown_one(shop: Keyed, rival: Keyed) -> None:
    """Also where it is so large that reading it would show."""
    large = await shop.submit("a", "b", data={"x": LARGE})
    assert (await shop.result(large))["status"] == "success"
    times: dict[str, list[float]] = {large: [], UNKNOWN: []}
    for _ in range(100):
        for job_id, taken in times.items():
            began = time.perf_counter()
            assert (await rival.ask("GET", f"/api/jobs?id={job_id}&intermediate=true")).status == 404
            taken.append(time.perf_counter() - began)
    others, unknown = (statistics.median(taken) * 1000 for taken in times.values())
    print(f"404 after ms: another's job of {len(LARGE) // 1_000_000} MB {others:.2f}, an unknown one {unknown:.2f}")
    assert others < 1.5 * unknown


async def test_an_admin_sees_and_cancels_everything(shop: Keyed, rival: Keyed, admin: Keyed, echo: Echo) -> None:
    waiting = [await client.submit("a", data={"key": "all", "wait_for": "all"}) for client in (shop, rival)]
    assert {job["id"] for job in await admin.get(f"/api/jobs?id={waiting[0]}&id={waiting[1]}")} == set(waiting)
    assert set(waiting) <= set(await admin.get("/api/jobs?pending=true"))
    assert set(waiting).isdisjoint(await admin.get("/api/jobs?pending=false"))
    assert (await admin.ask("DELETE", f"/api/jobs/{waiting[0]}")).status == 200
    assert (await shop.job(waiting[0]))["status"] == "failed"
    echo.release("all")
    assert (await rival.result(waiting[1]))["status"] == "success"
    assert set(waiting) <= set(await admin.get("/api/jobs?pending=false"))
    assert set(waiting) <= set(await admin.get("/api/jobs"))


async def test_identity_does_not_come_from_the_body(shop: Keyed, rival: Keyed) -> None:
    body = JOB | {"caller": "rival", "client": "rival", "name": "rival", "ip": "127.0.0.1", "key": rival.secret}
    answer = await shop.ask("POST", f"/api/jobs?key={rival.secret}&caller=rival", body, X_Api_Key=rival.secret)
    assert answer.json["id"] in await shop.get("/api/jobs")
    assert answer.json["id"] not in await rival.get("/api/jobs")


# Revocation


async def remembered(stage: Stage, client: Keyed) -> None:
    """Until the node has the client's key in memory, and looks it up no more."""
    with redis.Redis(port=stage.server.port) as direct:

        async def not_looked_up() -> bool:
            before = lookups(direct)
            assert (await client.ask("GET", "/resources")).status == 200
            return lookups(direct) == before

        await eventually(not_looked_up, seconds=5, message="the key in memory")


def lookups(direct: redis.Redis) -> int:
    return int(direct.info("commandstats").get("cmdstat_hget", {"calls": 0})["calls"])


async def test_a_revoked_key_is_refused_within_two_seconds(stage: Stage) -> None:
    async with stage.keyed("leaked") as leaked:
        await remembered(stage, leaked)
        await leaked.revoke()
        revoked_at = worked_at = time.monotonic()
        while time.monotonic() < revoked_at + 2.5:
            began = time.monotonic()
            if (await leaked.ask("GET", "/api/jobs")).status == 200:
                worked_at = began
    print(f"a revoked key worked for another {worked_at - revoked_at:.2f} s")
    assert worked_at - revoked_at <= 2.0


async def test_a_known_key_costs_the_server_nothing(stage: Stage, shop: Keyed) -> None:
    await remembered(stage, shop)
    with redis.Redis(port=stage.server.port) as direct:
        before = lookups(direct)
        for _ in range(300):
            await shop.get("/resources")
        assert lookups(direct) - before <= 10  # scripts of the store may count as well


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_without_the_store_every_caller_is_503_within_two_seconds_and_nobody_401(
    stage: Stage, nobody: Client, admin: Keyed, fault: str
) -> None:
    """What needs no store is answered for two seconds more: so long is believed what was last read of the keys."""
    async with stage.keyed("shop") as shop:
        assert (await shop.ask("GET", "/api/jobs")).status == 200
        await remembered(stage, admin)
        if fault == "killed":
            stage.server.kill()
        else:
            stage.server.process.send_signal(signal.SIGSTOP)
        away_at = let_in_at = time.monotonic()
        while time.monotonic() < away_at + 2.5:
            began = time.monotonic()
            if (await admin.ask("GET", "/metrics")).status == 200:
                let_in_at = began
        assert 0 < let_in_at - away_at <= 2.0
        for _ in range(2):
            began = time.monotonic()
            headers = (f"Bearer {shop.secret}", f"Bearer {NO_KEY}", None)
            answers = await asyncio.gather(
                *(nobody.ask("GET", "/api/jobs", Authorization=header) for header in headers for _ in range(10))
            )
            assert {(answer.status, answer.json["error"]) for answer in answers} == {
                (503, "The job store does not answer")
            }
            assert time.monotonic() - began < 3.5  # two, and what a busy machine adds
        if fault == "killed":
            await asyncio.to_thread(stage.server.start)
        else:
            stage.server.process.send_signal(signal.SIGCONT)

        async def back() -> bool:
            return (await shop.ask("GET", "/api/jobs")).status == 200

        await eventually(back, seconds=10, message="the store")


# The door stays closed


async def refused(node: Node, **headers: str) -> bool:
    async with Client(node) as client:
        return (await client.ask("GET", "/api/jobs", **headers)).status == 401


async def test_from_the_first_key_on_one_is_needed_whatever_happens(tmp_path: Path, echo: Echo) -> None:
    with RedisServer("valkey", tmp_path / "redis") as server:
        async with Node(tmp_path, echo.containers("a"), redis={"url": server.url}) as node:
            job_id = await node.submit(["a"], {})
            assert not await refused(node, Authorization=f"Bearer {NO_KEY}")  # it is not looked at yet
            async with Keyed(node, server, "shop", expires_in_s=30) as shop:
                began = time.monotonic()
                await eventually(lambda: refused(node), seconds=5, message="the end of the open door")
                assert time.monotonic() - began < 4  # a second, and what a busy machine adds
                assert (await shop.ask("GET", f"/api/jobs?id={job_id}")).status == 404  # it was the address's
                await shop.revoke()
                await eventually(lambda: refused(node, Authorization=f"Bearer {shop.secret}"), seconds=3)
            assert await refused(node)
            with redis.Redis(port=server.port) as client:
                client.flushall()
                for restart in (False, True):
                    if restart:
                        node.kill()
                        await node.start(ready=False)
                    for _ in range(15):
                        assert await refused(node)
                        assert await refused(node, Authorization=f"Bearer {shop.secret}")
                        await asyncio.sleep(0.1)  # over two refreshes
                assert client.dbsize() == 0 or not client.exists("stoker:{0}:access")


async def test_keys_may_be_required_before_there_is_one(tmp_path: Path, echo: Echo) -> None:
    node = Node(tmp_path, echo.containers("a"), server={"require_keys": True, "insecure": True})
    try:
        async with Client(node) as client:
            node.session = client.session
            await node.start(ready=False)
            assert (await client.ask("GET", "/info")).status == 401
            assert (await client.ask("GET", "/health")).status == 200
    finally:
        await node.__aexit__(None, None, None)


# Addresses that others can reach


def open_node(tmp_path: Path, **more: Any) -> Node:
    node = Node(tmp_path, [], **more)
    node.config["server"] |= {"host": "0.0.0.0"}
    return node


async def test_an_open_address_without_a_key_is_refused_at_the_start_with_what_to_do(tmp_path: Path) -> None:
    node = open_node(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(node.config))
    ended = await asyncio.to_thread(stoker, "serve", "--config", str(tmp_path / "config.json"))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "stoker: server.host: others can reach 0.0.0.0, and there is no API key. "
        "Make one with `stoker keys create NAME`, or let everybody in with --insecure (server.insecure)"
    )
    assert "node_started" not in ended.stderr


async def test_an_open_address_is_served_with_a_key_and_only_to_who_has_one(tmp_path: Path) -> None:
    node = open_node(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(node.config))
    made = await asyncio.to_thread(stoker, "keys", "create", "shop", "--config", str(file))
    async with Client(node) as client:
        node.session = client.session
        try:
            await node.start(ready=False)
            assert (await client.ask("GET", "/api/jobs")).status == 401
            answer = await client.ask("GET", "/api/jobs", Authorization=f"Bearer {made.stdout.strip()}")
            assert (answer.status, answer.json) == (200, [])
        finally:
            await node.__aexit__(None, None, None)


async def test_an_open_address_may_be_served_to_everybody_on_purpose(tmp_path: Path) -> None:
    node = open_node(tmp_path)
    node.arguments = ["--insecure"]
    async with node:
        assert await node.get("/api/jobs") == []


async def test_an_open_address_stays_closed_while_the_store_is_away_at_the_start(tmp_path: Path) -> None:
    node = open_node(tmp_path, redis={"url": "redis://127.0.0.1:1"})
    async with Client(node) as client:
        node.session = client.session
        try:
            await node.start(ready=False)
            for path in ("/info?verbose=true", "/metrics", "/api/jobs"):
                assert (await client.ask("GET", path)).status == 503
        finally:
            await node.__aexit__(None, None, None)


async def test_a_node_that_has_not_seen_its_store_only_tells_how_it_is_and_that_not_if_it_ever_knew_a_key(
    tmp_path: Path, echo: Echo
) -> None:
    node = Node(tmp_path, echo.containers("a"), redis={"url": "redis://127.0.0.1:1"})
    async with Client(node) as client:
        node.session = client.session
        try:
            for knew_a_key in (False, True):
                (tmp_path / "data").mkdir(exist_ok=True)
                if knew_a_key:
                    (tmp_path / "data" / "keyed").touch()
                await node.start(ready=False)
                for path, needs_no_store in (("/info?verbose=true", True), ("/metrics", True), ("/resources", False)):
                    status = (await client.ask("GET", path)).status
                    assert status == (200 if needs_no_store and not knew_a_key else 503), path
                node.kill()
        finally:
            await node.__aexit__(None, None, None)
