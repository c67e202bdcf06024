"""Strict JSON: the one check that every payload passes before it travels as the bytes that it came in.

Strict is RFC 8259 with the choices made that it leaves open: UTF-8 only, no byte order mark, finite numbers, no lone
surrogates, no name twice in one object, lists and objects at most `MAX_DEPTH` deep. Two readers of a chain then see the
same value. A large text must not consist of what is slow to read only, so that no text holds the node up for long.
"""

import asyncio
import contextlib
import gc
import json
import re
from collections.abc import Iterable
from itertools import count, islice
from typing import Any

import msgspec

MEDIA_TYPE = "application/json"

MAX_DEPTH = 512  # lists and objects in each other; many a reader gives up at 1,000
LARGE_BYTES = 64 * 1024  # below it no text takes longer than 0.3 s
HUGE_BYTES = 1024 * 1024
FEW_COMMAS = 500_000  # elements cost a hundred times the memory of their commas

_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_SPACES = b" \t\n\r"
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_DIGITS = b"0123456789"
_MOST_EXPONENTS = 10_000  # a number near the largest or the smallest takes 30 us to read
_EXPONENT = re.compile(rb"e0{3,}+,")
_SHAPE = bytes.maketrans(_DIGITS + b"eE:[{,]}" + _SPACES, b"0000000000ee:::,,,,,,,")
_SLOW_NUMBERS = ((300, "integers of 600 digits", (b"," + b"0" * 600, b":" + b"0" * 600)),)
_SLOW_VALUES = (  # at each of these limits a text takes some 0.3 to 0.5 s
    (1_000_000, "names, lists and objects", (b":",)),
    (2_500_000, "fractions", (b"0.0", b"0e0")),
)

_STRING = rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)'  # or what is left, when its end is missing
_FLAT = rb"[\[{](?:[^\"\[\]{}]++|%b){0,1000}+[\]}]" % _STRING  # a list or object with no other in it
_OUTER = re.compile(rb'(?:[^"\[\]{},]++|%b|%b){0,1000}+([\[{]++|[\]}]++|,)?' % (_STRING, _FLAT), re.DOTALL)
_INNER = re.compile(rb'(?:[^"\[\]{}]++|%b|%b){0,1000}+([\[{]++|[\]}]++)?' % (_STRING, _FLAT), re.DOTALL)
_MATCHES_AT_ONCE = 1000  # some 3 ms
_MOST_MATCHES = 2_000_000


class NotStrict(ValueError):
    """Not strict JSON; the text says what is wrong, without repeating the payload."""


def check(raw: bytes) -> Any:
    """The value of a JSON text, for whoever must look inside. Raises `NotStrict`.

    Numbers come as Python has them, so the text, not this value, is what must travel on.
    """
    try:
        value = msgspec.json.decode(raw) if len(raw) < LARGE_BYTES else _decode_large(raw)
        _refuse_depth(raw, value)
        _refuse_repeated_names(raw, value)
    except msgspec.DecodeError as error:  # malformed, and its subclass for numbers out of range
        raise NotStrict(_words(raw, error)) from None
    except UnicodeDecodeError:
        raise NotStrict("invalid UTF-8") from None
    except RecursionError:
        raise NotStrict(_TOO_DEEP) from None
    return value


