"""`python -m node` is the command `stoker`."""

from node.cli import app

app()
