"""Problems of a config, and the error that lists them.

A config is checked as a whole, and one error lists every problem:

    configs/a.yaml: 2 problems
      configs/a.yaml:7: training.lrr: 0.1: unknown key (did you mean 'lr'?)
      --set stop.iterations=0: stop.iterations: 0: must be at least 1
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from raytrain.errors import BadInput

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the root of a config: ("training", "lr", 0, 1)."""

_LONGEST_VALUE = 80


NOTHING = ...
"""A problem's `value` where there is none to show (a missing key). It stays the same object in a
pickle."""


@dataclass(frozen=True)
class Problem:
    """One problem.

    `where` is `file:line` or `--set KEY=VALUE`, empty for a config from Python; `field` is the
    dotted key; `suggestion` the nearest valid name.
    """

    message: str
    where: str = ""
    field: str = ""
    value: Any = NOTHING
    suggestion: str | None = None

    def __str__(self) -> str:
        text = self.message
        if self.suggestion is not None:
            text = f"{text} (did you mean {self.suggestion!r}?)"
        shown = "" if self.value is NOTHING else show_value(self.value)
        return ": ".join(part for part in (self.where, self.field, shown, text) if part)


class ConfigError(BadInput):
    """The config cannot be used. `problems` are all of its problems; the message lists them."""

    def __init__(self, *problems: Problem | str) -> None:
        # The problems are the exception's `args`, so it can be pickled between Ray's processes.
        super().__init__(*problems)
        self.problems = tuple(Problem(p) if isinstance(p, str) else p for p in problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = [f"{len(self.problems)} problems in the config", *map(str, self.problems)]
        return "\n  ".join(lines)


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most similar to `name`, in any case; None if no name is similar."""
    by_lower = {candidate.lower(): candidate for candidate in valid}
    matches = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def show_value(value: Any) -> str:
    """The value as it would be written in YAML's flow style, cut to a line."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def dotted(path: KeyPath) -> str:
    """Keys and positions as text: `curriculum[0].until`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")
