"""Time on the wall and on the processors while a load lasts.

The CPU time per job is the steadier figure: a busy machine makes every rate smaller, and that hardly.
"""

import os
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

IDLE_SHARE = 0.03  # of a core: what a server uses that has nothing to do
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Clock:
    """Runs while entered. processes: what each is, with its id; those of the same kind are added up."""

    def __init__(self, processes: Iterable[tuple[str, int]]) -> None:
        self._processes = list(processes)
        self.seconds = 0.0
        self._generator_s = 0.0
        self._used: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._before = self._read()
        self._generator_before = time.process_time()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self._generator_s = time.process_time() - self._generator_before
        self._used = self._read()
        self._used.subtract(self._before)

    @property
    def generator_share(self) -> float:
        """Of one core."""
        return self._generator_s / self.seconds

    def cpu_us(self, jobs: int) -> dict[str, float]:
        """Microseconds per job: `cpu_<kind>_us`, of those that had work."""
        work = IDLE_SHARE * self.seconds * TICKS_PER_S
        per_job = 1e6 / TICKS_PER_S / jobs
        return {f"cpu_{kind}_us": ticks * per_job for kind, ticks in self._used.items() if ticks > work}

    def _read(self) -> Counter[str]:
        ticks: Counter[str] = Counter()
        for kind, pid in self._processes:
            with suppress(OSError):  # it has ended, as a worker may
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks[kind] += int(fields[11]) + int(fields[12])
        return ticks
