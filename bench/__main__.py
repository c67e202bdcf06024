"""`python -m bench`: the whole comparison in one run. Exit code 1 when an answer was wrong."""

import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from bench import machine, report, rounds, subjects
from bench.jobs import Wrong
from bench.measures import Figures

QUICK_S = 0.5


def main(
    seconds: Annotated[float, typer.Option(min=0.1, max=10, help="Length of each load.")] = 2.0,
    count: Annotated[int, typer.Option("--rounds", min=1, max=20, help="Rounds; the table has their median.")] = 3,
    json: Annotated[Path | None, typer.Option(help="Also write everything, with the raw rounds, to this file.")] = None,
    quick: Annotated[bool, typer.Option(help="One short round: does it all work? Its figures say little.")] = False,
) -> None:
    """Compare the node with a bare handler and with calling its containers directly."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended and cleared away
    if quick:
        seconds, count = QUICK_S, 1
    try:
        taken, facts = _take(seconds, count)
    except (Wrong, subjects.Broken) as error:
        typer.echo("\n".join((f"bench: {error}", *getattr(error, "__notes__", ()))), err=True)
        raise typer.Exit(1) from None
    Console(width=None if sys.stdout.isatty() else 150).print(report.tables(taken, facts))
    if json:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(report.document(taken, facts, seconds))) + b"\n")


def _take(seconds: float, count: int) -> tuple[list[rounds.Round], dict[str, str | float]]:
    taken: list[rounds.Round] = []
    facts: dict[str, str | float] = {}
    for number in range(1, count + 1):

        def tell(measure: str, figures: Figures, number: int = number) -> None:
            shown = ", ".join(f"{name} {value:,.5g}" for name, value in figures.items() if "cpu" not in name)
            typer.echo(f"round {number} of {count}: {measure}: {shown}", err=True)

        with tempfile.TemporaryDirectory(prefix="stoker-bench-", dir=machine.durable_directory()) as directory:
            facts = facts or machine.describe(Path(directory))
            figures, facts["server"] = rounds.run(seconds, Path(directory), tell)
            taken.append(figures)
    return taken, facts


if __name__ == "__main__":
    typer.run(main)
