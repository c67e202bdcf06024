"""From a path to a `Config`: find the file, read it, put in what it refers to, check it, tell every mistake at once.

The only place where the environment is read.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from node.config.checks import check, warnings
from node.config.faults import Fault, Faults, Loc, is_secret, kind, masked, path, quoted, walk
from node.config.models import Config
from node.config.schema import expected, sections
from node.config.syntax import Tree, expand, parse, repeated
from node.errors import ConfigError

_UNREAD = "unix:///unread"  # stands for a secret whose file is faulty: valid wherever a secret may be


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration that can be used, and what its author should know nevertheless, one line each."""

    config: Config
    warnings: tuple[str, ...]


def find(given: Path | None, environ: Mapping[str, str]) -> Path:
    """The file to load: the given one, else what `STOKER_CONFIG` or `INFERNET_CONFIG_PATH` names, else `config.json`.

    Raises `ConfigError` when it is not there: whoever names a file does not want another one.
    """
    places = {
        "command line": given,
        "STOKER_CONFIG": environ.get("STOKER_CONFIG"),
        "INFERNET_CONFIG_PATH": environ.get("INFERNET_CONFIG_PATH"),
        "the default": "config.json",
    }
    file = Path(next(place for place in places.values() if place))
    if file.exists():
        return file
    looked = ", ".join(f"{name}: {place or 'not given'}" for name, place in places.items())
    raise ConfigError([f"{file}: found no file, expected the configuration ({looked})"])


def load(file: Path, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> Loaded:
    """Read, expand and check a file. Raises `ConfigError` with one line per fault.

    overrides: values that win over the file's, by dotted path (`server.port`); None leaves the file's.
    """
    try:
        return _load(file, overrides or {}, environ)
    except RecursionError:
        raise ConfigError([f"{file}: found too many brackets in each other, expected a configuration"]) from None


def _load(file: Path, overrides: Mapping[str, Any], environ: Mapping[str, str]) -> Loaded:
    tree = parse(file)
    exposed = list(_exposed(tree, file))
    faults = Faults(repeated(tree))
    _override(tree, overrides)
    tree = expand(tree, environ, faults)
    _drop_nulls(tree)
    exposed += _exposed_beside(tree, file.parent)
    _fetch_secrets(tree, file.parent, faults)
    notes = [*warnings(tree), *exposed]
    config = _validate(tree, file.parent, faults)
    faults.note(check(config))
    if faults:
        raise ConfigError([f"{file}: {fault}" for fault in faults])
    return Loaded(config=config, warnings=tuple(f"{file}: {note}" for note in notes))


def _exposed(tree: Tree, file: Path) -> Iterator[str]:
    """A warning when the file spells secrets out and everybody on the machine may read it."""
    if not _readable_by_all(file):
        return
    texts = [(loc, value) for loc, value in walk(tree) if isinstance(value, str) and "${" not in value]
    secrets = [path(loc) for loc, value in texts if masked(value, str(loc[-1])) != value]
    if secrets:
        yield f"everybody on this machine may read it, and it holds secrets ({', '.join(secrets)}): chmod 600 is better"


def _exposed_beside(tree: Tree, folder: Path) -> Iterator[str]:
    """The same for the files that hold a secret each. Certificates and the like are no secrets."""
    for model, section, loc in sections(tree):
        for key in model.model_fields:
            name, file = key.removesuffix("_file"), section.get(key)
            if name == key or not isinstance(file, str) or not (name in model.model_fields or is_secret(name)):
                continue
            if _readable_by_all(folder / file):
                yield f"{path((*loc, key))}: everybody on this machine may read {folder / file}: chmod 600 is better"


def _readable_by_all(file: Path) -> bool:
    try:
        return bool(file.stat().st_mode & stat.S_IROTH)
    except (OSError, ValueError):  # told where it is read
        return False


def _override(tree: Tree, overrides: Mapping[str, Any]) -> None:
    for dotted, value in overrides.items():
        if value is None:
            continue
        *way, last = dotted.split(".")
        section: Any = tree
        for key in way:
            if isinstance(section, dict) and section.get(key) is None:
                section[key] = {}
            section = section[key] if isinstance(section, dict) else None
        if isinstance(section, dict):
            section[last] = value
            section.pop(f"{last}_file", None)


def _drop_nulls(tree: Tree) -> None:
    """Infernet's files say null where a value is not given."""
    for model, section, _ in sections(tree):
        for key in model.model_fields:
            if key in section and section[key] is None:
                del section[key]


def _fetch_secrets(tree: Tree, folder: Path, faults: Faults) -> None:
    """Give each `x` beside an `x_file` the content of that file."""
    for model, section, loc in sections(tree):
        for key in model.model_fields:
            name = key.removesuffix("_file")
            if name == key or not isinstance(section.get(key), str | Path):
                continue
            if section.get(name):
                faults.note([Fault(loc=(*loc, key), found=f"{name} beside it", expected="one of the two")])
            else:
                section[name] = _secret(folder / section[key], (*loc, key), faults)


def _secret(file: Path, loc: Loc, faults: Faults) -> str:
    try:
        return file.read_text("utf-8").removesuffix("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        faults.note(
            [Fault(loc=loc, found=f"{quoted(str(file), loc)} ({reason})", expected="a text file that can be read")]
        )
        return _UNREAD


def _validate(tree: Tree, folder: Path, faults: Faults) -> Config:
    """The tree as a `Config`; each faulty value is noted and taken out, so that the rest can be checked further."""
    while True:
        try:
            return Config.model_validate(tree, context=folder)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=False)
        faults.note(_fault(detail) for detail in errors)
        for detail in reversed(errors):
            _take_out(tree, detail["loc"])


def _fault(detail: ErrorDetails) -> Fault:
    loc, wanted = detail["loc"], expected(detail["loc"])
    if detail["type"] == "missing":
        found = "nothing"
    elif wanted.startswith("an object"):
        found = kind(detail["input"])
    else:
        found = quoted(detail["input"], loc)
    return Fault(loc=loc, found=found, expected=wanted)


def _take_out(tree: Tree, loc: Loc) -> None:
    """Remove a faulty value, and with one that is missing the section that lacks it.

    Stand-ins for an id and for what a container runs keep the other checks from telling consequences.
    """
    match loc:
        case ("containers", index):
            tree["containers"][index] = {"id": f"faulty-{index}", "image": "faulty"}
        case ("containers", index, "id"):
            tree["containers"][index]["id"] = f"faulty-{index}"
        case ("containers", index, "image" | "build" | "url" as key, *_):
            tree["containers"][index].pop(key, None)
            tree["containers"][index]["image"] = "faulty"
        case _:
            _delete(tree, loc)


def _delete(tree: Tree, loc: Loc) -> None:
    parent: Any = tree
    for part in loc[:-1]:
        if isinstance(parent, dict) and part not in parent:
            return  # went out with an outer one
        parent = parent[part]
    last: Any = loc[-1]
    if isinstance(parent, list) or last in parent:
        del parent[last]
    else:
        _delete(tree, loc[:-1])
