"""What the driver does while Tune runs: tells the person, carries an interrupt to the trials, and
counts what they survive: failures of the run's own, lost nodes and preemptions, each apart.

`RunCallback` is Tune's callback. Tune pickles its callbacks into `tuner.pkl`; an unpickled `RunCallback` is
inert, and the live one of each start takes its place.
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
from raytrain.cluster.failures import may_retry, why_it_died
from raytrain.cluster.nodes import loss_of
from raytrain.cluster.preemption import Notice, Sentries
from raytrain.cluster.restart_counts import Loss, RestartCounts
from raytrain.config import ExperimentConfig, total_timesteps
from raytrain.config.sections import FaultTolerance
from raytrain.driver.console import ConsoleReporter, StopTotals
from raytrain.driver.pending_trials import PendingTrials
from raytrain.driver.signals import Interrupts
from raytrain.driver.trial_watchdog import TrialWatchdog
from raytrain.records import EVENT_LOG, EventLog
from raytrain.storage import Location, StorageError
from raytrain.storage.json import read_json
from raytrain.trial.saving import REPORT
from raytrain.trial.tracebacks import where_the_traceback_is
from raytrain.trial.trainable import stall_key
from raytrain.trial.watchdog import LAST_WORDS

_SAVE_DEADLINE_S = 300.0
_CHECK_EVERY_S = 0.5
_SILENT_S = 5.0


class RunCallback(Callback):
    """See the module's docstring."""

    def __init__(
        self,
        config: ExperimentConfig | None = None,
        reporter: ConsoleReporter | None = None,
        interrupts: Interrupts | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`check` is called now and then."""
        self._config = config
        self._reporter = reporter
        self._interrupts = interrupts
        self._check = check
        self._checked_at = 0.0
        self._begun = False
        self._losses: dict[str, RestartCounts] = {}
        self._why: dict[str, _Why] = {}
        self._killed: dict[str, str] = {}
        self._waiting = PendingTrials()
        self._sentries, self._overdue = _housekeeping(config)
        self._iterations: dict[str, int] = {}
        self._checkpoints: dict[str, int | None] = {}
        self._deleted: dict[str, set[str]] = {}
        self.errors: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.tune_error: str | None = None
        self.left = False
        self.unsaved: dict[str, str] = {}
        self._leave = threading.Event()

    def begin(self) -> None:
        """Called before Tune's loop begins."""
        _ray.tune.leave_by(self._leave)
        _ray.tune.keep_no_results()

    def __reduce__(self) -> Any:
        return RunCallback, ()

    # -- what Tune calls -------------------------------------------------------------------------

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._interrupts is None or self._config is None:
            return
        if not self._begun:
            self._begun = True
            _ray.tune.decide_retries(may_retry, self._counts)
            _ray.tune.reset_failure_count(trials, self._config.failure.max_failures)
        if time.monotonic() - self._checked_at > _CHECK_EVERY_S:
            self._checked_at = time.monotonic()
            self._check()
            self._look_after(trials)
        if self._interrupts.received is not None and not self.left:
            self.left = True
            self._save_all(trials)
            self._leave.set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self._reporter is None or self._config is None:
            return
        stop = self._config.stop
        name = str(trial)
        self._overdue.started(name)
        self._losses_of(trial).started()
        self._reporter.started(
            name,
            stop=StopTotals(
                timesteps=total_timesteps(self._config),
                iterations=stop.iterations,
                seconds=stop.time_s,
                episode_return_mean=stop.episode_return_mean,
            ),
            survived=self._losses_of(trial).text(),
        )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        if self._reporter is None:
            return
        name = str(trial)
        self._overdue.heard(name)
        report = result.get(REPORT, {})
        for message in report.get("messages", ()):
            self._reporter.event(name, "info", message)
        self._iterations[name] = int(result.get("training_iteration", 0))
        saved = report.get("checkpoint_iteration")
        if name in self._deleted:
            self._deleted[name].update(report.get("deleted", ()))
        self._reporter.result(name, result)
        if saved is not None and saved != self._checkpoints.get(name):
            self._checkpoints[name] = saved
            self._reporter.checkpointed(name, saved)
        if report.get("ended"):
            self.ended[name] = report["ended"]
        if report.get("leaving"):
            self._leaves(trial, report["leaving"])

    def on_trial_save(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.storage is None or not hasattr(trial.storage.storage_filesystem, "get_file_info"):
            return
        gone = self._deleted.get(str(trial))
        if gone is None:
            # A restored experiment remembers checkpoints of earlier starts. Later the trial tells what
            # it deletes: it waits for this, and storage may be slow to ask. If it does not answer, it is
            # asked after the next save: Tune's run must not end by it.
            fs = trial.storage.storage_filesystem
            with suppress(OSError):
                _ray.tune.forget_checkpoints(trial, lambda path: bool(fs.get_file_info(path).type))
                self._deleted[str(trial)] = set()
        elif gone:
            _ray.tune.forget_checkpoints(trial, lambda path: path.rpartition("/")[2] not in gone)
            gone.clear()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = str(trial)
        if self._reporter is not None and name not in self._losses:
            reached = trial.last_result.get("training_iteration")
            self._reporter.event(
                name, "info", f"Finished earlier, at iteration {reached}; it is not started again."
            )

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._failed(trial, will_retry=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._failed(trial, will_retry=False)

    # -- inside ----------------------------------------------------------------------------------

    def _counts(self, trial: Any, error: BaseException | None) -> bool:
        """Find out why a trial ended, and whether that counts against its limit."""
        words = _last_words(trial_location(trial))
        killed = self._killed.pop(str(trial), None)
        if killed is not None:
            why = _Why("failure", killed)
        elif words is not None:
            why = _Why(words.get("loss", "failure"), str(words.get("message")))
        else:
            loss, address = loss_of(error)
            what = describe(error)
            if address is not None:
                was = "was lost" if loss == "lost_node" else "was taken away"
                what = f"the node {address} {was}, and the trial's process with it"
            why = _Why(loss, what, where_the_traceback_is(trial_location(trial), error))
        self._why[str(trial)] = why
        self._losses_of(trial).add(why.loss)
        return why.loss == "failure"

    def _losses_of(self, trial: Any) -> RestartCounts:
        name = str(trial)
        if name not in self._losses:
            self._losses[name] = RestartCounts(trial_location(trial))
        return self._losses[name]

    def _failed(self, trial: Any, *, will_retry: bool) -> None:
        if self._reporter is None:
            return
        name = str(trial)
        why, losses = self._why[name], self._losses_of(trial)
        reached, saved = self._iterations.get(name, 0), self._newest_saved(trial)
        lost = reached - (saved or 0)
        told = why.told.rstrip(".")
        if why.traceback is not None:
            told += f"; the whole traceback is in {why.traceback}"
        if not will_retry:
            self.errors[name] = told
            losses.ended(told)
        if lost > 0 and will_retry:
            told += (
                f"; {lost} iteration{'s' * (lost > 1)} after the last checkpoint will be done again"
            )
        if why.loss != "failure":
            told += "; this is not counted as a failure"
        if saved is not None:
            self._reporter.checkpointed(name, saved)
        self._reporter.failed(
            name,
            told,
            failures=losses.counts["failure"],
            will_retry=will_retry,
            survived=losses.text(),
        )
        kind = {"failure": "failed"}.get(why.loss, why.loss)
        self._log(trial, kind, told, attempt=sum(losses.counts.values()), iteration=reached)

    def _leaves(self, trial: Any, leaving: Mapping[str, Any]) -> None:
        """A trial has saved, and gives a node up that is taken away."""
        assert self._reporter is not None
        name, losses = str(trial), self._losses_of(trial)
        losses.add("preemption")
        told = (
            f"the node {leaving['address']} is taken away: {leaving['saved']}; the trial goes on on "
            "another node, and no failure is counted"
        )
        self._reporter.event(name, "warning", told)
        attempt = sum(losses.counts.values())
        self._log(trial, "preemption", told, attempt=attempt, iteration=self._iterations[name])

    def _log(self, trial: Any, kind: str, told: str, *, attempt: int, iteration: int) -> None:
        place = trial_location(trial)
        if place.is_local:
            log = EventLog(place.local_path / EVENT_LOG)
            log.write(kind, told, attempt=attempt, iteration=iteration)

    def _look_after(self, trials: list[Any]) -> None:
        assert self._reporter is not None
        for sentence in self._waiting.look(trials):
            self._reporter.event("raytrain", "warning", sentence)
        self._tell_of_silent(trials)
        self._killed.update(self._overdue.look(trials))
        _ray.tune.forget_logged_once()
        self._sentries.post()

    def _tell_of_silent(self, trials: list[Any]) -> None:
        """Tell what trials leave to be told whose next result takes long."""
        assert self._reporter is not None
        for trial in trials:
            if trial.status == "RUNNING" and self._overdue.silence(str(trial)) > _SILENT_S:
                message = _ray_actors.take_word(stall_key(trial.trial_id))
                if message is not None:
                    self._reporter.event(str(trial), "warning", message)

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

    def _save_all(self, trials: list[Any]) -> None:
        assert self._interrupts is not None
        received = self._interrupts.received
        running = {
            str(trial): actor
            for trial in trials
            if trial.status == "RUNNING" and (actor := _ray.tune.trial_actor(trial)) is not None
        }
        if self._reporter is not None and received is not None:
            self._reporter.event(
                "raytrain",
                "info",
                f"{received.name}: saving {len(running)} running trial(s) after their present "
                "iteration; once more leaves at once.",
            )
        references = {name: actor.interrupt.remote() for name, actor in running.items()}
        self.unsaved = dict.fromkeys(running, "Ray was lost before it had answered")
        deadline = time.monotonic() + _SAVE_DEADLINE_S
        for name, reference in references.items():
            saved, said = self._answer(reference, deadline)
            if saved:
                del self.unsaved[name]
            else:
                self.unsaved[name] = said
            if self._reporter is not None:
                self._reporter.event(name, "info", said)

    def _answer(self, reference: Any, deadline: float) -> tuple[bool, str]:
        """What a trial says of its last save. Without a raylet or GCS the wait would end in an abort."""
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


def _housekeeping(config: ExperimentConfig | None) -> tuple[Sentries, TrialWatchdog]:
    tolerance = FaultTolerance() if config is None else config.fault_tolerance
    settings = None if config is None else config.preemption
    notice = None
    if settings is not None and (settings.notice_command or settings.notice_url):
        notice = Notice(
            command=settings.notice_command,
            url=settings.notice_url,
            headers=settings.notice_headers,
            match=settings.notice_match,
            poll_s=settings.notice_every_s,
            grace_s=settings.notice_grace_s,
        )
    return Sentries(notice), TrialWatchdog(tolerance.hang_factor, tolerance.hang_floor_s)


@dataclass(frozen=True)
class _Why:
    """Why a trial's process or iteration ended."""

    loss: Loss
    told: str
    traceback: str | None = None


def _last_words(trial: Location) -> dict[str, Any] | None:
    """What a trial left that had to end its own process, once."""
    try:
        words = read_json(trial / LAST_WORDS)
        (trial / LAST_WORDS).delete_file()
    except (OSError, ValueError):
        return None
    return words if isinstance(words, dict) else None


def trial_location(trial: Any) -> Location:
    """The directory of a trial of Tune's on storage."""
    return Location(trial.storage.storage_filesystem, trial.storage.trial_fs_path)


def describe(error: BaseException | None) -> str:
    """An error as Ray delivers it, in one sentence."""
    if error is None:
        return "stopped without saying why"
    cause = getattr(error, "cause", None)
    if cause is not None:
        text = str(cause).strip()
        return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
    if isinstance(error, RayError):
        return f"the trial's process died: {why_it_died(error)}"
    return f"{type(error).__name__}: {error}"
