"""Writers that are stopped at a certain line, and what the others find: cases that a search at random lines does
not meet."""

from __future__ import annotations

import dataclasses
import errno
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.attempts import SCORES, STORAGE, Attempt, assert_ended_well, episodes, seeded, spoil
from support.checkpoint_children import put
from support.interleaving import Writer, an_empty_store, one_after_another  # noqa: F401 (a fixture)

from raytrain.checkpoint import (
    BestPolicy,
    Catalogue,
    ExperimentFile,
    ExperimentFileError,
    Manifest,
    background_commit,
    experiment_file,
)
from raytrain.checkpoint.background_commit import prune
from raytrain.checkpoint.verify import check
from raytrain.config import config_from_dict
from raytrain.driver.experiment import _read_experiment
from raytrain.records import episodes as episode_history
from raytrain.storage import Location
from raytrain.trial import fresh_directory
from raytrain.trial.fresh_directory import set_directory_aside

pytestmark = pytest.mark.usefixtures("one_after_another")


def stopped(work: Callable[[], object], within: str, text: str, nth: int = 1) -> Writer:
    writer = Writer(work, nth, within, text)
    assert not writer.has_ended, writer.error
    return writer


def trained(where: Location, upto: int) -> Attempt:
    first = Attempt(where)
    first.train(first.open(), upto)
    return first


def a_place(tmp_path: Path, on_store: bool) -> Location:
    return an_empty_store() / "trial" if on_store else Location.of(tmp_path / "trial")


def best_of(where: Location) -> Manifest:
    entry = Catalogue(where).entry("best", verify=True)
    assert entry is not None and entry.good, entry
    assert entry.manifest is not None and entry.manifest.files
    return entry.manifest


# best


