"""Search spaces: values that Tune chooses for each trial.

    lr: {grid_search: [1.0e-4, 1.0e-3]}      one trial for each, times tune.num_samples
    lr: {choice: [1.0e-4, 1.0e-3]}           drawn for each of tune.num_samples
    lr: {uniform: [1.0e-4, 1.0e-3]}          drawn between the two
    lr: {loguniform: [1.0e-4, 1.0e-3]}       drawn between the two, uniformly in the logarithm

They may stand under `training`, `env_runners`, `learners`, `environment.env_config`,
`rl_module.model_config`, and for `seed`.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raytrain.config.errors import KeyPath, Problem

_LISTS = ("grid_search", "choice")
_RANGES = ("uniform", "loguniform")
_GOLDEN = 0.381966
"""The fraction of a range at which a value is tried: it gives no whole number by chance."""
_MAY_BE_SEARCHED: tuple[tuple[str, ...], ...] = (
    ("training",),
    ("env_runners",),
    ("learners",),
    ("environment", "env_config"),
    ("rl_module", "model_config"),
    ("seed",),
)
_LARGEST_FULL_CHECK = 256


@dataclass(frozen=True)
class SearchSpace:
    """`values` are the candidates of a list, or the two ends of a range."""

    path: tuple[str, ...]
    kind: str
    values: tuple[Any, ...]

    def candidates(self) -> list[tuple[KeyPath, Any]]:
        """The values to validate, each with its path in the YAML file."""
        at = (*self.path, self.kind)
        ends: list[tuple[KeyPath, Any]]
        ends = [((*at, index), value) for index, value in enumerate(self.values)]
        if self.kind in _LISTS:
            return ends
        low, high = self.values
        return [*ends, (at, low + (high - low) * _GOLDEN)]


def space_kind(value: Mapping[str, Any]) -> str | None:
    """The kind of the search space that a mapping in the config is; None for any other mapping."""
    kind = next(iter(value)) if len(value) == 1 else None
    return kind if kind in (*_LISTS, *_RANGES) else None


def put_value(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set a value in nested dictionaries, in place."""
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = copy.deepcopy(value)


def take_out(
    values: dict[str, Any],
) -> tuple[dict[str, Any], list[SearchSpace], list[tuple[KeyPath, Problem]]]:
    """The config with each search space replaced by its first value; the spaces; the problems.

    A problem comes with its path. A wrong search space is left out of the values, so that the rest
    can still be validated.
    """
    spaces: list[SearchSpace] = []
    problems: list[tuple[KeyPath, Problem]] = []

    def walk(node: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(node, dict):
            return node
        kind = space_kind(node)
        if kind is None or not path:
            walked = {key: walk(item, (*path, key)) for key, item in node.items()}
            return {key: item for key, item in walked.items() if item is not _REFUSED}
        message = _refusal(path, kind, node[kind])
        if message is not None:
            problems.append(((*path, kind), Problem(message, value=node)))
            return _REFUSED
        spaces.append(SearchSpace(path, kind, tuple(copy.deepcopy(node[kind]))))
        return copy.deepcopy(node[kind][0])

    plain: dict[str, Any] = walk(values, ())
    return plain, spaces, problems


_REFUSED = object()


def _refusal(path: tuple[str, ...], kind: str, values: Any) -> str | None:
    if not any(path[: len(prefix)] == prefix for prefix in _MAY_BE_SEARCHED):
        places = ", ".join(".".join(prefix) for prefix in _MAY_BE_SEARCHED)
        return f"cannot be searched; search spaces are allowed under {places}"
    if path in _MAY_BE_SEARCHED and path != ("seed",):
        return "a search space replaces one value; give each key of the section its own"
    if kind in _LISTS:
        if not isinstance(values, list) or not values:
            return f"{kind} needs a list of at least one value"
        return None
    if not isinstance(values, list) or len(values) != 2 or not all(map(_is_finite, values)):
        return f"{kind} needs a list of two numbers [a, b]"
    low, high = values
    if not low < high:
        return f"{kind} needs a < b, and {low} is not less than {high}"
    if kind == "loguniform" and low <= 0:
        return f"loguniform needs numbers above 0, and the lower one is {low}"
    return None


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


Chosen = tuple[tuple[SearchSpace, KeyPath, Any], ...]


def combinations(spaces: list[SearchSpace]) -> Iterator[Chosen]:
    """What to validate: all combinations of candidates; of many, each candidate alone."""
    choices = [[(space, at, value) for at, value in space.candidates()] for space in spaces]
    if math.prod(map(len, choices)) <= _LARGEST_FULL_CHECK:
        yield from itertools.product(*choices)
    else:
        yield from ((candidate,) for candidate in itertools.chain(*choices))
