"""Output cut to what people can read."""

import pytest

from node.backends.contract import LINE_CHARACTERS
from node.backends.output import Pace, tail


@pytest.mark.parametrize(
    ("output", "lines", "expected"),
    [
        (b"", 5, []),
        (b"one\ntwo\n", 5, ["one", "two"]),
        (b"one\ntwo\nthree", 2, ["two", "three"]),
        (b"one\r\n\ntwo\n\n", 3, ["", "two", ""]),
        (b"one\n", 0, []),
        (b"\xff\xc3\xa9\n", 1, ["\ufffdé"]),
        ("é".encode() * LINE_CHARACTERS, 1, ["é" * LINE_CHARACTERS]),
        ("é".encode() * 2 * LINE_CHARACTERS, 1, ["é" * (LINE_CHARACTERS - 1) + "…"]),
        ("😀".encode() * (LINE_CHARACTERS + 1), 1, ["😀" * (LINE_CHARACTERS - 1) + "…"]),
    ],
)
def test_the_tail_is_the_last_lines(output: bytes, lines: int, expected: list[str]) -> None:
    assert tail(output, lines) == expected


def test_progress_is_passed_on_at_a_low_rate() -> None:
    told: list[str] = []
    pace = Pace(told.append)
    pace("")
    for number in range(1000):
        pace(f"{number} of 1000")
    assert told == ["0 of 1000"]
