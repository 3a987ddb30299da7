"""The one place that touches private names of Ray.

Written against Ray 2.60. Each entry names what is private, and why the public interface does not do.
When Ray is upgraded, this file and its test (`tests/test_ray_private.py`) are what to look at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.core.learner.learner import Learner
    from ray.rllib.env.env_runner_group import EnvRunnerGroup
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
    from ray.tune.experiment import Trial

# -- env runners ---------------------------------------------------------------------------------

# `SingleAgentEnvRunner.get_state()` returns weights, connectors and one counter. These are the
# attributes that its next `sample()` also depends on.
_RUNNER_ATTRIBUTES = (
    "_needs_initial_reset",
    "_ongoing_episodes",
    "_ongoing_episodes_for_metrics",
    "_done_episodes_for_metrics",
    "_cached_to_module",
    "_shared_data",
    "_weights_seq_no",
    "num_env_steps_sampled_lifetime",
)

# What `gymnasium.vector.SyncVectorEnv` remembers between two steps, beside its sub-environments. It
# holds a generator and cannot be pickled as a whole.
_VECTOR_ATTRIBUTES = (
    "_env_obs",
    "_observations",
    "_rewards",
    "_terminations",
    "_truncations",
    "_autoreset_envs",
)


def runner_attributes(runner: SingleAgentEnvRunner) -> dict[str, Any]:
    """What a stock env runner remembers between two `sample()` calls (not copied)."""
    return {name: getattr(runner, name) for name in _RUNNER_ATTRIBUTES}


def set_runner_attributes(runner: SingleAgentEnvRunner, state: dict[str, Any]) -> None:
    """Put back what `runner_attributes` returned."""
    for name in _RUNNER_ATTRIBUTES:
        setattr(runner, name, state[name])


def vector_env_attributes(vector_env: Any) -> dict[str, Any]:
    """What a `SyncVectorEnv` remembers between two steps (not copied)."""
    return {name: getattr(vector_env, name) for name in _VECTOR_ATTRIBUTES}


def set_vector_env_attributes(vector_env: Any, state: dict[str, Any]) -> None:
    """Put back what `vector_env_attributes` returned."""
    for name in _VECTOR_ATTRIBUTES:
        setattr(vector_env, name, state[name])


def start_with_fresh_episodes(runner: SingleAgentEnvRunner) -> None:
    """Make the next `sample()` reset every environment with the runner's seed."""
    runner._needs_initial_reset = True
    # What was returned of episodes that will not go on.
    runner._ongoing_episodes_for_metrics.clear()


def set_runner_seed(runner: SingleAgentEnvRunner, seed: int) -> None:
    """Set the seed of the first reset. RLlib's own, `seed + worker_index`, makes the environments
    of neighbouring runners collide, since Gymnasium adds 1 for each sub-environment."""
    runner._seed = seed


def unfinished_chunks(runner: SingleAgentEnvRunner) -> dict[str, list[Any]]:
    """The chunks of each running episode that `sample()` has already returned, by episode id.
    RLlib keeps them whole, though only their length, return and duration are needed."""
    chunks: dict[str, list[Any]] = runner._ongoing_episodes_for_metrics
    return chunks


def connectors(runner: SingleAgentEnvRunner) -> tuple[Any, Any]:
    """The env-to-module and the module-to-env pipeline of a runner."""
    return runner._env_to_module, runner._module_to_env


def needs_reset(runner: SingleAgentEnvRunner) -> bool:
    """Whether the next `sample()` begins by resetting every environment."""
    return bool(runner._needs_initial_reset)


def set_needs_reset(runner: SingleAgentEnvRunner, value: bool) -> None:
    """Set what `needs_reset` returns."""
    runner._needs_initial_reset = value


def runner_seed(runner: SingleAgentEnvRunner) -> int | None:
    """The seed of the first reset."""
    seed: int | None = runner._seed
    return seed


def weights_version(runner: SingleAgentEnvRunner) -> int:
    """The sequence number of the weights that a runner holds."""
    return int(runner._weights_seq_no)


def log_sampled(runner: SingleAgentEnvRunner, env_steps: int, episodes: int, calls: int) -> None:
    """Count what a fragment brought, under RLlib's names and in Ray's own counters. `calls`: steps of
    the vector environment."""
    runner._log_env_steps(metric=runner._metrics_num_try_env_step, num_steps=calls)
    runner._log_env_steps(metric=runner._metrics_num_env_steps_sampled, num_steps=env_steps)
    runner._increase_sampled_metrics(env_steps, episodes)


