"""GET /api/jobs: results by id, and the caller's ids."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.api.support import Client
from tests.support import Echo, Node, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def query(*job_ids: str, **more: str) -> str:
    return "/api/jobs?" + "&".join([*(f"id={job_id}" for job_id in job_ids), *(f"{k}={v}" for k, v in more.items())])


async def three(caller: Client) -> list[str]:
    """A finished job, one that waits, and a finished one."""
    ids = [await caller.submit(container) for container in ("a", "gone", "b")]
    await caller.result(ids[0])
    await caller.result(ids[2])
    return ids


async def test_results_come_in_the_order_asked(caller: Client) -> None:
    ids = await three(caller)
    for asked in (ids, ids[::-1], [ids[1], ids[0], ids[2]]):
        assert [job["id"] for job in await caller.get(query(*asked))] == asked


async def test_an_id_asked_twice_is_answered_twice(caller: Client) -> None:
    first, waiting, _ = await three(caller)
    asked = [first, waiting, first, first]
    assert [job["id"] for job in await caller.get(query(*asked))] == asked


async def test_unknown_ids_are_left_out(caller: Client) -> None:
    ids = await three(caller)
    found = await caller.get(query(UNKNOWN, ids[0], "", "x y", ids[2], UNKNOWN))
    assert [job["id"] for job in found] == [ids[0], ids[2]]


@pytest.mark.parametrize("asked", [[UNKNOWN], [""], ["%00"], ["%ED%A0%80"], ["a,b"], [UNKNOWN, "x" * 128]])
async def test_when_no_id_is_known_the_answer_is_404(caller: Client, asked: list[str]) -> None:
    answer = await caller.ask("GET", query(*asked))
    assert (answer.status, answer.json["error"]) == (404, "Job not found")
    assert len(answer.json["params"]["id"]) == len(asked)


async def test_a_404_shows_ten_ids_and_the_start_of_each(caller: Client) -> None:
    answer = await caller.ask("GET", query(*["x" * 1000] * 12))
    assert answer.json["params"] == {"id": ["x" * 128] * 10}


async def test_ids_joined_by_commas_are_one_unknown_id(caller: Client) -> None:
    ids = await three(caller)
    assert (await caller.ask("GET", query(",".join(ids)))).status == 404


async def test_a_thousand_ids_fit_into_one_question(caller: Client) -> None:
    job_id = await caller.submit("a")
    asked = [job_id] * 1500
    assert [job["id"] for job in await caller.get(query(*asked))] == asked


async def test_a_waiting_job_is_running_without_a_result(caller: Client) -> None:
    job_id = await caller.submit("gone")
    assert await caller.get(query(job_id)) == [{"id": job_id, "result": None, "status": "running"}]


async def test_a_finished_job_shows_intermediate_results_only_on_the_word_true(caller: Client) -> None:
    job_id = await caller.submit("a", "b")
    await caller.result(job_id)
    bare = {"id": job_id, "result": {"container": "b", "output": {}}, "status": "success"}
    for word in ("True", "1", "yes", "TRUE", "", "false"):
        assert await caller.get(query(job_id, intermediate=word)) == [bare]
    full = bare | {"intermediate_results": [{"container": "a", "output": {}}]}
    assert await caller.get(query(job_id, intermediate="true")) == [full]


async def test_intermediate_results_of_one_container_are_an_empty_list(caller: Client) -> None:
    finished, waiting, _ = await three(caller)
    found = await caller.get(query(finished, waiting, intermediate="true"))
    assert [job["intermediate_results"] for job in found] == [[], []]


async def test_the_outputs_so_far_of_a_chain_under_way_are_shown(caller: Client) -> None:
    job_id = await caller.submit("a", "gone", data={"x": 1})

    async def one_step_done() -> bool:
        return bool((await caller.job(job_id))["intermediate_results"])

    await eventually(one_step_done, message="the first step")
    (job,) = await caller.get(query(job_id, intermediate="true"))
    assert job == {
        "id": job_id,
        "intermediate_results": [{"container": "a", "output": {"x": 1}}],
        "result": None,
        "status": "running",
    }


@pytest.mark.parametrize(
    ("pending", "places"),
    [("true", [1]), ("false", [0, 2]), ("True", [0, 1, 2]), ("1", [0, 1, 2]), ("", [0, 1, 2]), (None, [0, 1, 2])],
)
async def test_without_an_id_the_callers_ids_are_listed_oldest_first(
    caller: Client, pending: str | None, places: list[int]
) -> None:
    ids = await three(caller)
    listed = await caller.get("/api/jobs" if pending is None else query(pending=pending))
    assert listed == [ids[place] for place in places]


async def test_intermediate_without_an_id_and_pending_with_one_do_nothing(caller: Client) -> None:
    ids = await three(caller)
    assert await caller.get(query(intermediate="true")) == ids
    assert [job["id"] for job in await caller.get(query(*ids, pending="true"))] == ids


async def test_a_caller_without_jobs_has_an_empty_list(caller: Client) -> None:
    assert await caller.get("/api/jobs") == []


async def test_another_callers_jobs_are_not_there(caller: Client, stranger: Client) -> None:
    mine = await caller.submit("a")
    theirs = await stranger.submit("a")
    await stranger.result(theirs)
    assert theirs not in await caller.get("/api/jobs")
    assert [job["id"] for job in await caller.get(query(theirs, mine))] == [mine]
    answer = await caller.ask("GET", query(theirs))
    unknown = await caller.ask("GET", query(UNKNOWN))
    assert (answer.status, answer.json["error"]) == (unknown.status, unknown.json["error"]) == (404, "Job not found")


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
async def test_a_header_does_not_make_another_caller(caller: Client, stranger: Client, header: str) -> None:
    await stranger.submit("a")
    answer = await caller.ask("GET", "/api/jobs", **{header: stranger.address})
    assert answer.json == []


@pytest_asyncio.fixture(loop_scope="session")
async def omitting(tmp_path: Path, echo: Echo) -> AsyncIterator[Client]:
    """A caller of a node that is configured as the original one behaves."""
    async with Node(tmp_path, echo.containers("a"), server={"unknown_ids": "omit"}) as node, Client(node) as client:
        yield client


async def test_unknown_ids_can_be_an_empty_list_as_at_the_original_node(omitting: Client) -> None:
    job_id = await omitting.submit("a")
    assert await omitting.get(query(UNKNOWN)) == []
    assert [job["id"] for job in await omitting.get(query(UNKNOWN, job_id))] == [job_id]


async def test_results_over_the_limit_together_are_413_and_tell_what_to_do(tmp_path: Path, echo: Echo) -> None:
    async with Node(tmp_path, echo.containers("a"), server={"max_answer_bytes": 1000}) as node, Client(node) as client:
        job_id = await client.submit("a", data={"bytes": 398})  # with its quotes 400
        await client.result(job_id)
        assert len(await client.get(query(job_id, job_id))) == 2
        answer = await client.ask("GET", query(job_id, job_id, job_id))
    params = {"limit_bytes": 1000, "setting": "server.max_answer_bytes"}
    told = "Answer too large: ask for fewer ids at once, or without intermediate results"
    assert (answer.status, answer.json) == (413, {"error": told, "params": params})


async def length(client: Client, path: str) -> int:
    async with client.session.get(path) as answer:
        assert answer.status == 200, await answer.read()
        return sum([len(part) async for part in answer.content.iter_any()])


@pytest.mark.timeout(120)
async def test_large_results_can_be_polled_and_nobody_else_is_refused(tmp_path: Path, echo: Echo) -> None:
    server = {"max_answer_bytes": 256 * 2**20}
    async with Node(tmp_path, echo.containers("a"), server=server) as node, Client(node) as client:
        job_ids = [await client.submit("a", data={"bytes": 2_000_000}) for _ in range(20)]
        for job_id in job_ids:
            await client.result(job_id)
        polls = [asyncio.create_task(length(client, query(*(job_ids * 6)))) for _ in range(4)]
        submits = 0
        while not all(poll.done() for poll in polls):
            await client.submit("a")
            submits += 1
        assert min([await poll for poll in polls]) > 240_000_000
        print(f"\n{submits} submits meanwhile")
        assert node.events("store_unavailable") == []


async def test_a_list_can_be_read_in_parts(caller: Client) -> None:
    ids = [await caller.submit("a") for _ in range(5)]
    await eventually(lambda: ended(caller, 5), message="the end of five jobs")
    ids += [await caller.submit("gone") for _ in range(4)]
    read: list[str] = []
    while part := await caller.get(f"/api/jobs?limit=2&after={read[-1]}" if read else "/api/jobs?limit=2"):
        assert len(part) <= 2
        read += part
    assert read == ids == await caller.get("/api/jobs")
    assert await caller.get(f"/api/jobs?limit=3&pending=true&after={ids[5]}") == ids[6:]
    assert await caller.get("/api/jobs?limit=10000&pending=false") == ids[:5]


async def ended(caller: Client, count: int) -> bool:
    return len(await caller.get("/api/jobs?pending=false")) == count


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=10001", "limit=x", "limit=-1", "limit=1.5", "limit=\u0663", "limit="]
)
async def test_a_part_that_cannot_be_is_refused(caller: Client, query: str) -> None:
    answer = await caller.ask("GET", f"/api/jobs?{query}")
    assert answer.status == 400, answer.body


async def test_a_part_behind_nothing_of_ones_own_is_not_found(caller: Client, stranger: Client) -> None:
    another = await stranger.submit("a")
    for query in (f"limit=1&after={another}", "limit=1&after=x", "after=x"):
        assert (await caller.ask("GET", f"/api/jobs?{query}")).status == 404
