"""Committing checkpoints while the next iteration trains.

`submit` hands a staging directory over; one background thread brings it to storage, then

    1. calls the job's `prepare`, which fills the directory
    2. commits it; what the job wants durable before the checkpoint exists is written along with its files
    3. replaces `best` if the score is better than that of the `best` on storage (before 2 for `final`, after
       which nobody looks at the trial's checkpoints again)
    4. deletes the checkpoints that the retention policy does not keep (elsewhere than on a local
       disk while `best` is being replaced, once it is known that there is a good one: the two have no file
       in common)
    5. deletes the staging directory, whatever happened

`submit` waits until the checkpoint handed over before is committed (not for 3 and 4), so that a crash
costs at most what was trained since the one before the last was due. Training waits for storage
only where checkpoints are due faster than storage takes them, and at most two states are held in
memory. While the store does not answer at all, training does not wait for it: one job may wait, and
gives way to the newer one. A job that fails leaves the older checkpoints as they were; it is for the
caller to look at `outcomes()` and to say so.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from pathlib import Path

from raytrain.checkpoint.catalogue import Catalogue, Entry
from raytrain.checkpoint.commit import DamagedCheckpoint, Fence, commit, nothing
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


@dataclass(frozen=True)
class CommitOutcome:
    """`ok`: the checkpoint is committed. `manifest` is None if it is not.

    `warnings`: what went wrong with `best` or the deletion of old checkpoints; the commit stands.
    `became_best` and `deleted` say what else changed on storage.
    """

    name: str
    iteration: int
    ok: bool
    error: RaytrainError | None
    seconds: float
    manifest: Manifest | None
    became_best: bool = False
    deleted: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class BestPolicy:
    """Higher is better for `max`, lower for `min`. NaN and a missing score are never best, and a
    tie changes nothing. Scores of stages with different numbers in `eras` are not compared: of these
    the later is better. `ranked` gives a checkpoint its score under the present metric.
    """

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
        """Whether a checkpoint with this score is better than the present best one."""
        if best is None:
            return self.better(score, None)
        era, before = self.eras.get(stage or "", 0), self.eras.get(best.stage or "", 0)
        if era != before:
            return era > before and self.better(score, None)
        return self.better(score, self.ranked(best).score)

    def best_of(self, entries: Iterable[Entry]) -> Entry | None:
        """The best of these checkpoints; post-mortems and what is damaged do not count."""
        best: Entry | None = None
        for entry in entries:
            if entry.manifest is None or entry.good is False or entry.kind == "error":
                continue
            score = self.ranked(entry.manifest).score
            if self.replaces(score, entry.manifest.stage, best.manifest if best else None):
                best = entry
        return best


@dataclass(frozen=True)
class _InFlight:
    """`settled`: the checkpoint is committed, or has failed."""

    future: Future[CommitOutcome]
    settled: threading.Event


class Committer:
    """The only writer of checkpoints of one trial. `fence` raises a `RaytrainError` if it no longer
    is. What is `off_the_line` was written by a former one after this had taken over: it does not count.
    `attempt` tells the writer's number.
    """

    def __init__(
        self,
        trial: Location,
        *,
        retention: RetentionPolicy,
        best: BestPolicy | None,
        fence: Fence | None = None,
        off_the_line: Callable[[Entry], bool] = lambda entry: False,
        attempt: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._catalogue = Catalogue(trial, remembered={})
        self._retention = retention
        self._best = best
        self._fence = fence
        self._off_the_line = off_the_line
        self._attempt = attempt
        self._clock = clock
        # A process before this one, or a store that went away, may have cut its replacement short.
        self._best_is_unsure = True
        # The executor's thread is joined when the interpreter exits, so a commit in flight is not
        # cut by an exit.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="raytrain-commit")
        self._unseen: list[_InFlight] = []

    def submit(self, job: CommitJob) -> None:
        """Commit `job` after those before it. Waits until each of them is committed, or failed."""
        while ahead := [other for other in self._unseen if not other.settled.is_set()]:
            if STORE.in_trouble:
                if len(ahead) == 1:
                    break
                if ahead[-1].future.cancel():
                    self._unseen.remove(ahead[-1])
                    continue
            ahead[0].settled.wait(_LOOK_EVERY_S)
        settled = threading.Event()
        self._unseen.append(_InFlight(self._pool.submit(self._run, job, settled), settled))

    def drain(self, timeout: float | None = None) -> bool:
        """Wait for the jobs in flight, at most `timeout` seconds. False: one is still running."""
        return not wait_for([job.future for job in self._unseen], timeout).not_done

    def outcomes(self) -> list[CommitOutcome]:
        """What ended since the last call, in order."""
        done = [job for job in self._unseen if job.future.done()]
        self._unseen = [job for job in self._unseen if job not in done]
        return [job.future.result() for job in done]

    def close(self) -> None:
        """Wait for the jobs in flight and end the thread; `outcomes` can still be asked."""
        self._pool.shutdown(wait=True)

    def _run(self, job: CommitJob, settled: threading.Event) -> CommitOutcome:
        started = self._clock()
        manifest: Manifest | None = None
        error: RaytrainError | None = None
        warnings: list[str] = []
        best, deleted = False, ()  # type: tuple[bool, tuple[str, ...]]
        try:
            try:
                job.prepare()
                if job.name == "final":
                    best = self._update_best(job, job.manifest, warnings, ahead=True)
                manifest = self._commit(job)
            except RaytrainError as problem:
                error = problem
            settled.set()
            if manifest is not None and manifest.kind != "error":
                became_best, deleted = self._tidy(job, manifest, warnings)
                best = best or became_best
        finally:
            settled.set()
            shutil.rmtree(job.staging, ignore_errors=True)
        return CommitOutcome(
            name=job.name,
            iteration=job.manifest.iteration,
            ok=error is None,
            error=error,
            seconds=self._clock() - started,
            manifest=manifest,
            became_best=best,
            deleted=deleted,
            warnings=tuple(warnings),
        )

    def _commit(self, job: CommitJob) -> Manifest:
        target = self._catalogue.trial / job.name
        fixed = job.name in ("best", "final") or job.name.startswith("stages/")
        write = commit_replacing if fixed else commit
        return write(
            job.staging,
            target,
            job.manifest,
            fence=self._fence,
            before_manifest=job.before_manifest,
        )

    def _tidy(
        self, job: CommitJob, manifest: Manifest, warnings: list[str]
    ) -> tuple[bool, tuple[str, ...]]:
        became_best: list[bool] = []
        deleted: list[str] = []
        known = threading.Event()

        def update_best() -> None:
            try:
                became_best.append(self._update_best(job, manifest, warnings, tell_known=known.set))
            finally:
                known.set()

        def delete_old_ones() -> None:
            known.wait()  # One of them may be what `best` has to become.
            deleted.extend(self._prune(warnings))

        together(update_best, delete_old_ones, serial=self._catalogue.trial.is_local)
        return became_best == [True], tuple(deleted)

    def _copy_to_best(self, job: CommitJob, manifest: Manifest, *, ahead: bool = False) -> None:
        trial = self._catalogue.trial
        if ahead:
            commit_replacing(
                job.staging,
                trial / "best",
                manifest.with_files((), kind="best"),
                fence=self._fence,
                before_manifest=job.before_manifest,
                take=False,
            )
            return
        # On a local disk the staged files were moved into the checkpoint.
        staged = None if trial.is_local else Location.of(job.staging)
        replace(
            trial / job.name,
            trial / "best",
            kind="best",
            fence=self._fence,
            files=staged,
            manifest=manifest,
            attempt=self._attempt(),
        )

    def _update_best(
        self,
        job: CommitJob,
        manifest: Manifest,
        warnings: list[str],
        *,
        ahead: bool = False,
        tell_known: Callable[[], None] = nothing,
    ) -> bool:
        """Whether the job's checkpoint has become `best`. `ahead`: it is not committed yet. `tell_known` is
        called once `best` is a good one, or there is nothing of which it could be made."""
        if self._best is None or job.name == "best":
            return False
        try:
            if self._best_is_unsure:
                repair(self._catalogue.trial, "best", self._fence or nothing)
            best = self._catalogue.entry("best")
            if best is not None and best.good is False:
                aside = self._catalogue.quarantine(best, self._fence or nothing)
                warnings.append(f"best was damaged ({best.problem}); it was set aside at {aside}")
                best = None
            if best is None or self._best_is_unsure or self._off_the_line(best):
                became_best = self._choose_best(job, manifest)
                self._best_is_unsure = False
                if not ahead:
                    return became_best
                best = self._catalogue.entry("best")
            tell_known()
            if not self._best.replaces(
                manifest.score, manifest.stage, best.manifest if best else None
            ):
                return False
            self._copy_to_best(job, manifest, ahead=ahead)
        except RaytrainError as problem:
            self._best_is_unsure = True
            warnings.append(f"best was not updated: {problem}")
            return False
        return True

    def _choose_best(self, job: CommitJob, manifest: Manifest) -> bool:
        """Make `best` the best of all that is kept and good. Whether it is that of `job`."""
        trial = self._catalogue.trial
        if trial.is_local:  # One that was replaced may have been stopped when it had taken it away.
            (self._fence or nothing)()
            bring_back(trial, trial.listed())
        entries = self._catalogue.entries()
        while (best := self._best_kept(entries)) is not None:
            try:
                return self._make_best(best, job, manifest)
            except DamagedCheckpoint:
                # Of the right size, and so not known for damaged before it was read.
                entries = [each for each in entries if each.path != best.path]
        return False

    def _best_kept(self, entries: Iterable[Entry]) -> Entry | None:
        assert self._best is not None
        own = [each for each in entries if not self._off_the_line(each)]
        return self._best.best_of(sorted(own, key=lambda each: each.path != "best"))

    def _make_best(self, best: Entry, job: CommitJob, manifest: Manifest) -> bool:
        assert self._best is not None
        assert best.manifest is not None
        if best.manifest == manifest:  # Else there is an older one under the job's name.
            self._copy_to_best(job, manifest)
            return True
        ranked = self._best.ranked(best.manifest)
        if best.path == "best" and ranked == best.manifest:
            return False
        replace(
            best.location,
            self._catalogue.trial / "best",
            kind="best",
            fence=self._fence,
            manifest=ranked,
            attempt=self._attempt(),
        )
        return False

    def _prune(self, warnings: list[str]) -> tuple[str, ...]:
        try:
            # While `best` is not what it should be, the checkpoint that it should be a copy of stays.
            unsure = self._best is not None and self._best_is_unsure
            spared = self._best_kept(self._catalogue.entries()) if unsure else None
            deleted = prune(
                self._catalogue,
                self._retention,
                self._fence,
                self._off_the_line,
                spared=lambda entry: spared is not None and entry.path == spared.path,
            )
            return tuple(entry.path for entry in deleted)
        except RaytrainError as problem:
            warnings.append(f"old checkpoints were not deleted: {problem}")
            return ()


_DISPOSABLE = frozenset({"periodic", "interrupted"})


@dataclass(frozen=True)
class RetentionPolicy:
    """Keep the good checkpoints of the newest `num_to_keep` iterations; all of them if it is None."""

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
    good = [
        entry
        for entry in entries
        if entry.is_periodic_place and entry.kind in _DISPOSABLE and entry.good is not False
    ]
    kept = sorted({entry.iteration for entry in good})[-policy.num_to_keep :]
    return sorted((e for e in good if e.iteration < kept[0]), key=lambda e: e.iteration)


def prune(
    catalogue: Catalogue,
    policy: RetentionPolicy,
    fence: Fence | None = None,
    off_the_line: Callable[[Entry], bool] = lambda entry: False,
    spared: Callable[[Entry], bool] = lambda entry: False,
) -> list[Entry]:
    """Delete the surplus of a trial; what was deleted. Raises `StorageError`, and what `fence` raises: it
    is called between the look and the deletion. What is `off_the_line` of the run is left alone, and does
    not count as kept; what is `spared` stays beside those that are kept.
    """
    if policy.num_to_keep is None:
        return []
    own = [entry for entry in catalogue.periodic() if not off_the_line(entry)]
    deleted = [entry for entry in surplus(own, policy) if not spared(entry)]
    fence = fence or nothing
    if deleted:
        fence()
    in_parallel(lambda entry: entry.remove(fence), deleted, serial=catalogue.trial.is_local)
    return deleted
