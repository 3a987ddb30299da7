"""The last finished episodes of a trial, and means over them.

A row is one of `fast_sampling.episode_rows`: `return`, `length`, and `custom/<name>` for each
number that the environment put into its last `info`. Means leave out values that are not finite.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CUSTOM = "custom/"
"""Prefix of the names of the environment's metrics in a row."""


class RecentEpisodes:
    """The last `size` rows."""

    def __init__(self, size: int) -> None:
        self._rows: deque[dict[str, float]] = deque(maxlen=size)

    @property
    def count(self) -> int:
        """How many there are, at most `size`."""
        return len(self._rows)

    def extend(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            kept = {key: float(row[key]) for key in row if key.startswith(CUSTOM)}
            self._rows.append({"return": row["return"], "length": float(row["length"]), **kept})

    def clear(self) -> None:
        self._rows.clear()

    def has(self, column: str) -> bool:
        """Whether any row has the column."""
        return any(column in row for row in self._rows)

    def mean(self, column: str, last: int) -> float | None:
        """Over the last `last` episodes, or as many as there are; None if none has the column."""
        rows = list(self._rows)[-last:]
        return _mean([row[column] for row in rows if column in row])

    def means(self, last: int) -> dict[str, Any]:
        """The means of every column, as a result reports them: `custom` is a nested mapping."""
        custom = {column for row in self._rows for column in row if column.startswith(CUSTOM)}
        means = {
            "episodes": min(last, self.count),
            "episode_return_mean": self.mean("return", last),
            "episode_len_mean": self.mean("length", last),
            "custom": {name.removeprefix(CUSTOM): self.mean(name, last) for name in sorted(custom)},
        }
        return {key: value for key, value in means.items() if value not in (None, {})}

    def to_state(self) -> list[dict[str, float]]:
        """JSON types; Python's `json` writes and reads NaN and infinities."""
        return [dict(row) for row in self._rows]

    def load(self, rows: Sequence[Mapping[str, float]]) -> None:
        self._rows.clear()
        self._rows.extend(dict(row) for row in rows)


def summarised(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Each of the environment's metrics over some episodes, values that are not finite left out.

    Example: {"profit": {"mean": ..., "min": ..., "max": ...}}.
    """
    names = sorted({key for row in rows for key in row if key.startswith(CUSTOM)})
    summary = {}
    for name in names:
        values = [row[name] for row in rows if name in row and math.isfinite(row[name])]
        mean = _mean(values)
        if mean is not None:
            bounds = {"min": min(values), "max": max(values)}
            summary[name.removeprefix(CUSTOM)] = {"mean": mean, **bounds}
    return summary


def _mean(values: Iterable[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
