"""One trial's directory on storage, and its only writer.

    open:     lock the directory (another process of this run may still be dying, or live on on a node
              that was cut off), count the attempt (see `fencing`), clear away what crashes
              left, choose the newest good checkpoint, set damaged ones aside
    then, for each iteration:   record(row, episodes)
    when a checkpoint is due:   save(...): staged and committed behind the next iteration. Before the
                                manifest is written every record up to its iteration is durable.

So whenever checkpoint k exists, records hold every iteration up to k; on a resume from k they are
cut to k, and the iterations after it are produced again.
"""

from __future__ import annotations

import errno
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from raytrain.checkpoint import (
    SET_ASIDE,
    BestPolicy,
    Catalogue,
    CommitJob,
    CommitOutcome,
    Committer,
    Entry,
    Manifest,
    RetentionPolicy,
    copy_checkpoint,
    fetch,
    own_name,
    rewrite_manifest,
)
from raytrain.errors import RaytrainError
from raytrain.records import EpisodeHistory, EventLog, FinishedEpisode, RecordsMirror, TrialRecords
from raytrain.records.append_file import leave_behind
from raytrain.records.downtime import RECOVERED, last_row, time_lost
from raytrain.storage import STORE, DirectoryLock, Location, StorageError, storage_errors
from raytrain.storage.scratch import scratch
from raytrain.trial.fencing import FencingToken, Superseded
from raytrain.trial.repeated_failures import FailureMemory

EVENT_LOG = "events.jsonl"
_STAGING = ".staging"
_APPENDED = re.compile(r"result\.json|progress\.csv|events\.out\.tfevents\..*")
_T = TypeVar("_T")
_LOCK_PATIENCE_S = 120.0
# How often a start looks at the storage while another writer changes something under it, and how that shows.
_LOOKS = 3
_CHANGED = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)


class SavesFailing(RaytrainError):
    """Several checkpoints in a row could not be written."""

    may_retry = False


@dataclass(frozen=True)
class Found:
    """What is on storage when a trial starts: the checkpoint to go on from (None: from the
    beginning), and a sentence for each damaged one that was set aside."""

    entry: Entry | None
    messages: tuple[str, ...]


