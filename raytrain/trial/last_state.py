"""The state after the last iteration, kept in memory for a node that ends before the next one does.

A notice may leave less time than an iteration takes. What is kept costs a copy of the state, so it is
kept only where iterations are long. It is committed by the lookout's thread, while the training
thread is busy with an iteration that will not be finished.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raytrain.checkpoint import Manifest
from raytrain.trial.directory import TrialDirectory

LONG_ITERATION_S = 5.0


@dataclass(frozen=True)
class State:
    """A checkpoint to be: `write` fills a directory, in any thread."""

    name: str
    manifest: Manifest
    write: Callable[[Path], None]


class Kept:
    """At most one state of a trial. `saving` is held by whoever writes to the trial's directory."""

    def __init__(self) -> None:
        self.saving = threading.Lock()
        self._state: State | None = None

    def put(self, state: State | None) -> None:
        """Keep `state` in place of the one before; None: the next iteration is short."""
        with self.saving:
            self._state = state

    def commit(self, directory: TrialDirectory) -> str | None:
        """Commit the state; what there is then, or None if none is kept."""
        with self.saving:
            if self._state is None:
                return None
            directory.poll(wait=True)
            saved = directory.last_saved
            if saved is None or saved.iteration != self._state.manifest.iteration:
                directory.save(self._state.name, self._state.manifest, self._state.write)
                directory.poll(wait=True)
            directory.mark_interrupted()
            return f"{directory.last_saved_name} is saved"
