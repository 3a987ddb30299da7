"""Schedules of faults: which, when, and on whom, all drawn from one seed.

A moment is a number that only grows while a run goes on (iterations of all trials together; in the
benchmark, seconds), so that a schedule does not depend on the speed of the machine. Which victims
there are is only known when a fault strikes; the schedule holds a number that chooses among them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class Fault:
    """`which` chooses among victims, `how` among ways and lengths; both lie in [0, 1)."""

    number: int
    kind: str
    moment: float
    which: float
    how: float

    def __str__(self) -> str:
        return (
            f"{self.number:2}. {self.kind:10} at {self.moment:g} "
            f"(which {self.which:.3f}, how {self.how:.3f})"
        )

    def choose(self, victims: Sequence[_T]) -> _T:
        return victims[int(self.which * len(victims))]

    def between(self, low: float, high: float) -> float:
        """A length that `how` chooses."""
        return low + self.how * (high - low)


@dataclass(frozen=True)
class Schedule:
    seed: int
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        return "\n".join([f"schedule of seed {self.seed}:", *map(str, self.faults)])


def scattered(seed: int, kinds: Sequence[str], count: int, first: int, last: int) -> Schedule:
    """`count` faults at random moments in [first, last], each kind at least once."""
    chance = random.Random(seed)
    moments = sorted(float(chance.randint(first, last)) for _ in range(count))
    return _drawn(seed, chance, kinds, moments)


def regular(seed: int, kinds: Sequence[str], moments: Sequence[float]) -> Schedule:
    """Faults at these moments, each kind as often as the others, or once more."""
    return _drawn(seed, random.Random(seed), kinds, moments, evenly=True)


def _drawn(
    seed: int,
    chance: random.Random,
    kinds: Sequence[str],
    moments: Sequence[float],
    *,
    evenly: bool = False,
) -> Schedule:
    if len(moments) < len(kinds):
        raise ValueError(f"{len(moments)} faults cannot be of all {len(kinds)} kinds")
    further = [
        kinds[index % len(kinds)] if evenly else chance.choice(kinds)
        for index in range(len(moments) - len(kinds))
    ]
    drawn = [*kinds, *further]
    chance.shuffle(drawn)
    faults = (
        Fault(number, kind, moment, chance.random(), chance.random())
        for number, (kind, moment) in enumerate(zip(drawn, moments, strict=True), start=1)
    )
    return Schedule(seed, tuple(faults))
