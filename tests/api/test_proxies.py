"""Whose address counts behind reverse proxies, and that nobody else can make one up."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.api.support import Client
from tests.support import Echo, Node

pytestmark = pytest.mark.asyncio(loop_scope="session")

JOB = {"containers": ["a"], "data": {}}
PROXY, INNER_PROXY, OUTSIDER = "127.3.0.1", "10.1.2.3", "127.4.0.1"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def node(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> AsyncIterator[Node]:
    containers = echo.containers("a") + echo.containers("guarded", allowed_ips=["192.0.2.0/24"])
    server = {
        "trusted_proxies": ["127.3.0.0/16", "10.0.0.0/8", "2001:db8:ffff::/48"],
        "status_networks": ["192.0.2.7"],
    }
    async with Node(tmp_path_factory.mktemp("proxied"), containers, server=server) as node:
        yield node


async def caller_of(client: Client, node: Node, *headers: str) -> str:
    """Whom the node takes a request for: the caller in the log line of its job."""
    joined: dict[str, str] = {"X-Forwarded-For": ", ".join(headers)} if headers else {}
    answer = await client.ask("POST", "/api/jobs", JOB, **joined)
    assert answer.status == 200
    (event,) = [event for event in node.events("job_queued") if event["job_id"] == answer.json["id"]]
    return str(event["caller"])


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("198.51.100.9, 192.0.2.1", "192.0.2.1"),  # what stands to the left the client may have written itself
        ("192.0.2.1, 10.1.2.3", "192.0.2.1"),
        ("198.51.100.9,192.0.2.1,10.1.2.3 ,127.3.9.9", "192.0.2.1"),
        ("10.1.2.3", "10.1.2.3"),  # nobody but proxies: the farthest of them
        ("10.1.2.4, 10.1.2.3", "10.1.2.4"),
        ("192.0.2.1:8080", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("2001:db8::1, 2001:db8:ffff::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1, ::ffff:10.1.2.3", "192.0.2.1"),
        (", ".join(["192.0.2.1"] + ["10.1.2.3"] * 100), "10.1.2.3"),  # too many hops to be true
        (", ".join(["192.0.2.1"] * 700), "192.0.2.1"),
    ],
)
async def test_behind_a_trusted_proxy_the_right_most_hop_that_is_none_counts(
    node: Node, forwarded: str, expected: str
) -> None:
    async with Client(node, PROXY) as client:
        assert await caller_of(client, node, forwarded) == expected


RUBBISH = ["", " ", ",", "unknown", "_hidden", "192.0.2.1.9", "192.0.2.256", "[2001:db8::1", "[]:1", "1", "192.0.2.1 x"]
RUBBISH += ["é", "<script>", "'; DROP", "a" * 4000, "192.0.2.1;for=x", "%s%n", ":", "::::", "0x7f.1", "192.0.2.01"]


@pytest.mark.parametrize("rubbish", RUBBISH)
async def test_rubbish_ends_the_search_at_the_last_hop_that_was_an_address(node: Node, rubbish: str) -> None:
    async with Client(node, PROXY) as client:
        found = [
            await caller_of(client, node, rubbish),
            await caller_of(client, node, f"192.0.2.1, {rubbish}"),
            await caller_of(client, node, f"192.0.2.1, {rubbish}, 10.1.2.3"),
            await caller_of(client, node, f"{rubbish}, 192.0.2.1"),
        ]
    if rubbish == "[2001:db8::1":  # the bracket alone does no harm
        assert found[1] == "2001:db8::1"
    else:
        assert found == [PROXY, PROXY, "10.1.2.3", "192.0.2.1"]


async def test_several_headers_are_one_list(node: Node) -> None:
    async with (
        Client(node, PROXY) as client,
        client.session.post(
            "/api/jobs",
            json=JOB,
            headers=[("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-For", "192.0.2.2, 10.1.2.3")],
        ) as answer,
    ):
        job_id = (await answer.json())["id"]
    (event,) = [event for event in node.events("job_queued") if event["job_id"] == job_id]
    assert event["caller"] == "192.0.2.2"


async def test_from_anybody_else_the_header_is_not_looked_at(node: Node) -> None:
    async with Client(node, OUTSIDER) as client:
        for forged in ("192.0.2.1", PROXY, "10.1.2.3", "127.0.0.1", "rubbish"):
            assert await caller_of(client, node, forged) == OUTSIDER
        assert await caller_of(client, node) == OUTSIDER


async def test_other_headers_that_proxies_send_are_never_looked_at(node: Node) -> None:
    async with Client(node, PROXY) as client:
        forged = {"Forwarded": "for=192.0.2.1", "X_Real_IP": "192.0.2.1", "True_Client_IP": "192.0.2.1"}
        answer = await client.ask("POST", "/api/jobs", JOB, **forged)
    (event,) = [event for event in node.events("job_queued") if event["job_id"] == answer.json["id"]]
    assert event["caller"] == PROXY


async def test_rules_about_addresses_go_by_the_same_address(node: Node) -> None:
    """`allowed_ips` of a container, and `status_networks`."""
    guarded, report = {"containers": ["guarded"], "data": {}}, {"id": "r", "status": "success", "containers": ["a"]}
    async with Client(node, PROXY) as proxy, Client(node, OUTSIDER) as outsider:
        for client, forwarded, submitted, reported in [
            (proxy, "192.0.2.7", 200, 200),
            (proxy, "192.0.2.8", 200, 403),
            (proxy, "192.0.2.7, 198.51.100.1", 400, 403),
            (proxy, "", 400, 403),
            (outsider, "192.0.2.7", 400, 403),
        ]:
            answer = await client.ask("POST", "/api/jobs", guarded, **{"X-Forwarded-For": forwarded})
            assert answer.status == submitted, forwarded
            answer = await client.ask("PUT", "/api/status", report, **{"X-Forwarded-For": forwarded})
            assert answer.status == reported, forwarded


async def test_two_clients_of_one_proxy_are_two_callers(node: Node) -> None:
    async with Client(node, PROXY) as proxy:
        first = (await proxy.ask("POST", "/api/jobs", JOB, X_Forwarded_For="192.0.2.51")).json["id"]
        assert (await proxy.ask("GET", "/api/jobs", X_Forwarded_For="192.0.2.51")).json == [first]
        assert (await proxy.ask("GET", "/api/jobs", X_Forwarded_For="192.0.2.52")).json == []
        assert (await proxy.ask("GET", f"/api/jobs?id={first}", X_Forwarded_For="192.0.2.52")).status == 404
        assert (await proxy.ask("DELETE", f"/api/jobs/{first}", X_Forwarded_For="192.0.2.52")).status == 404


async def test_without_trusted_proxies_nobody_is_believed(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> None:
    async with (
        Node(tmp_path_factory.mktemp("plain"), echo.containers("a")) as plain,
        Client(plain, PROXY) as client,
    ):
        assert await caller_of(client, plain, "192.0.2.1") == PROXY
