"""Checks of values that are valid alone and impossible together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytrain.config.curriculum import stage_config, stage_problems
from raytrain.config.initializers import why_not_with
from raytrain.config.schedules import SCHEDULED, is_relative

if TYPE_CHECKING:
    from raytrain.config.schema import ExperimentConfig


@dataclass(frozen=True)
class Conflict:
    """`fields` are the paths involved; the first is the one to change, and `value` is its value."""

    message: str
    fields: tuple[tuple[str, ...], ...]
    value: Any


Rows = Iterator[tuple[str, ...]]
"""Of each conflict the message and the dotted fields."""


def conflicts(config: ExperimentConfig) -> Iterator[Conflict]:
    """Everything that cannot go together in a config without search spaces."""
    stages = config.curriculum
    if not config.stop.criteria and not (stages and stages[-1].until.criteria):
        names = [name for name in type(config.stop).model_fields if name != "window"]
        message = f"the run would never end: give at least one of {', '.join(names)}"
        yield Conflict(message, (("stop",),), {})
    yield from _in_stage(config)
    for index, stage in enumerate(stages):
        for message in stage_problems(config, index):
            yield Conflict(message, (("curriculum",),), stage.name)
        for conflict in _in_stage(stage_config(config, index)):
            field = ".".join(conflict.fields[0])
            yield Conflict(
                f"in the stage {stage.name!r}, {field} ({conflict.value!r}) {conflict.message}",
                (("curriculum",),),
                stage.name,
            )


def _in_stage(config: ExperimentConfig) -> Iterator[Conflict]:
    checks = (_batches, _actors, _network, _training, _own_code)
    for message, *fields in itertools.chain.from_iterable(check(config) for check in checks):
        paths = tuple(tuple(field.split(".")) for field in fields)
        value: Any = config.to_dict()
        for key in paths[0]:
            value = value[key]
        yield Conflict(message, paths, value)


def _batches(config: ExperimentConfig) -> Rows:
    training, runners = config.training, config.env_runners
    batch = training.train_batch_size_per_learner
    if training.minibatch_size > batch:
        yield (
            f"must not be larger than train_batch_size_per_learner, which is {batch}",
            "training.minibatch_size",
            "training.train_batch_size_per_learner",
        )
    if runners.batch_mode == "truncate_episodes" and not training.use_gae:
        yield (
            "without it, episodes cannot be cut: set env_runners.batch_mode to complete_episodes",
            "training.use_gae",
            "env_runners.batch_mode",
        )
    fragment = runners.rollout_fragment_length
    if not isinstance(fragment, int):
        return
    # RLlib's own rule (PPO's `validate`), checked before RLlib is imported: the fragments must
    # make a batch within 10 % of the given size.
    envs = max(runners.num_env_runners, 1) * runners.num_envs_per_env_runner
    batch *= max(config.learners.num_learners, 1)
    sampled = -(-batch // (envs * fragment)) * envs * fragment
    if sampled - batch > 0.1 * batch:
        yield (
            f"{envs} environments of {fragment} steps make batches of {sampled}, and "
            f"train_batch_size_per_learner asks for {batch}; use 'auto' or {max(batch // envs, 1)}",
            "env_runners.rollout_fragment_length",
            "env_runners.num_env_runners",
            "env_runners.num_envs_per_env_runner",
            "training.train_batch_size_per_learner",
            "learners.num_learners",
        )


def _training(config: ExperimentConfig) -> Rows:
    training = config.training
    if config.stop.timesteps is None:
        for key in SCHEDULED:
            if is_relative(getattr(training, key)):
                yield (
                    "ends at stop.timesteps, which is not given; give it, or a schedule "
                    "[[0, value], [timestep, value]]",
                    f"training.{key}",
                    "stop.timesteps",
                )
    if training.clip_range_vf is not None and not training.use_critic:
        yield (
            "clips values, and without use_critic there are none",
            "training.clip_range_vf",
            "training.use_critic",
        )
    defaults = type(training).model_fields
    for key in ("adam_epsilon", "weight_decay"):
        if training.learner_class is not None and getattr(training, key) != defaults[key].default:
            yield (
                "is for RLlib's optimizer; set it where your learner_class makes its optimizers",
                f"training.{key}",
                "training.learner_class",
            )
    if training.target_kl is not None and config.learners.cuda_graphs is True:
        yield (
            "decides after each minibatch whether the next one follows, which a CUDA graph cannot: "
            "set learners.cuda_graphs to auto",
            "training.target_kl",
            "learners.cuda_graphs",
        )


def _actors(config: ExperimentConfig) -> Rows:
    runners, learners = config.env_runners, config.learners
    groups, least, most = runners.num_env_runners, runners.min_actors, runners.max_actors
    if most is not None and least > most:
        yield (
            f"must not be larger than max_actors, which is {most}",
            "env_runners.min_actors",
            "env_runners.max_actors",
        )
    elif least > max(groups, 1):
        yield (
            f"there are {groups} env groups (num_env_runners), and an actor hosts at least one",
            "env_runners.min_actors",
            "env_runners.num_env_runners",
        )
    # Learners reduce gradients with NCCL, which refuses two learners on one GPU ("Duplicate GPU
    # detected"); Ray places two fractions of a GPU on the same one.
    if learners.num_learners > 1 and 0 < learners.num_gpus_per_learner < 1:
        yield (
            f"{learners.num_learners} learners cannot share a GPU (NCCL refuses it): give each "
            "learner a whole GPU, or use one learner",
            "learners.num_gpus_per_learner",
            "learners.num_learners",
        )


KEYS_FOR_LEARNERS = (
    "action_mask",
    "cuda_graphs",
    "deterministic",
    "learner_class",
    "log_std_init",
    "orthogonal_init",
    "threads",
    "training",
)
"""What raytrain itself puts into the dictionary that RLlib passes to a learner."""


def _own_code(config: ExperimentConfig) -> Rows:
    runners, model = config.env_runners, config.rl_module.model
    if runners.env_to_module_connector and runners.observation_filter != "NoFilter":
        yield (
            "with connectors of your own, put RLlib's MeanStdFilter among them, in the place where "
            "it belongs",
            "env_runners.observation_filter",
            "env_runners.env_to_module_connector",
        )
    training = config.training
    taken = [key for key in training.learner_config_dict or {} if key in KEYS_FOR_LEARNERS]
    if taken:
        yield f"raytrain uses the key {taken[0]!r} itself", "training.learner_config_dict"
    if training.torch_lr_schedulers and not isinstance(training.lr, float):
        yield (
            "must be one number, with which torch_lr_schedulers begin",
            "training.lr",
            "training.torch_lr_schedulers",
        )
    longest = model.model_dump().get("max_seq_len") if config.rl_module.module_class else None
    if isinstance(longest, int) and config.training.minibatch_size < longest:
        yield (
            f"must not be smaller than rl_module.model_config.max_seq_len, which is {longest}: a "
            "minibatch for a recurrent network consists of sequences",
            "training.minibatch_size",
            "rl_module.model_config.max_seq_len",
        )


def _network(config: ExperimentConfig) -> Rows:
    model, size = config.rl_module.model, config.training.minibatch_size
    if model.log_std_init is not None and not model.free_log_std:
        yield (
            "is the initial value of the parameter that free_log_std: true adds; without it "
            "log-std is an output of the network",
            "rl_module.model_config.log_std_init",
            "rl_module.model_config.free_log_std",
        )
    if model.use_lstm and model.free_log_std:
        yield (
            "cannot be used with use_lstm: RLlib's head with such a parameter takes no sequences",
            "rl_module.model_config.free_log_std",
            "rl_module.model_config.use_lstm",
        )
    # RLlib's recurrent modules cut minibatches from sequences, and a minibatch shorter than a
    # sequence is empty.
    longest = 20 if model.max_seq_len is None else model.max_seq_len
    if model.use_lstm and size < longest:
        yield (
            f"must not be smaller than rl_module.model_config.max_seq_len, which is {longest}: "
            "with use_lstm a minibatch consists of sequences",
            "training.minibatch_size",
            "rl_module.model_config.max_seq_len",
        )
    keys = model.model_dump()
    initializers = [key for key in keys if key.endswith("_initializer")]
    for key in [key for key in initializers if "lstm" not in key and model.orthogonal_init]:
        yield (
            f"sets all weights and biases but those of an LSTM, so {key} would have no effect: "
            "leave one of the two out",
            "rl_module.model_config.orthogonal_init",
            f"rl_module.model_config.{key}",
        )
    for key in initializers:
        arguments = keys.get(f"{key}_kwargs") or {}
        why_not = why_not_with(keys[key], arguments)
        if why_not is not None:
            yield why_not, f"rl_module.model_config.{key}{'_kwargs' if arguments else ''}"
