"""`stoker config`: look at a configuration without starting anything."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from node.config import Loaded

MARKER = "<!-- From here on written by `stoker config docs FILE`; change node/config/models.py instead. -->\n"

config_app = typer.Typer(help="Check and show the configuration.", no_args_is_help=True, rich_markup_mode=None)
File = Annotated[Path | None, typer.Argument(help="Configuration file; found as `serve` finds it when not given.")]


@config_app.command()
def check(file: File = None) -> None:
    """Tell every mistake of a configuration; exit code 2 if there is one."""
    from node.config.checks import open_door

    found, loaded = _load(file)
    if warning := open_door(loaded.config.server):
        typer.echo(f"warning: {found}: {warning}", err=True)
    count = len(loaded.config.containers)
    warned = _warned(len(loaded.warnings) + bool(warning))
    typer.echo(f"{found}: ok, {_counted(count, 'container')}{warned}")


@config_app.command()
def show(file: File = None) -> None:
    """Print the configuration in effect, defaults included and secrets masked, as JSON."""
    from node.config.faults import masked

    _, loaded = _load(file)
    typer.echo(json.dumps(masked(loaded.config.model_dump(mode="json")), indent=2))


@config_app.command(hidden=True)
def docs(file: Path) -> None:
    """Write the reference of all keys into a Markdown page, below its marker."""
    from node.config.schema import reference

    head, marker, _ = file.read_text("utf-8").partition(MARKER)
    if not marker:
        typer.echo(f"{file}: not the page of the reference; nothing was written", err=True)
        raise typer.Exit(2)
    file.write_text(f"{head}{MARKER}\n{reference()}", "utf-8")


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _warned(count: int) -> str:
    return f", {_counted(count, 'warning')}" if count else ""


def _load(file: Path | None) -> "tuple[Path, Loaded]":
    """The file and what it says. Warnings and faults go to standard error; a fault ends the command."""
    from node.config import find, load
    from node.errors import ConfigError

    try:
        found = find(file, os.environ)
        loaded = load(found)
    except ConfigError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from None
    for warning in loaded.warnings:
        typer.echo(f"warning: {warning}", err=True)
    return found, loaded