def log_episodes(runner: SingleAgentEnvRunner, ended: list[tuple[int, float, float]]) -> None:
    """Log finished episodes (length, return, seconds) under RLlib's names, with its windows. RLlib
    looks ten names up for each, which takes longer than a step of a small environment: it does so
    for the first, and the others follow into the same stats."""
    if not ended:
        return
    runner._log_episode_metrics(*ended[0])
    stats = runner.metrics.stats
    by_length = [stats[f"episode_len_{kind}"] for kind in ("mean", "min", "max")]
    by_return = [stats[f"episode_return_{kind}"] for kind in ("mean", "min", "max")]
    by_return += stats["agent_episode_return_mean"].values()
    by_return += stats["module_episode_return_mean"].values()
    for length, episode_return, seconds in ended[1:]:
        for each in by_length:
            each.push(length)
        for each in by_return:
            each.push(episode_return)
        stats["episode_duration_sec_mean"].push(seconds)


def state_server(runner: SingleAgentEnvRunner) -> Any:
    """Where a runner pulls its weights from, if it does so by itself, or None."""
    return runner._env_runner_state_server


def sets_own_callbacks(config: AlgorithmConfig) -> list[str]:
    """Names of the callback functions that a config gives to its env runners one by one."""
    names = ("episode_created", "episode_start", "episode_step", "episode_end", "sample_end")
    return [f"on_{name}" for name in names if getattr(config, f"callbacks_on_{name}")]


def mean_std_filter(connector: Any) -> tuple[Any, bool]:
    """The filter of a single-agent MeanStdFilter connector, and whether it updates its statistics.
    The connector's public state is a serialised copy."""
    if connector._filters is None:
        connector.get_state()
    return connector._filters[None], connector._update_stats


def filters_observations(config: AlgorithmConfig) -> bool:
    """Whether a config puts a connector of its own between environment and module."""
    return config._env_to_module_connector is not None


def forget_weights_version(runner: SingleAgentEnvRunner) -> None:
    """Make the runner take the next weights whatever their sequence number: `set_state` ignores
    weights that are not newer than its own, and says nothing."""
    runner._weights_seq_no = 0


def runner_actors(group: EnvRunnerGroup) -> dict[int, Any]:
    """The remote env runners of a group by worker index (1, 2, ...). The public `foreach_*` calls
    drop failed results silently and do not say whose result is whose."""
    actors: dict[int, Any] = dict(group._worker_manager.actors())
    return dict(sorted(actors.items()))


def leave_syncing_to_us(config: AlgorithmConfig) -> None:
    """Switch off the state sync at the end of `Algorithm.step()`: it does not wait for the runners,
    and drops a push to a runner that still has one in flight."""
    config._dont_auto_sync_env_runner_states = True


# -- learners ------------------------------------------------------------------------------------


def schedulers(learner: Learner) -> dict[str, Any]:
    """RLlib's entropy and learning rate schedulers of a PPO learner, under stable names."""
    modules = learner.module.keys()
    named = {
        f"entropy/{module}": learner.entropy_coeff_schedulers_per_module[module]
        for module in modules
    }
    for name, optimizer in learner._named_optimizers.items():
        if optimizer in learner._optimizer_lr_schedules:
            named[f"lr/{name}"] = learner._optimizer_lr_schedules[optimizer]
    return named


def scheduler_value(scheduler: Any) -> float:
    """A scheduler's current value. `Scheduler` can tell it, but has no way to set it."""
    return float(scheduler.get_current_value())


def set_scheduler_value(scheduler: Any, value: float) -> None:
    """Set the current value of a scheduler that follows a schedule; a fixed one has none to set."""
    if scheduler.use_schedule:
        scheduler._curr_value.fill_(value)


