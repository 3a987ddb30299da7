"""A writer that is stopped at any line, and goes on when others have taken over, changes nothing
that counts; nor does a second one that is killed at any line."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.attempts import (
    SCORES,
    STORAGE,
    Attempt,
    assert_ended_well,
    end_of_all,
    seeded,
    spoil,
)
from support.checkpoint_children import manifest, put
from support.interleaving import Writer, an_empty_store, one_after_another  # noqa: F401

from raytrain.checkpoint import (
    Catalogue,
    Entry,
    catalogue,
    replacement,
)
from raytrain.checkpoint.commit import commit, rename
from raytrain.checkpoint.replacement import set_aside
from raytrain.checkpoint.verify import check
from raytrain.config import config_from_dict
from raytrain.driver import stages
from raytrain.records import RecordsMirror
from raytrain.storage import Location
from raytrain.trial.fencing import Superseded
from raytrain.trial.fresh_directory import set_directory_aside

committing = sys.modules[commit.__module__]
pytestmark = pytest.mark.usefixtures("one_after_another")

SEED = int(os.environ.get("FENCING_SEED", "0"))


def steps(every: int) -> Iterator[int]:
    """All, or one of `every`, drawn from the seed; without end."""
    draw, step = random.Random(SEED), 0
    while True:
        yield step + draw.randrange(every) + 1
        step += every


EVERY = pytest.mark.parametrize("every", [199, pytest.param(1, marks=pytest.mark.slow)])


@STORAGE
@EVERY
def test_a_writer_that_goes_on_after_another_has_ended_the_run(
    tmp_path: Path, on_store: bool, every: int
) -> None:
    tried = 0
    for step in steps(every):
        path = tmp_path / str(step)
        where, first = seeded(path, on_store)
        old = Writer(partial(first.train, 3, 8), step)
        if old.has_ended:
            break
        second = Attempt(where)
        second.to_the_end()
        assert_ended_well(where)
        old.go_on()
        third = Attempt(where)
        assert third.open() == 8
        assert_ended_well(where)
        third.directory.close()
        tried += 1
        shutil.rmtree(path, ignore_errors=True)
    assert tried > 10


@STORAGE
@pytest.mark.parametrize("tries", [12, pytest.param(1500, marks=pytest.mark.slow)])
def test_two_writers_that_stop_anywhere_and_go_on_when_others_have_taken_over(
    tmp_path: Path, on_store: bool, tries: int
) -> None:
    """What a writer was told is saved is not lost, wherever the others stop and when they go on."""
    draw = random.Random(SEED)
    for number in range(tries):
        path = tmp_path / str(number)
        where, first = seeded(path, on_store)
        stopped = [Writer(partial(first.train, 3, 8), draw.randrange(1, 4000))]
        second = Attempt(where)
        stopped.append(Writer(second.to_the_end, draw.randrange(1, 6000)))
        third = Attempt(where)
        begun = third.open()
        assert begun >= max([2, *second.saved] if second.saved else first.saved)
        reached = draw.randrange(begun, 9)
        third.train(begun, reached)
        draw.shuffle(stopped)
        stopped.pop().go_on()
        took_over_later = second.number > third.number
        if not took_over_later:
            third.train(reached, draw.randrange(reached, 9))
        fourth = Attempt(where)  # The third is killed.
        saved = max([begun, *third.saved, *(second.saved if took_over_later else [])])
        assert fourth.open() == saved
        fourth.train(saved, 8)
        fourth.save("final", 8)
        fourth.directory.close()
        assert_ended_well(where)
        stopped.pop().go_on()
        fifth = Attempt(where)
        assert fifth.open() == 8
        fifth.directory.close()
        assert_ended_well(where)
        shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("moment", ["before the fence", "after it"])
def test_a_start_that_was_replaced_sets_no_good_checkpoint_aside(
    tmp_path: Path, moment: str
) -> None:
    """It has seen a damaged one, of whose name there is a good one when it wakes up."""
    where, patch = Location.of(tmp_path / "trial"), pytest.MonkeyPatch()
    first = Attempt(where)
    first.train(first.open(), 6)
    spoil(where / "checkpoint_000006" / "state")
    third = Attempt(where)
    quarantine = Catalogue.quarantine

    def overtaken(*args: Any, **named: Any) -> Any:
        patch.undo()
        third.train(third.open(), 6)
        original = quarantine if moment == "before the fence" else set_aside
        return original(*args, **named)

    if moment == "before the fence":
        patch.setattr(Catalogue, "quarantine", overtaken)
    else:
        patch.setattr(catalogue, "set_aside", overtaken)
    with pytest.raises(Superseded):
        Attempt(where).open()
    assert third.saved == [6]
    entry = Catalogue(where).entry("checkpoint_000006", verify=True)
    assert entry is not None and entry.good and entry.manifest is not None
    assert entry.manifest.attempt == 3


def test_retention_that_was_replaced_leaves_what_its_successor_goes_on_from(
    tmp_path: Path,
) -> None:
    """It is past its fence; then the newest checkpoint turns out to be damaged."""
    where, first = seeded(tmp_path / "trial", False)
    (where / "best").delete_tree()
    second, remove, patch = Attempt(where), Entry.remove, pytest.MonkeyPatch()

    def overtaken(entry: Entry, fence: Any) -> None:
        patch.undo()
        (where / "best").delete_tree()
        spoil(where / "checkpoint_000004" / "state")
        assert second.open() == 2
        remove(entry, fence)

    patch.setattr(Entry, "remove", overtaken)
    first.train(3, 4)
    assert Attempt(where).open() == 2


@STORAGE
@pytest.mark.parametrize("every", [23, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_writer_that_was_replaced_marks_no_checkpoint_but_its_own(
    tmp_path: Path, on_store: bool, is_damaged: bool, every: int
) -> None:
    """When it goes on its last checkpoint has been deleted, or set aside and another
    has the name."""
    tried = 0
    for step in steps(every):
        where, first = seeded(tmp_path / str(step), on_store)
        (where / "checkpoint_000002").copy_tree(where / "before", last="manifest.json")
        first.train(3, 4)
        old = Writer(first.directory.mark_interrupted, step)
        if old.has_ended:
            break
        second = Attempt(where)
        if is_damaged:
            (where / "before").copy_tree(where / "checkpoint_000002", last="manifest.json")
            spoil(where / "checkpoint_000004" / "state")
            for name in where.subdirectories():
                if name.startswith("best"):
                    (where / name).delete_tree()
            assert second.open() == 2
            second.train(2, 4)
        else:
            second.to_the_end()
        old.go_on()
        entries = [each for each in Catalogue(where).entries(verify=True) if not each.in_quarantine]
        assert [each.problem for each in entries] == [None] * len(entries)
        newest = max(
            (each for each in entries if each.is_periodic_place), key=lambda each: each.iteration
        )
        assert newest.manifest is not None
        assert (newest.kind, newest.manifest.attempt) == ("periodic", 2)
        tried += 1
    assert tried > 1


@pytest.mark.parametrize("name", ["state", "manifest.json"])
def test_a_file_of_an_upload_that_was_given_up_may_arrive_at_any_time(name: str) -> None:
    """Then it is garbage. It does not make a damaged checkpoint."""
    store = an_empty_store()
    where, first = store / "trial", Attempt(store / "trial")
    first.open()
    upload = Writer(partial(first.train, 0, 2), 10**9)  # All its lines, to see what it writes.
    assert upload.has_ended
    data = (where / "checkpoint_000002" / name).read_bytes()
    (where / "checkpoint_000002" / "manifest.json").delete_file()
    (where / "checkpoint_000002" / ".incomplete").write_bytes(b"")
    for _ in range(2):
        Attempt(where).open()
        assert (where / "checkpoint_000002").files() == {".incomplete": 0}
    (where / "checkpoint_000002" / name).write_bytes(data)
    assert [each.path for each in Catalogue(where).entries()] == ["best"]
    (where / "best.1-1.new").delete_tree()
    (where / "best").delete_tree()
    last = Attempt(where)
    assert last.open() == 0
    last.train(0, 8)
    last.save("final", 8)
    assert_ended_well(where)


@pytest.mark.parametrize("is_asked", [True, False], ids=["paused", "late request"])
def test_a_manifest_that_comes_after_its_files_were_cleared_away_makes_nothing_best(
    is_asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of a new best was stopped before the manifest, or its request was under way
    for so long."""
    where, first = seeded(Path("unused"), True)
    second, write = Attempt(where), Location.write_atomic

    def overtaken(place: Location, name: str, data: bytes) -> None:
        if not place.name.startswith("best") or hasattr(second, "directory"):
            return write(place, name, data)
        assert second.open() == 4
        write(place, name, data)
        if not is_asked:
            raise KeyboardInterrupt
        return None

    monkeypatch.setattr(Location, "write_atomic", overtaken)
    with contextlib.suppress(KeyboardInterrupt):
        first.train(3, 4)
    for each in ("checkpoint_000004", "checkpoint_000004.2"):
        (where / each).delete_tree()  # By now nothing else is of best's worth.

    def the_good_one() -> bool:
        entry = Catalogue(where).entry("best", verify=True)
        return entry is not None and bool(entry.good) and entry.iteration == 2

    assert the_good_one()
    assert check(where / "best", contents=True).problem is None
    third = Attempt(where)
    assert third.open() == 2
    assert the_good_one()
    third.train(2, 8)
    third.save("final", 8)
    assert_ended_well(where)


