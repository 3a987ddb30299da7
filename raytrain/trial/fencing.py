"""Fencing: of all processes that ever ran a trial, only the last one started writes.

A trial on a node that was cut off lives on without knowing of the process that was started in its
place. Each start is an attempt, counted on storage before anything else is read, in a file that no
other attempt writes to:

    attempts/000003.TOKEN.json     {"began_after": 10}, or null until its checkpoint is chosen

Of two processes that count at once, at most one keeps the number: each writes its file first, then
lists the directory, and takes the next number if another process has a file with its number.

A writer that finds a later attempt, or has lost the directory's lock, writes nothing more: it
checks before each row, each commit, once more before a manifest, and before each deletion. What it
began before a check is harmless too: the record files that it has open are replaced by copies, and
a checkpoint that it still commits is off the run's line (a later attempt began before it), so it is
moved into `superseded/` and never used.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from raytrain.checkpoint import Catalogue, Entry
from raytrain.checkpoint.file_names import ATTEMPTS
from raytrain.errors import RaytrainError
from raytrain.storage import DirectoryLock, Location, Locked, storage_errors
from raytrain.storage.json import read_object

SUPERSEDED = "superseded"
_FILE = re.compile(r"(\d+)\.([0-9a-f]+)\.json")


@dataclass(frozen=True)
class Attempt:
    """The iteration that an attempt continued from, and when it began, in seconds since 1970: the
    time of its file, which a copy of the directory may not keep."""

    began_after: int
    began_at: float


class Superseded(RaytrainError):
    """Another process has taken over this trial."""

    may_retry = False


class FencingToken:
    """The attempts of one trial, seen from one of them. `lock` is this process's."""

    def __init__(self, trial: Location, lock: DirectoryLock) -> None:
        self.number = 0
        self._trial = trial
        self._lock = lock
        self._catalogue = Catalogue(trial)
        self._token = uuid.uuid4().hex[:8]
        self._began_after: dict[int, int] = {}

    def begin(self) -> None:
        """Become the present attempt. The caller holds the lock."""
        with storage_errors("Counting the attempt", self._trial):
            self.number, self._began_after = self._before()
            while True:
                self.number += 1
                # A process that was stopped here must not count itself after its successor.
                self._check_lock()
                _write_attempt(self._trial, self.number, self._token, None)
                same = [token for number, token in self._files() if number == self.number]
                if same == [self._token]:
                    return

    def look(self) -> None:
        """Learn where each attempt began, without becoming one."""
        with storage_errors("Reading the attempts", self._trial):
            _, self._began_after = self._before()

    @classmethod
    def last_of(cls, trial: Location) -> int:
        """The number of a trial's last attempt; 0 if there was none."""
        with storage_errors("Reading the attempts", trial):
            return cls(trial, DirectoryLock(trial))._before()[0]

    @staticmethod
    def count_on(trial: Location, last: int) -> None:
        """Count an attempt of a new trial that replaces one with `last` attempts.

        A process of the replaced trial that is still running finds a later attempt, and the new
        trial writes to none of its names.
        """
        with storage_errors("Counting the attempt", trial):
            _write_attempt(trial, last + 1, "0", None)

    def begin_after(self, iteration: int) -> None:
        """Record that this attempt resumes from iteration `iteration` (0: from the beginning)."""
        self._began_after[self.number] = iteration
        with storage_errors("Counting the attempt", self._trial):
            _write_attempt(self._trial, self.number, self._token, iteration)

    def check(self) -> None:
        """Raise `Superseded` if another process has taken over the trial."""
        self._check_lock()
        with storage_errors("Reading the attempt", self._trial):
            last = max(self._files(), default=(0, ""))[0]
        if last != self.number:
            raise Superseded(
                f"Another process (attempt {last}) has taken over {self._trial}; this one "
                f"(attempt {self.number}) writes nothing more."
            )

    def is_off_the_line(self, entry: Entry) -> bool:
        """Whether a later attempt had begun before its iteration."""
        if entry.manifest is None or entry.in_quarantine or entry.kind == "error":
            return False
        attempt, iteration = entry.manifest.attempt, entry.manifest.iteration
        return any(
            later > attempt and began < iteration for later, began in self._began_after.items()
        )

    def clear_away(self) -> list[str]:
        """Move checkpoints off the line into `superseded/`; a message for each."""
        off = [entry for entry in self._catalogue.entries() if self.is_off_the_line(entry)]
        return [self._supersede(entry) for entry in off]

    def make_room(self, name: str) -> list[str]:
        """Like `clear_away`, for the one name that is about to be written."""
        entry = self._catalogue.entry(name)
        return [self._supersede(entry)] if entry and self.is_off_the_line(entry) else []

    # -- inside ----------------------------------------------------------------------------------

    def _check_lock(self) -> None:
        try:
            self._lock.check()
        except Locked as error:
            raise Superseded(str(error)) from None

    def _files(self) -> dict[tuple[int, str], Location]:
        """By number and token."""
        place = self._trial / ATTEMPTS
        matches = [_FILE.fullmatch(name) for name in place.listed()]
        return {(int(m[1]), m[2]): place / m[0] for m in matches if m}

    def _before(self) -> tuple[int, dict[int, int]]:
        """The number of the last attempt, and where each began."""
        files = self._files()
        last, _ = max(files, default=(0, ""))
        began = {
            number: after
            for (number, _), place in files.items()
            if isinstance(after := read_object(place).get("began_after"), int)
        }
        if not last:  # The first attempt, or the files were lost: the checkpoints have the number.
            entries = self._catalogue.entries()
            last = max((entry.manifest.attempt for entry in entries if entry.manifest), default=0)
        return last, began

    def _supersede(self, entry: Entry) -> str:
        assert entry.manifest is not None
        attempt = entry.manifest.attempt
        self._catalogue.set_aside(
            entry,
            SUPERSEDED,
            f"{entry.path.replace('/', '_')}.attempt_{attempt}",
            fence=self.check,
        )
        return (
            f"Checkpoint {entry.path} was written by attempt {attempt} after another process had "
            f"taken over the trial. It is not used, and kept in {SUPERSEDED}/."
        )


def attempts_of(trial: Location, known: Mapping[int, Attempt] | None = None) -> dict[int, Attempt]:
    """The attempts of a trial that have chosen their checkpoint, by number; `known` ones are not
    read again. Raises OSError."""
    place, found = trial / ATTEMPTS, dict(known or {})
    for name, listed in place.listed().items():
        match = _FILE.fullmatch(name)
        if match is None or int(match[1]) in found:
            continue
        began_after = read_object(place / name).get("began_after")
        if isinstance(began_after, int):
            found[int(match[1])] = Attempt(began_after, (listed.mtime_ns or 0) / 1e9)
    return dict(sorted(found.items()))


def _write_attempt(trial: Location, number: int, token: str, began_after: int | None) -> None:
    place = trial / ATTEMPTS
    place.make()
    record = json.dumps({"began_after": began_after}).encode()
    place.write_atomic(f"{number:06d}.{token}.json", record)
