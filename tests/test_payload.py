import asyncio
import contextlib
import gc
import json
import math
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import payload
from node.payload import NotStrict

# The reference: Python's own reader with every liberty taken away


def strict(raw: bytes) -> Any:
    """The value of a strict JSON text. Raises `ValueError`."""
    value = json.loads(
        raw.decode("utf-8"), parse_constant=refuse, parse_float=finite, object_pairs_hook=without_repeated_names
    )
    for text in texts(value):
        text.encode("utf-8")
    return value


def refuse(word: str) -> None:
    raise ValueError(word)


def finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def without_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)


def texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for inner in value for text in texts(inner)]
    if isinstance(value, dict):
        return [*value, *texts(list(value.values()))]
    return []


def outcome(read: Any, raw: bytes) -> tuple[str, str]:
    """What a reader makes of a text: its value with the types in it, or that it refuses it."""
    try:
        return "accepted", repr(read(raw))
    except ValueError:  # `NotStrict` and `UnicodeDecodeError` are such errors
        return "refused", ""


# Texts: good ones, good ones with a mistake, and whatever looks a little like JSON

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
TOKENS = [
    *("{", "}", "[", "]", ",", ":", '"', "\\", '\\"', '"a"', '"a":', '"b":', '"\\u0061":', '"\\u003a"', '":"', '""'),
    *("0", "-0", "00", "1", "-1", "12", "1.5", "1.", ".5", "1e3", "1E+3", "1e", "1e400", "-1e400", "1e-400", "0e999"),
    *("+", "-", "NaN", "Infinity", "-Infinity", "nan", "true", "false", "null", "tru", "True", "/", "//", "'"),
    *("\\ud800", "\\udc00", '"\\ud800"', '"\\ud83d\\ude00"', '"\\udc00"', "\\u12", "\\x", "\\/", '"\\/"'),
    *(
        "\u00e9",
        "\u20ac",
        "\U0001f600",
        "\u2028",
        "\ufeff",
        "\x7f",
        " ",
        "\t",
        "\n",
        "\r",
        "\0",
        "\x01",
        "\x0b",
        "\xa0",
    ),
    *("9" * 25, "9" * 4300, "9" * 4301, "1" * 400 + ".0"),
]


@st.composite
def dumped(draw: st.DrawFn) -> bytes:
    """A value in one of the ways to write it."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\n:\r"), (",  ", " :")]))
    ascii_only = draw(st.booleans())
    return json.dumps(draw(VALUES), separators=separators, ensure_ascii=ascii_only).encode()


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A good text with a few bytes cut out and others put in."""
    raw = draw(dumped())
    start = draw(st.integers(0, len(raw)))
    end = draw(st.integers(start, min(len(raw), start + 3)))
    token = draw(st.sampled_from(TOKENS)).encode("utf-8", "surrogatepass")
    return raw[:start] + draw(st.sampled_from([b"", token]) | st.binary(max_size=2)) + raw[end:]


TOKEN_SOUP = st.lists(st.sampled_from(TOKENS), max_size=12).map(lambda tokens: "".join(tokens).encode())
RAW = dumped() | spoilt() | TOKEN_SOUP | st.binary(max_size=12)

many = settings(max_examples=300, deadline=None)


@many
@given(RAW)
def test_check_accepts_what_a_strict_reader_accepts_and_reads_the_same_value(raw: bytes) -> None:
    assert outcome(payload.check, raw) == outcome(strict, raw)


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize(
    "around", ["{}", '"{}"', "[{}]", '{{"a":{}}}', '{{"x{}":1}}', '{{"a":1,"{}":2}}', "{}1", "1{}"]
)
def test_check_and_a_strict_reader_agree_on_every_token_everywhere(token: str, around: str) -> None:
    raw = around.format(token).encode()
    assert outcome(payload.check, raw) == outcome(strict, raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"[1", "cut off, or a lone surrogate"),
        (b'"\\ud800"', "cut off, or a lone surrogate"),
        (b"\xef\xbb\xbf1", "JSON is malformed: invalid character (byte 0)"),
        (b'"\xff"', "invalid UTF-8"),
        (b'{"secret":[1e400]}', "Number out of range"),
        (b'{"a":{"secret":1,"secret":2}}', "the name 'secret' stands twice in one object"),
        (b'{"a":1,"a":"\\u003a"}', "the name 'a' stands twice in one object"),  # as many colons as without the first
        (b'{"%b":1,"%b":2}' % (b"y" * 99, b"y" * 99), f"the name '{'y' * 40}' stands twice in one object"),
        (b"1" * 5000, "Integer value out of range"),
        (b"[" * 5000 + b"]" * 5000, "nested deeper than 512 levels"),
    ],
)
def test_a_refusal_says_what_is_wrong_without_the_payload(raw: bytes, reason: str) -> None:
    with pytest.raises(NotStrict) as caught:
        payload.check(raw)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'{"\\u003a":', b"}"), (b"[1, ", b",2]")]
)
def test_512_levels_are_accepted_and_no_more(opening: bytes, closing: bytes) -> None:
    for depth in (1, 16, 17, 500, 511, 512):
        payload.check(opening * depth + b"1" + closing * depth)
    for depth in (513, 514, 600, 900, 1000, 5_000, 100_000):
        with pytest.raises(NotStrict, match="nested deeper than 512 levels"):
            payload.check(opening * depth + b"1" + closing * depth)


