"""From a file to its JSON object, and `${NAME}` in its texts. Knows nothing of what a configuration says."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from node.config.faults import Fault, Faults, Loc, kind, walk
from node.errors import ConfigError

Tree = dict[str, Any]
"""A file's JSON object, before it is a `Config`."""

_REFERENCE = re.compile(r"\$\$\{|\$\{(?:(?P<name>[A-Za-z_]\w*)(?::-(?P<default>(?:(?!\$\{)[^}])*))?\})?", re.ASCII)


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys were given more than once."""

    repeated: tuple[str, ...] = ()


def parse(file: Path) -> Tree:
    """The file's object. Raises `ConfigError` when there is none."""
    text = _text(file)
    try:
        tree = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        found = json.dumps(text[error.pos]) if error.pos < len(text) else "the end"
        where = f"{file}: line {error.lineno}, column {error.colno}"
        raise ConfigError([f"{where}: found {found}, expected JSON ({error.msg})"]) from None
    except ValueError:
        raise ConfigError([f"{file}: found a number of too many digits, expected a configuration"]) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"{file}: found {kind(tree)}, expected an object"])
    return tree


def repeated(tree: Tree) -> Iterator[Fault]:
    """Keys that a parsed file gives twice: JSON readers disagree about which one counts."""
    for loc, value in walk(tree):
        if isinstance(value, _Object):
            for key in value.repeated:
                yield Fault(loc=(*loc, key), found="more than once", expected="once")


def expand(value: Any, environ: Mapping[str, str], faults: Faults, loc: Loc = ()) -> Any:
    """A copy of a JSON value with the variables in its texts put in. Keys stay as they are."""
    if isinstance(value, dict):
        return {key: expand(inner, environ, faults, (*loc, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand(inner, environ, faults, (*loc, index)) for index, inner in enumerate(value)]
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: _resolve(match, environ, faults, loc), value)
    return value


def _resolve(match: re.Match[str], environ: Mapping[str, str], faults: Faults, loc: Loc) -> str:
    """As in a shell: the default counts for a variable that is empty, too."""
    if match[0] == "$${":
        return "${"
    name, default = match["name"], match["default"]
    if name is None:
        faults.note(
            [Fault(loc=loc, found='a "${" without a name', expected="${NAME}, ${NAME:-default}, or $${ for ${")]
        )
    elif default is not None:
        return environ.get(name) or default
    elif name in environ:
        return environ[name]
    else:
        faults.note([Fault(loc=loc, found=f"${{{name}}}", expected=f"the environment variable {name} to be set")])
    return match[0]


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) < len(pairs):
        made.repeated = tuple(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
    return made


def _text(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{file}: found {error.strerror}, expected a file that can be read"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{file}: found a byte at offset {error.start} that is not UTF-8, expected JSON"]) from None
    if not text.strip():
        raise ConfigError([f"{file}: found nothing in it, expected a JSON object"])
    return text
