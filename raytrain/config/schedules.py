"""Schedules of `training`: values that follow the run's timesteps.

    lr: 3.0e-4                                fixed
    lr: [[0, 3.0e-4], [500_000, 1.0e-5]]      RLlib's: linear between two points, then constant
    lr: {linear: [3.0e-4, 0]}                 from timestep 0 to stop.timesteps

An iteration uses the value at the timesteps sampled before it, as RLlib does, so the last one of
`{linear: [x, 0]}` still learns. `stop.timesteps` may change when a run continues: what is relative
to it changes then too, and the run is not exact from there on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain.config.schema import ExperimentConfig

SCHEDULED = ("lr", "entropy_coeff", "clip_param", "clip_range_vf")
"""The keys of `training` that may follow a schedule."""


def is_relative(value: Any) -> bool:
    """Whether a value of one of these keys is relative to `stop.timesteps`."""
    return isinstance(value, dict)


def resolved(value: Any, timesteps: int | None) -> Any:
    """A value with its timesteps: a number, RLlib's schedule, or None. `timesteps` is
    `stop.timesteps`, without which no relative value is valid."""
    if not is_relative(value):
        return value
    first, last = value["linear"]
    return [[0, first], [timesteps, last]]


def first_value(value: Any) -> Any:
    """What a resolved value begins with."""
    return value[0][1] if isinstance(value, list) else value


def relative_keys(config: ExperimentConfig) -> list[str]:
    """Dotted keys whose values are relative to `stop.timesteps`, those of stages included."""
    sections = [("training", config.training)]
    sections += [
        (f"curriculum.{stage.name}.training", stage.training) for stage in config.curriculum
    ]
    return [
        f"{section}.{key}"
        for section, training in sections
        for key in SCHEDULED
        if is_relative(getattr(training, key))
    ]
