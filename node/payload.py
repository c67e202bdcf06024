"""Strict JSON: the one check that every payload passes before it travels as the bytes that it came in.

Strict is RFC 8259 with the choices made that it leaves open: UTF-8 only, no byte order mark, finite numbers, no lone
surrogates, no name twice in one object. Two readers of a chain then see the same value.
"""

import json
import re
from typing import Any

import msgspec

MEDIA_TYPE = "application/json"

_SPACES = re.compile(r"[ \t\n\r]*")


class NotStrict(ValueError):
    """Not strict JSON; the text says what is wrong, without repeating the payload."""


def check(raw: bytes) -> Any:
    """The value of a JSON text, for whoever must look inside. Raises `NotStrict`.

    Numbers come as Python has them, so the text, not this value, is what must travel on.
    """
    try:
        value = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:  # malformed, and its subclass for numbers out of range
        raise NotStrict(_without_path(str(error))) from None
    except UnicodeDecodeError:
        raise NotStrict("invalid UTF-8") from None
    except RecursionError:
        raise NotStrict("nested too deep") from None
    _refuse_repeated_names(raw, value)
    return value


def is_json(content_type: str) -> bool:
    """Does a `Content-Type` header's media type say JSON: `application/json` or any `+json`."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == MEDIA_TYPE or kind.endswith("+json")


def _without_path(message: str) -> str:
    return message.partition(" - at ")[0]


def _refuse_repeated_names(raw: bytes, value: Any) -> None:
    """Decoding keeps the last of two equal names, and with it one colon less than the text had.

    Counting colons is many times faster than a second parse, and exact unless a colon is written as an escape.
    """
    if b":" not in raw:
        return
    if b"\\u003" not in raw and msgspec.json.encode(value).count(b":") == raw.count(b":"):
        return
    try:
        json.loads(raw, object_pairs_hook=_unique, parse_int=len, parse_float=len)
    except RecursionError:
        raise NotStrict("nested too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> None:
    names = set()
    for name, _ in pairs:
        if name in names:
            raise NotStrict(f"the name {name[:40]!r} stands twice in one object")
        names.add(name)


def split(raw: bytes) -> list[bytes]:
    """The elements of a JSON list, each as its own text, not yet checked. Raises `NotStrict` when it is no list.

    An element that only a lenient reader can read (`NaN`, a lone surrogate) still gets its place here, so that it is
    refused there and does not take its neighbours with it.
    """
    try:
        return [bytes(element) for element in msgspec.json.decode(raw, type=list[msgspec.Raw])]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _split_leniently(raw)


def _split_leniently(raw: bytes) -> list[bytes]:
    text = raw.decode("utf-8", "surrogateescape")
    decoder = json.JSONDecoder(parse_int=len, parse_float=len, strict=False)
    elements: list[bytes] = []
    place = _skip(text, 0)
    if not text.startswith("[", place):
        raise NotStrict("not a list")
    place = _skip(text, place + 1)
    closed = text.startswith("]", place)
    while not closed:
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else "malformed"
            raise NotStrict(f"element {len(elements)} is {reason}") from None
        elements.append(text[place:end].encode("utf-8", "surrogateescape"))
        place = _skip(text, end)
        closed = text.startswith("]", place)
        if not closed and not text.startswith(",", place):
            raise NotStrict(f"a comma or the list's end is missing after element {len(elements) - 1}")
        place = _skip(text, place + 1)
    if place != len(text):
        raise NotStrict("text after the list's end")
    return elements


def _skip(text: str, place: int) -> int:
    """The place of the next character that is no white space."""
    found = _SPACES.match(text, place)
    return found.end() if found else place
