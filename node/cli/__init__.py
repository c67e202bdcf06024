"""The command `stoker`. Each command imports what it needs when it runs, so that `--help` is quick."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node import __version__
from node.cli.config import config_app
from node.cli.keys import keys_app

if TYPE_CHECKING:
    from node.config import Config

GARBAGE_OBJECTS = 10_000  # made until Python looks for garbage among them; requests under way are more than its own 700

app = typer.Typer(
    name="stoker",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # help in frames takes twice the time of all else
    pretty_exceptions_enable=False,
)
app.add_typer(config_app, name="config")
app.add_typer(keys_app, name="keys")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stoker {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """A job node: runs chains of containers and keeps every result."""


ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file.", show_default=False)]


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on, instead of the file's.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, instead of the file's; 0: a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the node keeps its files.")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, docker or process, instead of the file's.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let everybody in while there is no API key.")] = False,
) -> None:
    """Run the node in the foreground, until SIGTERM or Ctrl-C."""
    import gc
    import os

    from node.config import find, load
    from node.errors import ConfigError, StokerError
    from node.main import serve as serve_node

    gc.freeze()  # the modules stay: a full collection would look at them for 50 ms, and find nothing
    gc.set_threshold(GARBAGE_OBJECTS)
    given = {"server.host": host, "server.port": port, "data_dir": data_dir, "backend": backend}
    given["server.insecure"] = insecure or None
    overrides = {name: value for name, value in given.items() if value is not None}
    try:
        serve_node(load(find(config, os.environ), overrides), _announce)
    except ConfigError as error:
        for fault in error.faults:
            typer.echo(fault, err=True)
        raise typer.Exit(2) from None
    except StokerError as error:
        typer.echo(f"stoker: {error}", err=True)
        raise typer.Exit(1) from None


@app.command(short_help="Look for what is wrong, and say what to do.")
def doctor(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at everything that a node needs, and say what is wrong and what to do. Changes nothing."""
    from node.cli.doctor import run as run_doctor

    raise typer.Exit(run_doctor(config, as_json=as_json))


@app.command(short_help="Run one job through three real services.")
def demo(
    config: Annotated[Path, typer.Option("--config", "-c", help="Its containers are the chain.")] = Path(
        "containers/demo.json"
    ),
    document: Annotated[Path, typer.Option(help="The text to work on.")] = Path("containers/example.txt"),
    backend: Annotated[str, typer.Option(help="auto, docker or process.")] = "auto",
    data_dir: Annotated[Path, typer.Option(help="Where its node keeps its files.")] = Path(".stoker/demo"),
) -> None:
    """Start a node with three real services, run one job through them, print its result, stop everything."""
    from node.cli.demo import DemoFailed
    from node.cli.demo import run as run_demo

    try:
        run_demo(config, document, backend, data_dir)
    except DemoFailed as error:
        typer.echo(f"stoker demo: {error}", err=True)
        raise typer.Exit(1) from None


def _announce(url: str, config: "Config") -> None:
    """The address, and three lines to try it by."""
    import json

    first = next((spec.id for spec in config.containers if spec.external), None)
    typer.echo(f"stoker listens on {url}\n  curl '{url}/info?verbose=true'")
    if first:
        body = json.dumps({"containers": [first], "data": {"text": "What a lovely morning."}})
        typer.echo(f"  curl {url}/api/jobs -H 'Content-Type: application/json' -d '{body}'")
    typer.echo(f"  curl {url}/api/jobs")
