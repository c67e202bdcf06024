"""`stoker doctor`: looks at everything that a node needs, and says what is wrong and what to do. Changes nothing."""

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table
from rich.text import Text

from node.cli.looks import look
from node.config import find, load
from node.errors import ConfigError
from node.findings import Finding, Level, fault, ok, warning

STYLE = {Level.OK: "green", Level.WARNING: "yellow", Level.FAULT: "bold red"}
FAULTY, FAULTY_CONFIG = 1, 2
CHECK_CHARS = 15


def run(file: Path | None, *, as_json: bool) -> int:
    """Print a line for each finding. The exit code: 0, 1 when there is a fault, 2 when the configuration has one."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # findings tell it
    if not as_json:
        found, code = asyncio.run(_gathered(file, _printer(Console(highlight=False))))
        print(f"\n{_summary(found)}")
        return code
    found, code = asyncio.run(_gathered(file, lambda _: None))
    print(json.dumps({"findings": [asdict(each) for each in found], "summary": _summary(found)}, indent=2))
    return code


async def _gathered(file: Path | None, tell: Callable[[Finding], None]) -> tuple[list[Finding], int]:
    found = []
    async for each in _all(file):
        tell(each)
        found.append(each)
    faults = [each for each in found if each.level is Level.FAULT]
    if any(each.check == "configuration" for each in faults):
        return found, FAULTY_CONFIG
    return found, FAULTY if faults else 0


async def _all(file: Path | None) -> AsyncIterator[Finding]:
    try:
        place = find(file, os.environ)
        loaded = load(place)
    except ConfigError as error:
        for words in error.faults:
            yield fault("configuration", words, "")
        return
    for words in loaded.warnings:
        yield warning("configuration", words, "")
    yield ok("configuration", f"{place}: {len(loaded.config.containers)} containers")
    async for each in look(loaded.config):
        yield each


def _printer(console: Console) -> Callable[[Finding], None]:
    def tell(each: Finding) -> None:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=len(Level.WARNING), no_wrap=True)
        table.add_column(width=CHECK_CHARS, overflow="fold")
        table.add_column(overflow="fold")
        advice = f"\n-> {each.do}" if each.do else ""
        table.add_row(Text(each.level, STYLE[each.level]), Text(each.check), Text(each.found + advice))
        console.print(table)

    return tell


def _summary(found: list[Finding]) -> str:
    count = Counter(each.level for each in found)
    parts = [_counted(count[level], level) for level in (Level.FAULT, Level.WARNING) if count[level]]
    return ", ".join(parts) or "all is well"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