class TrialDirectory:
    """See the module's docstring."""

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
        """`is_own` says whether a checkpoint was written by this run and trial.

        `node`: the id of the node that this process is on. `node_is_gone` says of another holder's
        whether it is no part of the cluster any more, so that its lock may be seized."""
        self.location = location
        self.last_saved: Manifest | None = None
        self.last_saved_name = ""
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
        self._scratch: Path | None = None
        self._until_closed = ExitStack()
        self._mirror: RecordsMirror | None = None
        self._records: TrialRecords | None = None
        self._episodes: EpisodeHistory | None = None
        self._events: EventLog | None = None
        self._messages: list[str] = []
        self._failures = FailureMemory(location)
        STORE.listen(self._tell_of_storage)

    # -- start -----------------------------------------------------------------------------------

    def open(self) -> Found:
        """Become the directory's writer and find where to go on from.

        Raises:
            Locked: another process went on writing for two minutes.
            NoGoodCheckpoint: there are checkpoints, and all are damaged.
        """
        self._lock.acquire()
        self._fencing.begin()
        messages: list[str] = []
        if self._lock.seized:
            messages.append(
                "The node of the attempt before is no part of the cluster any more. Should it come "
                "back, it finds itself shut out of this directory."
            )
        chosen = _looked(lambda: self._find(messages))
        return Found(chosen, tuple(messages))

    def _find(self, messages: list[str]) -> Entry | None:
        self._clear_staging()
        swept = self._catalogue.sweep(self._fencing.check)
        if swept:
            messages.append(f"Cleared away what a crash left: {', '.join(swept)}.")
        messages += self._fencing.clear_away()
        messages += self._set_foreign_ones_aside()
        choice = self._catalogue.choose_for_resume()
        chosen = choice.entry if choice is not None else None
        self._fencing.begin_after(chosen.iteration if chosen is not None else 0)
        for entry in choice.damaged if choice is not None else ():
            aside = self._catalogue.quarantine(entry, self._fencing.check)
            messages.append(
                f"Checkpoint {entry.path} is damaged ({entry.problem}). It was set aside in "
                f"{aside.parent.name}/{aside.name}."
            )
        return None if chosen is None else self._own(chosen)

    def _own(self, chosen: Entry) -> Entry:
        """On a store a former holder that lives on may delete what it has decided to delete: of what this attempt
        goes on from there is a copy then to which nobody else writes."""
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
        return fetch(checkpoint, self._scratch_directory() / "fetched")

    def open_records(self, *, resume_from: int, next_episode: int, starts_after: int = 0) -> None:
        """Open result.json, progress.csv, TensorBoard and the episode history, cut to iteration
        `resume_from`. `starts_after`: the iteration that a fork began from."""
        if self.location.is_local:
            directory = self.location.local_path
            if self._lock.taken_over:
                self._leave_records_behind(directory)
        else:
            directory = self._scratch_directory() / "records"
            directory.mkdir(exist_ok=True)
            self._mirror = RecordsMirror(
                directory, self.location, self.attempt, self._fencing.check
            )
            _looked(self._mirror.download)
        before = last_row(Location.of(directory / "result.json"))  # It may be cut off now.
        self._records = TrialRecords(
            directory, resume_from, starts_after=starts_after, fence=self._fencing.check
        )
        self._episodes = EpisodeHistory(
            directory,
            resume_from,
            next_episode,
            starts_after=starts_after,
            attempt=self.attempt,
            fence=self._fencing.check,
        )
        self._events = EventLog(directory / EVENT_LOG)
        self._note_failure(before, resume_from)
        self._messages += [*self._records.warnings, *self._episodes.warnings]

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
            Superseded: the run goes on elsewhere.
        """
        if self.location.is_local:  # Elsewhere the records are copied there before a commit.
            self._fencing.check()
        assert self._records is not None
        assert self._episodes is not None
        warning = self._records.append(row)
        if warning:
            self._messages.append(warning)
        iteration = self._iteration = int(row["training_iteration"])
        self._episodes.append(_finished(iteration, timestep, stage, each) for each in episodes)

    def tell(self, kind: str, message: str, *, iteration: int) -> None:
        """Put one sentence into the event log, and on the console with the next result."""
        self._messages.append(message)
        self.note(kind, message, iteration=iteration)

    def note(self, kind: str, message: str, *, iteration: int) -> None:
        """Put one sentence into the event log alone."""
        if self._events is not None:
            self._events.write(kind, message, attempt=self.attempt, iteration=iteration)

    def _tell_of_storage(self, message: str) -> None:
        iteration = self._iteration
        if STORE.in_trouble:
            message += (
                " Training goes on; of checkpoints that become due meanwhile the newest is written."
            )
        self.tell("storage", message, iteration=iteration)

    def take_messages(self) -> list[str]:
        """Sentences for a person since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def save(self, name: str, manifest: Manifest, write: Callable[[Path], None]) -> None:
        """Have a checkpoint written (`write` fills a directory) and committed in the background. A
        failure is told and counted, not raised (see `poll`)."""
        name = own_name(self.location, name, self.attempt)
        staging = self._staging_root() / str(self.attempt) / name

        def prepare() -> None:
            self._fencing.check()
            for sentence in self._fencing.make_room(name):
                self.tell("superseded", sentence, iteration=manifest.iteration)
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
            SavesFailing: as many saves in a row have failed as the config bears.
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
                self._note_failed_save(outcome.name, outcome.iteration, outcome.error)
            for warning in outcome.warnings:
                self.tell("storage", warning, iteration=outcome.iteration)
        if self._failed_saves > self._max_failed_saves:
            raise SavesFailing(
                f"{self._failed_saves} checkpoints in a row could not be written to {self.location}, "
                "so the trial stops rather than train on without a net. Free space or make the place "
                "writable, then start the same command again; it continues from the newest good checkpoint."
            )
        return outcomes

    def mark_interrupted(self) -> None:
        """Say in the manifest of the newest checkpoint that the run was interrupted there."""
        assert self.last_saved is not None
        if self.last_saved.kind != "periodic":
            return
        manifest = self.last_saved.with_files(self.last_saved.files, kind="interrupted")
        rewrite_manifest(self.location / self.last_saved_name, manifest, self._fencing.check)
        self.last_saved = manifest

    def note_failure(self, iteration: int, error: Exception) -> Exception | None:
        """Remember that `iteration` failed; what is to be raised in its place, if anything."""
        try:
            self._fencing.check()
        except Superseded as superseded:
            return superseded
        except StorageError:
            return None  # The failure itself is what must be told.
        return self._failures.note(iteration, error)

    def close(self) -> None:
        """Let the commit in flight end, and give the directory up."""
        self._committer.close()
        if self._records is not None:
            self._records.close()
        self._until_closed.close()
        self._lock.release()

    # -- inside ----------------------------------------------------------------------------------

    def _set_foreign_ones_aside(self) -> list[str]:
        sentences = []
        for entry in self._catalogue.entries():
            if entry.manifest is None or entry.in_quarantine or self._is_own(entry.manifest):
                continue
            target = self._catalogue.set_aside(entry, SET_ASIDE, fence=self._fencing.check)
            sentences.append(
                f"Checkpoint {entry.path} was written by another run or trial ({entry.manifest.experiment}, "
                f"{entry.manifest.trial_id}, run {entry.manifest.run_id}). It is not used, and kept in "
                f"{SET_ASIDE}/{target.name}. To go on from it, fork it: raytrain train CONFIG --from ... --name NEW."
            )
        return sentences

    def _note_failure(self, before: Mapping[str, Any] | None, resume_from: int) -> None:
        lost = time_lost(before, self.last_saved, attempt=self.attempt, now=time.time())
        if lost is not None and self._events is not None:
            self._events.write(
                RECOVERED,
                lost.text(),
                attempt=self.attempt,
                iteration=resume_from,
                redone_s=lost.redone_s,
                away_s=lost.away_s,
            )

    def _make_records_durable(self, manifest: Manifest) -> None:
        assert self._records is not None
        assert self._episodes is not None
        self._records.flush(durable=True)
        self._episodes.flush(manifest.iteration)
        if self._mirror is not None:
            try:
                self._mirror.upload()
            except OSError as error:
                raise StorageError(
                    f"The records could not be copied to {self.location}: {error}"
                ) from error

    def _note_failed_save(self, name: str, iteration: int, error: Exception) -> None:
        self._failed_saves += 1
        self.tell(
            "save_failed",
            f"Checkpoint {name} could not be written: {str(error).rstrip('.')}. Training goes on; older ones are "
            f"untouched and the next save is tried as usual ({self._failed_saves} of "
            f"{self._max_failed_saves} failures in a row that the run bears).",
            iteration=iteration,
        )

    def _leave_records_behind(self, directory: Path) -> None:
        with storage_errors("Replacing the records", self.location):
            for path in sorted(directory.iterdir()):
                if _APPENDED.fullmatch(path.name):
                    leave_behind(path, self._fencing.check)

    def _clear_staging(self) -> None:
        """Of what former attempts have left. Who was replaced since its start leaves its successor's."""
        if not self._staging_root().is_dir():
            return
        for each in self._staging_root().iterdir():
            if not (each.name.isdigit() and int(each.name) >= self.attempt):
                shutil.rmtree(each, ignore_errors=True)

    def _staging_root(self) -> Path:
        if self.location.is_local:
            return self.location.local_path / _STAGING
        return self._scratch_directory() / "staging"

    def _scratch_directory(self) -> Path:
        if self._scratch is None:
            self._scratch = self._until_closed.enter_context(scratch("trial"))
        return self._scratch


def _looked(look: Callable[[], _T]) -> _T:
    """What `look` returns. It looks again if something changes under it: a writer that was replaced ends what
    it had begun."""
    for _ in range(_LOOKS - 1):
        try:
            return look()
        except StorageError as error:
            if error.errno not in _CHANGED:
                raise
    return look()


def _finished(
    iteration: int, timestep: int, stage: str | None, row: Mapping[str, Any]
) -> FinishedEpisode:
    return FinishedEpisode(
        iteration=iteration,
        timestep=timestep,
        group=row["group"],
        env_index=row["env_index"],
        episode_return=row["return"],
        length=row["length"],
        stage=stage,
        custom={
            name.removeprefix("custom/"): value
            for name, value in row.items()
            if name.startswith("custom/")
        },
    )
