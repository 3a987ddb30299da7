"""What the driver does while Tune runs: it shows the progress, passes an interrupt on to the
trials, and counts failures of the run's own, lost nodes and preemptions, each separately.

Tune pickles its callbacks into `tuner.pkl`: a `RunCallback` is pickled as Tune's own `Callback`,
which does nothing, and each start installs a new one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.tune import Callback

from raytrain import _ray
from raytrain._ray import actors as _ray_actors
from raytrain.checkpoint import Catalogue
from raytrain.cluster.failures import may_retry, nodes_to_leave, why_it_died
from raytrain.cluster.nodes import loss_of
from raytrain.cluster.preemption import DrainedNodes, NoticePollers
from raytrain.cluster.restart_counts import Loss, RestartCounts
from raytrain.config import ExperimentConfig, total_timesteps
from raytrain.driver.arithmetic import add_computed_by
from raytrain.driver.console import ConsoleReporter, StopTotals
from raytrain.driver.pending_trials import PendingTrials
from raytrain.driver.relocation import Relocations
from raytrain.driver.signals import Interrupts
from raytrain.driver.trial_watchdog import TrialWatchdog
from raytrain.errors import RaytrainError
from raytrain.records import EVENT_LOG, EventLog, node_notice
from raytrain.storage import Location, StorageError
from raytrain.storage.json import read_json
from raytrain.trial.last_failure import where_the_traceback_is
from raytrain.trial.saving import REPORT
from raytrain.trial.trainable import stall_key
from raytrain.trial.watchdog import LAST_WORDS

_SAVE_DEADLINE_S = 300.0
_CHECK_EVERY_S = 0.5
_SILENT_S = 5.0


@dataclass(frozen=True)
class _Failure:
    """Why a trial's process or iteration ended."""

    loss: Loss
    reason: str
    traceback: str | None = None