def test_a_start_looks_again_when_another_changes_something_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both repair a replacement of best that was cut short, and the one that was
    replaced is faster."""
    where, first = seeded(tmp_path / "trial", False)
    first.train(3, 4)
    (where / "best").move_tree(where / "best.1-9.new")
    rename = replacement._rename_into_place
    renamed: list[Any] = []

    def overtaken(*args: Any) -> None:
        if not renamed:
            renamed.append(args)
            (where / "best.1-9.new").move_tree(where / "best")
        rename(*args)

    monkeypatch.setattr(replacement, "_rename_into_place", overtaken)
    second = Attempt(where)
    second.to_the_end()
    assert_ended_well(where)
    assert renamed


def test_records_that_go_while_a_start_fetches_them_are_looked_for_again() -> None:
    """The one that was replaced has just made its own records those that count."""
    where, first = seeded(Path("unused"), True)
    first.train(3, 4)
    attempts, fetch, patch = where / "attempts", RecordsMirror._fetch, pytest.MonkeyPatch()

    def overtaken(mirror: RecordsMirror, name: str) -> None:
        patch.undo()
        (attempts / "000001.records").copy_tree(attempts / "000002.records", last="complete")
        (attempts / "000001.records").delete_tree()
        fetch(mirror, name)

    Attempt(where).open()
    third = Attempt(where)
    patch.setattr(RecordsMirror, "_fetch", overtaken)
    third.to_the_end()
    assert_ended_well(where)


def test_a_number_of_a_replacement_that_failed_is_not_taken_again() -> None:
    """A file of it may still come, and would spoil the one that took its place."""
    where, first = seeded(Path("unused"), True)
    copy = Location.copy_file
    late: list[Any] = []

    def refused(source: Location, target: Location) -> Any:
        if target.parent.name.startswith("best") and target.name == "state" and not late:
            late.append(target)
            raise OSError(errno.EACCES, "refused", target.path)
        return copy(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Location, "copy_file", refused)
        first.train(3, 6)
    assert any("best was not updated" in each for each in first.directory.take_messages())
    late[0].write_bytes(b"late")
    first.train(6, 8)
    first.save("final", 8)
    assert_ended_well(where)


def test_what_a_start_clears_away_is_gone_before_its_writer_gives_it_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it would look like a damaged checkpoint."""
    where, first = Location.of(tmp_path / "trial"), Attempt(Location.of(tmp_path / "trial"))
    first.open()
    rename, delete, second = committing.rename, Location.delete_tree, Attempt(where)

    def overtaken(place: Location, target: Location) -> None:
        monkeypatch.setattr(Location, "delete_tree", deleted)
        second.open()

    def deleted(place: Location) -> None:
        monkeypatch.undo()
        if place.name.endswith((".incoming", ".outgoing")):
            with contextlib.suppress(FileNotFoundError):
                rename(*renamed[0])
        delete(place)

    renamed: list[tuple[Location, Location]] = []

    def noted(place: Location, target: Location) -> None:
        renamed.append((place, target))
        overtaken(place, target)

    monkeypatch.setattr(committing, "rename", noted)
    told = manifest(2, attempt=1, score=None)
    first.directory.save("checkpoint_000002", told, partial(first.write, 2))
    first.directory.poll(wait=True)
    assert renamed
    third = Attempt(where)
    assert third.open() == 0
    assert Catalogue(where).entries() == []


