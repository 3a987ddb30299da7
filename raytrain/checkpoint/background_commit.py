"""Commits of checkpoints while the next iteration trains, with `best` and retention.

`submit` hands over a staging directory; one background thread brings it to storage, then

    1. calls the job's `prepare`, which fills the directory
    2. commits it, and calls the job's `before_manifest` while its files are written
    3. replaces `best` if the score is better than that of the `best` on storage (before 2 for
       `final`, after which the trial's checkpoints are not looked at again)
    4. deletes the checkpoints that the retention policy does not keep (elsewhere than on a local
       disk while `best` is being replaced, once a good `best` is known: they share no file)
    5. deletes the staging directory, whatever happened

`submit` waits until the previous checkpoint is committed (not for 3 and 4), so that a crash costs
at most what was trained since the checkpoint before the last one was due. Training waits for
storage only if checkpoints are due faster than storage takes them, and at most two states are held
in memory. During an outage of the store training does not wait: one job may wait, and a newer one
replaces it. A failed job leaves the older checkpoints as they were; the caller finds the failure in
`outcomes()` and must report it.
"""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from pathlib import Path

from raytrain.checkpoint.catalogue import Catalogue, Entry
from raytrain.checkpoint.commit import DamagedCheckpoint, Fence, commit, nothing
from raytrain.checkpoint.file_names import has_fixed_name
from raytrain.checkpoint.manifest import Manifest
from raytrain.checkpoint.replacement import bring_back, commit_replacing, repair, replace
from raytrain.errors import RaytrainError
from raytrain.storage.location import Location, in_parallel, together
from raytrain.storage.retry import STORE

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class CommitJob:
    """`name`: where the checkpoint goes, relative to the trial. `final` and `stages/...` are
    replaced if they exist; any other must be new. `prepare` and `before_manifest` are called in the
    background (see the module's docstring)."""

    staging: Path
    name: str
    manifest: Manifest
    prepare: Callable[[], None] = nothing
    before_manifest: Callable[[], None] = nothing


@dataclass
class CommitOutcome:
    """`manifest` is that of the committed checkpoint, or None if the job failed with `error`.

    `warnings`: what went wrong with `best` or the deletion of old checkpoints; the commit stands.
    `deleted`: the names of the checkpoints that were deleted.
    """

    name: str
    iteration: int
    manifest: Manifest | None = None
    error: RaytrainError | None = None
    deleted: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True)
class BestPolicy:
    """Higher is better for `max`, lower for `min`. NaN and a missing score are never best, and a
    tie changes nothing. Scores of stages with different numbers in `eras` are not compared: the
    later stage is better. `ranked` gives a checkpoint its score under the current metric."""

    mode: str = "max"
    eras: Mapping[str, int] = field(default_factory=dict)
    ranked: Callable[[Manifest], Manifest] = lambda manifest: manifest

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise ValueError(f"mode is {self.mode!r}; it must be 'max' or 'min'")

    def better(self, score: float | None, best: float | None) -> bool:
        if score is None or not math.isfinite(score):
            return False
        if best is None or not math.isfinite(best):
            return True
        return score > best if self.mode == "max" else score < best

    def replaces(self, score: float | None, stage: str | None, best: Manifest | None) -> bool:
        """Whether a checkpoint with this score is better than the current best one."""
        if best is None:
            return self.better(score, None)
        era, before = self.eras.get(stage or "", 0), self.eras.get(best.stage or "", 0)
        if era != before:
            return era > before and self.better(score, None)
        return self.better(score, self.ranked(best).score)

    def best_of(self, entries: Iterable[Entry]) -> Entry | None:
        """The best of these checkpoints, leaving out damaged ones and post-mortems."""
        best: Entry | None = None
        for entry in entries:
            if entry.manifest is None or entry.good is False or entry.kind == "error":
                continue
            score = self.ranked(entry.manifest).score
            if self.replaces(score, entry.manifest.stage, best.manifest if best else None):
                best = entry
        return best