def use_training_values(learner: Learner, timesteps: int) -> None:
    """Make a built PPO learner follow the learning rate, entropy coefficient, gamma and lambda of its
    present config, as they are after `timesteps`. RLlib reads these once, when it builds a learner, and
    a restored optimizer brings its old learning rate back."""
    from ray.rllib.connectors.learner import GeneralAdvantageEstimation
    from ray.rllib.utils.schedules.scheduler import Scheduler

    def scheduler(value: Any) -> Any:
        made = Scheduler(
            fixed_value_or_schedule=value, framework=learner.framework, device=learner._device
        )
        made.update(timestep=timesteps)
        return made

    for name, optimizer in learner._named_optimizers.items():
        module = learner._optimizer_name_to_module[name]
        rate = scheduler(learner.config.get_config_for_module(module).lr)
        learner._optimizer_lr_schedules[optimizer] = rate
        learner._set_optimizer_lr(optimizer, lr=rate.update(timestep=timesteps))
    for module in list(learner.module.keys()):
        entropy = learner.config.get_config_for_module(module).entropy_coeff
        learner.entropy_coeff_schedulers_per_module[module] = scheduler(entropy)
    for piece in learner._learner_connector.connectors if learner._learner_connector else ():
        if isinstance(piece, GeneralAdvantageEstimation):
            piece.gamma, piece.lambda_ = learner.config.gamma, learner.config.lambda_


def kl_coefficients(learner: Learner) -> dict[str, Any]:
    """PPO's adaptive KL coefficients by module id, as 0-d float32 tensors. RLlib does not save them."""
    modules = learner.module.keys()
    return {module: learner.curr_kl_coeffs_per_module[module] for module in modules}


def torch_schedulers(learner: Learner) -> dict[str, list[Any]]:
    """`torch.optim.lr_scheduler` objects of a learner, by module and optimizer name."""
    return {
        f"{module}/{optimizer}": list(schedulers_)
        for module, by_optimizer in learner._lr_schedulers.items()
        for optimizer, schedulers_ in by_optimizer.items()
    }


def grad_scalers(learner: Learner) -> dict[str, Any]:
    """Loss scalers of mixed-precision training, by module id."""
    return dict(learner._grad_scalers or {})


def learner_connector(learner: Learner) -> Any:
    """The learner's connector pipeline. RLlib does not save its state."""
    return learner._learner_connector


WEIGHTS_SEQ_NO = "weights_seq_no"
"""Column of a train batch: version of the weights that sampled a row (`ray.rllib.utils.metrics`)."""

_DEFAULT_LEARNER_CONNECTORS = (
    "AddOneTsToEpisodesAndTruncate",
    "AddObservationsFromEpisodesToBatch",
    "AddColumnsFromEpisodesToTrainBatch",
    "AddTimeDimToBatchAndZeroPad",
    "AddStatesFromEpisodesToBatch",
    "BatchIndividualItems",
    "NumpyToTensor",
    "GeneralAdvantageEstimation",
)


def has_default_connectors(learner: Learner) -> bool:
    """Whether the learner's connectors are the ones that RLlib's PPO puts there, and no others."""
    connector = learner._learner_connector
    if connector is None:
        return False
    return all(
        type(piece).__module__.startswith("ray.rllib.") for piece in connector.connectors
    ) and (
        tuple(type(piece).__name__ for piece in connector.connectors) == _DEFAULT_LEARNER_CONNECTORS
    )


def optimizers(learner: Learner) -> list[tuple[str, Any]]:
    """All optimizers of a learner, by the name that RLlib logs them under."""
    return [
        (name.partition(f"{module}_")[2], learner._named_optimizers[name])
        for module, names in learner._module_optimizers.items()
        for name in names
    ]


def unusual_torch_settings(config: AlgorithmConfig) -> list[str]:
    """Names of RLlib's rarer settings of a Torch learner that are in use; some have no public name."""
    names = (
        "torch_compile_learner",
        "torch_skip_nan_gradients",
        "_torch_grad_scaler_class",
        "_torch_lr_scheduler_classes",
        "policies_to_train",
    )
    return [name for name in names if getattr(config, name)]


def begin_update(learner: Learner) -> int:
    """Count an update of the weights, as `Learner.update` does; the new sequence number."""
    learner._weights_seq_no += 1
    number: int = learner._weights_seq_no
    return number


def log_off_policyness(learner: Learner, columns: dict[str, dict[str, Any]]) -> None:
    """Log how many updates lie between the weights and the ones that sampled a minibatch."""
    learner._compute_off_policyness(columns)


def time_minibatches(learner: Learner) -> Any:
    """A context in which Ray's metrics (not RLlib's results) see the time of gradient steps."""
    from ray.rllib.utils.metrics.ray_metrics import TimerAndPrometheusLogger

    return TimerAndPrometheusLogger(learner._metrics_learner_inner_update)


