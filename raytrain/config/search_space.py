"""A search space of a config: its path, its kind, and its values."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

LISTS = ("grid_search", "choice")
RANGES = ("uniform", "loguniform")
_GOLDEN = 0.381966
"""The fraction of a range at which a value is tried: it gives no whole number by chance."""


@dataclass(frozen=True)
class SearchSpace:
    """`values` are the candidates of a list, or the two ends of a range."""

    path: tuple[str, ...]
    kind: str
    values: tuple[Any, ...]

    def candidates(self) -> list[tuple[tuple[str | int, ...], Any]]:
        """The values to validate, each with its path in the YAML file."""
        at = (*self.path, self.kind)
        ends: list[tuple[tuple[str | int, ...], Any]]
        ends = [((*at, index), value) for index, value in enumerate(self.values)]
        if self.kind in LISTS:
            return ends
        low, high = self.values
        return [*ends, (at, low + (high - low) * _GOLDEN)]


def put_value(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set a value in nested dictionaries, in place."""
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = copy.deepcopy(value)
