"""The served document: it says what is served, no more and no less, and a fuzzer that believes it finds no fault."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
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
from tests.support import Echo, Node, stoker

pytestmark = pytest.mark.asyncio(loop_scope="session")

FULL = bool(os.environ.get("STOKER_FULL"))
EXAMPLES = 300 if FULL else 4  # per operation
MAX_CHAIN = 4
NAMES = ("language", "sentiment")  # those of the document's examples
UNKNOWN = "00000000-0000-4000-8000-000000000000"
RULES = """
[checks.positive_data_acceptance]  # 422: the fuzzer had used an idempotency key for another request
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429"]

[[operations]]  # a bad item has its error in its own place of a good answer
include-operation-id = "submit_jobs"
checks.negative_data_rejection.expected-statuses = ["200", "4xx"]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def node(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> AsyncIterator[Node]:
    """Its containers take all that the document allows."""
    containers = echo.containers(*NAMES, generates_proofs=True)
    async with Node(tmp_path_factory.mktemp("open"), containers, server={"max_chain": MAX_CHAIN}) as node:
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def keyed(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> AsyncIterator[Node]:
    containers = echo.containers(*NAMES, generates_proofs=True)
    async with Node(tmp_path_factory.mktemp("keyed"), containers, server={"max_chain": MAX_CHAIN}) as node:
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


def closed(document: Any) -> Any:
    """The document with its objects closed, so that a field that it does not name is a fault of ours."""
    told = copy.deepcopy(document)
    for schema in told["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return told


def fuzzed(document: Any) -> Any:
    """The document as this node holds it: its containers; and, where ours is lenient, what is really refused."""
    told = closed(document)
    for name in ("JobRequest", "StreamRequest"):
        schema = told["components"]["schemas"][name]
        del schema["additionalProperties"]
        schema["properties"]["containers"] |= {"items": {"enum": NAMES}}
    told["components"]["schemas"]["StatusReport"].pop("additionalProperties")
    told["components"]["schemas"]["JobRequest"]["properties"]["containers"]["maxItems"] = MAX_CHAIN
    for _, _, operation in operations(told):
        for parameter in operation["parameters"]:
            if parameter["schema"] == {"type": "boolean"}:  # in a query, any other word counts as absent
                parameter["schema"] = {"type": "string"}
    return told


def fuzz(directory: Path, url: str, document: Any, *, key: str = "", without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the fuzzer's own command; its report. Fails with all that it found."""
    (directory / "openapi.json").write_text(json.dumps(document))
    (directory / "schemathesis.toml").write_text(RULES)
    told = ["--report", "json", "--report-json-path", "report.json", "--output-sanitize", "false"]
    header = ["--header", f"Authorization: Bearer {key}"] if key else []
    size = ["--max-examples", str(EXAMPLES), "--generation-database", "none"]
    left_out = ["--exclude-checks", ",".join(("use_after_free", *without))]  # a cancelled job can still be asked for
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", "openapi.json", "--url", url),
            *("--no-color", "--continue-on-failure", "--warnings", "off"),
            *told,
            *header,
            *size,
            *left_out,
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((directory / "report.json").read_text())


async def test_a_fuzzer_finds_no_fault(node: Node, document: Any, tmp_path: Path) -> None:
    told = fuzzed(document)
    for _, _, operation in operations(told):
        operation["security"] = []  # this node has no keys
    report = fuzz(tmp_path, node.url, told, without=("ignored_auth",))
    assert report["operations"]["tested"] == len(list(operations(told)))


@pytest.mark.parametrize("role", [*Role] if FULL else [Role.ADMIN])
async def test_a_fuzzer_with_a_key_finds_no_fault(
    keyed: Node, keys: dict[str, str], document: Any, tmp_path: Path, role: Role
) -> None:
    fuzz(tmp_path, keyed.url, fuzzed(document), key=keys[role.value])
