"""The types of the config's fields, and their messages when they refuse a value.

Values are taken as they are written: text is never converted to a number, and true is not 1. There
are two exceptions: a float without a fraction is accepted as a whole number (`timesteps: 1e6`), and
a NumPy scalar, which Tune's samplers return, becomes a Python number.
"""

from __future__ import annotations

import itertools
import math
import numbers
import os
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    model_serializer,
)


class Section(BaseModel):
    """A section of the config: immutable, no unknown keys, no conversions."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )


class PartialSection(Section):
    """A section that holds, and dumps, only the keys that are given."""

    @model_serializer(mode="wrap")
    def _only_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if self.is_given(key, value)}

    def is_given(self, key: str, value: Any) -> bool:
        """Whether a key is dumped."""
        return value is not None


def _plain_number(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _whole(value: Any) -> Any:
    value = _plain_number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _auto_or_cpus(value: Any) -> int | float | str:
    value = _plain_number(value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value != "auto" and not (is_number and value >= 0):
        raise ValueError("must be 'auto' or a number, at least 0")
    return value  # type: ignore[no-any-return]


EPISODE_WINDOW = 100
"""Default number of finished episodes that returns are averaged over: Gymnasium's convention
(CartPole-v1 is solved at 475 over 100 consecutive episodes)."""

Text = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_plain_number)]

Count = Annotated[Whole, Field(ge=0)]
# NumPy takes 32 bits, and numbers of groups and copies are added.
Seed = Annotated[Whole, Field(ge=0, le=4_000_000_000)]
Positive = Annotated[Whole, Field(ge=1)]
NonNegative = Annotated[Number, Field(ge=0)]
AboveZero = Annotated[Number, Field(gt=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Resources = dict[str, AboveZero]
FragmentLength = Literal["auto"] | Positive
# An int stays an int: the config's digest tells 1 from 1.0.
AutoCpus = Annotated[int | float | str, PlainValidator(_auto_or_cpus)]
TimeoutSeconds = Literal["auto"] | AboveZero | None


def _number(value: Any, *, what: str) -> float:
    value = _plain_number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError(f"must be {what}")
    return float(value)


def _schedule_point(point: Any) -> list[int | float]:
    what = "a number, or a schedule of [timestep, value] pairs"
    if not isinstance(point, (list, tuple)) or len(point) != 2:
        raise ValueError(f"must be {what}; this is not a pair: {point!r}")
    step = _whole(point[0])
    if isinstance(step, bool) or not isinstance(step, int):
        raise ValueError(f"must be {what}; this timestep is not a whole number: {point[0]!r}")
    value = _number(point[1], what=f"{what}; this value is not a number: {point[1]!r}")
    if value < 0:
        raise ValueError(f"must not go below 0; a schedule's value is {value}")
    return [step, value]


def _linear(value: dict[Any, Any]) -> dict[str, list[float]]:
    what = "{linear: [value at timestep 0, value at stop.timesteps]}"
    ends = value.get("linear")
    if len(value) != 1 or not isinstance(ends, (list, tuple)) or len(ends) != 2:
        raise ValueError(f"a mapping here must be {what}")
    numbers = [_number(end, what=f"{what}; this is not a number: {end!r}") for end in ends]
    for number in numbers:
        if number < 0 or math.isinf(number):
            raise ValueError(f"the ends of `linear` must be finite, at least 0; one is {number}")
    return {"linear": numbers}


Schedule = list[list[int | float]]
Linear = dict[str, list[float]]


def _rate_or_schedule(value: Any) -> float | Schedule | Linear:
    if isinstance(value, dict):
        return _linear(value)
    if not isinstance(value, (list, tuple)):
        what = "a number, a schedule [[0, value], [timestep, value], ...] or {linear: [a, b]}"
        rate = _number(value, what=what)
        if rate < 0 or math.isinf(rate):
            raise ValueError("must be a finite number, at least 0")
        return rate
    if len(value) < 2:
        raise ValueError("a schedule needs two [timestep, value] pairs or more")
    points = [_schedule_point(point) for point in value]
    if points[0][0] != 0:
        raise ValueError(f"a schedule must start at timestep 0; this one starts at {points[0][0]}")
    for before, after in itertools.pairwise(points):
        if after[0] <= before[0]:
            raise ValueError(
                f"a schedule's timesteps must increase; {after[0]} follows {before[0]}"
            )
    return points


def _clip_range(value: Any) -> float | Schedule | Linear:
    clip = _rate_or_schedule(value)
    if clip == 0:
        raise ValueError("must be above 0")
    return clip


RateOrSchedule = Annotated[float | Schedule | Linear, PlainValidator(_rate_or_schedule)]
"""A number; or [[0, value], [timestep, value], ...], between which RLlib interpolates; or
{linear: [a, b]}, from a at timestep 0 to b at `stop.timesteps` (see `schedules`)."""

ClipRange = Annotated[float | Schedule | Linear, PlainValidator(_clip_range)]
"""The same; a number is above 0."""


def _vectorize_mode(value: Any) -> str:
    if isinstance(value, str) and value.lower() == "sync":
        return "sync"
    raise ValueError(
        "only 'sync' can be used: an exact resume needs a snapshot of every environment between "
        "two steps, and none can be taken of environments in other processes or of a vector kind"
    )


VectorizeMode = Annotated[str, PlainValidator(_vectorize_mode)]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _directory_name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text; put it in quotes")
    if not _NAME.fullmatch(value):
        raise ValueError(
            "must be usable as a directory's name: up to 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return value


DirectoryName = Annotated[str, PlainValidator(_directory_name)]


def _storage(value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value:
        raise ValueError("must be a path or a URI such as s3://bucket/runs")
    return value if "://" in value else os.path.abspath(os.path.expanduser(value))


Storage = Annotated[str, PlainValidator(_storage)]
"""A URI as it is, or an absolute path: relative ones begin at the current directory."""


def _code_path(value: Any) -> str:
    what = "must be a name in a module, such as my_code:Name"
    if not isinstance(value, str):
        found = f"the {type(value).__name__} {value!r}" if callable(value) else repr(value)
        raise ValueError(f"{what}; this is {found}")
    module, colon, name = value.partition(":")
    if not colon or not module or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{what} (the module, a colon, the name)")
    return value


def _code_paths(value: Any) -> str | list[str]:
    if isinstance(value, (list, tuple)):
        return [_code_path(item) for item in value]
    return _code_path(value)


CodePath = Annotated[str, PlainValidator(_code_path)]
"""A class or function of the user's: `module:Name` (see `own_code`)."""
CodePaths = Annotated[str | list[str], PlainValidator(_code_paths)]
"""One, or several in a list."""


