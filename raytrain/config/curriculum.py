"""`curriculum`: stages of one run, each with an end of its own and values that differ meanwhile.

    curriculum:
      - name: moderate
        until: {timesteps: 200_000}
        environment: {env_config: {force_kn: 50}}
      - name: severe
        until: {episode_return_mean: -40, window: 50, timesteps: 800_000}
        environment: {env_config: {force_kn: 150}}
        training: {lr: 1.0e-4}

A stage's values stand in the place of the config's own; they do not add up from stage to stage. Of
`env_config` the keys that are given are replaced, the others stay. Timesteps count from the stage's
beginning, and a return is the mean of the stage's last `window` episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raytrain.config.sections import Training

if TYPE_CHECKING:
    from raytrain.config.schema import ExperimentConfig

_FIXED = ("use_critic", "use_gae")
"""Keys of `training` that say how the learner is built."""


def stage_config(config: ExperimentConfig, index: int) -> ExperimentConfig:
    """The config that holds during a stage: an ordinary one, without a curriculum. Without stages it
    is the config itself."""
    if not config.curriculum:
        return config
    stage = config.curriculum[index]
    env_config = {**config.environment.env_config, **stage.environment.env_config}
    training = {**config.training.model_dump(), **stage.training.model_dump()}
    return config.model_copy(
        update={
            "environment": config.environment.model_copy(update={"env_config": env_config}),
            "training": Training.model_validate(training),
            "curriculum": [],
        }
    )


def eras(config: ExperimentConfig) -> dict[str, int]:
    """Stage -> a number that is the same for stages whose scores can be compared, and grows. Scores
    of different environments cannot. Evaluation's is that of training, with its own values laid over."""
    over: dict[str, Any] = {}
    if config.checkpoint.score.startswith("evaluation/"):
        over = config.evaluation.evaluation_config.env_config or {}
    found: dict[str, int] = {}
    era, before = 0, None
    for index, stage in enumerate(config.curriculum):
        now = {**stage_config(config, index).environment.env_config, **over}
        if before is not None and now != before:
            era += 1
        found[stage.name], before = era, now
    return found


def total_timesteps(config: ExperimentConfig) -> int | None:
    """The timesteps at which the run ends at the latest, by `stop` or the stages, if that is known."""
    ends = [config.stop.timesteps]
    each = [stage.until.timesteps for stage in config.curriculum]
    if each and None not in each:
        ends.append(sum(steps for steps in each if steps is not None))
    return min((steps for steps in ends if steps is not None), default=None)


def stage_problems(config: ExperimentConfig) -> Iterator[tuple[str, Any]]:
    """What cannot be in a list of stages: a sentence and the value."""
    names = [stage.name for stage in config.curriculum]
    for index, stage in enumerate(config.curriculum):
        if stage.name in names[:index]:
            yield "two stages have this name", stage.name
        if stage.name.endswith((".new", ".old")):
            yield "a stage's name cannot end in .new or .old", stage.name
        if not stage.until.criteria and index + 1 < len(names):
            yield (
                f"the stage {stage.name!r} would never end, so {names[index + 1]!r} would never "
                "begin: give until.timesteps or until.episode_return_mean",
                stage.name,
            )
        for key in _FIXED:
            if key in stage.training.model_fields_set:
                yield f"the stage {stage.name!r} cannot change training.{key}", stage.name
        bounded = stage.until.timesteps is not None or config.stop.has_an_end
        if stage.until.criteria and not bounded:
            yield (
                f"the stage {stage.name!r} may never reach what ends it: give until.timesteps as "
                "well, or stop.timesteps",
                stage.name,
            )
