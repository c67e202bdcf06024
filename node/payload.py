"""Strict JSON: the one check that every payload passes before it travels as the bytes that it came in.

Strict is RFC 8259 with the choices made that it leaves open: UTF-8 only, no byte order mark, finite numbers, no lone
surrogates, no name twice in one object. Two readers of a chain then see the same value.
"""

import contextlib
import json
import re
from typing import Any

import msgspec

MEDIA_TYPE = "application/json"

FEW_COMMAS = 500_000  # elements cost a hundred times the memory of their commas

_SPACES = b" \t\n\r"
_STRING = rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)'  # or what is left, when its end is missing
_FLAT = rb'[\[{](?:[^"\[\]{}]++|%b)*+[\]}]' % _STRING  # a list or object with no other in it
_OUTER = re.compile(rb'(?:[^"\[\]{},]++|%b|%b)*+([\[{]++|[\]}]++|,)' % (_STRING, _FLAT), re.DOTALL)
_INNER = re.compile(rb'(?:[^"\[\]{}]++|%b|%b)*+([\[{]++|[\]}]++)' % (_STRING, _FLAT), re.DOTALL)


class NotStrict(ValueError):
    """Not strict JSON; the text says what is wrong, without repeating the payload."""


def check(raw: bytes) -> Any:
    """The value of a JSON text, for whoever must look inside. Raises `NotStrict`.

    Numbers come as Python has them, so the text, not this value, is what must travel on.
    """
    try:
        value = msgspec.json.decode(raw)
        _refuse_repeated_names(raw, value)
    except msgspec.DecodeError as error:  # malformed, and its subclass for numbers out of range
        raise NotStrict(_words(raw, error)) from None
    except UnicodeDecodeError:
        raise NotStrict("invalid UTF-8") from None
    except RecursionError:
        raise NotStrict("nested too deep") from None
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


def _refuse_repeated_names(raw: bytes, value: Any) -> None:
    """Decoding keeps the last of two equal names, and with it one colon less than the text had.

    Counting colons is many times faster than a second parse, and exact unless a colon is written as an escape.
    """
    if b":" not in raw:
        return
    if b"\\u003" not in raw and msgspec.json.encode(value).count(b":") == raw.count(b":"):
        return
    json.loads(raw, object_pairs_hook=_unique, parse_int=len, parse_float=len)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    names = set()
    for name, _ in pairs:
        if name in names:
            raise NotStrict(f"the name {name[:40]!r} stands twice in one object")
        names.add(name)


def split(raw: bytes, most: int) -> list[bytes]:
    """The elements of a JSON list, each as its own text, not yet checked. Raises `NotStrict` when it is no list.

    Of more than `most` elements it gives at least one too many, not necessarily all. What stands between two commas
    gets its place whatever it is, so that it is refused there and does not take its neighbours with it.
    """
    if raw.count(b",") < FEW_COMMAS:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return [bytes(element) for element in msgspec.json.decode(raw, type=list[msgspec.Raw])]
    return _split_leniently(raw.strip(_SPACES), most)


def _split_leniently(text: bytes, most: int) -> list[bytes]:
    """By commas and brackets alone, however deep these go."""
    if not (text.startswith(b"[") and text.endswith(b"]")):
        raise NotStrict("not a list")
    elements: list[bytes] = []
    depth, place, began = 1, 1, 1
    while depth > 0 and len(elements) <= most:
        mark = (_OUTER if depth == 1 else _INNER).match(text, place)
        if mark is None:
            raise NotStrict("the list's end is missing")
        place, sign = mark.end(), mark[1]
        if sign != b",":
            depth += len(sign) if sign[0] in b"[{" else -len(sign)
        if sign == b"," or depth == 0:
            elements.append(text[began : place - 1].strip(_SPACES))
            began = place
    if depth < 0 or (depth == 0 and place != len(text)):
        raise NotStrict("text after the list's end")
    if b"" in elements and len(elements) > 1:
        raise NotStrict(f"element {elements.index(b'')} is missing")
    return elements if elements != [b""] else []
