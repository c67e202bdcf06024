"""`python -m bench`: the whole comparison in one run. Exit code 1 when an answer was wrong."""

import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench import machine, plot, printed, report, rounds, subjects
from bench.jobs import Wrong
from bench.measures import Figures

QUICK_S = 0.5


def main(
    seconds: Annotated[float, typer.Option(min=0.1, max=10, help="Length of each load.")] = 2.0,
    count: Annotated[int, typer.Option("--rounds", min=1, max=20, help="Rounds; the table has their median.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Only this group of measures; may be repeated.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write everything, with the raw rounds, to this file.")] = None,
    draw: Annotated[Path | None, typer.Option("--plot", help="Also draw it, to this SVG file.")] = None,
    quick: Annotated[bool, typer.Option(help="One short round: does it all work? Its figures say little.")] = False,
) -> None:
    """Compare the node with what surrounds it: a bare handler, the smallest node, its containers, other queues."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended and cleared away
    if unknown := set(only or ()) - set(rounds.GROUPS):
        raise typer.BadParameter(f"no group {', '.join(unknown)}; there are {', '.join(rounds.GROUPS)}")
    if quick:
        seconds, count = QUICK_S, 1
    try:
        taken, facts = _take([group for group in rounds.GROUPS if not only or group in only], seconds, count)
    except (Wrong, subjects.Broken) as error:
        typer.echo("\n".join((f"bench: {error}", *getattr(error, "__notes__", ()))), err=True)
        raise typer.Exit(1) from None
    printed.show(report.tables(taken, facts))
    document = report.document(taken, facts, seconds)
    if json:
        printed.write(document, json)
    if draw:
        plot.draw("comparison", document, draw)


def _take(groups: list[str], seconds: float, count: int) -> tuple[list[rounds.Round], dict[str, str | float]]:
    taken: list[rounds.Round] = []
    facts: dict[str, str | float] = {}
    for number in range(1, count + 1):

        def tell(group: str, subject: str, figures: Figures, number: int = number) -> None:
            shown = ", ".join(f"{name} {value:,.5g}" for name, value in figures.items() if "cpu" not in name)
            typer.echo(f"round {number} of {count}: {group}: {subject}: {shown}", err=True)

        with tempfile.TemporaryDirectory(prefix="stoker-bench-", dir=machine.durable_directory()) as directory:
            facts = facts or machine.describe(Path(directory))
            backwards = number % 2 == 0  # so that what changes while a round lasts hits each subject
            figures, facts["server"] = rounds.run(groups, seconds, Path(directory), tell, backwards=backwards)
            taken.append(figures)
    return taken, facts


if __name__ == "__main__":
    typer.run(main)
