"""How runs become figures: rounds that interleave the rivals, and medians of ratios within a round.

A machine has slow minutes, so a rate alone means little. Every round runs each rival once, one
after the other (A B C, A B C, ...); a ratio is taken between runs of the same round, and of these
ratios the median is shown with the lowest and the highest. Rates are medians too."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class Options:
    """What the command line says. `rounds` None: the table's own number. `quick`: shortest runs,
    to see that it works; the figures mean nothing."""

    rounds: int | None = None
    quick: bool = False
    jobs: int = 2

    def rounds_or(self, usual: int) -> int:
        return self.rounds or (1 if self.quick else usual)


@dataclass(frozen=True)
class Table:
    """Rows of one table, each a mapping from the same column names."""

    title: str
    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))


def interleave(runs: Mapping[str, Callable[[], _T]], rounds: int, what: str) -> dict[str, list[_T]]:
    """Run every rival once a round, in turn; the results by name, in the order of the rounds."""
    found: dict[str, list[_T]] = {name: [] for name in runs}
    for number in range(1, rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            found[name].append(run())
            took = time.perf_counter() - started
            say(f"{what}: round {number} of {rounds}, {name}: {took:.0f} s")
    return found


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Of each round: the first value over the second."""
    return [a / b for a, b in zip(values, others, strict=True)]


def median_of_ratios(values: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(ratios(values, others))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`2.41 (2.33-2.52)`: the median, and the range if there is one."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) < 2:
        return middle
    return f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def whole(values: Sequence[float]) -> int:
    return round(statistics.median(values))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
