"""The real infernet-client 1.4.0, library and command line, against a node."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from uv import find_uv_bin

from tests.support import Echo, Node

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

HERE = Path(__file__).parent / "infernet_client"
REQUIREMENTS = HERE / "requirements.txt"
ENVIRON = os.environ | {"PYTHONPATH": str(HERE / "shim")}
UNKNOWN = "00000000-0000-4000-8000-000000000000"

Json = dict[str, Any]


@pytest.fixture(scope="module")
def environment(pytestconfig: pytest.Config) -> Path:
    """The folder of the client's commands, made once and kept."""
    wanted = REQUIREMENTS.read_bytes() + sys.version.encode() + sys.executable.encode()
    folder = pytestconfig.cache.mkdir(f"infernet-client-{hashlib.sha256(wanted).hexdigest()[:12]}")
    complete = folder / "complete"
    if not complete.exists():
        subprocess.run([find_uv_bin(), "venv", "--quiet", "--clear", folder / "venv"], check=True)
        _install(folder / "venv" / "bin" / "python")
        complete.touch()
    return folder / "venv" / "bin"


def _install(python: Path) -> None:
    """By uv, or by pip where only pip is told of a mirror."""
    arguments = ["--no-deps", "-r", str(REQUIREMENTS)]
    uv = subprocess.run([find_uv_bin(), "pip", "install", "--quiet", "--python", python, *arguments], check=False)
    if uv.returncode:
        pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", "--python", python]
        subprocess.run([*pip, "install", *arguments], check=True)


