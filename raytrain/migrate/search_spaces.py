"""Tune's search spaces -> raytrain's (`raytrain.config.search`)."""

from __future__ import annotations

from typing import Any

_WHAT_THERE_IS = "there are grid_search, choice, uniform and loguniform"


class NoSearchSpace(Exception):
    """A search space of Tune's that raytrain has no counterpart of; the text says why."""


def is_search_space(value: Any) -> bool:
    """Whether a value is one of Tune's search spaces."""
    from ray.tune.search.sample import Domain

    return isinstance(value, Domain) or is_grid(value)


def is_grid(value: Any) -> bool:
    """Whether a value is what `tune.grid_search` returns."""
    return isinstance(value, dict) and list(value) == ["grid_search"]


def converted(space: Any) -> dict[str, list[Any]]:
    """The search space in raytrain's form, `{kind: values}`. Raises NoSearchSpace."""
    from ray.tune.search import sample

    if is_grid(space):
        return {"grid_search": list(space["grid_search"])}
    if isinstance(space, sample.Categorical):
        return {"choice": list(space.categories)}
    sampler = space.get_sampler()
    ends = [getattr(space, "lower", None), getattr(space, "upper", None)]
    if isinstance(space, sample.Float) and isinstance(sampler, sample.LogUniform):
        return {"loguniform": ends}
    if isinstance(space, sample.Float) and isinstance(sampler, sample.Uniform):
        return {"uniform": ends}
    if isinstance(space, sample.Function):
        raise NoSearchSpace(f"tune.sample_from is not possible: {_WHAT_THERE_IS}")
    if isinstance(space, sample.Integer) and isinstance(sampler, sample.Uniform):
        low, high = ends
        numbers = f"range({low}, {high})"
        raise NoSearchSpace(f"tune.randint is not possible; write tune.choice(list({numbers}))")
    raise NoSearchSpace(f"this kind of search space is not possible: {_WHAT_THERE_IS}")


def first_value(space: Any) -> Any:
    """A value to stand for the space, where RLlib looks at it."""
    from ray.tune.search import sample

    if is_grid(space):
        return space["grid_search"][0]
    if isinstance(space, sample.Categorical):
        return space.categories[0]
    return getattr(space, "lower", None)