@STORAGE
def test_starting_again_after_a_stage_leaves_nothing_newer_in_sight(
    tmp_path: Path, on_store: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill left the best before the best; and a writer on a node that was cut off
    commits one more."""
    experiment = an_empty_store() / "exp" if on_store else Location.of(tmp_path / "exp")
    where, first = experiment / "trial_00000", Attempt(experiment / "trial_00000")
    monkeypatch.setitem(SCORES, 6, 11.0)
    first.open()
    first.directory.save(
        "stages/one", manifest(2, attempt=1, score=1.0, stage="one"), partial(first.write, 2)
    )
    first.train(0, 4)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(replacement, "_discard", killed)
        first.train(4, 6)
    first.directory._lock.release()
    monkeypatch.setattr(stages, "trials", lambda place: [where])
    given = {
        "name": "x",
        "stop": {"iterations": 9},
        "environment": {"env": "CartPole-v1"},
        "curriculum": [{"name": "one", "until": {"timesteps": 1}}, {"name": "two"}],
    }
    stages.start_again_after("one", config_from_dict(given), experiment, lambda said: None)
    assert {each.iteration for each in Catalogue(where).entries()} == {2}
    put(where, tmp_path / "late", 8, attempt=1)
    assert Attempt(where).open() == 2


def test_the_good_best_is_kept_if_the_one_that_was_to_replace_it_is_damaged(tmp_path: Path) -> None:
    """A kill left both."""
    where, first = seeded(tmp_path / "trial", False)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(replacement, "_discard", killed)
        first.train(3, 4)
    (where / "best" / "state").delete_file()
    Catalogue(where).sweep()
    best = Catalogue(where).entry("best", verify=True)
    assert best is not None and best.good and best.iteration == 2
    assert (where / "quarantine" / "best" / "manifest.json").exists()


def test_a_manifest_that_is_all_that_is_left_of_a_checkpoint_is_damage() -> None:
    """Unless the marker beside it says that there never was one."""
    where, _ = seeded(Path("unused"), True)
    for name in ("state", "more/state"):
        (where / "checkpoint_000002" / name).delete_file()
    entry = Catalogue(where).entry("checkpoint_000002")
    assert entry is not None and entry.good is False
    (where / "checkpoint_000002" / ".incomplete").write_bytes(b"")
    assert Catalogue(where).entry("checkpoint_000002") is None
    for _ in range(2):
        Catalogue(where).sweep()
        assert (where / "checkpoint_000002").files() == {".incomplete": 0}


def test_a_manifest_that_comes_to_what_is_half_cleared_away_makes_no_damage() -> None:
    where, _ = seeded(Path("unused"), True)
    (where / "checkpoint_000002" / "state").delete_file()
    (where / "checkpoint_000002" / ".incomplete").write_bytes(b"")
    second = Attempt(where)
    assert second.open() == 2, "best is good"
    assert [each.path for each in Catalogue(where).entries()] == ["best"]


@STORAGE
@EVERY
def test_a_process_of_a_run_that_was_set_aside_changes_nothing_of_the_new_one(
    tmp_path: Path, on_store: bool, every: int
) -> None:
    """`--fresh`, while a process of the old run lives on at a node that was cut off."""
    tried = 0
    for step in steps(every):
        end_of_all()
        path = tmp_path / str(step) / "exp"
        experiment = an_empty_store() / "exp" if on_store else Location.of(path)
        where = experiment / "trial_00000"
        first = Attempt(where)
        first.train(first.open(), 3)
        old = Writer(partial(first.train, 3, 8), step)
        if old.has_ended:
            break
        set_directory_aside(experiment, lambda said: None)
        new = Attempt(where)
        assert new.open() == 0
        new.train(0, 8)
        new.save("final", 8)
        new.directory.close()
        assert_ended_well(where)
        old.go_on()
        assert_ended_well(where)
        tried += 1
        shutil.rmtree(path, ignore_errors=True)
    assert tried > 10


def test_a_start_that_is_killed_while_it_sets_its_successors_checkpoint_aside_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Location.of(tmp_path / "trial")
    first, second, third = (Attempt(where) for _ in range(3))
    first.train(first.open(), 6)
    spoil(where / "checkpoint_000006" / "state")

    def overtaken(place: Location, target: Location) -> None:
        monkeypatch.setattr(replacement, "rename", rename)
        third.train(third.open(), 6)
        rename(place, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(replacement, "rename", overtaken)
    with pytest.raises(KeyboardInterrupt):
        second.open()
    assert third.saved == [6]
    assert not (where / "checkpoint_000006").exists()
    assert Attempt(where).open() == 6
    assert (where / "superseded" / "checkpoint_000006.attempt_1").exists()


def test_what_was_killed_on_its_way_aside_overwrites_nothing(tmp_path: Path) -> None:
    where = Location.of(tmp_path / "trial")
    first = Attempt(where)
    first.train(first.open(), 6)
    place = where / "checkpoint_000006"
    place.copy_tree(where / ".checkpoint_000006.0123abcd.aside")
    assert Attempt(where).open() == 6
    names = [entry.path for entry in Catalogue(where).entries()]
    assert names == ["best", "checkpoint_000006", "quarantine/checkpoint_000006"]


def test_a_best_that_was_killed_on_its_way_aside_is_best_again(tmp_path: Path) -> None:
    where = Location.of(tmp_path / "trial")
    first = Attempt(where)
    first.train(first.open(), 6)
    (where / "best").copy_tree(where / "best.0-1.old")
    (where / "best").move_tree(where / ".best.0123abcd.aside")
    assert Attempt(where).open() == 6
    entries = Catalogue(where).entries(verify=True)
    assert [(entry.path, entry.good) for entry in entries] == [
        ("best", True),
        ("checkpoint_000006", True),
    ]


def test_two_writers_that_delete_the_same_leave_nothing_in_the_quarantine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = an_empty_store() / "trial"
    first, second = Attempt(where), Attempt(where)
    first.train(first.open(), 3)
    discard, delete = replacement._discard, Location.delete_tree

    def overtaken(trial: Location, path: str, found: replacement.Listing) -> None:
        before = dict(found)

        def half_deleted(place: Location) -> None:
            if place.name == path:
                monkeypatch.setattr(Location, "delete_tree", delete)
                discard(trial, path, before)
            delete(place)

        monkeypatch.setattr(replacement, "_discard", discard)
        monkeypatch.setattr(Location, "delete_tree", half_deleted)
        second.to_the_end()

    monkeypatch.setattr(replacement, "_discard", overtaken)
    with contextlib.suppress(AssertionError):  # It was replaced.
        first.train(3, 4)
    assert replacement._discard is discard
    assert_ended_well(where)
    assert not (where / "quarantine").exists()


def test_records_that_a_late_request_set_back_are_whole_again() -> None:
    """A request that was repeated, since no answer came, arrives after the next save."""
    where = an_empty_store() / "trial"
    first = Attempt(where)
    first.train(first.open(), 4)
    own = where / "attempts" / "000001.records"
    before = {name: (own / name).read_bytes() for name in ("result.json", "progress.csv")}
    first.train(4, 6)
    for name, data in before.items():
        (own / name).write_bytes(data)
    second = Attempt(where)
    second.to_the_end()
    assert second.directory.take_messages() == second.directory.start_messages
    assert_ended_well(where)
