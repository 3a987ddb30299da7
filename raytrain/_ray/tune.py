"""Private names of Ray Tune."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from threading import Event
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


def trial_actor(trial: Trial) -> Any | None:
    """The actor handle of a running trial, or None. Tune has no public name for it."""
    return trial.temporary_state.ray_actor


def quiet_driver() -> None:
    """Keep the raylet's messages off the driver's stdout: Ray prints them there whatever the value
    of `log_to_driver`. raytrain reports the same in plain words; they are in Ray's own logs."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *args, **kwargs: None


def silence_ray() -> None:
    """`quiet_driver`, and Ray's loggers off stderr. Importing Ray sets their levels, so the imports
    come first."""
    quiet_driver()
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def leave_by(event: Event) -> None:
    """Make Tune's loop end when `event` is set: it then writes the experiment's state and ends the
    trials. Tune sets such an event itself on SIGINT and SIGUSR1, with handlers that would take
    these signals from the driver and would save no trial."""
    from ray.tune import tune

    tune._setup_signal_catching = lambda: event


def keep_no_results() -> None:
    """Make Tune drop the reference of each result that it has taken. It keeps all of an actor's
    while the actor lives (Ray 2.60, `RayActorManager._tracked_actors_to_task_futures`), and each
    keeps a result in the driver's memory: 6 KB an iteration, 1 GB in 170,000."""
    from ray.air.execution._internal.actor_manager import RayActorManager

    plain = RayActorManager._schedule_tracked_actor_task
    if hasattr(plain, "_raytrain"):
        return

    def schedule(self: Any, tracked_actor_task: Any, *args: Any, **kwargs: Any) -> Any:
        kept = self._tracked_actors_to_task_futures[tracked_actor_task._tracked_actor]
        kept &= self._actor_task_events.get_futures()
        return plain(self, tracked_actor_task, *args, **kwargs)

    schedule._raytrain = plain  # type: ignore[attr-defined]
    RayActorManager._schedule_tracked_actor_task = schedule


def forget_logged_once() -> None:
    """Empty a cache of Tune's: of each snapshot of its state it keeps the text of each value that
    is not JSON, for one debug message: some KB every ten seconds."""
    from ray.util import debug

    debug._logged.difference_update(
        [key for key in debug._logged if str(key).startswith("tune_func_encode:")]
    )


_last_errors: dict[str, BaseException | None] = {}


def last_error(trial: Trial) -> BaseException | None:
    """The error that a trial failed with last, once `decide_retries` has been called. Tune passes
    it to no callback, and the file that it writes reaches storage too late."""
    return _last_errors.get(trial.trial_id)


def decide_retries(
    may_retry: Callable[[BaseException | None], bool],
    counts: Callable[[Trial, BaseException | None], bool],
) -> None:
    """Make Tune call `may_retry(error)` before it retries a failed trial, and count its failure
    against `max_failures` only if `counts(trial, error)`. Tune itself counts all: an error that
    repeats at the same iteration would use up every retry, and so would preempted nodes."""
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
    """Give trials of a restored experiment their retries back: the user has started them again,
    perhaps with another limit."""
    for trial in trials:
        trial.max_failures = max_failures
        trial.run_metadata.num_failures = 0
        trial.run_metadata.num_failures_after_restore = 0


def forget_checkpoints(trial: Trial, exists: Callable[[str], bool]) -> None:
    """Drop registered checkpoints whose directory retention has removed, so that Tune's result grid
    has none that is gone. (Tune's own retention deletes before a replacement is safe.)"""
    manager = trial.run_metadata.checkpoint_manager
    manager._checkpoint_results = [
        result for result in manager._checkpoint_results if exists(result.checkpoint.path)
    ]
    trial.run_metadata.invalidate_cache()


def training_result(path: str, filesystem: Any, metrics: dict[str, Any]) -> Any:
    """The return value of `Trainable.save()`: a checkpoint that is on storage already. The class
    has no public name."""
    from ray.train._internal.session import _TrainingResult
    from ray.tune import Checkpoint

    return _TrainingResult(checkpoint=Checkpoint(path, filesystem), metrics=metrics)


def set_run_config(
    tuner: Any, *, callbacks: list[Any], failure_config: Any, scheduler: Any
) -> None:
    """Give a restored Tuner the callbacks, the failure policy and the scheduler of this start: it
    has unpickled copies of those of its first start."""
    tuner._local_tuner._tune_config.scheduler = scheduler
    run_config = tuner._local_tuner.get_run_config()
    run_config.callbacks = callbacks
    run_config.failure_config = failure_config


def unpickled(data: bytes) -> Any | None:
    """A pickle of Tune's (`tuner.pkl`, the search's state), or None if it is damaged. Tune reads
    them without a check; a truncated one raises any of a dozen errors."""
    from ray import cloudpickle

    try:
        return cloudpickle.loads(data)
    except Exception:  # A damaged pickle may raise anything.
        return None


def has_named_all_trials(state: Any) -> bool:
    """Whether the state of a `BasicVariantGenerator` (`basic-variant-state-*.json`, unpickled) was
    written after its last trial. Restored from an earlier one it generates trials again that the
    experiment's state may contain already: the two files are written one after the other."""
    return isinstance(state, dict) and bool(state.get("_finished"))


def note_finished(trial: Trial, metrics: dict[str, Any], path: str, filesystem: Any) -> None:
    """Give Tune the result of a trial that is not started, so that its result grid shows it."""
    trial.update_last_result({**metrics, "trial_id": trial.trial_id, "done": True})
    trial.on_checkpoint(training_result(path, filesystem, metrics))
