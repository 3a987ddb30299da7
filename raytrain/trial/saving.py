"""Saving a trial's checkpoints, from when one is due until it is committed.

When a node ends, the notice may leave less time than an iteration takes. So where iterations are
long, the state after the last one is kept in memory, which costs a copy of it. The watchdog's
thread commits it while the training thread is in an iteration that will not be finished.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

from raytrain.checkpoint import Manifest
from raytrain.config.schema import Checkpoint
from raytrain.errors import RaytrainError
from raytrain.ppo.algorithm import ExactPPO
from raytrain.ppo.stopping import Progress
from raytrain.records import recordable
from raytrain.trial.directory import TrialDirectory

_LONG_ITERATION_S = 5.0
REPORT = "raytrain"
"""Key of a result under which the trial reports to the driver (not recorded)."""
_NOT_SAVED = ("config", REPORT, "done")


_State: TypeAlias = tuple[Manifest, Callable[[Path], None]]
"""A checkpoint that can be saved: its manifest, and what fills its directory, in any thread."""


def is_due(settings: Checkpoint, now: Progress, before: Progress, saved_at_s: float) -> bool:
    """Whether to save after the iteration that led from `before` to `now`.

    Each part that is set asks for a checkpoint on its own. A part that counts (iterations,
    timesteps, episodes) asks whenever it has passed a multiple, so a resumed run saves at the same
    iterations as an undisturbed one. `saved_at_s`: training seconds at the last save.
    """
    counts = (
        (settings.checkpoint_frequency, now.iteration, before.iteration),
        (settings.every_timesteps, now.timesteps, before.timesteps),
        (settings.every_episodes, now.episodes, before.episodes),
    )
    if any(every and count // every > last // every for every, count, last in counts):
        return True
    seconds = settings.every_seconds
    return seconds is not None and now.time_s - saved_at_s >= seconds


class CheckpointSaver:
    """Saves the state of `ppo`.

    `describe` makes the manifest of a state from its kind and its metrics. `measure` is entered for
    each save. `metrics` are those of the result that the present state belongs to.
    """

    def __init__(
        self,
        ppo: ExactPPO,
        directory: TrialDirectory,
        settings: Checkpoint,
        *,
        describe: Callable[[str, Mapping[str, Any]], Manifest],
        measure: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.metrics: dict[str, Any] = {}
        self.saved_at_s = 0.0
        """Seconds of training at the last periodic checkpoint, or at the end of the last stage."""
        self._directory = directory
        self._settings = settings
        self._ppo = ppo
        self._describe, self._measure = describe, measure
        self._writing = threading.Lock()
        """Only the thread that holds it writes to the trial's directory."""
        self._kept: _State | None = None

    def is_due(self, now: Progress, before: Progress) -> bool:
        """Whether a periodic checkpoint is due after the iteration from `before` to `now`."""
        return is_due(self._settings, now, before, self.saved_at_s)

    def save(self, kind: str, result: Mapping[str, Any]) -> int:
        """Begin to save the state after `result`; its iteration.

        `TrialDirectory.poll` returns the outcome.
        """
        with self._measure(), self._writing:
            manifest, write = self._take(kind, result)
            self._directory.save(_name(manifest), manifest, write)
        return manifest.iteration

    def save_surely(self, kind: str, result: Mapping[str, Any]) -> None:
        """Save, and retry until it is committed: without it no stage and no run has ended."""
        iteration = self.save(kind, result)
        while True:
            outcomes = self._directory.poll(wait=True)
            saved = self._directory.last_saved
            # An older one does not count: a finished run may have been continued.
            if saved is not None and (saved.kind, saved.iteration) == (kind, iteration):
                return
            time.sleep(1.0 if outcomes else 0.0)
            self.save(kind, self.metrics)

    def save_broken(self, name: str, result: Mapping[str, Any]) -> str:
        """Save a state as kind `error`, from which nothing resumes, unless it exists already.

        A sentence about that. Nothing is raised: it would hide the error of the training.
        """
        try:
            if not self._directory.has(name):
                self.save("error", result)
                for outcome in self._directory.poll(wait=True):
                    if outcome.error is not None:
                        raise outcome.error
        except (OSError, RaytrainError) as error:
            return f"The state could not be saved for inspection: {error}"
        return f"The state is saved in {name} for inspection."

    def save_interrupted(self, iteration: int, result: Mapping[str, Any]) -> tuple[bool, str]:
        """Commit the state after `iteration`, unless it is committed.

        Whether nothing is lost, and what was saved or why it was not.
        """
        if not self._is_saved(iteration):
            self.save("interrupted", result)
            if not self._is_saved(iteration):
                return False, "; ".join(self._directory.take_messages()) or "the save failed"
        self._directory.mark_interrupted()
        return True, f"{self._directory.last_saved_name} (iteration {iteration}) is saved"

    def keep(self, result: Mapping[str, Any]) -> None:
        """Keep the state after `result` in memory, and no older one, if iterations are long."""
        with self._writing:
            is_long = float(result.get("time_this_iter_s", 0.0)) > _LONG_ITERATION_S
            self._kept = self._take("interrupted", result) if is_long else None

    def commit_kept(self) -> str | None:
        """Commit the state in memory; a sentence about it.

        None without such a state, and if it could not be committed. It is tried once.
        """
        with self._writing:
            if self._kept is None:
                return None
            (manifest, write), self._kept = self._kept, None
            try:
                if not self._is_saved(manifest.iteration):
                    self._directory.save(_name(manifest), manifest, write)
                    if not self._is_saved(manifest.iteration):
                        return None
                self._directory.mark_interrupted()
            except RaytrainError:
                return None  # The training thread finds the same, if its iteration ends in time.
            return f"{self._directory.last_saved_name} is saved"

    def _is_saved(self, iteration: int) -> bool:
        """Whether the newest checkpoint is of this iteration, after the commit in flight."""
        self._directory.poll(wait=True)
        saved = self._directory.last_saved
        return saved is not None and saved.iteration == iteration

    def _take(self, kind: str, result: Mapping[str, Any]) -> _State:
        saved = {key: value for key, value in result.items() if key not in _NOT_SAVED}
        self.metrics, _ = recordable(saved)
        return self._describe(kind, self.metrics), self._ppo.capture()


def _name(manifest: Manifest) -> str:
    names = {
        "final": "final",
        "stage": f"stages/{manifest.stage}",
        "error": f"error_{manifest.iteration:06d}",
    }
    return names.get(manifest.kind, f"checkpoint_{manifest.iteration:06d}")
