"""How figures are printed and written, in all reports."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from bench.rounds import Spread

WIDTH_CHARS = 215  # where it is no terminal


def show(what: RenderableType) -> None:
    Console(width=None if sys.stdout.isatty() else WIDTH_CHARS).print(what)


def write(document: Mapping[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")


def machine_text(machine: Mapping[str, str | float]) -> Text:
    return Text(
        "{cores} cores ({processor}), Python {python}, {libraries}\n"
        "{server}; one sync takes {sync_ms} ms on this {file_system}; "
        "load of the machine before the run: {load_before}".format_map(machine)
    )


def new_table(title: str, first: str, *headings: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def spread_text(of: Spread, digits: int) -> str:
    median, low, high = (f"{value:,.{digits}f}" for value in (of.median, of.low, of.high))
    return median if of.low == of.high else f"{median} ({low}-{high})"
