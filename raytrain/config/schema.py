"""`ExperimentConfig`: everything that a run needs to know, validated and immutable.

    name, storage_path, seed
    environment env_runners training learners rl_module        methods of RLlib's AlgorithmConfig
    callbacks evaluation fault_tolerance debugging resources   (sections.py)
    stop checkpoint failure preemption tune curriculum         raytrain's own (below)

Two fields are not keys of the YAML file: `import_path`, the directory of the file, where an
environment's module is looked for; and `search`, the search spaces. A value that is searched holds
the first candidate, so every field has its plain type; `to_dict` puts the search space back.

The docstring of a field is its text in docs/guide/config.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raytrain.config.fields import (
    EPISODE_WINDOW,
    AboveZero,
    Bounds,
    Count,
    DirectoryName,
    Number,
    Positive,
    Section,
    Seed,
    Storage,
    Text,
    Whole,
)
from raytrain.config.search import SearchSpace, put_value
from raytrain.config.sections import (
    Callbacks,
    Debugging,
    Environment,
    EnvRunners,
    Evaluation,
    FaultTolerance,
    Learners,
    ResourcesSection,
    RLModule,
    Stage,
    Training,
)

ALGORITHM_SECTIONS = (
    "environment",
    "env_runners",
    "training",
    "learners",
    "rl_module",
    "callbacks",
    "evaluation",
    "fault_tolerance",
    "debugging",
    "resources",
)
"""The sections that RLlib gets, in the order of the file."""

EVALUATION_SCORE = "evaluation/episode_return_mean"

NOT_YAML_KEYS = ("import_path", "search")


class Stop(Section):
    """What ends the run: at least one criterion; the one that is met first ends it."""

    timesteps: Positive | None = None
    """Environment steps in total."""
    episode_return_mean: Number | None = None
    """Mean return of the last `window` finished episodes."""
    iterations: Positive | None = None
    """Training iterations."""
    time_s: AboveZero | None = None
    """Seconds of training, without interruptions and the time in which the machine sleeps."""
    episodes: Positive | None = None
    """Finished episodes in total."""
    metrics: Bounds = Field(default={})
    """Values that metrics have to reach, also metrics of the environment: `{profit: 100}`, or
    `{drift: {at_most: 0.01}}`."""
    window: Positive | None = EPISODE_WINDOW
    """Finished episodes that returns and the environment's metrics are averaged over; they end a
    run that has so many. Null: the episodes of the iteration."""

    @property
    def has_an_end(self) -> bool:
        """Whether the run ends however badly it learns."""
        return any((self.timesteps, self.iterations, self.time_s, self.episodes))

    @property
    def criteria(self) -> dict[str, Any]:
        """The criteria that are set."""
        values = self.model_dump(exclude={"window"})
        return {key: value for key, value in values.items() if value not in (None, {})}


class Checkpoint(Section):
    """When checkpoints are written, besides the final one, and how many are kept."""

    checkpoint_frequency: Count = 5
    """Iterations between checkpoints; 0: no checkpoints by iterations."""
    every_timesteps: Positive | None = None
    """And/or environment steps between checkpoints."""
    every_episodes: Positive | None = None
    """And/or finished episodes between checkpoints."""
    every_seconds: AboveZero | None = None
    """And/or seconds of training between checkpoints."""
    num_to_keep: Positive | None = 3
    """Newest periodic checkpoints to keep; null keeps all."""
    score: Text = "episode_return_mean"
    """The metric that chooses `best/`: one of the results, or of the environment. With evaluation,
    the default is `evaluation/episode_return_mean`."""
    score_window: Positive | None = EPISODE_WINDOW
    """Finished episodes that a training score is averaged over (fewer if there are not so many);
    null: the episodes of the iteration."""
    score_order: Literal["max", "min"] = "max"
    """Which score is best."""
    max_failed_saves: Count = 3
    """Consecutive failed saves that a run survives."""


class Failure(Section):
    """What a trial survives."""

    max_failures: Annotated[Whole, Field(ge=-1)] = 3
    """Restarts of a trial after failures; -1: no limit."""


class Preemption(Section):
    """How every node asks whether it will be taken away, where Ray is not notified."""

    notice_command: Text | None = None
    """A shell command; exit code 0 means that the node will be taken away."""
    notice_url: Text | None = None
    """A URL; a reply with status 200 that matches means that the node will be taken away."""
    notice_headers: dict[str, str] = Field(default={})
    """HTTP headers of the requests to `notice_url`."""
    notice_match: Text = "."
    """A regular expression to search for in the reply of `notice_url`."""
    notice_every_s: AboveZero = 2.0
    """Seconds between two requests."""
    notice_grace_s: AboveZero = 30.0
    """Seconds between the notice and the end of the node."""


class Tune(Section):
    """Several trials in one experiment."""

    num_samples: Positive = 1
    """Draws of the random search spaces, for each point of the grid."""
    max_concurrent_trials: Positive | None = None
    """Trials at a time; null: as many as fit."""


class ExperimentConfig(Section):
    """One experiment. Build it with `load_config` or `config_from_dict`."""

    name: DirectoryName
    """The experiment's directory; the same name is the same run."""
    storage_path: Storage = "results"
    """A path, or a URI such as `s3://bucket/runs`."""
    seed: Seed = 0
    """Seed of every random number in the run."""
    environment: Environment
    env_runners: EnvRunners = EnvRunners()
    training: Training = Training()
    learners: Learners = Learners()
    rl_module: RLModule = RLModule()
    # A config without it has the digest that it had before there was this section.
    callbacks: Callbacks = Field(default=Callbacks(), exclude_if=lambda value: value == Callbacks())
    evaluation: Evaluation = Evaluation()
    fault_tolerance: FaultTolerance = FaultTolerance()
    debugging: Debugging = Debugging()
    resources: ResourcesSection = ResourcesSection()
    stop: Stop
    checkpoint: Checkpoint = Checkpoint()
    failure: Failure = Failure()
    preemption: Preemption = Preemption()
    tune: Tune = Tune()
    curriculum: list[Stage] = Field(default=[])
    """Stages, one after the other; the keys of each are below."""
    import_path: str | None = None
    search: tuple[SearchSpace, ...] = Field(default=(), exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _evaluation_is_the_score(cls, values: Any) -> Any:
        """With evaluation, its return chooses `best`, unless `checkpoint.score` is given."""
        if not isinstance(values, Mapping):
            return values
        evaluation, checkpoint = values.get("evaluation"), values.get("checkpoint", {})
        if not isinstance(evaluation, Mapping) or not isinstance(checkpoint, Mapping):
            return values
        if "score" in checkpoint or not evaluation.get("evaluation_interval"):
            return values
        return {**values, "checkpoint": {**checkpoint, "score": EVALUATION_SCORE}}

    def to_dict(self) -> dict[str, Any]:
        """Every field as JSON-able values, search spaces in their places, `import_path` included.

        `config_from_dict` makes an equal config of it. An unlimited `vf_clip_param` is a float
        infinity, which Python's `json` writes as `Infinity` and reads back.
        """
        values = self.model_dump(by_alias=True)
        for space in self.search:
            put_value(values, space.path, {space.kind: list(space.values)})
        return values


def most_env_runners(runners: EnvRunners) -> int:
    """How many env runner actors a trial has if the cluster has room for all."""
    groups = runners.num_env_runners
    return groups if runners.max_actors is None else min(groups, runners.max_actors)


def cpus_at_most(config: ExperimentConfig) -> float:
    """An upper bound of the CPUs that one trial asks for."""
    cpus = config.learners.num_cpus_per_learner
    learner = 1.0 if isinstance(cpus, str) else float(cpus)
    main = float(config.resources.num_cpus_for_main_process)
    runners = most_env_runners(config.env_runners) + config.evaluation.evaluation_num_env_runners
    if config.learners.num_learners == 0:
        main = max(main, learner)
    return (
        main
        + config.learners.num_learners * learner
        + runners * config.env_runners.num_cpus_per_env_runner
    )


def num_trials(config: ExperimentConfig) -> int:
    """The points of the grid times tune.num_samples."""
    grid = [len(space.values) for space in config.search if space.kind == "grid_search"]
    return math.prod(grid) * config.tune.num_samples
