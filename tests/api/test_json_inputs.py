"""The table of JSON inputs: what each kind of bad input gets, alone, as a whole batch, and as one item of a batch.

Run with `-s` to see it printed.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.support import JSON, UNREADABLE, Answer, Client

pytestmark = pytest.mark.asyncio(loop_scope="session")

NO_LIST = "Expected a list"
NOT_JSON = "Content-Type must be application/json, in UTF-8"
GOOD = b'{"containers":["a"],"data":{"good":1}}'


def job(data: bytes) -> bytes:
    return b'{"containers":["a"],"data":{"x":%b}}' % data


class Row:
    """One kind of input, and the error that it gets in each place; None where it is good.

    single: as the body of POST /api/jobs. whole: as the body of a batch. item: between two good jobs of a batch; an
    item that leaves no list around it makes the batch fail whole.
    """

    def __init__(
        self,
        name: str,
        body: bytes,
        *,
        single: str | None = UNREADABLE,
        whole: str | None = NO_LIST,
        item: str | None = UNREADABLE,
        content_type: str | None = JSON,
    ) -> None:
        self.name = name
        self.body = body
        self.single = single
        self.whole = whole
        self.item = item
        self.content_type = content_type


DEEP = 100_000

ROWS = [
    Row("NaN", job(b"NaN")),
    Row("Infinity", job(b"Infinity")),
    Row("-Infinity", job(b"-Infinity")),
    Row("1e400", job(b"1e400")),
    Row("-1e400", job(b"-1e400")),
    Row("a number of 400 digits and a point", job(b"9" * 400 + b".0")),
    Row("an integer of 5,000 digits", job(b"9" * 5000)),
    Row("the same name twice, outside", b'{"containers":["a"],"data":{},"data":{"x":1}}'),
    Row("the same name twice, in data", job(b'{"y":1,"y":2}')),
    Row("the same name twice, once escaped", job(b'{"y":1,"\\u0079":2}')),
    Row("the same name twice, with a colon in it", job(b'{"y:":1,"y\\u003a":2}')),
    Row("the same name twice, an escaped colon after it", job(b'{"y":1,"y":"\\u003a"}')),
    Row("a lone high surrogate, escaped", job(b'"\\ud800"')),
    Row("a lone low surrogate, escaped", job(b'"\\udc00"')),
    Row("surrogates in the wrong order", job(b'"\\udc00\\ud800"')),
    Row("a lone surrogate in a name", job(b'{"\\ud800":1}')),
    Row("a surrogate as bytes", job(b'"\xed\xa0\x80"')),
    Row("a byte order mark", b"\xef\xbb\xbf" + job(b"1")),
    Row("invalid UTF-8", job(b'"\xff"')),
    Row("UTF-8 of too many bytes", job(b'"\xc0\xaf"')),
    Row("UTF-8 above the last character", job(b'"\xf5\x80\x80\x80"')),
    Row("invalid UTF-8 in a name", job(b'{"\xff":1}')),
    Row("UTF-16", job(b"1").decode().encode("utf-16"), item=UNREADABLE),
    Row("an empty body", b"", item=NO_LIST),
    Row("white space only", b" \r\n\t ", item=NO_LIST),
    Row("a list instead of an object", b"[]", whole=None),
    Row("a job in a list", b"[" + GOOD + b"]", whole=None),
    Row("null", b"null"),
    Row("true", b"true"),
    Row("a number", b"1"),
    Row("a text", b'"x"'),
    Row("511 lists in each other in data", job(b"[" * 511 + b"]" * 511)),
    Row(f"{DEEP} lists in each other", job(b"[" * DEEP + b"]" * DEEP)),
    Row(f"{DEEP} objects in each other", job(b'{"y":' * DEEP + b"1" + b"}" * DEEP)),
    Row(f"{DEEP} lists in each other, alone", b"[" * DEEP + b"]" * DEEP, whole=None),
    Row(f"{DEEP} open brackets", b"[" * DEEP, item=NO_LIST),
    Row("text after the end", GOOD + b" x"),
    Row("two values", GOOD + GOOD),
    Row("a comma too many in an object", b'{"containers":["a"],"data":{},}'),
    Row("a comma too many in a list", job(b"[1,]")),
    Row("no comma", b'{"containers":["a"]"data":{}}'),
    Row("cut off in an object", b'{"containers":["a"],"data":{', item=NO_LIST),
    Row("cut off in a text", b'{"containers":["a', item=NO_LIST),
    Row("cut off in a literal", job(b"tru")),
    Row("a bracket too many", GOOD + b"]", item=NO_LIST),
    Row("single quotes", b"{'containers':['a'],'data':{}}"),
    Row("names without quotes", b"{containers:[],data:{}}"),
    Row("a comment", job(b"1 /* one */")),
    Row("a leading zero", job(b"01")),
    Row("a plus sign", job(b"+1")),
    Row("a point without digits", job(b"1.")),
    Row("a hexadecimal number", job(b"0x1")),
    Row("a literal in capitals", job(b"True")),
    Row("a control character in a text", job(b'"\x01"')),
    Row("a zero byte in a text", job(b'"\x00"')),
    Row("a zero byte after the end", GOOD + b"\x00"),
    Row("an unknown escape", job(b'"\\x41"')),
    Row("a short escape", job(b'"\\u12"')),
    Row("data missing", b'{"containers":["a"]}'),
    Row("data null", b'{"containers":["a"],"data":null}'),
    Row("data a list", b'{"containers":["a"],"data":[]}'),
    Row("data a text", b'{"containers":["a"],"data":"x"}'),
    Row("containers missing", b'{"data":{}}'),
    Row("containers a text", b'{"containers":"a","data":{}}'),
    Row("containers with a number", b'{"containers":["a",1],"data":{}}'),
    Row("requires_proof a text", b'{"containers":["a"],"data":{},"requires_proof":"yes"}'),
    Row(
        "an unknown charset", GOOD, single=NOT_JSON, whole=NOT_JSON, item=NOT_JSON, content_type=JSON + "; charset=x-1"
    ),
    Row(
        "another charset", GOOD, single=NOT_JSON, whole=NOT_JSON, item=NOT_JSON, content_type=JSON + "; charset=utf-16"
    ),
    Row("another content type", GOOD, single=NOT_JSON, whole=NOT_JSON, item=NOT_JSON, content_type="text/plain"),
    Row("no content type", GOOD, single=NOT_JSON, whole=NOT_JSON, item=NOT_JSON, content_type=None),
    Row("good: an integer of 78 digits", job(b"1" * 78), single=None, item=None),
    Row("good: 1e-400", job(b"1e-400"), single=None, item=None),
    Row("good: 510 lists in each other in data", job(b"[" * 510 + b"]" * 510), single=None, item=None),
    Row("good: 900 brackets in a text", job(b'"%b"' % (b"[" * 900)), single=None, item=None),
    Row("good: escapes and a surrogate pair", job(b'"\\u00e9\\ud83d\\ude00\\/"'), single=None, item=None),
    Row("good: white space around", b"\r\n " + GOOD + b"\t\n", single=None, item=None),
]
rows = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])

Told = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def table() -> Iterator[Told]:
    """What each row got in each place; printed at the end."""
    told: Told = {}
    yield told
    places = ("POST /api/jobs", "POST /api/jobs/batch", "one of three items")
    print(f"\n\n| input | {' | '.join(places)} |\n|---|---|---|---|")
    for row in ROWS:
        print(f"| {row.name} | {' | '.join(told.get((row.name, place), '') for place in places)} |")


def outcome(answer: Answer) -> str:
    """An answer in the words of the table."""
    value = answer.json
    if answer.status != 200:
        return f"{answer.status} `{value['error']}`{_reason(value)}"
    if isinstance(value, list):
        return f"200, {len(value)} answers"
    return "200, an id"


def _reason(refusal: Any) -> str:
    reason = refusal["params"].get("reason", "")
    return f": {reason}" if reason else ""


def refused(answer: Answer, error: str) -> bool:
    return answer.status == (415 if error == NOT_JSON else 400) and answer.json["error"] == error


def short(answer: Answer, row: Row) -> bool:
    """Errors are short, and so never the whole body of a long one."""
    return len(answer.body) < 400 and not (len(row.body) > 60 and row.body in answer.body)


@rows
async def test_alone(caller: Client, row: Row, table: Told) -> None:
    answer = await caller.ask("POST", "/api/jobs", row.body, Content_Type=row.content_type)
    table[row.name, "POST /api/jobs"] = outcome(answer)
    if row.single is None:
        assert (await caller.result(answer.json["id"]))["status"] == "success"
    else:
        assert refused(answer, row.single)
        assert short(answer, row)
        assert await caller.get("/api/jobs") == []


@rows
async def test_as_a_whole_batch(caller: Client, row: Row, table: Told) -> None:
    answer = await caller.ask("POST", "/api/jobs/batch", row.body, Content_Type=row.content_type)
    table[row.name, "POST /api/jobs/batch"] = outcome(answer)
    if row.whole is None:
        assert answer.status == 200
    else:
        assert refused(answer, row.whole)
        assert short(answer, row)
        assert await caller.get("/api/jobs") == []


@rows
async def test_between_two_good_items(caller: Client, row: Row, table: Told) -> None:
    body = b"[" + GOOD + b"," + row.body + b"," + GOOD + b"]"
    answer = await caller.ask("POST", "/api/jobs/batch", body, Content_Type=row.content_type)
    table[row.name, "one of three items"] = outcome(answer)
    if row.item in (NO_LIST, NOT_JSON):
        assert refused(answer, row.item)
        assert await caller.get("/api/jobs") == []
        return
    first, middle, last = answer.json
    for good in (first, last):
        assert (await caller.result(good["id"]))["result"]["output"] == {"good": 1}
    if row.item is None:
        assert (await caller.result(middle["id"]))["status"] == "success"
    else:
        table[row.name, "one of three items"] = f"200, its own `{middle['error']}`{_reason(middle)}"
        assert middle["error"] == row.item
        assert middle["params"]["reason"]
        assert len(json.dumps(middle)) < 400
        assert await caller.get("/api/jobs") == [first["id"], last["id"]]
