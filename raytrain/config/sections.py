"""The sections that are methods of RLlib's `AlgorithmConfig`, and their arguments as fields.

The fields are written out rather than read from RLlib: importing RLlib takes seconds, and a typing
error should be reported at once. A test compares every name and default with the installed RLlib.
Arguments that only RLlib's old API stack uses are left out, and so are those that raytrain sets
itself (the env runner). Where RLlib takes a class or a function, a field holds its name.

The docstring of a field is its text in docs/guide/config.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, WrapValidator, model_validator

from raytrain.config.fields import (
    EPISODE_WINDOW,
    AboveZero,
    AutoCpus,
    Bounds,
    ClipRange,
    CodePath,
    CodePaths,
    Count,
    DirectoryName,
    Fraction,
    FragmentLength,
    FreeMapping,
    NonNegative,
    Number,
    PartialSection,
    Positive,
    RateOrSchedule,
    Resources,
    Section,
    Text,
    TimeoutSeconds,
    TorchSchedulers,
    VectorizeMode,
    not_given,
)
from raytrain.config.model import FreeKeys, ModelConfig, model_of


class Environment(Section):
    """The environment."""

    env: Text
    """A Gymnasium id, or `module:factory` (beside the YAML file or installed)."""
    env_config: FreeMapping = Field(default={})
    """Keyword arguments of the environment or factory."""
    normalize_actions: bool = True
    """The policy acts in [-1, 1]; actions are scaled to a Box whose bounds are all finite, and
    clipped to the finite bounds of any Box."""
    clip_actions: bool = False
    """Without `normalize_actions`: clip actions to the finite bounds of a Box."""
    action_mask: Text | None = None
    """Where the environment says which actions are allowed: `info` (its `info["action_mask"]`),
    `info.NAME`, or a key of its Dict observation; null: all are (raytrain's own key)."""
    disable_env_checking: bool = False
    """Skip Gymnasium's and RLlib's checks of the environment."""


class EnvRunners(Section):
    """How rollouts are collected. The environments of one env runner are an env group."""

    num_env_runners: Count = 2
    """Env groups; with 0 the trial's own process samples."""
    min_actors: Positive = 1
    """The least number of actors that host the env groups; a trial starts when it has so many
    (raytrain's own key)."""
    max_actors: Positive | None = None
    """The greatest number of actors, if the cluster has room for them; null: one for each env group
    (raytrain's own key)."""
    num_envs_per_env_runner: Positive = 1
    """Environments in an env group, stepped together with one forward pass."""
    rollout_fragment_length: FragmentLength = "auto"
    """Steps of each environment in a rollout; `auto` fits the batch."""
    batch_mode: Literal["truncate_episodes", "complete_episodes"] = "truncate_episodes"
    """Cut rollouts at the end of the fragment, or at the ends of episodes."""
    explore: bool = True
    """Sample actions instead of taking the most likely ones."""
    observation_filter: Literal["NoFilter", "MeanStdFilter"] = "NoFilter"
    """`MeanStdFilter` normalizes observations with running statistics."""
    env_to_module_connector: CodePath | None = Field(default=None, exclude_if=not_given)
    """A function of yours, `module:Name`, that makes connectors for observations: see
    [your own code](own_code.md#connectors)."""
    module_to_env_connector: CodePath | None = Field(default=None, exclude_if=not_given)
    """The same for actions."""
    gym_env_vectorize_mode: VectorizeMode = "sync"
    """Only `sync`: no exact snapshot can be taken of the others."""
    num_cpus_per_env_runner: NonNegative = 1
    """CPUs of an env runner."""
    num_gpus_per_env_runner: NonNegative = 0
    """GPUs of an env runner."""
    custom_resources_per_env_runner: Resources = Field(default={})
    """Ray custom resources of an env runner."""
    sample_timeout_s: AboveZero | None = 600.0
    """When an env runner takes longer, a message is logged; the runner is waited for (see
    `fault_tolerance.env_runner_timeout_s`). Null: no message."""


class Training(Section):
    """PPO."""

    lr: RateOrSchedule = 5e-5
    """Adam's learning rate; or a schedule [[0, x], [timestep, y], ...], or {linear: [x, y]}: from x
    at timestep 0 to y at `stop.timesteps`."""
    adam_epsilon: AboveZero = 1e-8
    """Adam's epsilon (raytrain's own key, as the next)."""
    weight_decay: NonNegative = 0.0
    """Adam's weight decay: this times the weights is added to the clipped gradient, as
    `torch.optim.Adam` does."""
    gamma: Fraction = 0.99
    """Discount factor."""
    lambda_: Fraction = 1.0
    """Lambda of generalized advantage estimation."""
    train_batch_size_per_learner: Positive = 4000
    """Timesteps in an iteration, for each learner."""
    minibatch_size: Positive = 128
    """Timesteps in a gradient step."""
    num_epochs: Positive = 30
    """Passes over the batch in an iteration."""
    shuffle_batch_per_epoch: bool = True
    """Shuffle the batch for each pass."""
    target_kl: AboveZero | None = None
    """The epochs of an iteration end before a minibatch with an approximate KL divergence of more
    than 1.5 times this, as in Stable-Baselines3; null: never (raytrain's own key)."""
    normalize_advantages: Literal["batch", "minibatch"] = "batch"
    """Standardize advantages over the whole batch, or in each minibatch as Stable-Baselines3 does
    (raytrain's own key)."""
    clip_param: ClipRange = 0.3
    """The policy ratio is clipped to 1 plus and minus this, or a schedule as for `lr`."""
    clip_range_vf: ClipRange | None = None
    """In the value loss, values are clipped to those before the update plus and minus this, or a
    schedule as for `lr`, as in Stable-Baselines3; null: not clipped (raytrain's own key)."""
    vf_clip_param: AboveZero = 10.0
    """Upper bound of the value loss of a timestep; `.inf`: no bound."""
    vf_loss_coeff: NonNegative = 1.0
    """Weight of the value loss."""
    entropy_coeff: RateOrSchedule = 0.0
    """Weight of the entropy bonus, or a schedule as for `lr`."""
    use_kl_loss: bool = True
    """Add a KL penalty to the loss."""
    kl_coeff: NonNegative = 0.2
    """Initial coefficient of the KL penalty."""
    kl_target: AboveZero = 0.01
    """The KL divergence that the coefficient is adapted to."""
    use_critic: bool = True
    """Use a value function as the baseline."""
    use_gae: bool = True
    """Use generalized advantage estimation."""
    grad_clip: AboveZero | None = None
    """Upper bound of gradients; null: no bound."""
    grad_clip_by: Literal["value", "norm", "global_norm"] = "global_norm"
    """What `grad_clip` bounds."""
    learner_connector: CodePath | None = Field(default=None, exclude_if=not_given)
    """A function of yours, `module:Name`, that makes connectors for train batches: see
    [your own code](own_code.md#connectors)."""
    learner_class: CodePath | None = Field(default=None, exclude_if=not_given)
    """Your own learner, `module:Name`, derived from RLlib's `PPOTorchLearner`: see
    [your own code](own_code.md#learners)."""
    learner_config_dict: FreeMapping | None = Field(default=None, exclude_if=not_given)
    """Values that your own learner finds in `config.learner_config_dict`."""
    torch_lr_schedulers: TorchSchedulers | None = Field(default=None, exclude_if=not_given)
    """Learning rate schedulers of Torch, each a mapping of `class`, such as
    `torch.optim.lr_scheduler:ExponentialLR`, and its arguments (raytrain's own key)."""


class Learners(Section):
    """Where gradients are computed."""

    num_learners: Count = 0
    """Learner processes; with 0 the trial's own process learns."""
    num_cpus_per_learner: AutoCpus = "auto"
    """CPUs of a learner; `auto` is 1, or 0 with a GPU."""
    num_gpus_per_learner: NonNegative = 0
    """GPUs of a learner (of the trial's own process with 0 learners)."""
    custom_resources_per_learner: Resources = Field(default={})
    """Ray custom resources of a learner."""
    local_gpu_idx: Count = 0
    """Which of its visible GPUs a learner uses."""
    cuda_graphs: Literal["auto"] | bool = "auto"
    """Launch each minibatch on a GPU as one CUDA graph: faster, with the same bits. `auto`: if all
    parts of the network are RLlib's or PyTorch's (raytrain's own key)."""


class RLModule(Section):
    """The network."""

    module_class: CodePath | None = Field(default=None, exclude_if=not_given)
    """Your own network, `module:Name`, derived from RLlib's `TorchRLModule` and `ValueFunctionAPI`:
    see [your own code](own_code.md#networks)."""
    catalog_class: CodePath | None = Field(default=None, exclude_if=not_given)
    """Your own RLlib `Catalog`, `module:Name`."""
    # pydantic keeps the name `model_config` for itself.
    model: Annotated[SerializeAsAny[ModelConfig], WrapValidator(model_of)] = Field(
        default=ModelConfig(), alias="model_config"
    )
    """The network; keys below. With a class of your own: any keys; it gets a dictionary."""

    @model_validator(mode="before")
    @classmethod
    def _own_keys(cls, values: Any) -> Any:
        """A class of one's own has keys of its own."""
        if not isinstance(values, dict) or not (
            values.get("module_class") or values.get("catalog_class")
        ):
            return values
        model = values.get("model_config")
        return {**values, "model_config": FreeKeys({} if model is None else model)}


class Callbacks(PartialSection):
    """Your own code that RLlib calls: see [your own code](own_code.md#callbacks)."""

    callbacks_class: CodePaths | None = None
    """A class, `module:Name`, derived from RLlib's `RLlibCallback`, or a list of classes."""
    on_algorithm_init: CodePaths | None = None
    """A function `module:name`, or a list of functions; called when a process of a trial has
    started. The next as RLlib calls them."""
    on_train_result: CodePaths | None = None
    """After each iteration, with its result."""
    on_evaluate_start: CodePaths | None = None
    """Before an evaluation."""
    on_evaluate_end: CodePaths | None = None
    """After an evaluation, with its metrics."""
    on_env_runners_recreated: CodePaths | None = None
    """After env runners were started again."""
    on_checkpoint_loaded: CodePaths | None = None
    """After a trial has continued from a checkpoint."""
    on_environment_created: CodePaths | None = None
    """After the environments of an env group were made."""
    on_episode_created: CodePaths | None = None
    """Before the reset of an episode."""
    on_episode_start: CodePaths | None = None
    """After the reset of an episode."""
    on_episode_step: CodePaths | None = None
    """After each step of an episode."""
    on_episode_end: CodePaths | None = None
    """After the last step of an episode."""
    on_sample_end: CodePaths | None = None
    """After each fragment of an env group, with its episodes."""


class EvaluationOverrides(PartialSection):
    """What evaluation does differently. A key that is absent stays as in training."""

    explore: bool | None = None
    """True: sample actions; otherwise the most likely ones are taken."""
    env_config: FreeMapping | None = None
    """Keyword arguments of the environment, merged into those of training."""
    num_envs_per_env_runner: Positive | None = None
    """Environments of an evaluation runner."""
    normalize_actions: bool | None = None
    """As under `environment`."""
    clip_actions: bool | None = None
    """As under `environment`."""


class Evaluation(Section):
    """Evaluation between iterations, on environments of its own."""

    evaluation_interval: Count | None = None
    """Iterations between evaluations; null or 0: no evaluation."""
    evaluation_duration: Positive = 10
    """Length of one evaluation, in `evaluation_duration_unit`."""
    evaluation_duration_unit: Literal["episodes", "timesteps"] = "episodes"
    """What `evaluation_duration` counts."""
    evaluation_num_env_runners: Count = 0
    """Env runners for evaluation; with 0 the trial's own process evaluates."""
    max_episode_steps: Positive | None = None
    """Truncate an evaluation episode after so many steps, as Gymnasium's TimeLimit does; null: an
    episode ends when the environment ends it (raytrain's own key)."""
    evaluation_sample_timeout_s: AboveZero | None = 120.0
    """Seconds to wait for evaluation rollouts."""
    evaluation_force_reset_envs_before_iteration: bool = True
    """Begin every evaluation with new episodes."""
    evaluation_config: EvaluationOverrides = EvaluationOverrides()
    """What evaluation does differently; keys below."""


class FaultTolerance(Section):
    """The env groups of a lost env runner are sampled again, from their last states."""

    max_num_env_runner_restarts: Count = 1000
    """How often one env runner is restarted at most."""
    on_env_runner_loss: Literal["exact", "continue"] = "exact"
    """`exact`: sample a lost fragment again. `continue`: train on with fewer samples; the run is
    not exact any more (raytrain's own key)."""
    max_short_iterations: Count = 10
    """With `continue`: after so many consecutive iterations with fewer samples, one waits for all
    (raytrain's own key)."""
    env_runner_timeout_s: TimeoutSeconds = "auto"
    """An env runner whose fragment takes longer counts as hanging: it is killed and the fragment is
    sampled again. `auto`: five times the longest recent fragment, at least 60, and 600 for the
    first; null: never (raytrain's own key)."""
    hang_factor: Annotated[Number, Field(gt=1)] = 10.0
    """A phase of an iteration that takes this many times its running median counts as hanging
    (raytrain's own key, as the next)."""
    hang_floor_s: AboveZero = 120.0
    """Seconds that any phase may take; the first run of a phase may take ten times as long."""
    on_other_arithmetic: Literal["continue", "wait", "fail"] = "continue"
    """What a run does that was begun on a machine that computes differently, if no node is left
    that computes like it. `continue`: it trains on, and is not exact any more. `wait`: it waits for
    such a node. `fail`: it ends (raytrain's own key)."""


class Debugging(Section):
    """Determinism and logging."""

    deterministic: bool = True
    """Use deterministic kernels (raytrain's own key); with false the run is not exact."""
    threads: Positive | None = None
    """Threads of arithmetic in each process; null: as many as it has CPUs at the run's first start.
    Another number rounds differently, so it stays the same whatever CPUs the run has later; if you
    change it, the run is not exact any more (raytrain's own key)."""
    portable: bool = False
    """Compute the same bits on every x86-64 CPU with AVX2, which is a little slower; if you change
    it, the run is not exact any more (raytrain's own key)."""
    log_level: Literal["DEBUG", "INFO", "WARN", "ERROR"] = "WARN"
    """Level of the `ray.rllib` loggers."""


class ResourcesSection(Section):
    """Resources of the trial's own process."""

    num_cpus_for_main_process: Count = 1
    """CPUs of the trial's process."""
    custom_resources_for_main_process: Resources = Field(default={})
    """Ray custom resources of the trial's process."""
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How the processes of a trial are placed on nodes."""


class Until(PartialSection):
    """What ends a stage; the criterion that is met first ends it."""

    timesteps: Positive | None = None
    """Environment steps since the beginning of the stage."""
    episode_return_mean: Number | None = None
    """Mean return of the stage's last `window` episodes."""
    metrics: Bounds = Field(default={})
    """The same for metrics of the environment, as under `stop`."""
    window: Positive = EPISODE_WINDOW
    """Episodes that returns and metrics are averaged over; they end a stage that has so many."""

    def is_given(self, key: str, value: Any) -> bool:
        return value not in (None, {})

    @property
    def criteria(self) -> dict[str, Any]:
        """The criteria that are set."""
        return self.model_dump(exclude={"window"})


class StageEnvironment(Section):
    """What differs in the environment."""

    env_config: FreeMapping = Field(default={})
    """Keyword arguments that replace those of `environment.env_config`."""


class StageTraining(Training, PartialSection):
    """Keys of `training`; those that are given replace the run's."""

    def is_given(self, key: str, value: Any) -> bool:
        return key in self.model_fields_set


class Stage(Section):
    """One stage of a curriculum."""

    name: DirectoryName
    """Its checkpoint is kept in `stages/<name>`."""
    until: Until = Until()
    """What ends the stage; the last stage may have no end."""
    environment: StageEnvironment = StageEnvironment()
    """What differs in the environment."""
    training: StageTraining = StageTraining()
    """Keys of `training` that differ."""
