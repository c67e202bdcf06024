"""What a load costs a Valkey: commands and round trips, as the server itself counts them."""

from pathlib import Path
from typing import Any, Self

import redis


class Counts:
    """Counts while entered. All that the server's clients did is in it: submitting, running, reading results.

    reads: how often the server read from a client; each round trip is at least one, a large one may be several.
    scripts: how many were called. commands: how many were run, those within scripts included.
    """

    def __init__(self, store: Path | None) -> None:
        """store: the server's socket; None where there is no server, and nothing to count."""
        self._client = redis.Redis(unix_socket_path=str(store)) if store else None
        self._counted: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self._counted = {name: value - self._before[name] for name, value in self._read().items()}
        if self._client:
            self._client.close()

    def per_job(self, jobs: int) -> dict[str, float]:
        return {f"{name}_per_job": value / jobs for name, value in self._counted.items()}

    def _read(self) -> dict[str, int]:
        if self._client is None:
            return {}
        stats: Any = self._client.info("stats")
        commands: Any = self._client.info("commandstats")
        return {
            "reads": stats["total_reads_processed"],
            "scripts": commands.get("cmdstat_evalsha", {}).get("calls", 0),
            "commands": stats["total_commands_processed"],
        }
