"""`stoker keys`: who may ask the node. Works on the store that the configuration names, whether a node runs or not."""

import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from node.config import Config
    from node.store import Access, Key

T = TypeVar("T")

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file.", show_default=False)]
DataDirOption = Annotated[Path | None, typer.Option(help="Where the node keeps its files, instead of the file's.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class RoleName(StrEnum):
    """`jobs.Role`, spelled here so that `--help` loads nothing."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


@keys_app.command()
def create(
    name: Annotated[
        str, typer.Argument(help="Whose it is. Jobs are filed under it: keys of one name share their jobs.")
    ],
    role: Annotated[
        RoleName, typer.Option(help="read: see its jobs; submit: also send and cancel; admin: all.")
    ] = RoleName.SUBMIT,
    expires_in: Annotated[
        str | None, typer.Option(help="A number and s, m, h, d or w: 30d.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, for the only time: the store keeps its hash."""
    from node.jobs import Role

    seconds = _seconds(expires_in)
    secret, key = _on_store(
        config, data_dir, lambda access: access.create(name, Role(role.value), expires_in_s=seconds)
    )
    if as_json:
        typer.echo(json.dumps({"key": secret, **_shown(key)}, indent=2))
        return
    typer.echo(secret)
    typer.echo(
        f"id {key.id}, name {key.name}, role {key.role}, expires {_time(key.expires_at, 'never')}.\n"
        "It is not shown again. Callers send it as `Authorization: Bearer KEY`.",
        err=True,
    )


@keys_app.command("list")
def list_(config: ConfigOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """All keys, oldest first; expired ones as well."""
    keys = _on_store(config, data_dir, lambda access: access.all())
    if as_json:
        typer.echo(json.dumps([_shown(key) for key in keys], indent=2))
        return
    rows = [("ID", "NAME", "ROLE", "CREATED", "EXPIRES", "LAST USED")]
    rows += [
        (
            key.id,
            key.name,
            key.role.value,
            _time(key.created_at),
            "expired" if key.expired else _time(key.expires_at, "never"),
            _time(key.used_at, "never"),
        )
        for key in keys
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys_app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `stoker keys list` shows it.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key useless, within two seconds. Once there was a key, one is needed, also when none is left."""
    _on_store(config, data_dir, lambda access: access.revoke(key_id))
    typer.echo(json.dumps({"id": key_id, "revoked": True}) if as_json else f"{key_id} is revoked")


def _on_store(config: Path | None, data_dir: Path | None, ask: "Callable[[Access], Awaitable[T]]") -> T:
    """Ask the store's keys; what goes wrong is told in one line and ends the command."""
    import asyncio
    import os

    from node import log
    from node.config import Log, find, load
    from node.errors import ConfigError, Refusal, StokerError

    try:
        loaded = load(find(config, os.environ), {"data_dir": data_dir})
        log.set_up(Log(level="error"))
        return asyncio.run(_ask(loaded.config, ask))
    except ConfigError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from None
    except StokerError as error:
        reason = error.params.get("reason") if isinstance(error, Refusal) else None
        typer.echo(f"stoker keys: {error}{f' ({reason})' if reason else ''}", err=True)
        raise typer.Exit(1) from None


async def _ask(config: "Config", ask: "Callable[[Access], Awaitable[T]]") -> T:
    from node.store.place import reached

    async with reached(config) as store:
        return await ask(store.access)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhdw])", text)
    if not found:
        raise typer.BadParameter(f"{text!r} is no time; 12h or 30d would be", param_hint="--expires-in")
    return int(found[1]) * float(UNITS_S[found[2]])


def _time(at: float | None, none: str = "") -> str:
    return none if at is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _shown(key: "Key") -> dict[str, Any]:
    """The key's record with times as text, null where there is none."""
    return {name: _time(value) or None if name.endswith("_at") else value for name, value in asdict(key).items()}
