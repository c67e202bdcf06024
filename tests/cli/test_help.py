"""Help is quick, because it loads nothing that only a node needs. Loaded modules are counted, not milliseconds."""

import subprocess
import sys

import pytest

from tests.support import ROOT

HEAVY = {"aiohttp", "asyncio", "docker", "msgspec", "pydantic", "redis", "rich", "structlog", "uvloop"}

LOADED = """
import sys
from node.cli import app
try:
    app(sys.argv[1:], prog_name="stoker")
finally:
    print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_what_only_tells_about_the_command_loads_no_node(word: str) -> None:
    told = subprocess.run([sys.executable, "-c", LOADED, word], cwd=ROOT, text=True, capture_output=True)
    assert "stoker" in told.stdout + told.stderr
    loaded = set(told.stderr.splitlines()[-1].split())
    assert "typer" in loaded
    assert not loaded & HEAVY