def is_json(content_type: str) -> bool:
    """Does a `Content-Type` header's media type say JSON: `application/json` or any `+json`."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == MEDIA_TYPE or kind.endswith("+json")


def _words(raw: bytes, error: msgspec.DecodeError) -> str:
    words = str(error).partition(" - at ")[0]
    if words == "Input data was truncated":  # which it also says of half a surrogate pair
        return "cut off, or a lone surrogate" if raw.strip(_SPACES) else "empty"
    return words


def _decode_large(raw: bytes) -> Any:
    _refuse_slow(raw, _SLOW_NUMBERS + _SLOW_VALUES)
    collecting = gc.isenabled()
    gc.disable()  # it would look through the new lists and objects again and again
    try:
        return msgspec.json.decode(raw)
    finally:
        if collecting:
            gc.enable()


def _refuse_slow(raw: bytes, limits: Iterable[tuple[int, str, tuple[bytes, ...]]]) -> None:
    exponents = _may_have_exponents(raw)
    if not exponents and len(raw) < HUGE_BYTES:
        return
    shape = raw.translate(_SHAPE, b"+-")
    if exponents:
        numbers = (found for found in _EXPONENT.finditer(shape) if shape[found.start() - 1] == ord("0"))
        if any(islice(numbers, _MOST_EXPONENTS, None)):
            raise NotStrict(f"over {_MOST_EXPONENTS:,} numbers with an exponent of three digits")
    for most, words, marks in limits:
        if len(raw) > 2 * most and sum(map(shape.count, marks)) > most:
            raise NotStrict(f"over {most:,} {words}")


def _may_have_exponents(raw: bytes) -> bool:
    """Enough to matter: a text has few digits, and numbers have few letters."""
    digits = len(raw) - len(raw.translate(None, _DIGITS))
    return digits > 4 * _MOST_EXPONENTS and raw.count(b"e") + raw.count(b"E") > _MOST_EXPONENTS


def _refuse_depth(raw: bytes, value: Any) -> None:
    """To go through all values is slow, so first the brackets alone, as if there were none in texts.

    Texts with brackets in pairs can hide depth from that; there Python's own limit is what is left.
    """
    if len(raw) <= MAX_DEPTH:
        return
    brackets = raw.translate(None, _NOT_BRACKETS)
    for removed in range(16):  # pairs from the inside out; the rest is at most as deep as it is long
        if removed + len(brackets) <= MAX_DEPTH:
            return
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    level = _nested([value])
    for _ in range(MAX_DEPTH):
        level = _nested(inner for outer in level for inner in (outer.values() if type(outer) is dict else outer))
    if level:
        raise NotStrict(_TOO_DEEP)


def _nested(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if type(value) is dict or type(value) is list]


def _refuse_repeated_names(raw: bytes, value: Any) -> None:
    """Decoding keeps the last of two equal names, and with it one colon less than the text had.

    Counting colons is many times faster than a second parse, and exact: what is equal here has no name twice.
    """
    colons = raw.count(b":")
    if not colons:
        return
    if b"\\" in raw and b"\\u003" in raw:
        escapes = raw.replace(b"\\\\", b"")  # what is left of a backslash is the start of an escape
        colons += escapes.count(b"\\u003a") + escapes.count(b"\\u003A")
    if msgspec.json.encode(value).count(b":") == colons:
        return
    if len(raw) < HUGE_BYTES:
        json.loads(raw, object_pairs_hook=_unique, parse_int=len, parse_float=len)
    raise NotStrict("a name stands twice in one object")


def _unique(pairs: list[tuple[str, Any]]) -> None:
    names = set()
    for name, _ in pairs:
        if name in names:
            raise NotStrict(f"the name {name[:40]!r} stands twice in one object")
        names.add(name)


async def split(raw: bytes, most: int) -> list[bytes]:
    """The elements of a JSON list, each as its own text, not yet checked. Raises `NotStrict` when it is no list.

    Of more than `most` elements it gives at least one too many, not necessarily all. What stands between two commas
    gets its place whatever it is, so that it is refused there and does not take its neighbours with it. That takes
    longer, and lets others have their turns meanwhile. Slow numbers count for the whole list.
    """
    if len(raw) >= LARGE_BYTES:
        _refuse_slow(raw, _SLOW_NUMBERS)
    if raw.count(b",") < FEW_COMMAS:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return [bytes(element) for element in msgspec.json.decode(raw, type=list[msgspec.Raw])]
    return await _split_leniently(raw.strip(_SPACES), most)


async def _split_leniently(text: bytes, most: int) -> list[bytes]:
    """By commas and brackets alone, however deep these go."""
    if not (text.startswith(b"[") and text.endswith(b"]")):
        raise NotStrict("not a list")
    elements: list[bytes] = []
    depth, place, began = 1, 1, 1
    for matches in count(1):
        mark = (_OUTER if depth == 1 else _INNER).match(text, place)
        if mark is None or mark.end() == place:
            raise NotStrict("the list's end is missing")
        place, sign = mark.end(), mark[1] or b""
        if sign != b",":
            depth += len(sign) if sign[:1] in (b"[", b"{") else -len(sign)
        if sign == b"," or depth == 0:
            elements.append(text[began : place - 1].strip(_SPACES))
            began = place
        if depth <= 0 or len(elements) > most:
            break
        if matches % _MATCHES_AT_ONCE == 0:
            await asyncio.sleep(0)
        if matches > _MOST_MATCHES:
            raise NotStrict("too many brackets to find the mistake")
    if depth < 0 or (depth == 0 and place != len(text)):
        raise NotStrict("text after the list's end")
    if b"" in elements and len(elements) > 1:
        raise NotStrict(f"element {elements.index(b'')} is missing")
    return elements if elements != [b""] else []
