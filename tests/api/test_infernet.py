"""The Infernet routes that ask about the node and submit a job: /health, /info, /resources, POST /api/jobs."""

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web

from node import __version__
from tests.api.support import DELEGATED, UNREADABLE, Client, Stage
from tests.support import Echo, Node

pytestmark = pytest.mark.asyncio(loop_scope="session")

Json = dict[str, Any]


async def test_health_is_what_the_client_looks_for(caller: Client) -> None:
    assert await caller.get("/health") == {"status": "healthy"}


async def test_info_lists_ready_containers_in_the_order_of_the_file_with_all_four_keys(caller: Client) -> None:
    info = await caller.get("/info")
    assert set(info) == {"chain", "containers", "pending", "version"}
    assert info["version"] == __version__
    assert info["chain"] == {"address": "", "enabled": False}
    listed = ["a", "b", "d", "c", "guarded", "proof", "stage", "one", "hasty", "brief"]
    assert [container["id"] for container in info["containers"]] == listed
    assert info["containers"][0] == {"description": "", "external": True, "id": "a", "image": ""}
    assert info["containers"][3] == {"description": "", "external": False, "id": "c", "image": ""}
    assert info["containers"][5] == {"description": "proves", "external": True, "id": "proof", "image": "echo:1"}


async def test_info_counts_the_jobs_of_all_callers_that_have_not_ended(caller: Client, stranger: Client) -> None:
    before = (await caller.get("/info"))["pending"]
    await caller.submit("gone")
    await stranger.submit("gone")
    assert (await caller.get("/info"))["pending"] == {"offchain": before["offchain"] + 2, "onchain": 0}


@pytest.mark.parametrize("query", ["", "?verbose=false", "?verbose=1", "?verbose=True"])
async def test_info_is_verbose_only_on_the_word_true(caller: Client, query: str) -> None:
    assert "gone" not in [container["id"] for container in (await caller.get("/info" + query))["containers"]]


async def test_verbose_info_lists_all_containers_and_how_they_are(caller: Client) -> None:
    listed = {container["id"]: container for container in (await caller.get("/info?verbose=true"))["containers"]}
    assert set(listed["a"]) == {"description", "external", "id", "image"} | {
        "backend",
        "last_error",
        "log_tail",
        "loosened",
        "reason",
        "restarts",
        "since",
        "state",
    }
    assert (listed["a"]["state"], listed["a"]["backend"]) == ("ready", "remote")
    assert listed["gone"]["state"] == "starting"
    assert "waiting for an answer on http://127.0.0.1:" in listed["gone"]["reason"]


async def test_resources_are_asked_of_every_ready_container_and_silent_ones_are_left_out(caller: Client) -> None:
    resources = await caller.get("/resources")
    assert list(resources) == ["a", "b", "d", "c", "guarded", "proof"]
    assert resources["a"] == {"service_id": "echo", "version": "0.1.0"}


@pytest.mark.parametrize(
    ("query", "supported"),
    [
        ("?model_id=org/model:1", True),
        ("?model_id=org%2Fmodel%3A1", True),
        ("?model_id=org/model:2", False),
        ("?model_id=org/model:1%26x=1", False),
        ("?model_id=", False),
    ],
)
async def test_resources_pass_the_model_id_on_as_it_is(caller: Client, query: str, supported: bool) -> None:
    assert (await caller.get("/resources" + query))["a"] == {"supported": supported}


async def _text(request: web.Request, _: Json) -> web.Response:
    return web.Response(text="no JSON")


async def _error(request: web.Request, _: Json) -> web.Response:
    return web.json_response({"error": "x"}, status=500)


async def _not_strict(request: web.Request, _: Json) -> web.Response:
    return web.Response(body=b'{"x": NaN}', content_type="application/json")


async def _broken(request: web.Request, _: Json) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _never(request: web.Request, _: Json) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("play", [_text, _error, _not_strict, _broken, _never])
async def test_resources_answer_within_a_second_whatever_a_container_does(
    caller: Client, stage: Stage, play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "resources", play)
    began = time.monotonic()
    resources = await caller.get("/resources")
    assert time.monotonic() - began < 1
    assert "a" in resources
    assert "stage" not in resources