@STORAGE
def test_the_final_before_passes_for_the_best_and_not_the_one_that_is_not_written_yet(
    tmp_path: Path, on_store: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score is another one now, by which the `final` that is to be replaced is the best."""
    where = a_place(tmp_path, on_store)
    with monkeypatch.context() as patch:
        patch.delitem(SCORES, 8)
        first = trained(where, 8)
    first.save("final", 8)
    first.directory.close()
    other = {4: 1.0, 6: 2.0, 8: 3.0, 9: 2.5}

    def ranked(manifest: Manifest) -> Manifest:
        return dataclasses.replace(manifest, score=other[manifest.iteration])

    second = Attempt(where, best=BestPolicy(ranked=ranked))
    assert second.open() == 8
    second.train(8, 9)
    second.save("final", 9)
    assert (best_of(where).iteration, best_of(where).score) == (8, 3.0)


@STORAGE
def test_a_manifest_without_files_is_damage(tmp_path: Path, on_store: bool) -> None:
    where = a_place(tmp_path, on_store)
    trained(where, 2)
    place = where / "checkpoint_000002"
    empty = Manifest.from_json((place / "manifest.json").read_bytes(), "").with_files(())
    (place / "manifest.json").write_bytes(empty.to_json())
    assert "manifest.json lists no files" in str(check(place, contents=False).problem)


def test_retention_waits_until_a_lost_best_is_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a store both are done at once: what is the best of all that is kept may be what has to go."""
    monkeypatch.setattr("raytrain.storage.location.ThreadPoolExecutor", ThreadPoolExecutor)
    where = an_empty_store() / "trial"
    first, replace, pruning = trained(where, 5), background_commit.replace, threading.Event()
    for name in where.subdirectories():
        if name.startswith("best"):
            (where / name).delete_tree()

    def noted(*args: Any, **named: Any) -> Any:
        pruning.set()
        return prune(*args, **named)

    def held_up(*args: Any, **named: Any) -> Any:
        pruning.wait(0.5)  # For ever, if all is well.
        return replace(*args, **named)

    monkeypatch.setattr(background_commit, "prune", noted)
    monkeypatch.setattr(background_commit, "replace", held_up)
    first.train(5, 6)
    assert pruning.is_set()
    assert best_of(where).iteration == 4


def test_a_start_repairs_what_is_there_and_not_what_it_has_listed(tmp_path: Path) -> None:
    """The writer before brings its `final` into its place between the two."""
    where = Location.of(tmp_path / "trial")
    first = trained(where, 8)
    finishing = stopped(
        partial(first.save, "final", 8), "_rename_into_place", "os.rename((trial / new)"
    )
    second = Attempt(where)
    begun: list[int] = []
    starting = stopped(lambda: begun.append(second.open()), "_repair", "complete = []")
    finishing.go_on()
    starting.go_on()
    assert begun == [8]
    assert not (where / "quarantine").exists()


def test_a_start_moves_no_best_away_that_came_after_its_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Location.of(tmp_path / "trial")
    monkeypatch.setitem(SCORES, 6, 10.0)
    first = trained(where, 5)
    saving = stopped(
        partial(first.train, 5, 6), "_rename_into_place", "os.rename(target.path, (trial / old)"
    )
    second = Attempt(where)
    starting = stopped(second.open, "_repair", "complete = []")
    saving.go_on()
    starting.go_on()
    assert (best_of(where).iteration, best_of(where).score) == (6, 10.0)
    assert not (where / "quarantine").exists()


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_best_that_a_start_has_taken_away_for_a_moment_is_still_the_best(
    tmp_path: Path, is_killed: bool
) -> None:
    """It has seen a damaged one, and was replaced: what it moves is its successor's, which saves meanwhile."""
    where = Location.of(tmp_path / "trial")
    trained(where, 4)
    put(where, tmp_path / "older", 2, attempt=1)
    for name in ("best", "checkpoint_000004"):
        spoil(where / name / "state")
    starting = stopped(Attempt(where).open, "set_aside", "place = was_in.parent", nth=2)
    third = Attempt(where)
    assert third.open() == 2
    third.train(2, 6)
    starting.go_on_to("set_aside", "if not is_meant(place)")
    assert not starting.has_ended
    assert not (where / "best").exists()
    third.train(6, 8)
    if is_killed:
        starting.die()
    else:
        starting.go_on()
    third.save("final", 8)
    third.directory.close()
    assert Attempt(where).open() == 8
    assert (best_of(where).iteration, best_of(where).score) == (4, 9.0)


# checkpoints that others go on from


@pytest.mark.parametrize("is_killed", [False, True])
def test_what_retention_has_not_begun_to_delete_is_brought_back(
    tmp_path: Path, is_killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped between the rename and its fence, and the newest checkpoint is damaged."""
    for iteration in (2, 4, 6):
        monkeypatch.setitem(SCORES, iteration, None)
    where = Location.of(tmp_path / "trial")
    first = trained(where, 5)
    deleting = stopped(partial(first.train, 5, 6), "remove_checkpoint", "fence()")
    assert not (where / "checkpoint_000004").exists()
    spoil(where / "checkpoint_000006" / "state")
    if is_killed:
        deleting.die()
    assert Attempt(where).open() == 4
    deleting.go_on()
    assert Attempt(where).open() == 4


def test_retention_of_one_that_was_replaced_deletes_nothing_that_its_successor_goes_on_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for iteration in (2, 4, 6):
        monkeypatch.setitem(SCORES, iteration, None)
    where = an_empty_store() / "trial"
    first = trained(where, 5)
    deleting = stopped(partial(first.train, 5, 6), "prune", "in_parallel(lambda entry")
    spoil(where / "checkpoint_000006" / "state")
    assert Attempt(where).open() == 4
    deleting.go_on()
    assert Attempt(where).open() == 4


def test_a_start_that_was_replaced_clears_nothing_away_that_its_successor_goes_on_from() -> None:
    """A manifest came when it had looked."""
    where = an_empty_store() / "trial"
    first = Attempt(where)
    first.open()
    saving = stopped(partial(first.train, 0, 2), "write_checkpoint", "place.write_atomic(MANIFEST")
    starting = stopped(Attempt(where).open, "_sweep", "remove_checkpoint(place)")
    saving.go_on()
    assert Attempt(where).open() == 2
    starting.go_on()
    for name in where.subdirectories():
        if name.startswith("best"):
            (where / name).delete_tree()
    assert Attempt(where).open() == 2


def test_copies_of_one_iteration_count_once_for_retention() -> None:
    where, _ = seeded(Path("unused"), True)
    second = Attempt(where)
    second.train(second.open(), 4)
    assert [each.path for each in Catalogue(where).periodic()] == ["checkpoint_000004.2"]
    Attempt(where).open()
    found = [each.path for each in Catalogue(where).periodic()]
    assert found == ["checkpoint_000004.2", "checkpoint_000004.3"]
    fourth = Attempt(where)
    fourth.train(fourth.open(), 5)
    assert len(Catalogue(where).periodic()) == 3, "nothing was due"


def test_what_is_in_quarantine_stays_whatever_marker_comes_late() -> None:
    where = an_empty_store() / "trial"
    trained(where, 6)
    (where / "checkpoint_000006" / "manifest.json").delete_file()
    text = "(target / INCOMPLETE_NAME).write_bytes"
    starting = stopped(Attempt(where).open, "move_checkpoint", text)
    assert Attempt(where).open() == 4
    starting.go_on()
    assert Attempt(where).open() == 4
    assert "checkpoint_000006/state" in (where / "quarantine").files()


# keys


def test_a_start_with_another_key_clears_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill has left the marker beside a checkpoint that is whole."""
    monkeypatch.setenv("RAYTRAIN_SIGNING_KEY", "k" * 32)
    where = an_empty_store() / "trial"
    first = trained(where, 5)
    saving = stopped(
        partial(first.train, 5, 6), "write_checkpoint", "(place / INCOMPLETE_NAME).delete_file()"
    )
    saving.die()
    monkeypatch.setenv("RAYTRAIN_SIGNING_KEY", "w" * 32)
    with pytest.raises(Exception, match="not trusted"):
        Attempt(where).open()
    monkeypatch.setenv("RAYTRAIN_SIGNING_KEY", "k" * 32)
    assert Attempt(where).open() == 6


def described(place: Location) -> ExperimentFile:
    place.make()
    config = config_from_dict(
        {"name": "exp", "stop": {"iterations": 9}, "environment": {"env": "CartPole-v1"}}
    )
    written = ExperimentFile(
        name="exp",
        run_id="a" * 32,
        config=config.to_dict(),
        config_digest="0" * 64,
        snapshot={},
        versions={},
        first_start="2026-01-01T00:00:00+00:00",
    )
    written.write(place)
    return written


@STORAGE
def test_an_experiment_of_another_key_is_refused_and_not_written_anew(
    tmp_path: Path, on_store: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYTRAIN_SIGNING_KEY", "k" * 32)
    place = a_place(tmp_path, on_store)
    written = described(place)
    monkeypatch.setenv("RAYTRAIN_SIGNING_KEY", "w" * 32)
    with pytest.raises(ExperimentFileError, match="not trusted"):
        _read_experiment(place, lambda said: None)
    monkeypatch.setenv("RAYTRAIN_SIGNING_KEY", "k" * 32)
    assert ExperimentFile.read(place) == dataclasses.replace(written, was_signed=True)


@STORAGE
def test_a_damaged_experiment_file_is_kept(tmp_path: Path, on_store: bool) -> None:
    place = a_place(tmp_path, on_store)
    described(place)
    file, said = place / experiment_file.EXPERIMENT_FILE, list[str]()
    for content in (b"{", b"["):
        file.write_bytes(content)
        assert _read_experiment(place, said.append) is None
    assert (place / "experiment.damaged.1.json").read_bytes() == b"{"
    assert (place / "experiment.damaged.2.json").read_bytes() == b"["
    assert "kept as experiment.damaged.2.json" in said[-1]


# --fresh


def test_a_process_of_a_run_that_is_being_set_aside_commits_nothing_behind_the_copying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = an_empty_store()
    where = root / "exp" / "trial_00000"
    first, copy_tree = trained(where, 5), Location.copy_tree
    writers = []

    def overtaken(place: Location, target: Location) -> None:
        copy_tree(place, target)
        writers.append(Writer(partial(first.train, 5, 6), 10**9))

    monkeypatch.setattr(Location, "copy_tree", overtaken)
    set_directory_aside(root / "exp", lambda said: None)
    assert "has taken over" in str(writers[0].error)
    assert first.saved == [2, 4]


def test_a_new_run_has_names_of_its_own_although_fresh_was_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = an_empty_store()
    where = root / "exp" / "trial_00000"
    first = trained(where, 5)
    saving = stopped(partial(first.train, 5, 6), "_place", "source.place.copy_file(target)")

    clear = fresh_directory._clear

    def killed(place: Location, *rest: Iterable[str]) -> None:
        clear(place, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("raytrain.trial.fresh_directory._clear", killed)
        set_directory_aside(root / "exp", lambda said: None)
    second = Attempt(where)
    second.train(second.open(), 6)
    saving.go_on()
    assert 6 not in first.saved
    assert Attempt(where).open() == 6


# records


def test_a_start_that_was_replaced_deletes_no_episodes_of_its_successor(tmp_path: Path) -> None:
    where = Location.of(tmp_path / "trial")
    first = trained(where, 5)
    stopped(partial(first.train, 5, 6), "write_checkpoint", "complete = manifest.with_files").die()
    starting = stopped(Attempt(where).open, "_open", "part.path.unlink(")
    third = Attempt(where)
    third.to_the_end()
    starting.go_on()
    assert_ended_well(where)


def test_a_merge_of_one_that_was_replaced_deletes_no_episodes_of_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Location.of(tmp_path / "trial")
    first = trained(where, 5)
    with monkeypatch.context() as patch:
        patch.setattr(episode_history, "_MERGE_ABOVE", 2)
        merging = stopped(partial(first.train, 5, 6), "_merge", "part.path.unlink(", nth=3)
    Attempt(where).to_the_end()
    merging.go_on()
    assert episodes(where) == list(range(1, 9))


def test_the_table_of_a_successor_is_not_written_to(tmp_path: Path) -> None:
    """A row with a new column has the table written anew."""
    where = Location.of(tmp_path / "trial")
    further = {5: {"evaluation": 1.25}, 6: {"evaluation": 1.5}}
    first = Attempt(where, further=further)
    first.train(first.open(), 4)
    writing = stopped(partial(first.train, 4, 5), "_replace", "if self._file is not None")
    Attempt(where, further=further).to_the_end()
    writing.go_on()
    assert_ended_well(where)


def test_a_late_request_before_the_records_are_copied_loses_no_row() -> None:
    where = an_empty_store() / "trial"
    first = trained(where, 4)
    own = where / "attempts" / "000001.records"
    late = {name: (own / name).read_bytes() for name in ("result.json", "progress.csv")}
    saving = stopped(
        partial(first.train, 4, 6), "_copy_for_readers", "duplicate(self._trial / name), names)"
    )
    for name, data in late.items():
        (own / name).write_bytes(data)
    saving.go_on()
    assert first.saved[-1] == 6
    Attempt(where).to_the_end()
    assert_ended_well(where)


def test_what_readers_miss_is_copied_at_the_next_save() -> None:
    where = an_empty_store() / "trial"
    first = trained(where, 4)
    (where / "episodes").delete_tree()
    first.train(4, 8)
    first.save("final", 8)
    assert_ended_well(where)


def test_records_that_could_not_be_deleted_keep_no_save_from_being_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = an_empty_store() / "trial"
    trained(where, 4)
    second, delete = Attempt(where), Location.delete_tree
    second.open()

    def half(place: Location) -> None:
        if place.name != "000001.records":
            delete(place)
            return
        (place / "episodes").delete_tree()
        monkeypatch.setattr(Location, "delete_tree", delete)
        raise OSError(errno.EACCES, "denied", place.path)

    monkeypatch.setattr(Location, "delete_tree", half)
    second.directory._max_failed_saves = 1
    with pytest.raises(AssertionError, match="Copying the records failed"):
        second.train(4, 6)
    second.train(6, 8)
    second.save("final", 8)
    assert episodes(where) == list(range(1, 9))
