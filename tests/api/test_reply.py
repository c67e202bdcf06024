"""What is written of an answer, byte for byte: its head is our own and not the framework's."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from tests.api.support import Raw
from tests.support import Node


def headers(head: str) -> dict[str, str]:
    lines = head.strip().split("\r\n")[1:]
    named = dict(line.split(": ", 1) for line in lines)
    assert len(named) == len(lines)  # none of them twice
    return named


async def test_an_answer_has_its_length_its_time_and_no_word_of_the_framework(node: Node) -> None:
    async with Raw(node) as raw:
        for _ in range(2):  # the connection stays open
            raw.send("GET /health/live HTTP/1.1")
            status, head = await raw.head()
            body = await raw.until(b"\n")
            told = headers(head)
            assert (status, head.split("\r\n")[0]) == (200, "HTTP/1.1 200 OK")
            assert told.keys() == {"Content-Type", "Server", "X-Request-ID", "Content-Length", "Date"}
            assert (told["Content-Type"], told["Server"]) == ("application/json", "stoker")
            assert int(told["Content-Length"]) == len(body)
            assert abs(parsedate_to_datetime(told["Date"]) - datetime.now(UTC)) < timedelta(seconds=60)


async def test_head_has_the_length_of_the_answer_and_not_the_answer(node: Node) -> None:
    async with Raw(node) as raw:
        raw.send("HEAD /health/live HTTP/1.1")
        _, head = await raw.head()
        raw.send("GET /health/live HTTP/1.1", "Connection: close")
        told, _, body = (await raw.rest()).partition(b"\r\n\r\n")  # the next answer begins at once
    assert told.startswith(b"HTTP/1.1 200 OK\r\n")
    assert headers(told.decode())["Connection"] == "close"
    assert int(headers(head)["Content-Length"]) == len(body) > 0


async def test_an_old_client_is_told_that_its_connection_stays_open(node: Node) -> None:
    async with Raw(node) as raw:
        raw.send("GET /health/live HTTP/1.0", "Connection: keep-alive")
        _, head = await raw.head()
        assert head.startswith("HTTP/1.0 200 OK\r\n")
        assert headers(head)["Connection"] == "keep-alive"
        await raw.until(b"\n")
        raw.send("GET /health/live HTTP/1.0")
        told, _, body = (await raw.rest()).partition(b"\r\n\r\n")
    assert "Connection" not in headers(told.decode())
    assert json.loads(body) == {"status": "live"}


async def test_requests_that_come_together_are_answered_in_their_order(node: Node) -> None:
    async with Raw(node) as raw:
        raw.send("GET /nowhere HTTP/1.1", "X-Request-ID: first")
        raw.send("GET /health/live HTTP/1.1", "X-Request-ID: second", "Connection: close")
        answers = (await raw.rest()).decode()
    assert answers.index("X-Request-ID: first") < answers.index("X-Request-ID: second")
    assert answers.count("HTTP/1.1 ") == 2
