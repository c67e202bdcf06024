"""How a mistake in a file is told: its place, what was found there (never a secret's value), what is expected."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Loc = tuple[str | int, ...]
"""The place of a value: keys and list indexes from the top of the file."""

MASK = "*" * 10

_SECRET_NAME = re.compile(r"pass|pwd|secret|token|credential|bearer|(?<![a-z])(api)?key(?![a-z])", re.IGNORECASE)
_SECRET_IN_URL = re.compile(r"(?<=://)\S+(?=@)|(?<=[?&]password=)[^&\s]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A value that cannot be used. `found` and `expected` are words."""

    loc: Loc
    found: str
    expected: str

    def __str__(self) -> str:
        place = f"{path(self.loc)}: " if self.loc else ""
        return f"{place}found {self.found}, expected {self.expected}"


class Faults(list[Fault]):
    """The faults of one file, one for each place."""

    def note(self, faults: Iterable[Fault]) -> None:
        """Add faults, but no second one for a place: it would only be a consequence of the first."""
        for fault in faults:
            if all(fault.loc != known.loc for known in self):
                self.append(fault)


def path(loc: Loc) -> str:
    """A place as a reader writes it: `containers[1].env.HOME`. Odd keys are quoted."""
    parts = []
    for part in loc:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif part.isascii() and part.replace("-", "_").isidentifier():
            parts.append(f".{part}")
        else:
            parts.append(f"[{json.dumps(part)}]")
    return "".join(parts).removeprefix(".")


def walk(value: Any, loc: Loc = ()) -> Iterator[tuple[Loc, Any]]:
    """Every value of a JSON value with its place, outer ones first."""
    yield loc, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, (*loc, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from walk(inner, (*loc, index))


def kind(value: Any) -> str:
    """What a JSON value is, without telling it."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return next((words for form, words in kinds.items() if isinstance(value, form)), "a number")


def quoted(value: Any, loc: Loc) -> str:
    """A faulty value as JSON, shortened; only its kind when it has parts or may be a secret."""
    secret = any(is_secret(part) for part in loc if isinstance(part, str))
    if value != "" and (secret or isinstance(value, dict | list)):
        return kind(value)
    text = json.dumps(masked(value), default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_secret(name: str) -> bool:
    """Whether what goes by this name is a secret; told by the name, so that it holds for an operator's `env` as well.

    A `*_file` is only the place of a secret.
    """
    return _SECRET_NAME.search(name) is not None and not name.endswith("_file")


def masked(value: Any, name: str = "") -> Any:
    """A copy of a JSON value in which secrets are `MASK`. Over-cautious: a secret-looking name is enough."""
    if isinstance(value, dict):
        return {key: masked(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner, name) for inner in value]
    if isinstance(value, str):
        return MASK if value and is_secret(name) else _SECRET_IN_URL.sub(MASK, value)
    return value
