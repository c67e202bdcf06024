"""The served document: it says what is served, no more and no less, and a fuzzer that believes it finds no fault."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import jsonschema_rs
import pytest
import pytest_asyncio
import schemathesis

from node.api.app import application
from node.config import Server
from node.jobs import Role
from node.metrics import Metrics
from tests.api.support import Client
from tests.support import Echo, Node, RedisServer, free_port, stoker

FULL = bool(os.environ.get("STOKER_FULL"))
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(3600 if FULL else 300)]

EXAMPLES = 150 if FULL else 4  # per operation
MAX_CHAIN = 4
NAMES = ("language", "sentiment")  # those of the document's examples
AWAY = "away"
REQUESTS = ("JobRequest", "StreamRequest", "StatusReport")  # what they do not name is not looked at
UNKNOWN = "00000000-0000-4000-8000-000000000000"
PHASES = "examples,coverage,fuzzing,stateful"
RULES = """
[checks.positive_data_acceptance]  # 422: the fuzzer had used an idempotency key for another request
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429"]

[[operations]]  # a bad item has its error in its own place of a good answer
include-operation-id = "submit_jobs"
checks.negative_data_rejection.expected-statuses = ["200", "4xx"]
"""


@asynccontextmanager
async def serving(directory: Path, echo: Echo, **more: Any) -> AsyncIterator[Node]:
    """A node whose containers take all that the document allows; one of them is away, so that its jobs wait."""
    containers = [*echo.containers(*NAMES), {"id": AWAY, "url": f"http://127.0.0.1:{free_port()}"}]
    for container in containers:
        container["generates_proofs"] = True
    async with Node(directory, containers, down=(AWAY,), server={"max_chain": MAX_CHAIN}, **more) as node:
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def node(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> AsyncIterator[Node]:
    async with serving(tmp_path_factory.mktemp("open"), echo) as node:
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def keyed(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> AsyncIterator[Node]:
    async with serving(tmp_path_factory.mktemp("keyed"), echo) as node:
        yield node


@pytest.fixture(scope="module")
def keys(keyed: Node) -> dict[str, str]:
    """A key of each role; from the first one on the node asks for one."""
    made = {}
    for role in Role:
        config = str(keyed.directory / "config.json")
        done = stoker("keys", "create", role.value, "--role", role.value, "--json", "--config", config)
        assert done.returncode == 0, done.stderr
        made[role.value] = json.loads(done.stdout)["key"]
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def document(node: Node) -> Any:
    return await node.get("/openapi.json")


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


async def test_the_document_is_valid_openapi(document: Any) -> None:
    schemathesis.openapi.from_dict(document).validate()
    assert document["openapi"] == "3.1.0"


async def test_what_is_served_is_described_and_what_is_described_is_served(document: Any) -> None:
    nothing = cast(Any, None)
    app = application(nothing, Server(), Metrics(), nothing, None)
    served = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    described = {(method, path) for method, path, _ in operations(document)}
    assert {(method, path) for method, path in served if method != "HEAD"} == described


async def test_each_route_has_a_name_of_its_own_and_says_what_it_does(document: Any) -> None:
    told = [operation for _, _, operation in operations(document)]
    assert len({operation["operationId"] for operation in told}) == len(told)
    tags = {tag["name"] for tag in document["tags"]}
    for operation in told:
        assert operation["summary"]
        assert operation["description"].partition("\n\n")[0]
        assert set(operation["tags"]) <= tags


async def test_the_examples_are_what_the_schemas_allow(document: Any) -> None:
    told = closed(document)
    contents = []
    for _, _, operation in operations(told):
        answers = [operation.get("requestBody", {}), *operation["responses"].values()]
        contents += [content for answer in answers for content in answer.get("content", {}).values()]
    examples = [
        (content["schema"], each["value"]) for content in contents for each in content.get("examples", {}).values()
    ]
    for schema, value in examples:
        jsonschema_rs.validator_for({**schema, "components": told["components"]}).validate(value)
    assert len(examples) > 50


async def test_each_route_lets_in_the_roles_that_it_names(keyed: Node, keys: dict[str, str], document: Any) -> None:
    ranks = list(keys)
    async with Client(keyed) as client:
        for method, path, operation in operations(document):
            needed = [role for each in operation["security"] for role in each["key"]]
            for role in (None, *ranks):
                shown = {"Authorization": f"Bearer {keys[role]}"} if role else {}
                answer = await client.ask(method, path.replace("{id}", UNKNOWN), b"", **shown)
                if not needed:
                    assert answer.status == 200, (method, path, role)
                elif role is None:
                    assert answer.status == 401, (method, path)
                else:
                    let_in = ranks.index(role) >= ranks.index(needed[0])
                    assert (answer.status != 403) is let_in, (method, path, role)


async def test_a_wrong_method_on_an_open_route_is_405_without_a_key(
    keyed: Node, keys: dict[str, str], document: Any
) -> None:
    async with Client(keyed) as nobody:
        for path in {path for _, path, operation in operations(document) if not operation["security"]}:
            assert (await nobody.ask("PATCH", path)).status == 405, path
            assert (await nobody.ask("OPTIONS", path)).status == 200, path


def closed(document: Any) -> Any:
    """The document with the objects of answers closed, so that a field that it does not name is a fault of ours."""
    told = copy.deepcopy(document)
    for name, schema in told["components"]["schemas"].items():
        if "properties" in schema and name not in REQUESTS:
            schema["additionalProperties"] = False
    return told


def fuzzed(document: Any) -> Any:
    """The document as this node holds it: with its containers; and where it is lenient, with what it really refuses."""
    told = closed(document)
    schemas = told["components"]["schemas"]
    schemas["JobRequest"]["properties"]["containers"] |= {"items": {"enum": [*NAMES, AWAY]}, "maxItems": MAX_CHAIN}
    schemas["StreamRequest"]["properties"]["containers"] |= {"items": {"enum": NAMES}}
    for _, _, operation in operations(told):
        for parameter in operation["parameters"]:
            if parameter["schema"] == {"type": "boolean"}:  # in a query, any other word counts as absent
                parameter["schema"] = {"type": "string"}
    return told


def keyless(document: Any) -> Any:
    """The document for a node without keys."""
    for _, _, operation in operations(document):
        operation["security"] = []
    return document


def fuzz(
    directory: Path, url: str, document: Any, *, key: str = "", without: Iterable[str] = (), phases: str = PHASES
) -> Any:
    """Run the fuzzer's own command; its report. Fails with all that it found."""
    (directory / "openapi.json").write_text(json.dumps(document))
    (directory / "schemathesis.toml").write_text(RULES)
    checks = ",".join(["use_after_free", *without])  # a cancelled job can still be asked for
    header = ["--header", f"Authorization: Bearer {key}"] if key else []
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", "openapi.json", "--url", url),
            *("--phases", phases, "--max-examples", str(EXAMPLES), "--exclude-checks", checks),
            *("--generation-database", "none"),
            *("--no-color", "--continue-on-failure", "--warnings", "off"),
            *("--report", "json", "--report-json-path", "report.json"),
            *header,
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    return json.loads((directory / "report.json").read_text())


@pytest.mark.parametrize("who", ["nobody", *Role] if FULL else [Role.ADMIN])
async def test_a_fuzzer_finds_no_fault(
    node: Node, keyed: Node, keys: dict[str, str], document: Any, tmp_path: Path, who: str
) -> None:
    told = fuzzed(document)
    if who in keys:
        report = fuzz(tmp_path, keyed.url, told, key=keys[who])
    else:
        report = fuzz(tmp_path, node.url, keyless(told), without=["ignored_auth"])
    assert report["operations"]["tested"] == len(list(operations(told)))


async def test_what_is_answered_without_the_store_is_described(echo: Echo, document: Any, tmp_path: Path) -> None:
    with RedisServer("valkey", tmp_path / "redis") as server:
        async with serving(tmp_path, echo, redis={"url": server.url}) as node:
            server.kill()
            without = ["not_a_server_error", "positive_data_acceptance", "negative_data_rejection", "ignored_auth"]
            fuzz(tmp_path, node.url, keyless(fuzzed(document)), without=without, phases="examples,fuzzing")