REFUSALS: list[tuple[str, Json, str, Json]] = [
    ("no containers", {"containers": []}, "No containers specified", {}),
    ("too many", {"containers": ["a"] * 5}, "Too many containers", {"limit": 4}),
    ("unknown", {"containers": ["zz"]}, "Container not supported", {"container": "zz"}),
    ("the first unknown one", {"containers": ["a", "y", "z"]}, "Container not supported", {"container": "y"}),
    ("unknown before internal", {"containers": ["c", "zz"]}, "Container not supported", {"container": "zz"}),
    ("internal first", {"containers": ["c"]}, "First container must be external", {"first_container": "c"}),
    (
        "internal before proof",
        {"containers": ["c", "a"], "requires_proof": True},
        "First container must be external",
        {"first_container": "c"},
    ),
    (
        "no proof",
        {"containers": ["a"], "requires_proof": True},
        "Container does not generate proof",
        {"container": "a"},
    ),
    (
        "no proof at the end",
        {"containers": ["proof", "a"], "requires_proof": True},
        "Container does not generate proof",
        {"container": "a"},
    ),
    (
        "proof before address",
        {"containers": ["guarded"], "requires_proof": True},
        "Container does not generate proof",
        {"container": "guarded"},
    ),
    (
        "address",
        {"containers": ["guarded"]},
        "Container not allowed for address",
        {"address": "127.9.9.9", "container": "guarded"},
    ),
    (
        "address, second in the chain",
        {"containers": ["a", "guarded"]},
        "Container not allowed for address",
        {"address": "127.9.9.9", "container": "guarded"},
    ),
    (
        "address, from the body",
        {"containers": ["guarded"], "ip": "127.0.0.2"},
        "Container not allowed for address",
        {"address": "127.9.9.9", "container": "guarded"},
    ),
    ("a name in the wrong case", {"containers": ["A"]}, "Container not supported", {"container": "A"}),
    ("an empty name", {"containers": [""]}, "Container not supported", {"container": ""}),
]