class Committer:
    """The only writer of checkpoints of one trial.

    `fence` raises a `RaytrainError` if another writer has taken over. An entry that is
    `off_the_line`, written by a former writer after this one had taken over, does not count.
    `attempt` returns this writer's number.
    """

    def __init__(
        self,
        trial: Location,
        *,
        retention: RetentionPolicy,
        best: BestPolicy | None,
        fence: Fence = nothing,
        off_the_line: Callable[[Entry], bool] = lambda entry: False,
        attempt: Callable[[], int] = lambda: 0,
    ) -> None:
        self._trial = trial
        self._catalogue = Catalogue(trial, remembered={})
        self._retention = retention
        self._best = best
        self._fence = fence
        self._off_the_line = off_the_line
        self._attempt = attempt
        # A former process, or an outage of the store, may have cut its replacement short.
        self._best_is_unsure = True
        # The interpreter joins the executor's thread on exit, so an exit does not cut
        # a commit short.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="raytrain-commit")
        # The outcomes that `outcomes` has not returned; set: it is committed, or has failed.
        self._unseen: dict[Future[CommitOutcome], threading.Event] = {}

    def submit(self, job: CommitJob) -> None:
        """Commit `job` after those before it. Waits until each of them is committed, or failed."""
        while ahead := [future for future in self._unseen if not self._unseen[future].is_set()]:
            if STORE.in_trouble:
                if len(ahead) == 1:
                    break
                if ahead[-1].cancel():
                    del self._unseen[ahead[-1]]
                    continue
            self._unseen[ahead[0]].wait(_LOOK_EVERY_S)
        settled = threading.Event()
        self._unseen[self._pool.submit(self._run, job, settled)] = settled

    def drain(self, timeout: float | None = None) -> bool:
        """Wait for the jobs in flight, at most `timeout` seconds. False: one is still running."""
        return not wait_for(self._unseen, timeout).not_done

    def outcomes(self) -> list[CommitOutcome]:
        """The outcomes of the jobs that ended since the last call, in order."""
        done = [future for future in self._unseen if future.done()]
        for future in done:
            del self._unseen[future]
        return [future.result() for future in done]

    def close(self) -> None:
        """Wait for the jobs in flight and end the thread; `outcomes` can still be called."""
        self._pool.shutdown(wait=True)

    def _run(self, job: CommitJob, settled: threading.Event) -> CommitOutcome:
        outcome = CommitOutcome(job.name, job.manifest.iteration)
        try:
            try:
                job.prepare()
                if job.name == "final":
                    self._update_best(job, job.manifest, outcome, ahead=True)
                write = commit_replacing if has_fixed_name(job.name) else commit
                outcome.manifest = write(
                    job.staging,
                    self._trial / job.name,
                    job.manifest,
                    fence=self._fence,
                    before_manifest=job.before_manifest,
                )
            except RaytrainError as error:
                outcome.error = error
            settled.set()
            if outcome.manifest is not None and outcome.manifest.kind != "error":
                self._tidy(job, outcome.manifest, outcome)
        finally:
            settled.set()
            shutil.rmtree(job.staging, ignore_errors=True)
        return outcome

    def _tidy(self, job: CommitJob, manifest: Manifest, outcome: CommitOutcome) -> None:
        known = threading.Event()

        def update_best() -> None:
            try:
                self._update_best(job, manifest, outcome, tell_known=known.set)
            finally:
                known.set()

        def delete_old_ones() -> None:
            known.wait()  # `best` may have to become one of them.
            self._prune(outcome)

        together(update_best, delete_old_ones, serial=self._trial.is_local)

    def _update_best(
        self,
        job: CommitJob,
        manifest: Manifest,
        outcome: CommitOutcome,
        *,
        ahead: bool = False,
        tell_known: Callable[[], None] = nothing,
    ) -> None:
        """Make `best` the job's checkpoint if that is better. `ahead`: it is not committed yet.

        `tell_known` is called once `best` is a good checkpoint, or there is none to make it of.
        """
        if self._best is None:
            return
        try:
            if self._best_is_unsure:
                repair(self._trial, "best", self._fence)
            best = self._catalogue.entry("best")
            if best is not None and best.good is False:
                aside = self._catalogue.quarantine(best, self._fence)
                outcome.warnings.append(
                    f"best was damaged ({best.problem}); it was moved to {aside}"
                )
                best = None
            if best is None or self._best_is_unsure or self._off_the_line(best):
                self._choose_best(job, manifest)
                self._best_is_unsure = False
                if not ahead:
                    return
                best = self._catalogue.entry("best")
            tell_known()
            best_manifest = best.manifest if best else None
            if not self._best.replaces(manifest.score, manifest.stage, best_manifest):
                return
            if ahead:
                commit_replacing(
                    job.staging,
                    self._trial / "best",
                    manifest.with_files((), kind="best"),
                    fence=self._fence,
                    before_manifest=job.before_manifest,
                    take=False,
                )
            else:
                self._copy_to_best(self._trial / job.name, manifest, self._staged(job))
        except RaytrainError as problem:
            self._best_is_unsure = True
            outcome.warnings.append(f"best was not updated: {problem}")

    def _staged(self, job: CommitJob) -> Location | None:
        """On a local disk the staged files were moved into the checkpoint."""
        return None if self._trial.is_local else Location.of(job.staging)

    def _copy_to_best(self, source: Location, manifest: Manifest, files: Location | None) -> None:
        replace(
            source,
            self._trial / "best",
            kind="best",
            fence=self._fence,
            files=files,
            manifest=manifest,
            attempt=self._attempt(),
        )

    def _choose_best(self, job: CommitJob, manifest: Manifest) -> None:
        """Make `best` the best of all good checkpoints that are kept."""
        assert self._best is not None
        if self._trial.is_local:  # A former writer may have been stopped while moving it away.
            self._fence()
            bring_back(self._trial, self._trial.listed())
        entries = self._catalogue.entries()
        while (best := self._best_kept(entries)) is not None:
            assert best.manifest is not None
            # Compared by manifest: an older checkpoint may have the job's name.
            just_committed = best.manifest == manifest
            ranked = manifest if just_committed else self._best.ranked(best.manifest)
            if best.path == "best" and ranked == best.manifest:
                return
            files = self._staged(job) if just_committed else None
            try:
                self._copy_to_best(best.location, ranked, files)
                return
            except DamagedCheckpoint:
                # Its sizes are right, so the damage showed only when it was read.
                entries = [entry for entry in entries if entry.path != best.path]

    def _best_kept(self, entries: Iterable[Entry]) -> Entry | None:
        assert self._best is not None
        own = [entry for entry in entries if not self._off_the_line(entry)]
        return self._best.best_of(sorted(own, key=lambda entry: entry.path != "best"))

    def _prune(self, outcome: CommitOutcome) -> None:
        try:
            # While `best` is not up to date, the checkpoint that it should be a copy of stays.
            unsure = self._best is not None and self._best_is_unsure
            spared = self._best_kept(self._catalogue.entries()) if unsure else None
            deleted = prune(
                self._catalogue, self._retention, self._fence, self._off_the_line, spared
            )
            outcome.deleted = tuple(entry.path for entry in deleted)
        except RaytrainError as problem:
            outcome.warnings.append(f"old checkpoints were not deleted: {problem}")


