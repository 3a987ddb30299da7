"""Symbolic links, strange names and special files on a local disk: none stops a listing
or a deletion."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoint_children import FILES, manifest, place, put, stage

from raytrain.checkpoint import Catalogue, RetentionPolicy, fetch, replace, resolve
from raytrain.checkpoint.background_commit import prune
from raytrain.checkpoint.commit import CheckpointExists, commit
from raytrain.checkpoint.resolve import entries_at
from raytrain.storage import Location, StorageError


@pytest.fixture
def trial(tmp_path: Path) -> Location:
    trial = Location.of(tmp_path / "exp" / "trial")
    for iteration in (1, 2, 3):
        put(trial, tmp_path, iteration)
    return trial


def elsewhere(checkpoint: Path, target: Path) -> Path:
    """Move a checkpoint to another place and link it."""
    shutil.move(checkpoint, target)
    checkpoint.symlink_to(target)
    return target


def paths(trial: Location) -> list[str]:
    return [entry.path for entry in Catalogue(trial).entries()]


def test_a_linked_checkpoint_is_used_like_any_other(trial: Location, tmp_path: Path) -> None:
    elsewhere(trial.local_path / "checkpoint_000003", tmp_path / "other_disk")
    assert resolve(str(trial)).path == "checkpoint_000003"
    assert (fetch(trial / "checkpoint_000003", tmp_path / "new") / "manifest.json").exists()
    replace(trial / "checkpoint_000003", trial / "best", kind="best")
    assert resolve(f"{trial}:best").iteration == 3


def test_retention_deletes_the_link_and_not_what_it_leads_to(
    trial: Location, tmp_path: Path
) -> None:
    target = elsewhere(trial.local_path / "checkpoint_000001", tmp_path / "other_disk")
    before = Location.of(target).files()
    (gone,) = prune(Catalogue(trial), RetentionPolicy(2))
    assert gone.path == "checkpoint_000001"
    assert sorted(os.listdir(trial.path)) == ["checkpoint_000002", "checkpoint_000003"]
    assert Location.of(target).files() == before


def test_a_sweep_brings_back_a_link_that_a_kill_left_on_its_way_out(
    trial: Location, tmp_path: Path
) -> None:
    target = elsewhere(trial.local_path / "checkpoint_000001", tmp_path / "other_disk")
    outgoing = ".checkpoint_000001.outgoing"
    (trial.local_path / "checkpoint_000001").rename(trial.local_path / outgoing)
    assert Catalogue(trial).sweep() == []
    assert paths(trial) == ["checkpoint_000001", "checkpoint_000002", "checkpoint_000003"]
    (trial.local_path / "checkpoint_000001").rename(trial.local_path / outgoing)
    (target / "manifest.json").rename(target / ".incomplete")
    assert Catalogue(trial).sweep() == [outgoing]
    assert target.exists()
    assert paths(trial) == ["checkpoint_000002", "checkpoint_000003"]


def test_a_replaced_link_leaves_what_it_led_to(trial: Location, tmp_path: Path) -> None:
    replace(trial / "checkpoint_000001", trial / "best", kind="best")
    target = elsewhere(trial.local_path / "best", tmp_path / "other_disk")
    replace(trial / "checkpoint_000002", trial / "best", kind="best")
    assert resolve(f"{trial}:best").iteration == 2
    assert resolve(str(target)).iteration == 1


@pytest.mark.parametrize("leads", [".", "..", "nowhere", "itself"])
def test_a_link_that_leads_to_no_checkpoint_is_damage(
    trial: Location, tmp_path: Path, leads: str
) -> None:
    link = trial.local_path / "checkpoint_000004"
    link.symlink_to(link if leads == "itself" else leads)
    choice = Catalogue(trial).choose_for_resume()
    assert choice is not None and choice.entry is not None
    assert choice.entry.path == "checkpoint_000003"
    with pytest.raises(CheckpointExists):
        commit(stage(tmp_path / "four"), trial / "checkpoint_000004", manifest(4))
    (damaged,) = choice.damaged
    assert (damaged.path, damaged.problem) == ("checkpoint_000004", "no manifest.json")
    aside = Catalogue(trial).quarantine(damaged)
    assert os.path.islink(aside.path)
    commit(stage(tmp_path / "five"), trial / "checkpoint_000004", manifest(4))
    assert resolve(str(trial)).path == "checkpoint_000004"


def test_links_in_a_circle_are_listed_once(trial: Location) -> None:
    before = set(trial.tree())
    for name, target in (("a", "."), ("b", "."), ("up", "../.."), ("c", "b"), ("d", "d")):
        (trial.local_path / name).symlink_to(target)
    assert set(trial.tree()) == before | {"a", "b", "c", "d", "up"}
    for one, other in (("x", "y"), ("y", "x")):
        (trial.local_path / one).mkdir()
        (trial.local_path / one / "link").symlink_to(f"../{other}")
    added = {"x", "y", "x/link", "y/link", "x/link/link", "y/link/link"}
    assert set(trial.tree()) == before | {"a", "b", "c", "d", "up"} | added
    assert len(paths(trial)) == 3
    assert Catalogue(trial).sweep() == []


BAD = b"x\xff"


def test_a_name_that_is_not_utf8_is_damage_like_any_other(trial: Location, tmp_path: Path) -> None:
    checkpoint = os.fsencode((trial / "checkpoint_000003").path)
    for name in (b"/" + BAD, b"/resume/" + BAD):
        open(checkpoint + name, "wb").close()
    os.mkdir(checkpoint + b"/" + BAD + BAD)
    os.mkdir(os.path.join(os.fsencode(trial.path), BAD))
    found = {entry.path: entry for entry in entries_at(str(trial))}
    assert [path for path, entry in found.items() if entry.good] == [
        "checkpoint_000001",
        "checkpoint_000002",
    ]
    problem = found["checkpoint_000003"].problem
    assert problem is not None and problem.count("not listed in the manifest") == 2
    Catalogue(trial).quarantine(found["checkpoint_000003"])
    assert resolve(str(trial)).path == "checkpoint_000002"
    (gone,) = prune(Catalogue(trial), RetentionPolicy(1))
    assert gone.path == "checkpoint_000001"
    (trial / "quarantine" / "checkpoint_000003" / "manifest.json").local_path.rename(
        trial.local_path / "quarantine" / "checkpoint_000003" / ".incomplete"
    )
    assert Catalogue(trial).sweep() == ["quarantine/checkpoint_000003"]


def test_what_stands_in_a_directory_whose_name_is_not_utf8_is_found(tmp_path: Path) -> None:
    holder = os.fsdecode(os.path.join(os.fsencode(tmp_path), BAD))
    trial = Location.of(holder) / "trial"
    put(trial, tmp_path, 1)
    assert resolve(holder).iteration == 1


def test_elsewhere_a_name_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    trial = place(tmp_path / "trial", generic=True)
    put(trial, tmp_path, 1)
    open(os.fsencode(tmp_path / "trial" / "checkpoint_000001") + b"/" + BAD, "wb").close()
    with pytest.raises(StorageError, match="a name that is not UTF-8"):
        Catalogue(trial).entries()


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["manifest.json", *(n for n, data in FILES.items() if not data)])
def test_a_pipe_or_a_device_is_damage_and_not_waited_for(
    trial: Location, kind: str, name: str
) -> None:
    file = trial.local_path / "checkpoint_000003" / name
    file.unlink()
    SPECIAL[kind](file)
    (bad,) = [entry for entry in entries_at(str(trial)) if not entry.good]
    assert bad.problem == f"{name}{'' if name == 'manifest.json' else ':'} unreadable: " + (
        "it is not a regular file"
    )