def count_trained_steps(learner: Learner, env_steps: int, module_steps: int) -> None:
    """Add to the counters of trained steps among Ray's metrics."""
    learner._metrics_all_modules_num_env_steps_trained.inc(value=env_steps)
    learner._metrics_all_modules_num_module_steps_trained.inc(value=module_steps)


# -- an algorithm outside of Tune ----------------------------------------------------------------


@contextmanager
def files_below(directory: str) -> Iterator[None]:
    """Where an `Algorithm` that is made in the body, and that no Tune runs, puts its files. It would
    make a directory in ~/ray_results each time, and leave it there."""
    from ray.tune.trainable import trainable

    before = trainable.DEFAULT_STORAGE_PATH
    trainable.DEFAULT_STORAGE_PATH = directory
    try:
        yield
    finally:
        trainable.DEFAULT_STORAGE_PATH = before


# -- a local Ray instance ------------------------------------------------------------------------


@contextmanager
def lean_instance(workers: int) -> Iterator[None]:
    """Within, `ray.init` starts what a run on one machine needs, with `workers` idle worker processes.

    Ray also starts an autoscaler, a dashboard server (whatever `include_dashboard` says) and a reader
    of log files: three Python processes of a second of CPU time each, of which nothing is used here. Of
    idle workers it starts one for each logical CPU. None of this is an option of `ray.init`.
    """
    from ray._private import node, parameter, services

    plain, start_process = parameter.RayParams, services.start_ray_process
    start_server = node.Node.start_api_server

    class Lean(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, no_monitor=True, include_log_monitor=False, **kwargs)

    def start(command: list[str], *args: Any, **kwargs: Any) -> Any:
        flag = "--num_prestart_python_workers="
        command = [f"{flag}{workers}" if each.startswith(flag) else each for each in command]
        return start_process(command, *args, **kwargs)

    def start_none(*args: Any, **kwargs: Any) -> None:
        return None

    parameter.RayParams, services.start_ray_process = Lean, start
    node.Node.start_api_server = start_none
    try:
        yield
    finally:
        parameter.RayParams, services.start_ray_process = plain, start_process
        node.Node.start_api_server = start_server


def worker_variables(preload: str | None) -> dict[str, str]:
    """Environment variables of worker processes. `preload`: modules (joined by commas) that they import
    before there is work for them, if any."""
    # RLlib asks for these frameworks wherever it is imported, and PPO on Torch uses none of them.
    wanted = {"RLLIB_TEST_NO_TF_IMPORT": "1", "RLLIB_TEST_NO_JAX_IMPORT": "1"}
    # What Tune sets for its trials by a runtime environment (see `trials_use_idle_workers`).
    wanted["PL_DISABLE_FORK"] = "1"
    wanted["RAY_CHDIR_TO_TRIAL_DIR"] = os.environ.get("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if preload is not None:
        # Torch reads this when it is imported; Ray would set it (to the actor's CPUs) only later.
        wanted["OMP_NUM_THREADS"] = "1"
    return wanted


SECRETS_OF_TUNE = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
)
"""Variables that Tune hands from the driver to the processes of its trials, and to no others
(`ray.tune.execution.class_cache`)."""


@contextmanager
def worker_environment(preload: str | None) -> Iterator[None]:
    """Within, the environment variables for the processes of a local instance are set. `preload`: a
    module that idle workers import before there is work for them."""
    wanted = worker_variables(preload)
    # Ray ends workers that have been idle for a second (its default) once a trial's CPUs are
    # reserved: those that the trial is about to need.
    wanted["RAY_idle_worker_killing_time_threshold_ms"] = "86400000"
    if preload is not None:
        wanted["RAY_preload_python_modules"] = preload
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def trials_use_idle_workers() -> Iterator[None]:
    """Within, Tune starts its trials without a runtime environment, so that they (and the actors that
    they start) are given to workers that run already. What Tune would set there is in the environment
    of all of the job's workers (`worker_variables`)."""
    import ray
    from ray.tune.execution.class_cache import _ActorClassCache

    before = _ActorClassCache.get

    def get(self: Any, trainable: type) -> Any:
        if trainable not in self._cache:
            self._cache[trainable] = ray.remote(trainable)
        return self._cache[trainable]

    _ActorClassCache.get = get
    try:
        yield
    finally:
        _ActorClassCache.get = before