@dataclass(frozen=True)
class RetentionPolicy:
    """Keep the good checkpoints of the newest `num_to_keep` iterations, or all if it is None."""

    num_to_keep: int | None

    def __post_init__(self) -> None:
        if self.num_to_keep is not None and self.num_to_keep < 1:
            raise ValueError(
                f"num_to_keep is {self.num_to_keep}; keep at least 1, or None to keep all"
            )


def surplus(entries: Sequence[Entry], policy: RetentionPolicy) -> list[Entry]:
    """The entries to delete, the oldest first."""
    if policy.num_to_keep is None:
        return []
    good = [entry for entry in entries if entry.is_disposable and entry.good is not False]
    kept = sorted({entry.iteration for entry in good})[-policy.num_to_keep :]
    return sorted((e for e in good if e.iteration < kept[0]), key=lambda e: e.iteration)


def prune(
    catalogue: Catalogue,
    policy: RetentionPolicy,
    fence: Fence = nothing,
    off_the_line: Callable[[Entry], bool] = lambda entry: False,
    spared: Entry | None = None,
) -> list[Entry]:
    """Delete the surplus checkpoints of a trial, and return their entries.

    Entries `off_the_line` of the run are left alone, and do not count as kept; `spared` stays in
    addition to those that are kept. Raises `StorageError`, and what `fence` raises, which is
    called between the listing and the deletion.
    """
    if policy.num_to_keep is None:
        return []
    own = [entry for entry in catalogue.periodic() if not off_the_line(entry)]
    kept = spared.path if spared else None
    deleted = [entry for entry in surplus(own, policy) if entry.path != kept]
    if deleted:
        fence()
    in_parallel(lambda entry: entry.remove(fence), deleted, serial=catalogue.trial.is_local)
    return deleted
