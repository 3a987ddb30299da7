"""Checks of values that are valid alone and impossible together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytrain.config.curriculum import stage_config, stage_problems
from raytrain.config.initializers import why_not_with

if TYPE_CHECKING:
    from raytrain.config.schema import ExperimentConfig


@dataclass(frozen=True)
class Conflict:
    """`fields` are the paths involved; the first is the one to change."""

    message: str
    fields: tuple[tuple[str, ...], ...]
    value: Any


def conflicts(config: ExperimentConfig) -> Iterator[Conflict]:
    """Everything that cannot go together in a config without search spaces."""
    yield from _stop(config)
    yield from _in_stage(config)
    yield from _curriculum(config)


def _in_stage(config: ExperimentConfig) -> Iterator[Conflict]:
    for check in (
        _minibatch,
        _fragment,
        _actors,
        _shared_gpus,
        _truncation,
        _log_std,
        _sequences,
        _initializers,
    ):
        yield from check(config)


def _stop(config: ExperimentConfig) -> Iterator[Conflict]:
    stages = config.curriculum
    if config.stop.criteria or (stages and stages[-1].until.criteria):
        return
    names = [name for name in type(config.stop).model_fields if name != "window"]
    yield Conflict(
        f"the run would never end: give at least one of {', '.join(names)}", (("stop",),), {}
    )


def _curriculum(config: ExperimentConfig) -> Iterator[Conflict]:
    for message, value in stage_problems(config):
        yield Conflict(message, (("curriculum",),), value)
    for index, stage in enumerate(config.curriculum):
        for conflict in _in_stage(stage_config(config, index)):
            field = ".".join(conflict.fields[0])
            yield Conflict(
                f"in the stage {stage.name!r}, {field} ({conflict.value!r}) {conflict.message}",
                (("curriculum",),),
                stage.name,
            )


def _minibatch(config: ExperimentConfig) -> Iterator[Conflict]:
    training = config.training
    batch = training.train_batch_size_per_learner
    if training.minibatch_size > batch:
        yield Conflict(
            f"must not be larger than train_batch_size_per_learner, which is {batch}",
            (("training", "minibatch_size"), ("training", "train_batch_size_per_learner")),
            training.minibatch_size,
        )


def _fragment(config: ExperimentConfig) -> Iterator[Conflict]:
    """RLlib's own rule (PPO's `validate`), checked before RLlib is imported: the fragments must
    make a batch within 10 % of the given size."""
    runners = config.env_runners
    fragment = runners.rollout_fragment_length
    if not isinstance(fragment, int):
        return
    envs = max(runners.num_env_runners, 1) * runners.num_envs_per_env_runner
    learners = max(config.learners.num_learners, 1)
    batch = config.training.train_batch_size_per_learner * learners
    sampled = -(-batch // (envs * fragment)) * envs * fragment
    if sampled - batch <= 0.1 * batch:
        return
    yield Conflict(
        f"{envs} environments of {fragment} steps make batches of {sampled}, and "
        f"train_batch_size_per_learner asks for {batch}; use 'auto' or {max(batch // envs, 1)}",
        (
            ("env_runners", "rollout_fragment_length"),
            ("env_runners", "num_env_runners"),
            ("env_runners", "num_envs_per_env_runner"),
            ("training", "train_batch_size_per_learner"),
            ("learners", "num_learners"),
        ),
        fragment,
    )


def _actors(config: ExperimentConfig) -> Iterator[Conflict]:
    runners = config.env_runners
    groups, least, most = runners.num_env_runners, runners.min_actors, runners.max_actors
    if most is not None and least > most:
        yield Conflict(
            f"must not be larger than max_actors, which is {most}",
            (("env_runners", "min_actors"), ("env_runners", "max_actors")),
            least,
        )
    elif least > max(groups, 1):
        yield Conflict(
            f"there are {groups} env groups (num_env_runners), and an actor hosts at least one",
            (("env_runners", "min_actors"), ("env_runners", "num_env_runners")),
            least,
        )


def _shared_gpus(config: ExperimentConfig) -> Iterator[Conflict]:
    """Learners reduce gradients with NCCL, which refuses two learners on one GPU ("Duplicate GPU
    detected"); Ray places two fractions of a GPU on the same one."""
    learners = config.learners
    if learners.num_learners > 1 and 0 < learners.num_gpus_per_learner < 1:
        yield Conflict(
            f"{learners.num_learners} learners cannot share a GPU (NCCL refuses it): give each "
            "learner a whole GPU, or use one learner",
            (("learners", "num_gpus_per_learner"), ("learners", "num_learners")),
            learners.num_gpus_per_learner,
        )


def _truncation(config: ExperimentConfig) -> Iterator[Conflict]:
    if config.env_runners.batch_mode == "truncate_episodes" and not config.training.use_gae:
        yield Conflict(
            "without it, episodes cannot be cut: set env_runners.batch_mode to complete_episodes",
            (("training", "use_gae"), ("env_runners", "batch_mode")),
            False,
        )


def _log_std(config: ExperimentConfig) -> Iterator[Conflict]:
    model = config.rl_module.model
    if model.log_std_init is not None and not model.free_log_std:
        keys = ("log_std_init", "free_log_std")
        yield Conflict(
            "is the initial value of the parameter that free_log_std: true adds; without it "
            "log-std is an output of the network",
            tuple(("rl_module", "model_config", key) for key in keys),
            model.log_std_init,
        )


def _initializers(config: ExperimentConfig) -> Iterator[Conflict]:
    given = config.rl_module.model.model_dump()
    for key, name in given.items():
        if not key.endswith("_initializer"):
            continue
        arguments = given.get(f"{key}_kwargs") or {}
        why_not = why_not_with(name, arguments)
        if why_not is not None:
            field = ("rl_module", "model_config", f"{key}_kwargs" if arguments else key)
            yield Conflict(why_not, (field,), arguments or name)


def _sequences(config: ExperimentConfig) -> Iterator[Conflict]:
    """RLlib's recurrent modules: minibatches are cut from sequences, and a minibatch shorter than a
    sequence is empty."""
    model, size = config.rl_module.model, config.training.minibatch_size
    if model.use_lstm and model.free_log_std:
        yield Conflict(
            "cannot be used with use_lstm: RLlib's head with such a parameter takes no sequences",
            tuple(("rl_module", "model_config", key) for key in ("free_log_std", "use_lstm")),
            True,
        )
    longest = 20 if model.max_seq_len is None else model.max_seq_len
    if model.use_lstm and size < longest:
        yield Conflict(
            f"must not be smaller than rl_module.model_config.max_seq_len, which is {longest}: "
            "with use_lstm a minibatch consists of sequences",
            (("training", "minibatch_size"), ("rl_module", "model_config", "max_seq_len")),
            size,
        )