# -- Tune ----------------------------------------------------------------------------------------


def trial_actor(trial: Trial) -> Any | None:
    """The actor handle of a running trial, or None. Tune shows it to nobody."""
    return trial.temporary_state.ray_actor


def quiet_driver() -> None:
    """Keep the raylet's messages off the driver's stdout: Ray prints them there whatever
    `log_to_driver` says. What they tell is told in plain words, and they are in Ray's own logs."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *args, **kwargs: None


_last_errors: dict[str, BaseException | None] = {}


def last_error(trial: Trial) -> BaseException | None:
    """The error that a trial failed with last, once `decide_retries` has been called. Tune hands it
    to no callback, and writes it to a file that reaches storage too late to be asked."""
    return _last_errors.get(trial.trial_id)


def decide_retries(
    may_retry: Callable[[BaseException | None], bool],
    counts: Callable[[Trial, BaseException | None], bool],
) -> None:
    """Ask `may_retry(error)` before Tune retries a failed trial, and `counts(trial, error)` whether it
    is one of the failures that `max_failures` limits. Tune itself only counts: an error that comes
    back at the same iteration would use up every retry, and so would nodes that come and go."""
    from ray.tune.experiment import Trial

    if not hasattr(Trial, "_raytrain_should_recover"):
        Trial._raytrain_should_recover = Trial.should_recover
        Trial._raytrain_handle_error = Trial.handle_error

    def handle_error(trial: Trial, exc: BaseException | None = None) -> None:
        _last_errors[trial.trial_id] = exc
        before = trial.run_metadata.num_failures
        trial._raytrain_handle_error(exc)
        if not counts(trial, exc):
            trial.run_metadata.num_failures = before

    def should_recover(trial: Trial) -> bool:
        by_count: bool = trial._raytrain_should_recover()
        return by_count and may_retry(last_error(trial))

    Trial.handle_error = handle_error
    Trial.should_recover = should_recover


def reset_failure_count(trials: Iterable[Trial], max_failures: int) -> None:
    """Give trials of a restored experiment their retries back: a person has started them again,
    perhaps with another limit."""
    for trial in trials:
        trial.max_failures = max_failures
        trial.run_metadata.num_failures = 0
        trial.run_metadata.num_failures_after_restore = 0


def forget_checkpoints(trial: Trial, exists: Callable[[str], bool]) -> None:
    """Drop registered checkpoints whose directory retention has removed, so that Tune's result
    grid names none that is gone. (Tune's own retention deletes before a replacement is safe.)"""
    manager = trial.run_metadata.checkpoint_manager
    manager._checkpoint_results = [
        result for result in manager._checkpoint_results if exists(result.checkpoint.path)
    ]
    trial.run_metadata.invalidate_cache()


TRIAL_INFO = "__trial_info__"
"""Key under which Tune hands a trainable its id (`ray.tune.result.TRIAL_INFO`)."""

SHOULD_CHECKPOINT = "should_checkpoint"
"""Key of a result that asks Tune to call `save()` (`ray.tune.result.SHOULD_CHECKPOINT`)."""


def training_result(path: str, filesystem: Any, metrics: dict[str, Any]) -> Any:
    """What `Trainable.save()` returns to Tune: a checkpoint that is on storage already. The class has
    no public name."""
    from ray.train._internal.session import _TrainingResult
    from ray.tune import Checkpoint

    return _TrainingResult(checkpoint=Checkpoint(path, filesystem), metrics=metrics)


def set_run_config(
    tuner: Any, *, callbacks: list[Any], failure_config: Any, scheduler: Any
) -> None:
    """Give a restored Tuner the callbacks, the failure policy and the scheduler of this start: it comes
    back with unpickled copies of those of its first start."""
    tuner._local_tuner._tune_config.scheduler = scheduler
    run_config = tuner._local_tuner.get_run_config()
    run_config.callbacks = callbacks
    run_config.failure_config = failure_config


def can_unpickle(data: bytes) -> bool:
    """Whether a pickle of Tune's (`tuner.pkl`, the search's state) is whole. Tune reads them without
    a check; a truncated one ends in any of a dozen errors."""
    from ray import cloudpickle

    try:
        cloudpickle.loads(data)
    except Exception:  # Damaged pickles raise whatever their bytes happen to spell.
        return False
    return True
