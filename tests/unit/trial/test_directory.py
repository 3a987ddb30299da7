"""What is taken for a checkpoint of this run, and what for damage."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_children import put

from raytrain.checkpoint import BestPolicy, Catalogue, RetentionPolicy, is_of_run
from raytrain.storage import Location, StorageError
from raytrain.trial.directory import TrialDirectory


def opened(trial: Location) -> tuple[TrialDirectory, int, list[str]]:
    directory = TrialDirectory(
        trial,
        retention=RetentionPolicy(None),
        best=BestPolicy(),
        max_failed_saves=0,
        node="any",
        node_is_gone=lambda node: False,
        is_own=lambda found: is_of_run(found, "r0", trial),
    )
    entry = directory.open()
    return directory, entry.iteration if entry else 0, directory.start_messages


@pytest.mark.parametrize("directory", ["trial_00000", "trial_00000_lr=0.001,gamma=0.9"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("checkpoint_000008", {"run_id": "another"}),
        ("checkpoint_000008", {"trial_id": "x_00003"}),
        ("final", {"run_id": "another", "kind": "final"}),
        ("best", {"run_id": "another", "kind": "best"}),
        ("stages/easy", {"run_id": "another", "kind": "stage"}),
    ],
)
def test_what_another_run_or_trial_wrote_is_set_aside(
    tmp_path: Path, name: str, changes: dict[str, str], directory: str
) -> None:
    trial = Location.of(tmp_path / directory)
    put(trial, tmp_path, 4, trial_id="x_00000")
    put(trial, tmp_path, 8, **{"name": name, "trial_id": "x_00000", **changes})
    lock_holder, iteration, messages = opened(trial)
    lock_holder.close()
    assert iteration == 4
    (sentence,) = [each for each in messages if "another run or trial" in each]
    assert name in sentence
    assert (tmp_path / directory / "set_aside" / name / "manifest.json").exists()
    assert [entry.path for entry in Catalogue(trial).entries()] == ["checkpoint_000004"]


def test_what_a_former_attempt_staged_is_cleared_away_and_not_what_a_later_one_does(
    tmp_path: Path,
) -> None:
    """One that was replaced and wakes up in its start, or in a save, deletes nothing
    of its successor's."""
    staging = tmp_path / "trial_00000" / ".staging"
    for name in (
        "0/checkpoint_000002",
        "1/checkpoint_000004",
        "2/checkpoint_000004",
        "checkpoint_000004",
    ):
        (staging / name).mkdir(parents=True)
    directory, _, _ = opened(Location.of(tmp_path / "trial_00000"))
    directory.close()
    assert sorted(each.name for each in staging.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("method", ["digest", "read_bytes"])
def test_a_read_error_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, method: str
) -> None:
    trial = Location.of(tmp_path / "trial_00000")
    for iteration in (4, 8):
        put(trial, tmp_path, iteration)

    def refused(place: Location) -> Any:
        if "checkpoint_000008" in place.path:
            raise OSError(number, "refused", place.path)
        return ordinary(place)

    with monkeypatch.context() as patch:
        ordinary = getattr(Location, method)
        patch.setattr(Location, method, refused)
        with pytest.raises(StorageError, match=r"checkpoint_000008.*refused"):
            Catalogue(trial).choose_for_resume()
    assert not (tmp_path / "trial_00000" / "quarantine").exists()
    choice = Catalogue(trial).choose_for_resume()
    assert choice is not None and choice.entry is not None and choice.entry.iteration == 8
