"""Strict JSON: the one check that every payload passes before it travels as the bytes that it came in.

Strict is RFC 8259 with the choices made that it leaves open: UTF-8 only, no byte order mark, finite numbers, no lone
surrogates, no name twice in one object. Two readers of a chain then see the same value.
"""

import json
from typing import Any

import msgspec

MEDIA_TYPE = "application/json"


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