@pytest.mark.parametrize(("body", "error", "params"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
async def test_guardian_rules_answer_400_with_infernets_words(
    stranger: Client, body: Json, error: str, params: Json
) -> None:
    known = await stranger.get("/api/jobs")
    answer = await stranger.ask("POST", "/api/jobs", {"data": {}, **body})
    assert (answer.status, answer.json) == (400, {"error": error, "params": params})
    assert await stranger.get("/api/jobs") == known


@pytest.mark.parametrize("address", ["127.0.0.2", "127.7.3.4"])
async def test_an_allowed_address_or_network_may_use_a_guarded_container(node: Node, address: str) -> None:
    async with Client(node, address) as allowed:
        assert (await allowed.result(await allowed.submit("a", "guarded")))["status"] == "success"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
async def test_a_header_does_not_change_the_address(stranger: Client, header: str) -> None:
    body = {"containers": ["guarded"], "data": {}}
    answer = await stranger.ask("POST", "/api/jobs", body, **{header: "127.0.0.2"})
    assert answer.json["params"] == {"address": "127.9.9.9", "container": "guarded"}


async def test_a_job_runs_its_chain(caller: Client) -> None:
    job_id = await caller.submit("a", "c", "a", data={"x": 1})
    output = {"x": 1}
    assert await caller.result(job_id) == {
        "id": job_id,
        "intermediate_results": [{"container": "a", "output": output}, {"container": "c", "output": output}],
        "result": {"container": "a", "output": output},
        "status": "success",
    }


async def test_a_job_can_be_seen_as_soon_as_its_id_is_known(caller: Client) -> None:
    for _ in range(50):
        job_id = await caller.submit("a")
        assert (await caller.job(job_id))["id"] == job_id
        assert job_id in await caller.get("/api/jobs")


async def test_a_job_for_a_container_that_is_not_ready_waits(caller: Client) -> None:
    job = await caller.job(await caller.submit("gone"))
    assert (job["status"], job["result"], job["intermediate_results"]) == ("running", None, [])


@pytest.mark.parametrize(
    ("proof", "told"),
    [
        ({}, False),
        ({"requires_proof": None}, False),
        ({"requires_proof": False}, False),
        ({"requires_proof": True}, True),
    ],
)
async def test_the_container_is_told_source_destination_data_and_proof(
    caller: Client, stage: Stage, proof: Json, told: bool
) -> None:
    seen: list[Json] = []

    async def keep(request: web.Request, envelope: Json) -> web.Response:
        seen.append(envelope | {"type": request.headers["Content-Type"]})
        return web.json_response({})

    data = stage.play(keep, x=[1, None])
    await caller.result(await caller.submit("a", "stage", "proof", data=data, **proof))
    assert seen == [
        {"source": 1, "destination": 1, "data": data, "requires_proof": told, "type": "application/json"},
    ]


UNREADABLE_BODIES = {
    "null": None,
    "a list": [],
    "text": "x",
    "a number": 1,
    "empty": {},
    "no data": {"containers": ["a"]},
    "data null": {"containers": ["a"], "data": None},
    "data list": {"containers": ["a"], "data": []},
    "data text": {"containers": ["a"], "data": "x"},
    "no containers": {"data": {}},
    "containers null": {"containers": None, "data": {}},
    "containers text": {"containers": "a", "data": {}},
    "containers object": {"containers": {"a": 1}, "data": {}},
    "containers numbers": {"containers": [1], "data": {}},
    "containers with null": {"containers": ["a", None], "data": {}},
    "proof text": {"containers": ["a"], "data": {}, "requires_proof": "yes"},
    "proof number": {"containers": ["a"], "data": {}, "requires_proof": 1},
    "proof list": {"containers": ["a"], "data": {}, "requires_proof": []},
    "signature alone": {"signature": {}, "data": {}},
}


@pytest.mark.parametrize("body", UNREADABLE_BODIES.values(), ids=UNREADABLE_BODIES)
async def test_a_body_of_another_shape_is_400_with_a_reason(caller: Client, body: Any) -> None:
    answer = await caller.ask("POST", "/api/jobs", body if body is not None else b"null")
    assert answer.status == 400
    assert answer.json["error"] == UNREADABLE
    assert answer.json["params"]["reason"]


async def test_unknown_fields_are_left_out(caller: Client) -> None:
    job_id = await caller.submit("a", data={"x": 1}, type="offchain", priority=9, nested={"containers": ["zz"]})
    assert (await caller.result(job_id))["result"]["output"] == {"x": 1}


async def test_nothing_in_a_body_sets_what_the_node_owns(caller: Client, stranger: Client) -> None:
    mine = "11111111-1111-4111-8111-111111111111"
    owned = {"id": mine, "ip": stranger.address, "client": stranger.address, "caller": stranger.address}
    job_id = await caller.submit("a", **owned, status="success", state="succeeded", attempt=7, result={"output": 1})
    assert job_id != mine
    assert (await caller.result(job_id))["result"] == {"container": "a", "output": {}}
    assert await caller.get("/api/jobs") == [job_id]
    assert job_id not in await stranger.get("/api/jobs")


async def test_an_id_in_the_body_cannot_overwrite_another_job(caller: Client, stranger: Client) -> None:
    job_id = await caller.submit("a", data={"x": "mine"})
    before = await caller.result(job_id)
    await stranger.result(await stranger.submit("a", data={"x": "theirs"}, id=job_id, ip=caller.address))
    assert await caller.job(job_id) == before


async def test_a_delegated_subscription_is_refused_while_there_is_no_chain(caller: Client) -> None:
    answer = await caller.ask("POST", "/api/jobs", DELEGATED)
    assert (answer.status, answer.json) == (400, {"error": "Chain not enabled", "params": {}})


async def test_a_long_made_up_name_is_cut_in_the_answer(caller: Client) -> None:
    answer = await caller.ask("POST", "/api/jobs", {"containers": ["z" * 500_000], "data": {}})
    assert answer.json == {"error": "Container not supported", "params": {"container": "z" * 128}}


EXACT = (
    b'{"n": 115792089237316195423570985008687907853269984665640564039457584007913129639935, '
    b'"x": 0.1000000000000000055, "s": "\\u00e9"}'
)


async def test_numbers_escapes_and_white_space_pass_a_chain_of_three_byte_for_byte(caller: Client) -> None:
    answer = await caller.ask("POST", "/api/jobs", b'{"containers":["a","b","d"],"data":' + EXACT + b"}")
    job_id = answer.json["id"]
    await caller.result(job_id)
    answer = await caller.ask("GET", f"/api/jobs?id={job_id}&intermediate=true")
    outputs = [b'{"container":"%b","output":%b}' % (container, EXACT) for container in (b"a", b"b", b"d")]
    assert answer.body == (
        b'[{"id":"%b","intermediate_results":[%b,%b],"result":%b,"status":"success"}]\n' % (job_id.encode(), *outputs)
    )


@pytest.mark.parametrize("output", [b"null", b"[]", b'"x"', b"0", b"-0.0", b"false", b'{"b":1,"a":{"b":1}}', b"1e2"])
async def test_an_output_may_be_any_json_and_comes_as_it_is(caller: Client, output: bytes) -> None:
    job_id = await caller.submit("a", data={"body": output.decode()})
    await caller.result(job_id)
    answer = await caller.ask("GET", f"/api/jobs?id={job_id}")
    assert b'"output":%b}' % output in answer.body


async def test_a_container_error_ends_the_chain_and_names_the_container(caller: Client, echo: Echo) -> None:
    job_id = await caller.submit("a", "b", "d", data={"key": "failing", "status": 500, "body": "out of paper"})
    job = await caller.result(job_id)
    assert job["status"] == "failed"
    assert job["result"] == {"container": "a", "error": "step 1 of 3: container 'a': answered HTTP 500: out of paper"}
    assert job["intermediate_results"] == []
    assert echo.counts()["calls"]["failing"] == 1


async def test_outputs_before_a_failure_are_kept(caller: Client, stage: Stage) -> None:
    async def fail(request: web.Request, envelope: Json) -> web.Response:
        return web.json_response({"code": "400", "name": "Bad Request", "description": "no such model"}, status=400)

    data = stage.play(fail)
    job = await caller.result(await caller.submit("a", "stage", "b", data=data))
    assert job["intermediate_results"] == [{"container": "a", "output": data}]
    assert job["result"] == {
        "container": "stage",
        "error": "step 2 of 3: container 'stage': answered HTTP 400: no such model",
    }
