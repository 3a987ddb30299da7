"""One trial's directory on storage, and its only writer.

    open:     lock the directory (another process of this run may still be dying, or live on a node
              that was cut off), count the attempt (see `fencing`), delete the remains of crashes,
              choose the newest good checkpoint, set damaged ones aside
    then, for each iteration:   record(row, episodes)
    when a checkpoint is due:   save(...): staged and committed in the background of the next
                                iteration. Before the manifest is written, every record up to its
                                iteration is durable.

So whenever checkpoint k exists, the records hold every iteration up to k. A resume from k cuts them
to k and produces the iterations after it again.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from raytrain.checkpoint import (
    BestPolicy,
    Catalogue,
    Entry,
    Manifest,
    RetentionPolicy,
    fetch,
)
from raytrain.checkpoint.background_commit import CommitJob, CommitOutcome, Committer
from raytrain.checkpoint.commit import copy_checkpoint, rewrite_manifest
from raytrain.checkpoint.file_names import own_name
from raytrain.checkpoint.lineage import SET_ASIDE
from raytrain.errors import RaytrainError
from raytrain.records import EVENT_LOG, EpisodeHistory, EventLog, RecordsMirror, TrialRecords
from raytrain.records.downtime import RECOVERED, time_lost
from raytrain.records.row_files import detach_row_files, last_row, rows_after
from raytrain.storage import STORE, DirectoryLock, Location, StorageError, storage_errors
from raytrain.storage.scratch import scratch
from raytrain.trial.fencing import FencingToken, Superseded
from raytrain.trial.last_failure import repeated_failure
from raytrain.trial.repeated_iterations import RepeatedIterations

_STAGING = ".staging"
_T = TypeVar("_T")
_LOCK_PATIENCE_S = 120.0
_TRIES = 3
_CONFLICTS = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)
"""Errors of a start while another writer changes the same files."""


class SavesFailing(RaytrainError):
    """Several checkpoints in a row could not be written."""

    may_retry = False


class TrialDirectory:
    """See the module's docstring.

    `start_messages`: a sentence for each thing that `open` has deleted or set aside.
    """

    def __init__(
        self,
        location: Location,
        *,
        retention: RetentionPolicy,
        best: BestPolicy,
        max_failed_saves: int,
        node: str,
        node_is_gone: Callable[[str], bool],
        is_own: Callable[[Manifest], bool] = lambda manifest: True,
    ) -> None:
        """`is_own`: whether a checkpoint was written by this run and trial.

        `node`: the id of this process's node. `node_is_gone`: whether another lock holder's node
        has left the cluster, so that its lock may be seized.
        """
        self.location = location
        self.last_saved: Manifest | None = None
        self.last_saved_name = ""
        self.start_messages: list[str] = []
        self.repeated = RepeatedIterations()
        self._iteration = 0
        self._catalogue = Catalogue(location)
        self._best = best
        self._lock = DirectoryLock(
            location,
            wait=_LOCK_PATIENCE_S,
            note={"node": node},
            holder_is_gone=lambda holder: "node" in holder and node_is_gone(str(holder["node"])),
        )
        self._is_own = is_own
        self._fencing = FencingToken(location, self._lock)
        self._committer = Committer(
            location,
            retention=retention,
            best=best,
            fence=self._fencing.check,
            off_the_line=self._fencing.is_off_the_line,
            attempt=lambda: self._fencing.number,
        )
        self._max_failed_saves = max_failed_saves
        self._failed_saves = 0
        self._save_error: RaytrainError | None = None
        self._until_closed = ExitStack()
        self._mirror: RecordsMirror | None = None
        self._records: TrialRecords  # From `open_records` on, like `_episodes`.
        self._episodes: EpisodeHistory
        self._events: EventLog | None = None
        self._messages: list[str] = []
        STORE.listen(self._tell_of_storage)

    # -- start -----------------------------------------------------------------------------------

    def open(self) -> Entry | None:
        """Become the directory's writer; the checkpoint to resume from (None: the beginning).

        Raises:
            Locked: another process still held the directory after two minutes.
            NoGoodCheckpoint: there are checkpoints, and all are damaged.
        """
        self._lock.acquire()
        self._fencing.begin()
        if self._lock.seized:
            self.start_messages.append(
                "The node of the previous attempt has left the cluster. If it comes back, it is "
                "shut out of this directory."
            )
        return _retry_conflicts(self._find)

    def _find(self) -> Entry | None:
        messages = self.start_messages
        self._clear_staging()
        swept = self._catalogue.sweep(self._fencing.check)
        if swept:
            messages.append(f"Deleted the remains of a crash: {', '.join(swept)}.")
        messages += self._fencing.clear_away()
        messages += self._set_foreign_ones_aside()
        choice = self._catalogue.choose_for_resume()
        chosen = choice.entry
        self._fencing.begin_after(chosen.iteration if chosen is not None else 0)
        for entry in choice.damaged:
            aside = self._catalogue.quarantine(entry, self._fencing.check)
            messages.append(
                f"Checkpoint {entry.path} is damaged ({entry.problem}). It was set aside in "
                f"{aside.parent.name}/{aside.name}."
            )
        return None if chosen is None else self._own(chosen)

    def _own(self, chosen: Entry) -> Entry:
        """The checkpoint, or on a store a copy of it that only this attempt writes to.

        A former lock holder that is still running may yet delete what it has decided to delete.
        """
        is_numbered = chosen.path.startswith("checkpoint_")
        if self.location.is_local or not self._lock.taken_over or not is_numbered:
            return chosen
        name = own_name(self.location, f"checkpoint_{chosen.iteration:06d}", self.attempt)
        if name == chosen.path:
            return chosen
        copy_checkpoint(chosen.location, self.location / name, self._fencing.check)
        return self._catalogue.entry(name) or chosen

    @property
    def attempt(self) -> int:
        """Which start of the trial this is, from 1; 0 before `open`."""
        return self._fencing.number

    def has(self, name: str) -> bool:
        """Whether there is anything under this name in the trial's directory."""
        return (self.location / own_name(self.location, name, self.attempt)).exists()

    def fetch(self, checkpoint: Location) -> Path:
        """A local directory with the verified files of a checkpoint."""
        return fetch(checkpoint, self._scratch / "fetched")

    def open_records(self, *, resume_from: int, next_episode: int, starts_after: int = 0) -> None:
        """Open the records, cut to iteration `resume_from`.

        `next_episode`: the number of the next finished episode. `starts_after`: the iteration that
        a fork began from.
        """
        if self.location.is_local:
            directory = self.location.local_path
            if self._lock.taken_over:
                with storage_errors("Replacing the records", self.location):
                    detach_row_files(directory, self._fencing.check)
        else:
            directory = self._scratch / "records"
            directory.mkdir(exist_ok=True)
            self._mirror = RecordsMirror(
                directory, self.location, self.attempt, self._fencing.check
            )
            _retry_conflicts(self._mirror.download)
        results = Location.of(directory / "result.json")
        before = last_row(results)  # These rows are cut off below.
        if resume_from > starts_after:
            self.repeated = RepeatedIterations(rows_after(results, resume_from))
        self._records = TrialRecords(
            directory, resume_from, starts_after=starts_after, fence=self._fencing.check
        )
        self._until_closed.callback(self._records.close)
        self._episodes = EpisodeHistory(
            directory,
            resume_from,
            next_episode,
            starts_after=starts_after,
            attempt=self.attempt,
            fence=self._fencing.check,
        )
        self._events = EventLog(directory / EVENT_LOG)
        lost = time_lost(before, self.last_saved, attempt=self.attempt, now=time.time())
        if lost is not None:
            self.note(RECOVERED, lost.text(), iteration=resume_from, **asdict(lost))
        self._messages += [*self._records.warnings, *self._episodes.warnings]
        for message in self.start_messages:
            self.tell("trial", message, iteration=resume_from)

    # -- an iteration ----------------------------------------------------------------------------

    def record(
        self,
        row: Mapping[str, Any],
        episodes: list[dict[str, Any]],
        timestep: int,
        stage: str | None = None,
    ) -> None:
        """Write one iteration's row and its finished episodes (see `fast_sampling.episode_rows`).

        Raises:
            Superseded: another process has taken over the trial.
        """
        if self.location.is_local:  # Other storage gets the records before a commit.
            self._fencing.check()
        warning = self._records.append(row)
        if warning:
            self._messages.append(warning)
        self._iteration = int(row["training_iteration"])
        self._episodes.append(self._iteration, timestep, stage, episodes)

    def tell(self, kind: str, message: str, *, iteration: int) -> None:
        """Put one sentence into the event log, and on the console with the next result."""
        self._messages.append(message)
        self.note(kind, message, iteration=iteration)

    def note(self, kind: str, message: str, *, iteration: int, **seconds: float) -> None:
        """Put one sentence into the event log alone (`seconds`: see `EventLog.write`)."""
        if self._events is not None:
            self._events.write(kind, message, attempt=self.attempt, iteration=iteration, **seconds)

    def _tell_of_storage(self, message: str) -> None:
        if STORE.in_trouble:
            message += (
                " Training continues; of the checkpoints that become due meanwhile, only the "
                "newest is written."
            )
        self.tell("storage", message, iteration=self._iteration)

    def take_messages(self) -> list[str]:
        """The sentences for the user since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def save(self, name: str, manifest: Manifest, write: Callable[[Path], None]) -> None:
        """Write a checkpoint (`write` fills a directory) and commit it, both in the background.

        A failure is reported and counted, not raised (see `poll`).
        """
        name = own_name(self.location, name, self.attempt)
        staging = self._staging_root() / str(self.attempt) / name

        def prepare() -> None:
            self._fencing.check()
            for message in self._fencing.make_room(name):
                self.tell("superseded", message, iteration=manifest.iteration)
            with storage_errors(f"Writing the files of {name}", Location.of(staging)):
                staging.mkdir(parents=True)
                write(staging)

        self._committer.submit(
            CommitJob(
                staging,
                name,
                manifest,
                prepare=prepare,
                before_manifest=lambda: self._make_records_durable(manifest),
            )
        )

    def would_be_best(self, score: float | None, stage: str | None) -> bool:
        """Whether a checkpoint with this score would become `best`."""
        if not self._best.better(score, None):
            return False
        entry = self._catalogue.entry("best")
        best = entry.manifest if entry is not None and entry.good is not False else None
        return self._best.replaces(score, stage or None, best)

    def poll(self, *, wait: bool = False) -> list[CommitOutcome]:
        """Commits that ended since the last call; with `wait`, after the one in flight.

        Raises:
            SavesFailing: more consecutive saves have failed than the config allows.
        """
        if wait:
            self._committer.drain()
        outcomes = self._committer.outcomes()
        for outcome in outcomes:
            if outcome.ok and outcome.manifest is not None:
                self._failed_saves = 0
                if outcome.manifest.kind != "error":
                    self.last_saved, self.last_saved_name = outcome.manifest, outcome.name
            elif outcome.error is not None:
                if not outcome.error.may_retry:
                    raise outcome.error
                self._failed_saves += 1
                self._save_error = outcome.error
                self.tell(
                    "save_failed",
                    f"Checkpoint {outcome.name} could not be written: "
                    f"{str(outcome.error).rstrip('.')}. Training continues; older checkpoints are "
                    f"untouched, and the next save is tried as usual ({self._failed_saves} of "
                    f"{self._max_failed_saves} consecutive failures allowed).",
                    iteration=outcome.iteration,
                )
            for warning in outcome.warnings:
                self.tell("storage", warning, iteration=outcome.iteration)
        if self._failed_saves > self._max_failed_saves:
            raise SavesFailing(
                f"{self._failed_saves} checkpoints in a row could not be written to "
                f"{self.location}, so the trial stops. The last one: "
                f"{str(self._save_error).rstrip('.')}. When that is mended, start the same command "
                "again; it continues from the newest good checkpoint."
            )
        return outcomes

    def mark_interrupted(self) -> None:
        """Set the kind of the newest checkpoint to `interrupted`, if it was periodic."""
        assert self.last_saved is not None
        if self.last_saved.kind != "periodic":
            return
        manifest = self.last_saved.with_files(self.last_saved.files, kind="interrupted")
        rewrite_manifest(self.location / self.last_saved_name, manifest, self._fencing.check)
        self.last_saved = manifest

    def note_failure(self, iteration: int, error: Exception) -> Exception | None:
        """Remember that `iteration` failed; an error to raise in its place, if any."""
        try:
            self._fencing.check()
        except Superseded as superseded:
            return superseded
        except StorageError:
            return None  # The failure itself is more important.
        return repeated_failure(self.location, iteration, error)

    def close(self) -> None:
        """Wait for the commit in flight, and release the directory."""
        self._committer.close()
        self._until_closed.close()
        self._lock.release()

    # -- inside ----------------------------------------------------------------------------------

    def _set_foreign_ones_aside(self) -> list[str]:
        messages = []
        for entry in self._catalogue.entries():
            if entry.manifest is None or entry.in_quarantine or self._is_own(entry.manifest):
                continue
            target = self._catalogue.set_aside(entry, SET_ASIDE, fence=self._fencing.check)
            messages.append(
                f"Checkpoint {entry.path} was written by another run or trial "
                f"({entry.manifest.experiment}, {entry.manifest.trial_id}, "
                f"run {entry.manifest.run_id}). It is not used, and kept in "
                f"{SET_ASIDE}/{target.name}. To continue from it, fork it: raytrain train CONFIG "
                "--from ... --name NEW."
            )
        return messages

    def _make_records_durable(self, manifest: Manifest) -> None:
        self._records.flush()
        self._episodes.flush(manifest.iteration)
        if self._mirror is not None:
            with storage_errors("Copying the records", self.location):
                self._mirror.upload()

    def _clear_staging(self) -> None:
        """Delete what former attempts have left, and nothing of a later one that has taken over."""
        for directory in self._staging_root().glob("*"):
            if not (directory.name.isdigit() and int(directory.name) >= self.attempt):
                shutil.rmtree(directory, ignore_errors=True)

    def _staging_root(self) -> Path:
        if self.location.is_local:
            return self.location.local_path / _STAGING
        return self._scratch / "staging"

    @cached_property
    def _scratch(self) -> Path:
        return self._until_closed.enter_context(scratch("trial"))


def _retry_conflicts(look: Callable[[], _T]) -> _T:
    """The result of `look`, called again if files change meanwhile.

    A writer that was replaced finishes what it had begun.
    """
    for _ in range(_TRIES - 1):
        try:
            return look()
        except StorageError as error:
            if error.errno not in _CONFLICTS:
                raise
    return look()