class RunCallback(Callback):
    """See the module's docstring. `errors`, `unsaved`: trials that failed for good, and those that
    were not saved after an interrupt, with the reason. `tune_error`: an error of Tune's own."""

    def __init__(
        self,
        config: ExperimentConfig,
        reporter: ConsoleReporter,
        interrupts: Interrupts,
        check: Callable[[], None],
    ) -> None:
        """`check` is called every half second."""
        self._config = config
        self._reporter = reporter
        self._interrupts = interrupts
        self._check = check
        self._checked_at = 0.0
        self._begun = False
        self._leave = threading.Event()
        self._losses: dict[str, RestartCounts] = {}
        self._failures: dict[str, _Failure] = {}
        self._killed: dict[str, str] = {}
        self._pending = PendingTrials()
        self._relocations = Relocations(config.fault_tolerance.on_other_arithmetic)
        self._recorded: list[Mapping[str, Any]] = []
        tolerance = config.fault_tolerance
        self._watchdog = TrialWatchdog(tolerance.hang_factor, tolerance.hang_floor_s)
        self._notices = NoticePollers(config.preemption)
        self._drained = DrainedNodes()
        self._iterations: dict[str, int] = {}
        self._checkpoints: dict[str, int] = {}
        self._deleted: dict[str, set[str]] = {}
        self.errors: dict[str, str] = {}
        self.tune_error: str | None = None
        self.unsaved: dict[str, str] = {}

    def begin(self) -> None:
        """Called before Tune's loop begins."""
        _ray.tune.leave_by(self._leave)
        _ray.tune.keep_no_results()

    def __reduce__(self) -> Any:
        return Callback, ()

    # -- what Tune calls -------------------------------------------------------------------------

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self._begun:
            self._begun = True
            _ray.tune.decide_retries(may_retry, self._counts)
            _ray.tune.reset_failure_count(trials, self._config.failure.max_failures)
        if time.monotonic() - self._checked_at > _CHECK_EVERY_S:
            self._checked_at = time.monotonic()
            self._check()
            self._look_at(trials)
        if self._interrupts.received is not None and not self._leave.is_set():
            self._save_all(trials, self._interrupts.received.name)
            self._leave.set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        stop, losses = self._config.stop, self._losses_of(trial)
        self._watchdog.started(str(trial))
        losses.started()
        self._reporter.started(
            str(trial),
            stop=StopTotals(
                timesteps=total_timesteps(self._config),
                iterations=stop.iterations,
                seconds=stop.time_s,
                episode_return_mean=stop.episode_return_mean,
            ),
            survived=losses.text(),
        )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        name, report = str(trial), result.get(REPORT, {})
        self._watchdog.reported(name)
        for message in report.get("messages", ()):
            self._reporter.event(name, "info", message)
        self._iterations[name] = int(result.get("training_iteration", 0))
        if name in self._deleted:
            self._deleted[name].update(report.get("deleted", ()))
        self._reporter.result(name, result)
        saved = report.get("checkpoint_iteration")
        if saved is not None and saved != self._checkpoints.get(name):
            self._checkpoints[name] = saved
            self._reporter.checkpointed(name, saved)
        self._record_arithmetic(trial, report.get("arithmetic"))
        if report.get("leaving"):
            self._leaves_node(trial, report["leaving"])

    def on_trial_save(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        gone = self._deleted.get(str(trial))
        if gone is None:
            # A restored experiment remembers checkpoints of earlier starts. Later the trial reports
            # what it deletes: it waits for this call, and storage may be slow. If storage does not
            # answer, it is asked after the next save: that must not end Tune's run.
            fs = trial.storage.storage_filesystem
            with suppress(OSError):
                _ray.tune.forget_checkpoints(trial, lambda path: bool(fs.get_file_info(path).type))
                self._deleted[str(trial)] = set()
        elif gone:
            _ray.tune.forget_checkpoints(trial, lambda path: path.rpartition("/")[2] not in gone)
            gone.clear()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if str(trial) not in self._losses:
            reached = trial.last_result.get("training_iteration")
            message = f"Finished earlier, at iteration {reached}; it is not started again."
            self._reporter.event(str(trial), "info", message)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._failed(trial, will_retry=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._failed(trial, will_retry=False)

    # -- inside ----------------------------------------------------------------------------------

    def _counts(self, trial: Any, error: BaseException | None) -> bool:
        """Find out why a trial ended, and whether that counts against its limit."""
        place = trial_location(trial)
        words = _last_words(place)
        killed = self._killed.pop(str(trial), None)
        nodes = nodes_to_leave(error)
        if nodes:
            leaves = self._relocations.leave(trial, nodes)
            failure = _Failure("relocation", f"{describe(error)}; {leaves}")
        elif killed is not None:
            failure = _Failure("failure", killed)
        elif words is not None:
            failure = _Failure(words.get("loss", "failure"), str(words.get("message")))
        else:
            loss, address = loss_of(error)
            reason = describe(error)
            if address is not None:
                what = "was lost" if loss == "lost_node" else "was preempted"
                reason = f"the node {address} {what}, and the trial's process with it"
            failure = _Failure(loss, reason, where_the_traceback_is(place, error))
        self._failures[str(trial)] = failure
        self._losses_of(trial).add(failure.loss)
        return failure.loss == "failure"

    def _losses_of(self, trial: Any) -> RestartCounts:
        name = str(trial)
        if name not in self._losses:
            self._losses[name] = RestartCounts(trial_location(trial))
        return self._losses[name]

    def _failed(self, trial: Any, *, will_retry: bool) -> None:
        name = str(trial)
        failure, losses = self._failures[name], self._losses_of(trial)
        saved = self._newest_saved(trial)
        lost = self._iterations.get(name, 0) - (saved or 0)
        message = failure.reason.rstrip(".")
        if failure.traceback is not None:
            message += f"; the whole traceback is in {failure.traceback}"
        if not will_retry:
            self.errors[name] = message
            losses.ended(message)
        elif lost > 0:
            plural = "s" * (lost > 1)
            message += f"; {lost} iteration{plural} after the last checkpoint will be done again"
        if failure.loss != "failure":
            message += "; this is not counted as a failure"
        if saved is not None:
            self._reporter.checkpointed(name, saved)
        self._reporter.failed(name, message, will_retry=will_retry, survived=losses.text())
        self._log(trial, "failed" if failure.loss == "failure" else failure.loss, message)

    def _leaves_node(self, trial: Any, leaving: Mapping[str, Any]) -> None:
        """A trial has saved, and ends because its node is taken away."""
        self._losses_of(trial).add("preemption")
        message = (
            f"the node {leaving['address']} is taken away: {leaving['saved']}; the trial resumes "
            "on another node; this is not counted as a failure"
        )
        self._reporter.event(str(trial), "warning", message)
        self._log(trial, "preemption", message)

    def _record_arithmetic(self, trial: Any, entry: Mapping[str, Any] | None) -> None:
        """Add what computes a trial to experiment.json, if it is not there."""
        if not entry or entry in self._recorded:
            return
        with suppress(RaytrainError):  # The manifests have it, too.
            add_computed_by(trial_location(trial).parent, entry)
            self._recorded.append(entry)

    def _log(self, trial: Any, kind: str, message: str) -> None:
        place = trial_location(trial)
        if place.is_local:
            EventLog(place.local_path / EVENT_LOG).write(
                kind,
                message,
                attempt=sum(self._losses_of(trial).counts.values()),
                iteration=self._iterations.get(str(trial), 0),
            )

    def _look_at(self, trials: list[Any]) -> None:
        for message in self._pending.look(trials):
            self._reporter.note(message, "warning")
        for trial in trials:
            if trial.status == "RUNNING" and self._watchdog.silence(str(trial)) > _SILENT_S:
                stall = _ray_actors.take_message(stall_key(trial.trial_id))
                if stall is not None:
                    self._reporter.event(str(trial), "warning", stall)
        self._killed.update(self._watchdog.look(trials))
        _ray.tune.forget_logged_once()
        self._notices.update()
        self._tell_of_drained(trials)

    def _tell_of_drained(self, trials: list[Any]) -> None:
        for address, ends in self._drained.new():
            kind, message = node_notice(address, ends)
            self._reporter.note(f"{message[0].upper()}{message[1:]}.", "warning")
            for trial in trials:
                if trial.status == "RUNNING":
                    self._log(trial, kind, message)

    def _newest_saved(self, trial: Any) -> int | None:
        """The iteration of the newest checkpoint on storage: a commit may have ended unreported."""
        try:
            iterations = [
                entry.iteration
                for entry in Catalogue(trial_location(trial)).entries()
                if entry.manifest and entry.kind != "error" and not entry.in_quarantine
            ]
        except StorageError:
            return self._checkpoints.get(str(trial))
        return max(iterations, default=None)

    def _save_all(self, trials: list[Any], signal: str) -> None:
        running = {
            str(trial): actor
            for trial in trials
            if trial.status == "RUNNING" and (actor := _ray.tune.trial_actor(trial)) is not None
        }
        self._reporter.note(
            f"{signal}: saving {len(running)} running trial(s) after the current iteration. Send "
            "it again to exit at once."
        )
        references = {name: actor.interrupt.remote() for name, actor in running.items()}
        self.unsaved = dict.fromkeys(running, "Ray was lost before the trial had answered")
        deadline = time.monotonic() + _SAVE_DEADLINE_S
        for name, reference in references.items():
            saved, message = self._answer(reference, deadline)
            self.unsaved[name] = message
            if saved:
                del self.unsaved[name]
            self._reporter.event(name, "info", message)

    def _answer(self, reference: Any, deadline: float) -> tuple[bool, str]:
        """Whether a trial was saved, and its message. Without a raylet or GCS `ray.wait` would end
        in an abort, so that is checked."""
        while not ray.wait([reference], timeout=_CHECK_EVERY_S)[0]:
            self._check()
            if time.monotonic() > deadline:
                return False, f"it did not answer within {_SAVE_DEADLINE_S:.0f} s"
        try:
            answer: tuple[bool, str] = ray.get(reference)
        except RayError as error:
            self._check()
            return False, describe(error)
        return answer


def _last_words(trial: Location) -> dict[str, Any] | None:
    """The message of a trial that had to end its own process; it is read once."""
    try:
        words = read_json(trial / LAST_WORDS)
        (trial / LAST_WORDS).delete_file()
    except (OSError, ValueError):
        return None
    return words if isinstance(words, dict) else None


def trial_location(trial: Any) -> Location:
    """The directory of a Tune trial on storage."""
    return Location(trial.storage.storage_filesystem, trial.storage.trial_fs_path)


def describe(error: BaseException | None) -> str:
    """An error as Ray delivers it, in one sentence."""
    if error is None:
        return "it ended without an error message"
    cause = getattr(error, "cause", None)
    if cause is not None:
        text = str(cause).strip()
        return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
    if isinstance(error, RayError):
        return f"the trial's process died: {why_it_died(error)}"
    return f"{type(error).__name__}: {error}"
