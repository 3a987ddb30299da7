"""SIGKILL at every single step of commit, replace and prune: nothing good is lost, nothing bad
looks good.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from support.checkpoint_children import place, put, run_child

from raytrain.checkpoint import Catalogue
from raytrain.storage import Location

EVERY_STEP = 400  # more than any of the actions takes


@pytest.fixture(params=[False, True], ids=["local", "generic"])
def generic(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def trial_of(root: Path, generic: bool) -> Location:
    trial = place(root / "trial", generic)
    trial.make()
    return trial


def all_sound(trial: Location) -> dict[str, int]:
    """Every checkpoint in sight is good to the last byte: its path and iteration."""
    entries = Catalogue(trial).entries(verify=True)
    assert [e.problem for e in entries] == [None] * len(entries)
    return {e.path: e.iteration for e in entries}


def crash_garbage(trial: Location) -> list[str]:
    """Elsewhere than on a local disk the marker of what was never complete stays."""
    marks = (".incoming", ".outgoing", ".new", ".old", ".incomplete")
    used = tuple(f"{entry.location.name}/" for entry in Catalogue(trial).entries())
    rest = [name for name in trial.files() if not name.startswith(used)]
    if not trial.is_local:
        holders = Counter(name.rpartition("/")[0] for name in rest)
        rest = [
            n
            for n in rest
            if not n.endswith("/.incomplete") or holders[n[: -len("/.incomplete")]] > 1
        ]
    return [n for n in rest if any(part.endswith(marks) for part in n.split("/"))]


def test_commit_killed_at_every_step(tmp_path: Path, generic: bool) -> None:
    trial = trial_of(tmp_path, generic)
    put(trial, tmp_path, 2)
    for step in range(EVERY_STEP):
        ended = run_child("sweep_and_commit", tmp_path, step, generic)
        seen = all_sound(trial)
        assert "checkpoint_000002" in seen
        newest = Catalogue(trial).newest_good()
        assert newest.entry is not None and not newest.damaged
        if ended:
            break
        if "checkpoint_000003" in seen:  # killed after the manifest: it is there, so take it away
            Catalogue(trial).sweep()
            assert all_sound(trial) == seen
            (trial / "checkpoint_000003").delete_tree()
    assert newest.entry is not None
    assert step > 11 and newest.entry.iteration == 3
    assert crash_garbage(trial) == []


def test_replace_killed_at_every_step(tmp_path: Path, generic: bool) -> None:
    trial = trial_of(tmp_path, generic)
    put(trial, tmp_path, 2, name="best", kind="best")
    put(trial, tmp_path, 3)
    outcomes = set()
    for step in range(EVERY_STEP):
        ended = run_child("replace", tmp_path, step, generic)
        Catalogue(trial).sweep()
        seen = all_sound(trial)
        assert seen.keys() == {"best", "checkpoint_000003"}
        assert crash_garbage(trial) == []
        outcomes.add(seen["best"])
        if ended:
            break
        if seen["best"] == 3:
            (trial / "best").delete_tree()
            put(trial, tmp_path, 2, name="best", kind="best")
    assert ended and step > 25 and outcomes == {2, 3}
    entry = Catalogue(trial).entry("best")
    assert entry is not None and entry.kind == "best"


def test_prune_killed_at_every_step(tmp_path: Path, generic: bool) -> None:
    trial = trial_of(tmp_path, generic)
    put(trial, tmp_path, 2)
    put(trial, tmp_path, 3)
    for step in range(EVERY_STEP):
        ended = run_child("prune", tmp_path, step, generic)
        assert "checkpoint_000003" in all_sound(trial)
        if ended:
            break
        Catalogue(trial).sweep()
        assert crash_garbage(trial) == []
        if "checkpoint_000002" not in all_sound(trial):
            put(trial, tmp_path, 2)
    assert step > 3 and all_sound(trial) == {"checkpoint_000003": 3}
