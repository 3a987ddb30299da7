"""One trial's directory on storage, and its only writer.

    open:     lock the directory (another process of this run may still be dying), count the attempt,
              clear away what crashes left, choose the newest good checkpoint, set damaged ones aside
    then, for each iteration:   record(row, episodes)
    when a checkpoint is due:   save(...): staged and committed behind the next iteration. Before the
                                manifest is written every record up to its iteration is durable.

So whenever checkpoint k exists, records hold every iteration up to k; on a resume from k they are
cut to k, and the iterations after it are produced again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raytrain.checkpoint import (
    BestPolicy,
    Catalogue,
    CommitJob,
    CommitOutcome,
    Committer,
    DirectoryLock,
    Entry,
    Location,
    Manifest,
    RetentionPolicy,
    StorageError,
    fetch,
    storage_errors,
    together,
)
from raytrain.errors import RaytrainError
from raytrain.faults.failures import FailureMemory
from raytrain.reporting import (
    EpisodeHistory,
    EventLog,
    FinishedEpisode,
    RecordsMirror,
    TrialRecords,
)

ATTEMPT_FILE = "attempt.json"
EVENT_LOG = "events.jsonl"
_STAGING = ".staging"
_LOCK_PATIENCE_S = 120.0


class Superseded(RaytrainError):
    """Another process has taken over this trial."""

    may_retry = False


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
    ) -> None:
        self.location = location
        self.attempt = 0
        self.last_saved: Manifest | None = None
        self.last_saved_name = ""
        self._catalogue = Catalogue(location)
        self._lock = DirectoryLock(location, wait=_LOCK_PATIENCE_S)
        self._committer = Committer(location, retention=retention, best=best, fence=self._fence)
        self._max_failed_saves = max_failed_saves
        self._failed_saves = 0
        self._scratch: Path | None = None
        self._mirror: RecordsMirror | None = None
        self._records: TrialRecords | None = None
        self._episodes: EpisodeHistory | None = None
        self._events: EventLog | None = None
        self._messages: list[str] = []
        self.failures = FailureMemory(location)

    # -- start -----------------------------------------------------------------------------------

    def open(self) -> Found:
        """Become the directory's writer and find where to go on from.

        Raises:
            Locked: another process went on writing for two minutes.
            NoGoodCheckpoint: there are checkpoints, and all are damaged.
        """
        self._lock.acquire()
        self.attempt = self._last_attempt() + 1
        self.location.write_atomic(ATTEMPT_FILE, json.dumps({"attempt": self.attempt}).encode())
        shutil.rmtree(self._staging_root(), ignore_errors=True)
        swept = self._catalogue.sweep()
        messages = [f"Cleared away what a crash left: {', '.join(swept)}."] if swept else []
        choice = self._catalogue.choose_for_resume()
        if choice is None:
            return Found(None, tuple(messages))
        for entry in choice.damaged:
            aside = self._catalogue.quarantine(entry)
            messages.append(
                f"Checkpoint {entry.path} is damaged ({entry.problem}). It was set aside in "
                f"{aside.parent.name}/{aside.name}."
            )
        return Found(choice.entry, tuple(messages))

    def has(self, name: str) -> bool:
        """Whether there is anything under this name in the trial's directory."""
        return (self.location / name).exists()

    def fetch(self, entry: Entry) -> Path:
        """A local directory with the verified files of a checkpoint."""
        return fetch(entry.location, self._scratch_directory() / "fetched")

    def open_records(self, *, resume_from: int, next_episode: int, starts_after: int = 0) -> None:
        """Open result.json, progress.csv, TensorBoard and the episode history, cut to iteration
        `resume_from`."""
        if self.location.is_local:
            directory = self.location.local_path
        else:
            directory = self._scratch_directory() / "records"
            directory.mkdir(exist_ok=True)
            self._mirror = RecordsMirror(directory, self.location)
            self._mirror.download()
        self._records = TrialRecords(directory, resume_from, starts_after=starts_after)
        self._episodes = EpisodeHistory(directory, resume_from, next_episode)
        self._events = EventLog(directory / EVENT_LOG)
        self._messages += [*self._records.warnings, *self._episodes.warnings]

    # -- an iteration ----------------------------------------------------------------------------

    def record(self, row: Mapping[str, Any], episodes: list[dict[str, Any]], timestep: int) -> None:
        """Write one iteration's row and its finished episodes (see `trainable.finished`)."""
        assert self._records is not None
        assert self._episodes is not None
        warning = self._records.append(row)
        if warning:
            self._messages.append(warning)
        iteration = int(row["training_iteration"])
        self._episodes.append(_finished(iteration, timestep, each) for each in episodes)

    def tell(self, kind: str, message: str, *, iteration: int) -> None:
        """Put one sentence into the event log, and on the console with the next result."""
        self._messages.append(message)
        if self._events is not None:
            self._events.write(kind, message, attempt=self.attempt, iteration=iteration)

    def take_messages(self) -> list[str]:
        """Sentences for a person since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def save(self, name: str, manifest: Manifest, write: Callable[[Path], None]) -> None:
        """Have a checkpoint written (`write` fills a directory) and committed in the background. A
        failure is told and counted, not raised (see `poll`)."""
        staging = self._staging_root() / name

        def prepare() -> None:
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
        (self.location / self.last_saved_name).write_atomic("manifest.json", manifest.to_json())
        self.last_saved = manifest

    def close(self) -> None:
        """Let the commit in flight end, and give the directory up."""
        self._committer.close()
        if self._records is not None:
            self._records.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._lock.release()

    # -- inside ----------------------------------------------------------------------------------

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
                    f"The records could not be copied to {self.location}: {error}",
                    path=str(self.location),
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

    def _fence(self) -> None:
        attempts: list[int] = []
        together(
            self._lock.check,
            lambda: attempts.append(self._last_attempt()),
            serial=self.location.is_local,
        )
        if attempts != [self.attempt]:
            raise Superseded(
                f"Another process has taken over {self.location}; this one (attempt {self.attempt}) "
                "writes nothing more."
            )

    def _last_attempt(self) -> int:
        try:
            return int(json.loads((self.location / ATTEMPT_FILE).read_bytes())["attempt"])
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError):
            # A damaged counter may be lower than the truth; the checkpoints know better.
            pass
        written = [entry.manifest.attempt for entry in self._catalogue.entries() if entry.manifest]
        return max(written, default=0)

    def _staging_root(self) -> Path:
        if self.location.is_local:
            return self.location.local_path / _STAGING
        return self._scratch_directory() / "staging"

    def _scratch_directory(self) -> Path:
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="raytrain-"))
        return self._scratch


def _finished(iteration: int, timestep: int, row: Mapping[str, Any]) -> FinishedEpisode:
    return FinishedEpisode(
        iteration=iteration,
        timestep=timestep,
        group=row["group"],
        env_index=row["env_index"],
        episode_return=row["return"],
        length=row["length"],
        custom={
            name.removeprefix("custom/"): value
            for name, value in row.items()
            if name.startswith("custom/")
        },
    )
