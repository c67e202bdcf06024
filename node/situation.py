"""What holds for the whole node at the moment: known in its main process, told to all of its doors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from node.findings import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """full: why there is no room for another job, in words, else "". recovering: what an earlier life left is not put
    right yet. served: a container was ready since the start, or there is none. wrong: what is wrong with the store.
    """

    full: str = ""
    recovering: bool = True
    draining: bool = False
    served: bool = False
    wrong: tuple[Finding, ...] = ()


class News:
    """The situation as this process knows it."""

    def __init__(self) -> None:
        self.now = Situation()
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, told: Callable[[], None]) -> None:
        self._listeners.append(told)

    def change(self, **facts: Any) -> None:
        self.tell(replace(self.now, **facts))

    def tell(self, now: Situation) -> None:
        if now != self.now:
            self.now = now
            for told in self._listeners:
                told()
