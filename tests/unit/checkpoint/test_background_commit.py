"""The background commits of a trial: best, retention, failures, a full disk."""

from __future__ import annotations

import math
import shutil
import subprocess
import threading
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_children import manifest, place, put, stage
from support.small_disk import fill

from raytrain.checkpoint import BestPolicy, Catalogue, Manifest, RetentionPolicy, replace
from raytrain.checkpoint import background_commit as committing
from raytrain.checkpoint.background_commit import CommitJob, CommitOutcome, Committer
from raytrain.checkpoint.commit import commit
from raytrain.checkpoint.replacement import commit_replacing
from raytrain.config.schema import Checkpoint
from raytrain.errors import RaytrainError
from raytrain.storage import Location, Locked, StorageError
from raytrain.trial.score import labelled, ranked, score_of


@pytest.fixture(params=["local", "generic", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return Location.of(f"s3://bucket/{uuid.uuid4().hex}/trial")
    if request.param == "memory":
        return Location.of(f"memory://{tmp_path.name}/trial")
    return place(tmp_path / "trial", request.param == "generic")


def committer(trial: Location, keep: int | None = 2, mode: str = "max") -> Committer:
    return Committer(trial, retention=RetentionPolicy(keep), best=BestPolicy(mode))


def job(tmp_path: Path, iteration: int, score: float | None = 1.0, **changes: object) -> CommitJob:
    name = str(changes.pop("name", f"checkpoint_{iteration:06d}"))
    staging = stage(tmp_path / f"staging{iteration}", iteration)
    written = manifest(iteration, score=score, **changes)
    return CommitJob(staging, name, written)


def one(worker: Committer, work: CommitJob) -> CommitOutcome:
    worker.submit(work)
    assert worker.drain(600)
    (outcome,) = worker.outcomes()
    assert not work.staging.exists()
    return outcome


CASES = [("max", [1, 1, 3, 3, 3, 3]), ("min", [1, 2, 2, 2, 2, 2])]


@pytest.mark.parametrize(("mode", "best"), CASES)
def test_best_and_retention(trial: Location, tmp_path: Path, mode: str, best: list[int]) -> None:
    worker, seen = committer(trial, mode=mode), []
    for iteration, score in enumerate(
        [2.0, 1.0, 3.0, math.nan, None, 3.0 if mode == "max" else 1.0]
    ):
        outcome = one(worker, job(tmp_path, iteration + 1, score))
        assert outcome.ok and outcome.warnings == [] and outcome.manifest is not None
        entry = Catalogue(trial).entry("best", verify=True)
        assert entry is not None and entry.good and entry.kind == "best"
        seen.append(entry.iteration)
    worker.close()
    assert seen == best
    entries = Catalogue(trial).entries(verify=True)
    assert sorted(e.path for e in entries) == ["best", "checkpoint_000005", "checkpoint_000006"]


def test_no_manifest_of_a_deleted_checkpoint_is_remembered(tmp_path: Path) -> None:
    trial = place(tmp_path / "trial", False)
    known = Catalogue(trial, remembered={})
    for iteration in range(1, 7):
        put(trial, tmp_path, iteration)
        known.periodic()
        if iteration > 2:
            (trial / f"checkpoint_{iteration - 2:06d}").delete_tree()
    known.periodic()
    assert set(known.remembered or ()) == {"checkpoint_000005", "checkpoint_000006"}


@pytest.mark.parametrize("before", [0, 2])
def test_what_final_makes_best_is_best_before_the_trial_is_finished(
    trial: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """`before`: checkpoints that this process has committed."""
    put(trial, tmp_path, 1, score=5.0)
    worker = committer(trial)
    for iteration in range(2, 2 + before):
        assert one(worker, job(tmp_path, iteration, 4.0)).ok
    write = commit_replacing

    def die_at_final(staging: Path, target: Location, *args: Any, **kwargs: Any) -> Manifest:
        if target.name == "final":
            raise RaytrainError("killed")
        return write(staging, target, *args, **kwargs)

    monkeypatch.setattr(committing, "commit_replacing", die_at_final)
    assert not one(worker, job(tmp_path, 9, 6.0, name="final", kind="final")).ok
    assert best_of(trial) == (9, 6.0)
    monkeypatch.setattr(committing, "commit_replacing", write)
    outcome = one(committer(trial), job(tmp_path, 9, 6.0, name="final", kind="final"))
    assert outcome.ok and outcome.warnings == []
    assert best_of(trial) == (9, 6.0)
    kept = {e.path: e.iteration for e in Catalogue(trial).entries(verify=True) if e.good}
    assert kept["final"] == 9


def test_final_and_stages_are_replaced(trial: Location, tmp_path: Path) -> None:
    worker = committer(trial)
    for iteration in (1, 2):
        assert one(worker, job(tmp_path, iteration, name="final", kind="final")).ok
        assert one(worker, job(tmp_path, iteration, name="stages/easy", kind="stage")).ok
    kinds = {e.path: (e.kind, e.iteration) for e in Catalogue(trial).entries(verify=True) if e.good}
    assert kinds["final"] == ("final", 2) and kinds["stages/easy"] == ("stage", 2)
    assert one(worker, job(tmp_path, 3, name="final", kind="final")).ok
    entry = Catalogue(trial).entry("final", verify=True)
    assert entry is not None and entry.good and entry.iteration == 3


def test_error_kind_is_never_best_and_prunes_nothing(trial: Location, tmp_path: Path) -> None:
    worker = committer(trial, keep=1)
    put(trial, tmp_path, 1)
    put(trial, tmp_path, 2)
    outcome = one(worker, job(tmp_path, 3, 99.0, name="error_000003", kind="error"))
    assert outcome.ok and outcome.deleted == ()
    assert Catalogue(trial).entry("best") is None


def best_of(trial: Location) -> tuple[int, float | None]:
    best = Catalogue(trial).entry("best", verify=True)
    assert best is not None and best.good and best.kind == "best"
    return best.iteration, best.score


def test_damaged_best_is_set_aside_and_the_best_that_is_kept_takes_its_place(
    trial: Location, tmp_path: Path
) -> None:
    worker = committer(trial)
    one(worker, job(tmp_path, 1, 5.0))
    best = Catalogue(trial).entry("best")
    assert best is not None
    (best.location / "algorithm_state.pkl").write_bytes(b"broken")
    outcome = one(worker, job(tmp_path, 2, 1.0))
    assert outcome.ok and "best was damaged" in outcome.warnings[0]
    assert (trial / "quarantine/best/algorithm_state.pkl").read_bytes() == b"broken"
    assert best_of(trial) == (1, 5.0)


def test_best_that_became_an_older_one_stays_best(trial: Location, tmp_path: Path) -> None:
    """Lower became better on continuing: what was replaced is of a later iteration, and comes back
    neither with the next start nor with a kill in the middle."""
    worker = committer(trial, keep=3)
    for iteration, score in ((2, 1.0), (4, 2.0), (6, 3.0)):
        one(worker, job(tmp_path, iteration, score))
    worker = committer(trial, keep=3, mode="min")
    for iteration in (8, 10, 12):
        one(worker, job(tmp_path, iteration, float(iteration)))
    assert best_of(trial) == (2, 1.0)
    for iteration in (14, 16):
        Catalogue(trial).sweep()
        worker = committer(trial, mode="min")
        assert best_of(trial) == (2, 1.0)
        one(worker, job(tmp_path, iteration, float(iteration)))
        assert best_of(trial) == (2, 1.0)


def test_what_should_be_best_is_not_pruned_until_it_is(
    trial: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(trial, tmp_path, 2, score=5.0)
    put(trial, tmp_path, 4, score=9.0)  # Killed before it became best.
    worker = committer(trial, keep=1)

    def fail(*args: Any, **kwargs: Any) -> Manifest:
        raise StorageError("no answer", errno=5)

    with monkeypatch.context() as patch:
        patch.setattr(committing, "replace", fail)
        for iteration in (6, 8):
            outcome = one(worker, job(tmp_path, iteration, 7.0))
            assert outcome.ok and "best was not updated" in outcome.warnings[0]
    one(worker, job(tmp_path, 10, 6.0))
    assert best_of(trial) == (4, 9.0)
    one(worker, job(tmp_path, 12, 6.0))
    assert [e.iteration for e in Catalogue(trial).periodic()] == [12]


def test_a_damaged_checkpoint_does_not_keep_others_from_being_best(
    trial: Location, tmp_path: Path
) -> None:
    newest = put(trial, tmp_path, 2, score=9.0)
    replace(newest, trial / "stages/easy", kind="stage")
    stage = Catalogue(trial).entry("stages/easy")
    assert stage is not None
    for damaged in (newest, stage.location):
        data = bytearray((damaged / "algorithm_state.pkl").read_bytes())
        data[0] ^= 1
        (damaged / "algorithm_state.pkl").write_bytes(bytes(data))
    outcome = one(committer(trial), job(tmp_path, 4, 5.0))
    assert outcome.ok and outcome.warnings == []
    assert best_of(trial) == (4, 5.0)


def test_a_failed_commit_is_an_outcome(trial: Location, tmp_path: Path) -> None:
    worker = committer(trial)
    put(trial, tmp_path, 1)
    outcome = one(worker, job(tmp_path, 1))
    assert not outcome.ok and isinstance(outcome.error, StorageError)
    assert outcome.manifest is None and [e.good for e in Catalogue(trial).entries(True)] == [True]


def test_the_next_checkpoint_waits_until_the_one_before_is_committed(tmp_path: Path) -> None:
    trial = Location.of(tmp_path / "trial")
    go, reached, order = threading.Event(), threading.Event(), []

    def fence() -> None:
        order.append("fence")
        reached.set()
        assert go.wait(600)

    worker = Committer(trial, retention=RetentionPolicy(None), best=None, fence=fence)
    worker.submit(job(tmp_path, 1))
    assert not worker.drain(0.01) and worker.outcomes() == []
    assert reached.wait(600)
    second = threading.Thread(target=worker.submit, args=(job(tmp_path, 2),))
    second.start()
    second.join(0.2)
    assert second.is_alive() and order == ["fence"]
    go.set()
    second.join(600)
    worker.close()
    assert [(o.iteration, o.ok) for o in worker.outcomes()] == [(1, True), (2, True)]
    assert worker.outcomes() == [] and worker.drain()


def test_nobody_waits_for_the_deletion_of_old_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(
        "raytrain.checkpoint.background_commit.prune",
        lambda *_, **__: [] if go.wait(600) else ["late"],
    )
    trial = Location.of(tmp_path / "trial")
    worker = Committer(trial, retention=RetentionPolicy(1), best=None)
    worker.submit(job(tmp_path, 1))
    worker.submit(job(tmp_path, 2))  # the first is committed, and still busy
    assert Catalogue(trial).entry("checkpoint_000001") is not None
    assert worker.outcomes() == []
    go.set()
    worker.close()
    assert [(o.iteration, o.deleted) for o in worker.outcomes()] == [(1, ()), (2, ())]


def test_lost_lock_ends_the_commit(tmp_path: Path) -> None:
    def lost() -> None:
        raise Locked("lost")

    trial = Location.of(tmp_path / "trial")
    worker = Committer(trial, retention=RetentionPolicy(1), best=None, fence=lost)
    outcome = one(worker, job(tmp_path, 1))
    assert isinstance(outcome.error, Locked) and Catalogue(trial).entries() == []


def test_full_disk(small_disk: Path, tmp_path: Path) -> None:
    trial = Location.of(small_disk / "trial")
    worker = committer(trial, keep=1)
    assert one(worker, job(tmp_path, 1)).ok
    filler = fill(small_disk, leave=12_288)
    outcome = one(worker, job(tmp_path, 2))
    assert not outcome.ok and isinstance(outcome.error, StorageError)
    assert "No space left" in str(outcome.error) and "num_to_keep" in str(outcome.error)
    assert str(small_disk) in str(outcome.error)
    assert shutil.disk_usage(small_disk).free >= 12_288  # the partial checkpoint is gone
    choice = Catalogue(trial).choose_for_resume()
    assert choice is not None and choice.entry is not None and choice.entry.iteration == 1
    filler.unlink()
    assert one(worker, job(tmp_path, 2)).ok
    assert [e.path for e in Catalogue(trial).periodic()] == ["checkpoint_000002"]


def test_pruning_works_on_a_disk_without_a_free_byte(small_disk: Path, tmp_path: Path) -> None:
    trial = Location.of(small_disk / "trial")
    for iteration in (1, 2):
        put(trial, tmp_path, iteration)
    with open(small_disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(b"x" * 4096)
    worker = committer(trial, keep=1)
    outcome = one(worker, job(tmp_path, 3))
    assert not outcome.ok
    assert [e.good for e in Catalogue(trial).entries(verify=True)] == [True, True]


def test_read_only_storage_is_named(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match="Mount the file system writable"):
        commit(stage(tmp_path / "s"), Location.of(small_disk / "t/checkpoint_000001"), manifest(1))


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_score_that_is_no_number_is_never_best(mode: str) -> None:
    policy = BestPolicy(mode)
    for score in (math.nan, math.inf, -math.inf, None):
        assert not policy.better(score, None) and not policy.better(score, 0.0)
        assert policy.better(0.0, score)
    with pytest.raises(ValueError, match="'max' or 'min'"):
        BestPolicy("mean")


def test_another_score_begins_a_new_ranking_from_stored_metrics(
    trial: Location, tmp_path: Path
) -> None:
    """Returns of 10 and 35 were ranked; then the entropy is the score, of which less is better."""
    returns = Checkpoint(score="episode_return_mean")
    entropy = Checkpoint(score="learners/default_policy/entropy", score_order="min")

    def scored(iteration: int, settings: Checkpoint, score: float, said: float) -> CommitJob:
        metrics = {
            "checkpoint": {"score": score},
            "learners": {"default_policy": {"entropy": said}},
        }
        staging = stage(tmp_path / f"staging-{iteration}", iteration)
        told = manifest(iteration, score=score, metrics=labelled(metrics, settings))
        return CommitJob(staging, f"checkpoint_{iteration:06d}", told)

    def started(settings: Checkpoint) -> Committer:
        policy = BestPolicy(settings.score_order, ranked=partial(ranked, settings=settings))
        return Committer(trial, retention=RetentionPolicy(None), best=policy)

    worker = started(returns)
    one(worker, scored(1, returns, 10.0, 0.3))
    one(worker, scored(2, returns, 35.0, 0.6))
    assert best_of(trial) == (2, 35.0)
    worker = started(entropy)
    assert one(worker, scored(3, entropy, 0.5, 0.5)).ok and best_of(trial)[0] != 3
    assert best_of(trial) == (1, 0.3)  # Kept, and with the score that it has now.
    assert one(worker, scored(4, entropy, 0.2, 0.2)).ok and best_of(trial)[0] == 4
    best = Catalogue(trial).entry("best")
    assert best is not None
    for settings, value in ((entropy, 0.2), (returns, None)):
        found = score_of(best, settings)
        assert (None if found is None else found.value) == value
