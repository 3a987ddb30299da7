"""`curriculum`: the stages of a run, each with its own end and its own values.

    curriculum:
      - name: moderate
        until: {timesteps: 200_000}
        environment: {env_config: {force_kn: 50}}
      - name: severe
        until: {episode_return_mean: -40, window: 50, timesteps: 800_000}
        environment: {env_config: {force_kn: 150}}
        training: {lr: 1.0e-4}

A stage's values replace those of the config; values of earlier stages no longer hold. In
`env_config`, the given keys are replaced and the others stay. Timesteps count from the beginning of
the stage, and a return is the mean of the stage's last `window` episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raytrain.config.environment import deep_merge

if TYPE_CHECKING:
    from raytrain.config.schema import ExperimentConfig

_FIXED = (
    *("use_critic", "use_gae", "learner_connector", "learner_class"),
    *("learner_config_dict", "torch_lr_schedulers"),
)
"""Keys of `training` on which the construction of the learner depends."""


def stage_config(config: ExperimentConfig, index: int) -> ExperimentConfig:
    """The config of a stage, without a curriculum; the config itself if there are no stages."""
    if not config.curriculum:
        return config
    stage = config.curriculum[index]
    env_config = {**config.environment.env_config, **stage.environment.env_config}
    return config.model_copy(
        update={
            "environment": config.environment.model_copy(update={"env_config": env_config}),
            "training": config.training.model_copy(update=stage.training.model_dump()),
            "curriculum": [],
        }
    )


def eras(config: ExperimentConfig) -> dict[str, int]:
    """Stage -> an increasing number, the same for consecutive stages whose scores can be compared.

    Scores can be compared if the environments that they come from have the same arguments. A score
    of evaluation comes from the stage's environment with the arguments of `evaluation_config`.
    """
    overrides: dict[str, Any] = {}
    if config.checkpoint.score.startswith("evaluation/"):
        overrides = config.evaluation.evaluation_config.env_config or {}
    numbers: dict[str, int] = {}
    era, before = 0, None
    for index, stage in enumerate(config.curriculum):
        now = deep_merge(stage_config(config, index).environment.env_config, overrides)
        if before is not None and now != before:
            era += 1
        numbers[stage.name], before = era, now
    return numbers


def total_timesteps(config: ExperimentConfig) -> int | None:
    """The timesteps at which the run ends at the latest, by `stop` or its stages; None: unknown."""
    ends = [] if config.stop.timesteps is None else [config.stop.timesteps]
    stages = [stage.until.timesteps for stage in config.curriculum]
    lengths = [timesteps for timesteps in stages if timesteps is not None]
    if stages and len(lengths) == len(stages):
        ends.append(sum(lengths))
    return min(ends, default=None)


def stage_problems(config: ExperimentConfig, index: int) -> Iterator[str]:
    """What is wrong with a stage in the list of stages."""
    names = [stage.name for stage in config.curriculum]
    stage = config.curriculum[index]
    if stage.name in names[:index]:
        yield "two stages have this name"
    if stage.name.endswith((".new", ".old")):
        yield "a stage's name cannot end in .new or .old"
    if not stage.until.criteria and index + 1 < len(names):
        yield (
            f"the stage {stage.name!r} would never end, so {names[index + 1]!r} would never "
            "begin: give until.timesteps or until.episode_return_mean"
        )
    for key in _FIXED:
        if key in stage.training.model_fields_set:
            yield f"the stage {stage.name!r} cannot change training.{key}"
    bounded = stage.until.timesteps is not None or config.stop.has_an_end
    if stage.until.criteria and not bounded:
        yield (
            f"the stage {stage.name!r} may never end: also give until.timesteps, or stop.timesteps"
        )
