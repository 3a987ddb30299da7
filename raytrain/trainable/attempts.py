"""The fence: of all processes that ever were a trial, only the last one started writes.

A trial on a node that was cut off lives on, and knows nothing of the one that was started in its
place. Each start is an attempt, counted on storage before anything else is looked at:

    attempt.json     {"attempt": 3, "began_after": {"2": 4, "3": 10}}

A writer that finds another's attempt there, or has lost the directory's lock, writes nothing more: it
asks before each row, each commit, and once more before a manifest. What it had begun by then is
harmless too: the record files that it has open are replaced by copies, and a checkpoint that it still
commits lies off the run's line (a later attempt began before it), so it is moved into `superseded/`
and never used.
"""

from __future__ import annotations

import json

from raytrain.checkpoint import (
    Catalogue,
    DirectoryLock,
    Entry,
    Location,
    Locked,
    move_checkpoint,
    remove_checkpoint,
    storage_errors,
)
from raytrain.errors import RaytrainError
from raytrain.stored_json import read_json

ATTEMPT_FILE = "attempt.json"
SUPERSEDED = "superseded"


class Superseded(RaytrainError):
    """Another process has taken over this trial."""

    may_retry = False


class Attempts:
    """The attempts of one trial, seen from one of them. `lock` is this process's."""

    def __init__(self, trial: Location, lock: DirectoryLock) -> None:
        self.number = 0
        self._trial = trial
        self._lock = lock
        self._catalogue = Catalogue(trial)
        self._began_after: dict[int, int] = {}

    def begin(self) -> None:
        """Become the present attempt; the lock is held."""
        last, self._began_after = self._read()
        self.number = last + 1
        self._write()

    def begin_after(self, iteration: int) -> None:
        """This attempt goes on from the checkpoint of `iteration` (0: from the beginning)."""
        self._began_after[self.number] = iteration
        self._write()

    def check(self) -> None:
        """Raise `Superseded` if the run goes on elsewhere."""
        try:
            self._lock.check()
        except Locked as error:
            raise Superseded(str(error)) from None
        with storage_errors("Reading the attempt", self._trial):
            written, _ = self._read()
        if written != self.number:
            raise Superseded(
                f"Another process (attempt {written}) has taken over {self._trial}; this one "
                f"(attempt {self.number}) writes nothing more."
            )

    def clear_away(self) -> list[str]:
        """Move checkpoints off the line out of the way; a sentence for each."""
        off = [entry for entry in self._catalogue.entries() if self._is_off_the_line(entry)]
        return [self._supersede(entry) for entry in off]

    def make_room(self, name: str) -> list[str]:
        """As `clear_away`, for the one name that is about to be written."""
        entry = self._catalogue.entry(name)
        return [self._supersede(entry)] if entry and self._is_off_the_line(entry) else []

    # -- inside ----------------------------------------------------------------------------------

    def _read(self) -> tuple[int, dict[int, int]]:
        try:
            found = read_json(self._trial / ATTEMPT_FILE)
            began = {int(each): int(after) for each, after in found.get("began_after", {}).items()}
            return int(found["attempt"]), began
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            # A damaged counter may be lower than the truth; the checkpoints know better.
            pass
        written = [entry.manifest.attempt for entry in self._catalogue.entries() if entry.manifest]
        return max(written, default=0), {}

    def _write(self) -> None:
        record = {"attempt": self.number, "began_after": self._began_after}
        with storage_errors("Counting the attempt", self._trial):
            self._trial.write_atomic(ATTEMPT_FILE, json.dumps(record).encode())

    def _is_off_the_line(self, entry: Entry) -> bool:
        if entry.manifest is None or entry.in_quarantine or entry.kind == "error":
            return False
        attempt, iteration = entry.manifest.attempt, entry.manifest.iteration
        return any(each > attempt and at < iteration for each, at in self._began_after.items())

    def _supersede(self, entry: Entry) -> str:
        assert entry.manifest is not None
        attempt = entry.manifest.attempt
        with storage_errors(f"Setting aside {entry.path}", entry.location):
            target = self._trial / SUPERSEDED / f"{entry.path.replace('/', '_')}.attempt_{attempt}"
            remove_checkpoint(target)
            move_checkpoint(entry.location, target)
        return (
            f"Checkpoint {entry.path} was written by attempt {attempt} after the run had gone on "
            f"elsewhere. It is not used, and kept in {SUPERSEDED}/."
        )