class InfernetClient:
    """`infernet_client/driver.py` as a process that asks one node."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def _ask(self, request: Json) -> Json:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        async with asyncio.timeout(60):
            return json.loads(await self._process.stdout.readline())

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        """What a method of `NodeClient` returns."""
        answer = await self._ask({"call": name, "args": args, "options": options})
        assert "value" in answer, answer
        return answer["value"]

    async def raised(self, name: str, *args: Any, **options: Any) -> Json:
        """What a method of `NodeClient` raises."""
        answer = await self._ask({"call": name, "args": args, "options": options})
        assert "raised" in answer, answer
        return answer

    async def run(self, *command: str, stdin: Any = None, code: int = 0) -> str:
        """What `infernet-client` prints; of a failure, what it complains of."""
        text = "" if stdin is None else json.dumps(stdin)
        answer = await self._ask({"command": command, "stdin": text})
        assert answer["code"] == code, answer
        return answer["err"] if code else answer["out"]


@asynccontextmanager
async def asking(node: Node, environment: Path) -> AsyncIterator[InfernetClient]:
    process = await asyncio.create_subprocess_exec(
        *(environment / "python", HERE / "driver.py", node.url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=ENVIRON,
        limit=2**24,
    )
    try:
        yield InfernetClient(process)
    finally:
        process.kill()
        await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory, echo: Echo) -> AsyncIterator[Node]:
    containers = [
        *echo.containers("a", "b", "d", image="echo:1", description="says what it hears"),
        *echo.containers("c", external=False),
    ]
    async with Node(tmp_path_factory.mktemp("node"), containers) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(node: Node, environment: Path) -> AsyncIterator[InfernetClient]:
    async with asking(node, environment) as client:
        yield client


def job(*containers: str, **data: Any) -> Json:
    return {"containers": list(containers), "data": data}


# The library


async def test_health(client: InfernetClient) -> None:
    assert await client.call("health") is True


async def test_info(client: InfernetClient) -> None:
    info = await client.call("get_info")
    assert [container["id"] for container in info["containers"]] == ["a", "b", "d", "c"]
    assert info["containers"][0] == {
        "id": "a",
        "description": "says what it hears",
        "external": True,
        "image": "echo:1",
    }
    assert info["chain"] == {"address": "", "enabled": False}
    assert set(info["pending"]) == {"offchain", "onchain"}


async def test_resources(client: InfernetClient) -> None:
    assert await client.call("get_resources") == {
        container: {"service_id": "echo", "version": "0.1.0"} for container in "abdc"
    }


@pytest.mark.parametrize(("model", "supported"), [("org/model:1", True), ("org/model:2", False)])
async def test_check_model_support(client: InfernetClient, model: str, supported: bool) -> None:
    assert (await client.call("check_model_support", model))["a"] == {"supported": supported}


async def test_a_job_and_its_result(client: InfernetClient) -> None:
    job_id = await client.call("request_job", job("a", "b", "c", x=[1, None]))
    assert await client.call("get_job_result_sync", job_id, retries=30) == {
        "id": job_id,
        "result": {"container": "c", "output": {"x": [1, None]}},
        "status": "success",
    }


async def test_a_job_that_fails(client: InfernetClient) -> None:
    job_id = await client.call("request_job", job("a", status=500, body="out of paper"))
    assert await client.call("get_job_result_sync", job_id, retries=30) == {
        "id": job_id,
        "result": {"container": "a", "error": "container 'a': answered HTTP 500: out of paper"},
        "status": "failed",
    }


async def test_a_job_that_takes_longer_than_the_retries(client: InfernetClient, echo: Echo) -> None:
    job_id = await client.call("request_job", job("a", wait_for="patience"))
    told = await client.raised("get_job_result_sync", job_id, retries=1)
    assert told == {"raised": "TimeoutError", "text": "Job result not available after 1 retries"}
    echo.release("patience")
    assert (await client.call("get_job_result_sync", job_id, retries=30))["status"] == "success"


async def test_a_batch(client: InfernetClient) -> None:
    answers = await client.call("request_jobs", [job("a", n=0), job("zz"), job(), job("b", n=3)])
    assert answers[1] == {"error": "Container not supported", "params": {"container": "zz"}}
    assert answers[2] == {"error": "No containers specified", "params": {}}
    for place in (0, 3):
        result = await client.call("get_job_result_sync", answers[place]["id"], retries=30)
        assert result["result"]["output"] == {"n": place}


async def test_results_with_intermediate_ones(client: InfernetClient) -> None:
    ids = [await client.call("request_job", job("a", "b", n=n)) for n in range(3)]
    for job_id in ids:
        await client.call("get_job_result_sync", job_id, retries=30)
    results = await client.call("get_job_results", [ids[2], UNKNOWN, ids[0]], intermediate=True)
    assert results == [
        {
            "id": ids[n],
            "intermediate_results": [{"container": "a", "output": {"n": n}}],
            "result": {"container": "b", "output": {"n": n}},
            "status": "success",
        }
        for n in (2, 0)
    ]


async def test_ids(client: InfernetClient, echo: Echo) -> None:
    done = await client.call("request_job", job("a"))
    await client.call("get_job_result_sync", done, retries=30)
    waits = await client.call("request_job", job("a", wait_for="ids"))
    assert {done, waits} <= set(await client.call("get_jobs"))
    assert await client.call("get_jobs", pending=True) == [waits]
    finished = await client.call("get_jobs", pending=False)
    assert done in finished
    assert waits not in finished
    echo.release("ids")
    await client.call("get_job_result_sync", waits, retries=30)


async def test_a_stream_gives_the_id_first_and_alone(client: InfernetClient) -> None:
    for _ in range(10):
        first, *parts = await client.call("request_stream", job("a", parts=["one ", "two ", "\xff"]))
        assert "".join(parts) == "one two \xff"
        stored = await client.call("get_job_result_sync", first["id"])
        assert stored["result"] == {"container": "a", "output": {"output": "one two \ufffd"}}


async def test_a_stream_whose_container_dies(client: InfernetClient) -> None:
    assert (await client.raised("request_stream", job("a", parts=["half"], drop=True)))[
        "raised"
    ] == "ClientPayloadError"


async def test_record_status(client: InfernetClient) -> None:
    for status in ("running", "success"):
        assert await client.call("record_status", "recorded-1", status, job("a", x=1)) is None
        (result,) = await client.call("get_job_results", ["recorded-1"])
        assert result == {"id": "recorded-1", "result": None, "status": status}


ERRORS: list[tuple[str, list[Any], int, str, Json]] = [
    ("request_job", [job("zz")], 400, "Container not supported", {"container": "zz"}),
    ("request_job", [job()], 400, "No containers specified", {}),
    ("request_job", [job("c")], 400, "First container must be external", {"first_container": "c"}),
    (
        "request_job",
        [job("a") | {"requires_proof": True}],
        400,
        "Container does not generate proof",
        {"container": "a"},
    ),
    ("request_job", [{"containers": ["a"]}], 400, "Could not parse message", {"reason": "data: expected an object"}),
    ("request_jobs", [{}], 400, "Expected a list", {"reason": "not a list"}),
    ("request_stream", [job("zz")], 400, "Container not supported", {"container": "zz"}),
    ("get_job_results", [[UNKNOWN]], 404, "Job not found", {"id": [UNKNOWN]}),
    (
        "record_status",
        ["x", "failure", job("a")],
        400,
        "Status is invalid",
        {"allowed": ["failed", "running", "success"]},
    ),
]


@pytest.mark.parametrize(("name", "args", "status", "message", "params"), ERRORS)
async def test_errors_have_status_message_and_params(
    client: InfernetClient, name: str, args: list[Any], status: int, message: str, params: Json
) -> None:
    told = await client.raised(name, *args)
    text = f"[{status}] {message}"
    if params:
        text += " - [" + ", ".join(f"{key}={value}" for key, value in params.items()) + "]"
    assert told == {
        "raised": "APIError",
        "text": text,
        "status_code": status,
        "message": message,
        "params": params,
    }


SUBSCRIPTION: Json = {
    "owner": "0x" + "33" * 20,
    "active_at": 0,
    "period": 0,
    "frequency": 1,
    "redundancy": 1,
    "containers": ["a"],
    "lazy": False,
    "verifier": "0x" + "00" * 20,
    "payment_amount": 0,
    "payment_token": "0x" + "00" * 20,
    "wallet": "0x" + "00" * 20,
}


@pytest_asyncio.fixture(loop_scope="module")
async def rpc_url() -> AsyncIterator[str]:
    """An Ethereum node, as far as the client needs one: it asks for the id of the chain."""

    async def chain_id(request: web.Request) -> web.Response:
        return web.json_response({"jsonrpc": "2.0", "id": (await request.json())["id"], "result": "0x1"})

    app = web.Application()
    app.add_routes([web.post("/", chain_id)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_delegated_subscription_is_refused(client: InfernetClient, rpc_url: str) -> None:
    told = await client.raised("request_delegated_subscription", rpc_url, SUBSCRIPTION)
    assert told["text"] == "[400] Chain not enabled"


async def test_an_unknown_job_is_none_when_the_node_omits_unknown_ids(
    tmp_path: Path, echo: Echo, environment: Path
) -> None:
    server = {"unknown_ids": "omit"}
    async with Node(tmp_path, echo.containers("a"), server=server) as node, asking(node, environment) as client:
        assert await client.call("get_job_result_sync", UNKNOWN) is None
        assert await client.call("get_job_results", [UNKNOWN]) == []


# The command line


@pytest.fixture
def input_file(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "input.json"
    file.write_text('{"x": 1, "s": "\u00e9"}')
    return file


async def test_the_installed_command_runs_a_chain_from_a_file_and_prints_its_output(
    node: Node, environment: Path, input_file: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(environment / "infernet-client", "job", "-c", "a,b", "-i", input_file, "--sync", "--retries", "30"),
        env=ENVIRON | {"SERVER_URL": node.url},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    assert json.loads(printed) == {"x": 1, "s": "\u00e9"}


async def test_command_health(client: InfernetClient) -> None:
    assert await client.run("health") == "healthy\n"


async def test_command_info(client: InfernetClient) -> None:
    assert json.loads(await client.run("info")) == await client.call("get_info")


async def test_command_resources(client: InfernetClient, node: Node) -> None:
    assert set(json.loads(await client.run("resources", "-n", node.url))) == {"a", "b", "d", "c"}


async def test_command_check_model(client: InfernetClient, node: Node) -> None:
    printed = await client.run("check-model", "-n", node.url, "-m", "org/model:1")
    assert json.loads(printed)["a"] == {"supported": True}


async def test_command_job_prints_the_id_and_results_the_result(client: InfernetClient, input_file: Path) -> None:
    job_id = (await client.run("job", "-c", "a,b", "-i", str(input_file))).strip().strip('"')
    await client.call("get_job_result_sync", job_id, retries=30)
    (result,) = json.loads(await client.run("results", "--id", job_id, "--intermediate"))
    assert result["result"] == {"container": "b", "output": {"x": 1, "s": "\u00e9"}}
    assert [each["container"] for each in result["intermediate_results"]] == ["a"]
    assert job_id in json.loads(await client.run("ids", "--status", "completed"))
    assert job_id not in json.loads(await client.run("ids", "--status", "pending"))


async def test_command_job_sync_prints_the_error_of_a_failed_job(client: InfernetClient) -> None:
    printed = await client.run("job", "-c", "a", "--sync", "-i", "-", stdin={"status": 500, "body": "out of paper"})
    assert "container 'a': answered HTTP 500: out of paper" in printed


async def test_command_job_shows_why_a_job_is_refused(client: InfernetClient) -> None:
    complaint = await client.run("job", "-c", "zz", "-i", "-", stdin={}, code=1)
    assert "APIError: [400] Container not supported - [container=zz]" in complaint


async def test_command_stream_prints_the_id_and_then_the_parts(client: InfernetClient) -> None:
    printed = await client.run("stream", "-c", "a", "-i", "-", stdin={"parts": ["one ", "two"]})
    first, second, _ = printed.split("\n")
    assert first.startswith("Job ID: ")
    assert second == "one two"


async def test_command_output_goes_to_a_file(client: InfernetClient, tmp_path: Path) -> None:
    file = tmp_path / "output.json"
    await client.run("job", "-c", "a", "--sync", "-i", "-", "-o", str(file), stdin={"y": 2})
    assert json.loads(file.read_text()) == {"y": 2}