@pytest.mark.parametrize("text", [b"[" * 2000, b"]" * 2000, b"[{" * 2000 + b'\\"' + b"}]" * 2000, b"][" * 2000])
def test_brackets_in_texts_are_no_levels(text: bytes) -> None:
    payload.check(b'[{"%b":"%b"},["%b"]]' % (text, text, text))
    payload.check(b'[["%b"]' % text + b',["%b"]' % text * 20 + b"]")
    with pytest.raises(NotStrict, match="nested deeper"):
        payload.check(b'["%b",' % text + b"[" * 600 + b"]" * 600 + b"]")


@pytest.mark.parametrize("text", ['"\\u003a"', '"\\u003A\\u003b"', '"\\\\u003a"', '"\\\\\\u003a"', '"\\\\\\\\u003a"'])
def test_a_text_without_repeated_names_is_not_read_twice(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload.json, "loads", None)
    assert payload.check(json.dumps([{"a:": ":", "é": {"b": 1}}] * 100).encode())
    assert payload.check(f'{{"x":{text},"y":[{text},{{{text}:":"}}]}}'.encode())


HUGE = 2**23
MANY = {
    "the largest number": b"1e308,",
    "a large number with zeros": b"1e+000300,",
    "the smallest number": b"1.1E-308,",
    "digits": b"9" * 4200 + b",",
    "digits below zero": b" -" + b"9" * 4200 + b",",
    "lists": b"[],",
    "objects": b"{},",
    "lists in lists": b"[" * 300 + b"]" * 300 + b",",
    "names": b'{"":0},',
}