def _torch_schedulers(value: Any) -> list[dict[str, Any]]:
    schedulers = []
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(item, dict) or "class" not in item:
            raise ValueError(
                "must be a list of mappings, such as "
                "[{class: 'torch.optim.lr_scheduler:ExponentialLR', gamma: 0.99}]"
            )
        plain = free_mapping(item)
        schedulers.append({**plain, "class": _code_path(plain["class"])})
    return schedulers


TorchSchedulers = Annotated[list[dict[str, Any]], PlainValidator(_torch_schedulers)]


def not_given(value: Any) -> bool:
    """For `Field(exclude_if=not_given)` of a key that is newer than its section: a config without
    it has the digest that it had before."""
    return value is None


def _plain_value(value: Any, path: str) -> Any:
    value = _plain_number(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain_value(item, f"{path}[{index}]") for index, item in enumerate(value)]
    place = f" at {path.lstrip('.')}" if path else ""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r}{place} must be text")
        return {key: _plain_value(item, f"{path}.{key}") for key, item in value.items()}
    raise ValueError(
        f"{value!r}{place} is a {type(value).__name__}; only text, numbers, true/false, null, "
        "lists and mappings can be stored with the run (put a date in quotes)"
    )


def free_mapping(value: Any) -> dict[str, Any]:
    """A copy of a mapping of JSON-able values. Raises ValueError for anything else."""
    if not isinstance(value, dict):
        raise ValueError("must be a mapping")
    plain: dict[str, Any] = _plain_value(value, "")
    return plain


FreeMapping = Annotated[dict[str, Any], PlainValidator(free_mapping)]
"""Any keys, JSON-able values. A copy: the caller's mapping is not shared."""


def _bound(value: Any) -> Any:
    what = "a number to reach, or {at_least: number} or {at_most: number}"
    if not isinstance(value, dict):
        return _number(value, what=what)
    if len(value) != 1 or next(iter(value)) not in ("at_least", "at_most"):
        raise ValueError(f"must be {what}; found the keys {sorted(map(str, value))}")
    return {key: _number(limit, what="a number") for key, limit in value.items()}


def _bounds(value: Any) -> dict[str, Any]:
    bounds = {}
    for name, bound in free_mapping(value).items():
        try:
            bounds[name] = _bound(bound)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return bounds


Bounds = Annotated[dict[str, Any], PlainValidator(_bounds)]
"""Metric -> the value to reach from below, or {at_least: value} (the same) or {at_most: value}."""
