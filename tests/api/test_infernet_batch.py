"""POST /api/jobs/batch: each item in its place."""

from typing import Any

import pytest

from tests.api.conftest import MAX_BATCH_ITEMS
from tests.api.support import DELEGATED, UNREADABLE, Client

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_batch_answers_each_item_in_its_place(caller: Client) -> None:
    answers = (
        await caller.ask(
            "POST",
            "/api/jobs/batch",
            [
                {"containers": ["a"], "data": {"n": 0}},
                {"containers": [], "data": {}},
                {"containers": ["c"], "data": {}},
                {"containers": ["a", "b"], "data": {"n": 3}},
                {"containers": ["a"]},
                DELEGATED,
                None,
                {"containers": ["a"], "data": {"n": 7}},
            ],
        )
    ).json
    good = [answers[place]["id"] for place in (0, 3, 7)]
    assert [(answer.get("error"), answer.get("params")) for answer in answers] == [
        (None, None),
        ("No containers specified", {}),
        ("First container must be external", {"first_container": "c"}),
        (None, None),
        (UNREADABLE, {"reason": "data: expected an object"}),
        ("Chain not enabled", {}),
        (UNREADABLE, {"reason": "expected an object"}),
        (None, None),
    ]
    assert [(await caller.result(job_id))["result"]["output"]["n"] for job_id in good] == [0, 3, 7]
    assert await caller.get("/api/jobs") == good


@pytest.mark.parametrize("items", [[], [None] * 3], ids=["empty", "only bad ones"])
async def test_a_batch_without_a_good_item_is_200(caller: Client, items: list[None]) -> None:
    answer = await caller.ask("POST", "/api/jobs/batch", items)
    assert answer.status == 200
    assert [entry["error"] for entry in answer.json] == [UNREADABLE] * len(items)
    assert await caller.get("/api/jobs") == []


@pytest.mark.parametrize("body", [b"null", b"{}", b'"x"', b"1", b'{"containers":["a"],"data":{}}', DELEGATED])
async def test_a_batch_that_is_no_list_fails_whole(caller: Client, body: Any) -> None:
    answer = await caller.ask("POST", "/api/jobs/batch", body)
    assert (answer.status, answer.json["error"]) == (400, "Expected a list")


async def test_a_batch_may_have_as_many_items_as_the_limit_says(caller: Client) -> None:
    items = [{"containers": ["a"], "data": {}}] * MAX_BATCH_ITEMS
    answer = await caller.ask("POST", "/api/jobs/batch", items)
    assert len({entry["id"] for entry in answer.json}) == MAX_BATCH_ITEMS


async def test_a_batch_of_too_many_items_fails_whole_and_starts_nothing(caller: Client) -> None:
    items = [{"containers": ["a"], "data": {}}] * (MAX_BATCH_ITEMS + 1)
    answer = await caller.ask("POST", "/api/jobs/batch", items)
    assert (answer.status, answer.json) == (413, {"error": "Batch too large", "params": {"limit": MAX_BATCH_ITEMS}})
    assert await caller.get("/api/jobs") == []