@pytest.mark.parametrize("part", MANY.values(), ids=MANY)
def test_a_text_of_what_is_slow_only_is_refused_before_it_is_read(part: bytes) -> None:
    raw = b'{"x":[' + part * (HUGE // len(part)) + b"1]}"
    began = time.process_time()
    with pytest.raises(NotStrict, match=r"over [\d,]+ (numbers|integers|names)"):
        payload.check(raw)
    assert time.process_time() - began < 1  # seconds; some of them took 70
    assert gc.isenabled()


def test_slow_numbers_count_for_a_whole_list() -> None:
    with pytest.raises(NotStrict, match="over 10,000 numbers"):
        split(b"[" + b'{"x":[1e308,1e308]},' * 10_000 + b"1]", 10_000)


ORDINARY = {
    "digits": b"12,",
    "fractions": b"0.123456,",
    "numbers in full": b"-1.2345678901234567e-15,",
    "integers of 256 bits": b"9" * 78 + b",",
    "hashes": b'"0x' + b"1e300e3000f4b7e2" * 4 + b'",',
    "texts": b'"page300, e300, one300, here: [1] and {2}",',
    "points": b'{"x":0.25,"y":12.5,"colour":"red"},',
    "texts without blanks": b'"\\u20ac\\n",',
}


@pytest.mark.parametrize("part", ORDINARY.values(), ids=ORDINARY)
def test_a_large_text_of_ordinary_values_is_accepted(part: bytes) -> None:
    raw = b'{"x":[' + part * (HUGE // len(part)) + b"1]}"
    assert len(payload.check(raw)["x"]) == HUGE // len(part) + 1


def test_a_repeated_name_is_found_in_a_large_text() -> None:
    with pytest.raises(NotStrict, match="a name stands twice in one object"):
        payload.check(b'{"x":1,"y":"' + b"z" * HUGE + b'","x":2}')


# Lists


def split(raw: bytes, most: int) -> list[bytes]:
    return asyncio.run(payload.split(raw, most))


def padded(draw: st.DrawFn, element: bytes) -> bytes:
    space = st.sampled_from([b"", b" ", b"\n\t", b"\r"])
    return draw(space) + element + draw(space)


BAD_ELEMENTS = [
    b"NaN",
    b"-Infinity",
    b'{"x":1e400,"y":[1,2]}',
    b'{"a":1,"a":2}',
    b'"\\ud800"',
    b'{"x":"\xff,]}"}',
    b"\xef\xbb\xbf{}",
    b'{"a":[1,2,],}',
    b"{'a':1}",
    b"nul",
    b"1 2",
    b"[" * 2000 + b"]" * 2000,
    b'{"\\"]},[{":"\\\\"} x',
]


@st.composite
def lists(draw: st.DrawFn, elements: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    parts = draw(st.lists(elements, max_size=6))
    return padded(draw, b"[" + b",".join(padded(draw, part) for part in parts) + b"]"), parts


@settings(max_examples=100, deadline=None)
@given(lists(dumped()))
def test_split_gives_the_elements_as_they_stand(raw_and_parts: tuple[bytes, list[bytes]]) -> None:
    raw, parts = raw_and_parts
    assert split(raw, 10) == parts


@settings(max_examples=100, deadline=None)
@given(lists(dumped() | st.sampled_from(BAD_ELEMENTS)))
def test_split_gives_bad_elements_their_places(raw_and_parts: tuple[bytes, list[bytes]]) -> None:
    raw, parts = raw_and_parts
    assert split(raw, 10) == parts


@many
@given(RAW | lists(spoilt() | TOKEN_SOUP).map(lambda made: made[0]))
def test_a_list_of_strict_elements_is_a_strict_list(raw: bytes) -> None:
    """No text that is not a list can be read as one whose elements are all good."""
    try:
        elements = split(raw, 10_000)
        values = [payload.check(element) for element in elements]
    except NotStrict:
        return
    assert repr(payload.check(raw)) == repr(values)


@many
@given(RAW)
def test_every_strict_list_can_be_split(raw: bytes) -> None:
    try:
        value = payload.check(raw)
    except NotStrict:
        return
    if isinstance(value, list):
        assert repr([payload.check(element) for element in split(raw, 10_000)]) == repr(value)
    else:
        with pytest.raises(NotStrict):
            split(raw, 10_000)


EXACT = [b"9" * 78, b"0.1000000000000000055", b'"\\u00e9"', b'"\xc3\xa9"', b"1E5", b"-0.0", b'{ "b":1, "a" : [ ] }']


@pytest.mark.parametrize("spoiler", [b"1", b"NaN"])
def test_split_leaves_numbers_escapes_and_spaces_alone(spoiler: bytes) -> None:
    assert split(b"[" + b",".join([spoiler, *EXACT]) + b"]", 10) == [spoiler, *EXACT]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not a list"),
        (b"null", "not a list"),
        (b'{"a":[]}', "not a list"),
        (b"[1,2", "not a list"),
        (b'[1,"x', "not a list"),
        (b'[1,"x]', "the list's end is missing"),
        (b"[[1,2]", "the list's end is missing"),
        (b"[{]", "the list's end is missing"),
        (b"[1]]", "text after the list's end"),
        (b"[1][2]", "text after the list's end"),
        (b"[1,]", "element 1 is missing"),
        (b"[,1]", "element 0 is missing"),
        (b"[1,,2]", "element 1 is missing"),
    ],
)
def test_what_is_no_list_is_refused_whole(raw: bytes, reason: str) -> None:
    with pytest.raises(NotStrict) as caught:
        split(raw, 10)
    assert str(caught.value) == reason


LARGE = 2**22

HEAVY = {
    "numbers": b"[" + b"1," * (LARGE // 2) + b"1]",
    "lists": b"[" + b"[]," * (LARGE // 3) + b"1]",
    "numbers and one bad element": b"[NaN" + b",1" * (LARGE // 2) + b"]",
}


@pytest.mark.parametrize("raw", HEAVY.values(), ids=HEAVY)
def test_a_list_of_too_many_elements_takes_little_memory(raw: bytes) -> None:
    tracemalloc.start()
    try:
        assert len(split(raw, 1000)) > 1000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(raw)


SLOW = {
    "quotes": b'[NaN,"' + b'"' * LARGE + b"]",
    "escaped quotes": b"[NaN," + b'"\\' * (LARGE // 2) + b"]",
    "open brackets": b"[NaN," + b"[" * LARGE + b"]",
    "open objects": b"[NaN," + b'{"":' * (LARGE // 4) + b"]",
    "brackets in turn": b"[NaN," + b"[{" * (LARGE // 4) + b"}]" * (LARGE // 4) + b"]",
    "flat lists in a list": b"[NaN,[" + b"[1]," * (LARGE // 4) + b"1]]",
}


@pytest.mark.parametrize("raw", SLOW.values(), ids=SLOW)
def test_the_time_to_split_grows_with_the_length_only(raw: bytes) -> None:
    began = time.monotonic()
    with contextlib.suppress(NotStrict):
        split(raw, 1000)
    assert time.monotonic() - began < 20  # seconds; with the square of it, an hour


@pytest.mark.parametrize(
    ("content_type", "is_json"),
    [
        ("application/json", True),
        ("Application/JSON ; charset=x", True),
        ("application/problem+json", True),
        ("application/json-seq", False),
        ("text/json", False),
        ("application/xml; json", False),
        ("", False),
    ],
)
def test_the_media_type_says_json(content_type: str, is_json: bool) -> None:
    assert payload.is_json(content_type) == is_json
