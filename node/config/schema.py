"""What the models say about themselves: sections, types in words, defaults. For faults, warnings and the reference."""

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from node.config.faults import Loc
from node.config.models import Config, Section
from node.config.values import MIB, NotUsed, Words

_PLAIN = {bool: "true or false", int: "a whole number", str: "text", SecretStr: "text", Path: "a path"}


def sections(
    tree: Any, model: type[Section] = Config, loc: Loc = ()
) -> Iterator[tuple[type[Section], dict[str, Any], Loc]]:
    """Each object of a file that is a section of it, outer ones first. What is no object is left out."""
    if not isinstance(tree, dict):
        return
    yield model, tree, loc
    for name, field in model.model_fields.items():
        inner, value = section_of(field.annotation), tree.get(name)
        if inner and isinstance(value, list):
            for index, item in enumerate(value):
                yield from sections(item, inner, (*loc, name, index))
        elif inner:
            yield from sections(value, inner, (*loc, name))


def section_of(kind: Any) -> type[Section] | None:
    """The section that a value of this type is, may be, or holds a list of."""
    if isinstance(kind, type) and issubclass(kind, Section):
        return kind
    return next((found for inner in get_args(kind) if (found := section_of(inner))), None)


def expected(loc: Loc) -> str:
    """What the value at a place should be, in words."""
    kind: Any = Config
    for part in loc:
        kind = _inside(kind, part)
    return words(kind)


def words(kind: Any) -> str:
    """A type, for a reader."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return next((mark for mark in inner if isinstance(mark, Words)), "") or words(inner[0])
    if origin in (Union, UnionType):
        return words(inner[0])
    if origin is tuple:
        return f"a list, each {words(inner[0])}"
    if origin is dict:
        return f"an object, each value {words(inner[1])}"
    if origin is Literal:
        return "one of " + ", ".join(json.dumps(choice) for choice in inner)
    if issubclass(kind, Section):
        return "an object"
    if issubclass(kind, Enum):
        return "one of " + ", ".join(json.dumps(choice.value) for choice in kind)
    return _PLAIN[kind]


def unused(field: FieldInfo) -> bool:
    """Whether giving the value has no effect."""
    return any(isinstance(mark, NotUsed) for mark in field.metadata)


def reference() -> str:
    """One Markdown table per section: key, type, default, meaning."""
    return "\n".join(_table(model, place) for model, place in _places(Config, ""))


def _inside(kind: Any, part: str | int) -> Any:
    """The type of a part of a value."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Annotated, Union, UnionType):
        return _inside(inner[0], part)
    if origin in (tuple, dict):
        return inner[0] if origin is tuple else inner[1]
    return kind.model_fields[part].rebuild_annotation()


def _places(model: type[Section], place: str) -> Iterator[tuple[type[Section], str]]:
    yield model, place
    for name, field in model.model_fields.items():
        if inner := section_of(field.annotation):
            many = "[]" if get_origin(field.annotation) is tuple else ""
            yield from _places(inner, f"{place}.{name}{many}".removeprefix("."))


def _table(model: type[Section], place: str) -> str:
    title = f"`{place}`" if place else "The top of the file"
    rows = [_row(name, field) for name, field in model.model_fields.items()]
    head = f"### {title}\n\n{model.__doc__}\n\n| key | value | default | meaning |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    meaning = f"{'Not used. ' if unused(field) else ''}{field.description}"
    return f"| `{name}` | {words(field.rebuild_annotation())} | {_default(field)} | {meaning} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if section_of(field.annotation) and field.default_factory:
        return "see below"
    default = field.get_default(call_default_factory=True)
    if default is None:
        return "none"
    text = f"`{json.dumps(to_jsonable_python(default))}`"
    whole = isinstance(default, int) and default >= MIB and default % MIB == 0
    return f"{text} ({default // MIB} MiB)" if whole else text
