"""The sections that are methods of RLlib's `AlgorithmConfig`, and their arguments as fields.

The lists are written out rather than read from RLlib: importing it takes seconds, and a typing
error should not wait for it. A test holds every name and default against the installed RLlib. What
RLlib's old API stack alone uses, and what raytrain decides itself (the env runner, the learner,
connectors), is left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from raytrain.config.fields import (
    EPISODE_WINDOW,
    AboveZero,
    AutoCpus,
    Bounds,
    Count,
    DirectoryName,
    Fraction,
    FragmentLength,
    FreeMapping,
    NonNegative,
    Number,
    PatienceSeconds,
    Positive,
    RateOrSchedule,
    Resources,
    Section,
    VectorizeMode,
)
from raytrain.config.model import ModelConfig


class Environment(Section):
    """What the agent acts in."""

    env: Annotated[str, Field(min_length=1)] = Field(
        description="A Gymnasium id, or `module:factory` (beside the YAML file or installed)."
    )
    env_config: FreeMapping = Field(
        default={}, description="Keyword arguments of the environment or factory."
    )
    normalize_actions: bool = Field(
        default=True,
        description="The policy acts in [-1, 1]; actions are scaled to a Box whose bounds are all finite, "
        "and clipped to the finite bounds of any Box.",
    )
    clip_actions: bool = Field(
        default=False,
        description="Without `normalize_actions`: clip actions to the finite bounds of a Box.",
    )
    disable_env_checking: bool = Field(
        default=False, description="Skip Gymnasium's and RLlib's checks of the environment."
    )


class EnvRunners(Section):
    """How rollouts are collected. The environments of one env runner are one group."""

    num_env_runners: Count = Field(
        default=2, description="Env groups; 0 samples inside the trial's own process."
    )
    min_actors: Positive = Field(
        default=1,
        description="Actors that host the groups: at least so many are reserved for the trial, which does "
        "not start without them (raytrain's own key).",
    )
    max_actors: Positive | None = Field(
        default=None,
        description="At most so many, as the cluster has room; null: one for each group (raytrain's own "
        "key).",
    )
    num_envs_per_env_runner: Positive = Field(
        default=1, description="Environments in a group, stepped together with one forward pass."
    )
    rollout_fragment_length: FragmentLength = Field(
        default="auto", description="Steps of each environment in a rollout; `auto` fits the batch."
    )
    batch_mode: Literal["truncate_episodes", "complete_episodes"] = Field(
        default="truncate_episodes",
        description="Cut rollouts at the fragment, or at episodes' ends.",
    )
    explore: bool = Field(
        default=True, description="Sample actions rather than take the likeliest."
    )
    observation_filter: Literal["NoFilter", "MeanStdFilter"] = Field(
        default="NoFilter",
        description="`MeanStdFilter` normalizes observations with running statistics.",
    )
    gym_env_vectorize_mode: VectorizeMode = Field(
        default="sync", description="Only `sync`: others cannot be snapshotted exactly."
    )
    num_cpus_per_env_runner: NonNegative = Field(default=1, description="CPUs of an env runner.")
    num_gpus_per_env_runner: NonNegative = Field(default=0, description="GPUs of an env runner.")
    custom_resources_per_env_runner: Resources = Field(
        default={}, description="Ray custom resources of an env runner."
    )
    sample_timeout_s: AboveZero | None = Field(
        default=600.0,
        description="A runner that takes longer is waited for (see `fault_tolerance.env_runner_timeout_s`), "
        "and the person is told; null: not told.",
    )


class Training(Section):
    """PPO."""

    lr: RateOrSchedule = Field(
        default=5e-5,
        description="Adam's learning rate, or a schedule [[0, x], [timestep, y], ...].",
    )
    gamma: Fraction = Field(default=0.99, description="Discount factor.")
    lambda_: Fraction = Field(
        default=1.0, description="Lambda of generalized advantage estimation."
    )
    train_batch_size_per_learner: Positive = Field(
        default=4000, description="Timesteps in an iteration, for each learner."
    )
    minibatch_size: Positive = Field(default=128, description="Timesteps in a gradient step.")
    num_epochs: Positive = Field(default=30, description="Passes over the batch in an iteration.")
    shuffle_batch_per_epoch: bool = Field(
        default=True, description="Shuffle the batch for each pass."
    )
    clip_param: AboveZero = Field(default=0.3, description="How far the policy ratio may leave 1.")
    vf_clip_param: AboveZero = Field(
        default=10.0, description="The largest value loss of a timestep; `.inf` for no limit."
    )
    vf_loss_coeff: NonNegative = Field(default=1.0, description="Weight of the value loss.")
    entropy_coeff: RateOrSchedule = Field(
        default=0.0, description="Weight of the entropy bonus, or a schedule as for `lr`."
    )
    use_kl_loss: bool = Field(default=True, description="Add a KL penalty to the loss.")
    kl_coeff: NonNegative = Field(default=0.2, description="The KL penalty's first coefficient.")
    kl_target: AboveZero = Field(default=0.01, description="The KL that the coefficient adapts to.")
    use_critic: bool = Field(default=True, description="Use a value function as the baseline.")
    use_gae: bool = Field(default=True, description="Use generalized advantage estimation.")
    grad_clip: AboveZero | None = Field(default=None, description="Clip gradients; null does not.")
    grad_clip_by: Literal["value", "norm", "global_norm"] = Field(
        default="global_norm", description="What `grad_clip` bounds."
    )


class Learners(Section):
    """Where gradients are computed."""

    num_learners: Count = Field(
        default=0, description="Learner processes; 0 learns inside the trial's own process."
    )
    num_cpus_per_learner: AutoCpus = Field(
        default="auto", description="CPUs of a learner; `auto` is 1, or 0 with a GPU."
    )
    num_gpus_per_learner: NonNegative = Field(
        default=0, description="GPUs of a learner (of the trial's own process with 0 learners)."
    )
    custom_resources_per_learner: Resources = Field(
        default={}, description="Ray custom resources of a learner."
    )
    local_gpu_idx: Count = Field(default=0, description="Which of its visible GPUs a learner uses.")
    cuda_graphs: Literal["auto"] | bool = Field(
        default="auto",
        description="Whether a minibatch on a GPU is launched as one CUDA graph, which gives the same bits, and "
        "faster; `auto`: where all parts of the network are RLlib's or PyTorch's (raytrain's own key).",
    )


class RLModule(Section):
    """The network."""

    # pydantic keeps the name `model_config` for itself.
    model: ModelConfig = Field(
        default=ModelConfig(),
        alias="model_config",
        description="The network; keys below.",
    )


class EvaluationOverrides(Section):
    """What evaluation does differently. A key that is absent stays as in training."""

    explore: bool | None = Field(
        default=None, description="True samples actions; otherwise the likeliest is taken."
    )
    env_config: FreeMapping | None = Field(
        default=None,
        description="Keyword arguments of the environment, laid over those of training.",
    )
    num_envs_per_env_runner: Positive | None = Field(
        default=None, description="Environments of an evaluation runner."
    )
    normalize_actions: bool | None = Field(default=None, description="As under `environment`.")
    clip_actions: bool | None = Field(default=None, description="As under `environment`.")

    @model_serializer(mode="wrap")
    def _only_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}


class Evaluation(Section):
    """Evaluation between iterations, on environments of its own."""

    evaluation_interval: Count | None = Field(
        default=None, description="Iterations between evaluations; null or 0 for none."
    )
    evaluation_duration: Positive = Field(default=10, description="How long one evaluation is.")
    evaluation_duration_unit: Literal["episodes", "timesteps"] = Field(
        default="episodes", description="What `evaluation_duration` counts."
    )
    evaluation_num_env_runners: Count = Field(
        default=0, description="Env runners for evaluation; 0 evaluates in the trial's own process."
    )
    max_episode_steps: Positive | None = Field(
        default=None,
        description="Truncate an episode of evaluation after so many steps, as Gymnasium's TimeLimit does; "
        "null: an episode ends when the environment says so (raytrain's own key).",
    )
    evaluation_sample_timeout_s: AboveZero | None = Field(
        default=120.0, description="Seconds to wait for evaluation rollouts."
    )
    evaluation_force_reset_envs_before_iteration: bool = Field(
        default=True, description="Begin every evaluation with fresh episodes."
    )
    evaluation_config: EvaluationOverrides = Field(
        default=EvaluationOverrides(), description="What evaluation does differently; keys below."
    )


class FaultTolerance(Section):
    """A lost env runner's groups are sampled again from their last states, inside the trial."""

    max_num_env_runner_restarts: Count = Field(
        default=1000, description="Restarts of one env runner before it is given up."
    )
    on_env_runner_loss: Literal["exact", "continue"] = Field(
        default="exact",
        description="`exact` samples a lost fragment again; `continue` goes on with fewer samples, and gives "
        "exactness up (raytrain's own key).",
    )
    max_short_iterations: Count = Field(
        default=10,
        description="With `continue`: after so many iterations with fewer samples in a row, one waits for "
        "all (raytrain's own key).",
    )
    env_runner_timeout_s: PatienceSeconds = Field(
        default="auto",
        description="A fragment that takes longer is taken for hanging: its env runner is killed and the "
        "fragment sampled again. `auto`: five times the longest of late, at least 60, and 600 for the first; "
        "null: never (raytrain's own key).",
    )
    hang_factor: Annotated[Number, Field(gt=1)] = Field(
        default=10.0,
        description="A part of an iteration that takes this many times its running median hangs "
        "(raytrain's own key, as the next).",
    )
    hang_floor_s: AboveZero = Field(
        default=120.0,
        description="Seconds that any part may take; ten times as many when it runs for the first time.",
    )


