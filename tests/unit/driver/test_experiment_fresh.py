"""`--fresh`: the old directory is set aside whole, and what a kill leaves of it in the old
place is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.checkpoint_children import put

from raytrain.checkpoint import Catalogue, replace
from raytrain.storage import Location
from raytrain.trial.fresh_directory import set_directory_aside


@pytest.fixture(autouse=True)
def nobody_else_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a lock on a store need not wait for what others write."""
    monkeypatch.setattr("raytrain.storage.lock.SETTLE_SECONDS", 0.0)


class Killed(BaseException):
    """As a SIGKILL: nothing that would tidy up runs after it."""


def experiment(place: Location, scratch: Path) -> None:
    trial = place / "trial_00000"
    for iteration in (2, 4):
        newest = put(trial, scratch, iteration)
    replace(newest, trial / "best", kind="best")
    (trial / "result.json").write_bytes(b"{}\n")
    (place / "experiment.json").write_bytes(b"{}")


def whole(place: Location) -> list[str]:
    """The checkpoints below an experiment's directory, each of which must be good."""
    trials = sorted({name.partition("/")[0] for name in place.files() if "/" in name})
    entries = [(each, e) for each in trials for e in Catalogue(place / each).entries(verify=True)]
    assert [(name, e.path, e.problem) for name, e in entries if not e.good] == []
    return sorted(f"{name}/{entry.path}" for name, entry in entries)


def die_at(monkeypatch: pytest.MonkeyPatch, request: int) -> None:
    """At the deletion with this number. A store deletes a directory file by file, in the order
    of a list."""
    left = iter(range(request))
    delete = Location.delete_file

    def file(location: Location) -> None:
        if next(left, None) is None:
            raise Killed
        delete(location)

    def tree(location: Location) -> None:
        for name in sorted(location.files()):
            file(location / name)

    monkeypatch.setattr(Location, "delete_file", file)
    monkeypatch.setattr(Location, "delete_tree", tree)


def test_a_kill_while_a_run_is_set_aside_leaves_whole_checkpoints_on_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, finished = 0, False
    while not finished:
        root = Location.of(f"memory://{tmp_path.name}-{request}")
        experiment(root / "run", tmp_path)
        before = whole(root / "run")
        with monkeypatch.context() as patch:
            die_at(patch, request)
            try:
                set_directory_aside(root / "run", lambda text: None)
                finished = True
            except Killed:
                pass
        assert set(whole(root / "run")) <= set(before)
        (aside,) = {name.partition("/")[0] for name in root.files()} - {"run"}
        assert whole(root / aside) == before
        request += 5
    assert request > 20
    # Only the counts of attempts, for what lives on of the old run.
    assert {name.split("/")[1] for name in (root / "run").files()} == {"attempts"}


def test_the_marker_of_an_unfinished_checkpoint_on_a_store_stays(tmp_path: Path) -> None:
    """What its writer still sends is garbage."""
    root = Location.of(f"memory://{tmp_path.name}-marked")
    experiment(root / "run", tmp_path)
    trial = root / "run" / "trial_00000"
    for name in ("state", ".incomplete"):
        (trial / "checkpoint_000006").make()
        (trial / "checkpoint_000006" / name).write_bytes(b"")
    set_directory_aside(root / "run", lambda text: None)
    left = {name for name in trial.files() if not name.startswith("attempts/")}
    assert left == {"checkpoint_000006/.incomplete"}
    (trial / "checkpoint_000006" / "manifest.json").write_bytes(b"{}")
    assert Catalogue(trial).entries() == []
