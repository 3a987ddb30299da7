"""`ExperimentConfig`: everything that a run needs to know, validated and immutable.

    name, storage_path, seed
    environment env_runners training learners rl_module        methods of RLlib's AlgorithmConfig
    evaluation fault_tolerance debugging resources             (sections.py)
    stop checkpoint failure preemption tune curriculum         raytrain's own (below)

Two fields are not keys of the YAML file: `import_path`, the directory of the file, where an
environment's module is looked for; and `search`, the search spaces. A value that is searched holds
its first candidate in its place, so every field has its plain type; `to_dict` puts the space back.
"""

from __future__ import annotations

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
    Whole,
)
from raytrain.config.search_space import SearchSpace, put_back
from raytrain.config.sections import (
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
    "evaluation",
    "fault_tolerance",
    "debugging",
    "resources",
)
"""The sections that RLlib gets, in the order of the file."""

EVALUATION_SCORE = "evaluation/episode_return_mean"

NOT_YAML_KEYS = ("import_path", "search")


class Stop(Section):
    """When the run is finished: at least one, and whichever comes first."""

    timesteps: Positive | None = Field(default=None, description="Environment steps in all.")
    episode_return_mean: Number | None = Field(
        default=None, description="Mean return of the last `window` finished episodes."
    )
    iterations: Positive | None = Field(default=None, description="Training iterations.")
    time_s: AboveZero | None = Field(
        default=None,
        description="Seconds of training; interruptions and the machine's sleep are left out.",
    )
    episodes: Positive | None = Field(default=None, description="Finished episodes in all.")
    metrics: Bounds = Field(
        default={},
        description="Any metric to reach, such as one of the environment's: `{profit: 100}`, or "
        "`{drift: {at_most: 0.01}}`.",
    )
    window: Positive | None = Field(
        default=EPISODE_WINDOW,
        description="Finished episodes that returns and the environment's metrics are averaged over; a run "
        "has to have as many before it ends by them. Null: those of the iteration.",
    )

    @property
    def has_an_end(self) -> bool:
        """Whether the run ends however badly it learns."""
        return any((self.timesteps, self.iterations, self.time_s, self.episodes))

    @property
    def criteria(self) -> dict[str, Any]:
        """Those that are set."""
        return {
            key: value
            for key, value in self.model_dump(exclude={"window"}).items()
            if value not in (None, {})
        }


class Checkpoint(Section):
    """When checkpoints are written, beside the final one, and how many are kept."""

    checkpoint_frequency: Count = Field(
        default=5, description="Iterations between checkpoints; 0 turns this cadence off."
    )
    every_timesteps: Positive | None = Field(
        default=None, description="And/or environment steps between checkpoints."
    )
    every_episodes: Positive | None = Field(
        default=None, description="And/or finished episodes between checkpoints."
    )
    every_seconds: AboveZero | None = Field(
        default=None, description="And/or seconds of training between checkpoints."
    )
    num_to_keep: Positive | None = Field(
        default=3, description="Newest periodic checkpoints to keep; null keeps all."
    )
    score: Annotated[str, Field(min_length=1)] = Field(
        default="episode_return_mean",
        description="The metric that chooses `best/`: one of the results, or of the environment's. Where "
        "evaluation is on, the default is `evaluation/episode_return_mean`.",
    )
    score_window: Positive | None = Field(
        default=EPISODE_WINDOW,
        description="Finished episodes that a training score is averaged over, or as many as there are; "
        "null for those of the iteration.",
    )
    score_order: Literal["max", "min"] = Field(default="max", description="Which score is best.")
    max_failed_saves: Count = Field(
        default=3, description="Failed saves in a row that a run survives."
    )


class Failure(Section):
    """What a trial survives."""

    max_failures: Annotated[Whole, Field(ge=-1)] = Field(
        default=3, description="Restarts of a trial after failures; -1 for no limit."
    )


class Preemption(Section):
    """How a node learns that it will be taken away, where nothing tells Ray: asked on every node."""

    notice_command: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="A shell command; exit code 0 means that the node will go."
    )
    notice_url: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="A URL; an answer 200 that matches means that the node will go."
    )
    notice_headers: dict[str, str] = Field(
        default={}, description="HTTP headers of the question to `notice_url`."
    )
    notice_match: Annotated[str, Field(min_length=1)] = Field(
        default=".", description="A regular expression to be found in the answer of `notice_url`."
    )
    notice_every_s: AboveZero = Field(default=2.0, description="Seconds between two questions.")
    notice_grace_s: AboveZero = Field(
        default=30.0, description="Seconds that a node has left after the notice."
    )


class Tune(Section):
    """Several trials in one experiment."""

    num_samples: Positive = Field(
        default=1, description="Draws of the random search spaces, for each point of the grid."
    )
    max_concurrent_trials: Positive | None = Field(
        default=None, description="Trials at a time; null for as many as fit."
    )


class ExperimentConfig(Section):
    """One experiment. Build it with `load_config` or `config_from_dict`."""

    name: DirectoryName = Field(
        description="The experiment's directory; the same name is the same run."
    )
    storage_path: Storage = Field(
        default="results", description="A path, or a URI such as `s3://bucket/runs`."
    )
    seed: Seed = Field(default=0, description="Seed of every random number in the run.")
    environment: Environment
    env_runners: EnvRunners = EnvRunners()
    training: Training = Training()
    learners: Learners = Learners()
    rl_module: RLModule = RLModule()
    evaluation: Evaluation = Evaluation()
    fault_tolerance: FaultTolerance = FaultTolerance()
    debugging: Debugging = Debugging()
    resources: ResourcesSection = ResourcesSection()
    stop: Stop
    checkpoint: Checkpoint = Checkpoint()
    failure: Failure = Failure()
    preemption: Preemption = Preemption()
    tune: Tune = Tune()
    curriculum: list[Stage] = Field(
        default=[], description="Stages, one after the other; the keys of each are below."
    )
    import_path: str | None = None
    search: tuple[SearchSpace, ...] = Field(default=(), exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _evaluation_is_the_score(cls, values: Any) -> Any:
        """Where there is evaluation, `best` follows it, unless `checkpoint.score` says otherwise."""
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
            put_back(values, space)
        return values


def most_env_runners(runners: EnvRunners) -> int:
    """How many env runner actors a trial has if the cluster has room for all."""
    groups = runners.num_env_runners
    return groups if runners.max_actors is None else min(groups, runners.max_actors)


def cpus_at_most(config: ExperimentConfig) -> float:
    """An upper bound of the CPUs that one trial asks for."""
    each = config.learners.num_cpus_per_learner
    learner = 1.0 if isinstance(each, str) else float(each)
    main = float(config.resources.num_cpus_for_main_process)
    runners = most_env_runners(config.env_runners) + config.evaluation.evaluation_num_env_runners
    if config.learners.num_learners == 0:
        main = max(main, learner)
    return (
        main
        + config.learners.num_learners * learner
        + runners * config.env_runners.num_cpus_per_env_runner
    )