class Debugging(Section):
    """Determinism and logging."""

    deterministic: bool = Field(
        default=True,
        description="Deterministic kernels (raytrain's own key); false gives exactness up.",
    )
    log_level: Literal["DEBUG", "INFO", "WARN", "ERROR"] = Field(
        default="WARN", description="Level of the `ray.rllib` loggers."
    )


class ResourcesSection(Section):
    """What the trial's own process takes."""

    num_cpus_for_main_process: Count = Field(default=1, description="CPUs of the trial's process.")
    custom_resources_for_main_process: Resources = Field(
        default={}, description="Ray custom resources of the trial's process."
    )
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        default="PACK", description="How a trial's processes are spread over nodes."
    )


class Until(Section):
    """What ends a stage; whichever comes first."""

    timesteps: Positive | None = Field(
        default=None, description="Environment steps since the stage's beginning."
    )
    episode_return_mean: Number | None = Field(
        default=None, description="Mean return of the stage's last `window` episodes."
    )
    metrics: Bounds = Field(
        default={}, description="The same for metrics of the environment, as under `stop`."
    )
    window: Positive = Field(
        default=EPISODE_WINDOW,
        description="Episodes that returns and metrics are averaged over; a stage has to have as many.",
    )

    @model_serializer(mode="wrap")
    def _only_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value not in (None, {})}

    @property
    def criteria(self) -> dict[str, Any]:
        """Those that are set."""
        return self.model_dump(exclude={"window"})


class StageEnvironment(Section):
    """What differs in the environment."""

    env_config: FreeMapping = Field(
        default={}, description="Keyword arguments that replace those of `environment.env_config`."
    )


class StageTraining(Training):
    """Keys of `training`; those that are given replace the run's."""

    @model_serializer(mode="wrap")
    def _only_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {
            key: value for key, value in serialize(self).items() if key in self.model_fields_set
        }


class Stage(Section):
    """One stage of a curriculum."""

    name: DirectoryName = Field(description="Its checkpoint is kept in `stages/<name>`.")
    until: Until = Field(
        default=Until(), description="What ends it; the last stage may have no end."
    )
    environment: StageEnvironment = Field(
        default=StageEnvironment(), description="What differs in the environment."
    )
    training: StageTraining = Field(
        default=StageTraining(), description="Keys of `training` that differ."
    )
