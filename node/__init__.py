"""Stoker: a job node that runs chains of containers. Start reading at `docs/architecture.md`."""

__version__ = "0.1.0"
