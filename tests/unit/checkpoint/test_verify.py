"""Damaged files are found, named and passed over; checkpoints are chosen, fetched and set aside."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoint_children import FILES, manifest, place, put, stage

from raytrain.checkpoint import Catalogue, Manifest, RetentionPolicy, fetch, replace, resolve
from raytrain.checkpoint import verify as verifying
from raytrain.checkpoint.background_commit import prune, surplus
from raytrain.checkpoint.catalogue import NoGoodCheckpoint
from raytrain.checkpoint.commit import CheckpointExists, DamagedCheckpoint, commit, read_manifest
from raytrain.errors import BadInput
from raytrain.storage import Location


@pytest.fixture(params=["local", "generic", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return Location.of(f"s3://bucket/{uuid.uuid4().hex}/exp/trial")
    if request.param == "memory":
        return Location.of(f"memory://{tmp_path.name}/exp/trial")
    return place(tmp_path / "exp" / "trial", request.param == "generic")


def flip(file: Location) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def cut(file: Location) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES = {"SHA-256 differs": flip, "manifest says": cut, "missing file": Location.delete_file}


@pytest.mark.parametrize("name", [n for n, data in FILES.items() if data])
@pytest.mark.parametrize("problem", DAMAGES)
def test_each_damaged_file_is_named_and_passed_over(
    trial: Location, tmp_path: Path, name: str, problem: str
) -> None:
    put(trial, tmp_path, 1)
    newest = put(trial, tmp_path, 2)
    DAMAGES[problem](newest / name)
    choice = Catalogue(trial).choose_for_resume()
    assert choice is not None and choice.entry is not None
    assert choice.entry.path == "checkpoint_000001" and choice.entry.good is True
    (damaged,) = choice.damaged
    assert damaged.path == "checkpoint_000002" and damaged.good is False
    assert damaged.problem is not None
    assert damaged.problem.startswith(f"{name}: ") and problem in damaged.problem
    with pytest.raises(DamagedCheckpoint, match="damaged"):
        fetch(newest, tmp_path / "fetched")


def overwrite(data: bytes) -> Callable[[Location], None]:
    return lambda file: file.write_bytes(data)


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (Location.delete_file, "no manifest.json"),
        (overwrite(b""), "manifest.json unreadable"),
        (cut, "manifest.json unreadable"),
    ],
)
def test_damaged_manifest(
    trial: Location, tmp_path: Path, break_it: Callable[[Location], None], problem: str
) -> None:
    put(trial, tmp_path, 1)
    manifest_file = put(trial, tmp_path, 2) / "manifest.json"
    if break_it is cut:
        cut(manifest_file)  # the final newline is not needed; the brace before it is
    break_it(manifest_file)
    choice = Catalogue(trial).choose_for_resume()
    assert choice is not None and choice.entry is not None and choice.entry.iteration == 1
    assert [d.iteration for d in choice.damaged] == [2]
    assert problem in str(choice.damaged[0].problem)
    assert Catalogue(trial).sweep() == []  # damage is no garbage


@pytest.mark.parametrize("name", ["final", "stages/easy"])
def test_what_is_damaged_and_replaced_is_kept_in_the_quarantine(
    trial: Location, tmp_path: Path, name: str
) -> None:
    kind = "final" if name == "final" else "stage"
    replace(put(trial, tmp_path, 1), trial / name, kind=kind)
    former = Catalogue(trial).entry(name)
    assert former is not None
    cut(former.location / "algorithm_state.pkl")
    replace(put(trial, tmp_path, 2), trial / name, kind=kind)
    Catalogue(trial).sweep()
    entry = Catalogue(trial).entry(name, verify=True)
    assert entry is not None and (entry.good, entry.iteration) == (True, 2)
    kept = trial / "quarantine" / name.replace("/", "_")
    assert {*FILES, "manifest.json"} <= set(kept.files())


def test_a_kill_while_a_manifest_is_written_anew_is_no_damage(tmp_path: Path) -> None:
    trial = Location.of(tmp_path / "trial")
    half = put(trial, tmp_path, 2) / ".manifest.json.tmp"
    half.write_bytes(b'{"kind": "interr')
    choice = Catalogue(trial).choose_for_resume()
    assert choice is not None and choice.entry is not None and choice.entry.iteration == 2
    Catalogue(trial).sweep()
    assert not half.exists()


def test_a_stage_that_is_set_aside_is_gone_from_its_place(trial: Location, tmp_path: Path) -> None:
    for iteration, name in ((2, "easy"), (4, "hard")):
        newest = put(trial, tmp_path, iteration)
        replace(newest, trial / f"stages/{name}", kind="stage")
    Catalogue(trial).sweep()
    catalogue = Catalogue(trial)
    for entry in catalogue.entries():
        if "easy" not in entry.path and entry.iteration != 2:
            catalogue.set_aside(entry, "set_aside/20260101-000000")
    assert [entry.path for entry in catalogue.entries()] == ["checkpoint_000002", "stages/easy"]


@pytest.mark.parametrize("verify_bytes", [False, True])
def test_a_best_that_is_replaced_while_it_is_read_is_no_damage(
    trial: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify_bytes: bool
) -> None:
    one, two = put(trial, tmp_path, 1), put(trial, tmp_path, 2)
    replace(one, trial / "best", kind="best")
    read = read_manifest

    def read_and_replaced(place: Location) -> Manifest:
        found = read(place)
        if "best" in place.path:
            monkeypatch.setattr(verifying, "read_manifest", read)
            replace(two, trial / "best", kind="best")
        return found

    monkeypatch.setattr(verifying, "read_manifest", read_and_replaced)
    entry = Catalogue(trial).entry("best", verify=verify_bytes)
    assert entry is not None and entry.problem is None
    assert not verify_bytes or (entry.good, entry.iteration) == (True, 2)


def test_emptied_directory_is_damage(tmp_path: Path) -> None:
    trial = Location.of(tmp_path / "trial")
    (trial / "checkpoint_000003").make()
    with pytest.raises(NoGoodCheckpoint, match=r"checkpoint_000003: no manifest.json"):
        Catalogue(trial).choose_for_resume()


def test_file_that_nobody_listed(trial: Location, tmp_path: Path) -> None:
    (put(trial, tmp_path, 1) / "extra.pkl").write_bytes(b"x")
    (entry,) = Catalogue(trial).entries()
    assert (entry.good, entry.problem) == (False, "extra.pkl: not listed in the manifest")


def test_quarantine_moves_and_never_overwrites(trial: Location, tmp_path: Path) -> None:
    catalogue = Catalogue(trial)
    for k, name in enumerate(["checkpoint_000002", "checkpoint_000002.1", "checkpoint_000002.2"]):
        damaged = put(trial, tmp_path, 2)
        (damaged / "algorithm_state.pkl").write_bytes(b"damage %d" % k)
        (entry,) = catalogue.newest_good().damaged
        aside = catalogue.quarantine(entry)
        assert aside.path == (trial / "quarantine" / name).path
        assert not damaged.exists()
        assert (aside / "algorithm_state.pkl").read_bytes() == b"damage %d" % k
    assert [e.good for e in catalogue.entries(verify=True)] == [False] * 3
    with pytest.raises(NoGoodCheckpoint) as error:
        catalogue.choose_for_resume()
    assert "quarantine/checkpoint_000002.1: algorithm_state.pkl: 8 bytes" in str(error.value)
    assert "--fresh" in str(error.value) and error.value.exit_code == 1


def test_no_checkpoint_ever_and_error_ones(trial: Location, tmp_path: Path) -> None:
    assert Catalogue(trial).choose_for_resume().entry is None
    put(trial, tmp_path, 5, name="error_000005", kind="error")
    assert Catalogue(trial).choose_for_resume().entry is None
    put(trial, tmp_path, 4)
    choice = Catalogue(trial).choose_for_resume()
    assert choice is not None and choice.entry is not None and choice.entry.iteration == 4


def test_newest_by_iteration_then_by_place(trial: Location, tmp_path: Path) -> None:
    catalogue = Catalogue(trial)
    source = put(trial, tmp_path, 9)
    for name, kind in [("stages/easy", "stage"), ("best", "best"), ("final", "final")]:
        replace(source, trial / name, kind=kind)
    put(trial, tmp_path, 10)
    preferred = []
    for _ in range(5):
        entry = catalogue.newest_good().entry
        assert entry is not None
        preferred.append((entry.path, entry.kind, entry.iteration))
        entry.remove()
    assert preferred == [
        ("checkpoint_000010", "periodic", 10),
        ("checkpoint_000009", "periodic", 9),
        ("final", "final", 9),
        ("best", "best", 9),
        ("stages/easy", "stage", 9),
    ]


def test_copies_are_independent_and_a_damaged_source_is_refused(
    trial: Location, tmp_path: Path
) -> None:
    source = put(trial, tmp_path, 1)
    replace(source, trial / "best", kind="best")
    flip(source / "algorithm_state.pkl")
    best = Catalogue(trial).entry("best", verify=True)
    assert best is not None and best.good is True
    with pytest.raises(DamagedCheckpoint, match=r"algorithm_state.pkl"):
        replace(source, trial / "best", kind="best")
    best = Catalogue(trial).entry("best", verify=True)
    assert best is not None and best.good is True
    passing = [name for name in trial.subdirectories() if name.endswith(".new")]
    assert passing == ([] if trial.is_local else ["best.0-1.new"])


def test_fetch_brings_every_byte(trial: Location, tmp_path: Path) -> None:
    found = fetch(put(trial, tmp_path, 1), tmp_path / "fetched")
    read = {n: (found / n).read_bytes() for n in FILES}
    assert read == {n: (d + b"1" if d else d) for n, d in FILES.items()}
    assert (found == tmp_path / "fetched") is not trial.is_local


def test_existing_checkpoint_is_not_overwritten(trial: Location, tmp_path: Path) -> None:
    there = put(trial, tmp_path, 1)
    before = (there / "manifest.json").read_bytes()
    with pytest.raises(CheckpointExists, match="complete checkpoint"):
        commit(stage(tmp_path / "again"), there, manifest(1, score=5.0))
    assert (there / "manifest.json").read_bytes() == before
    (there / "manifest.json").delete_file()
    with pytest.raises(CheckpointExists, match="without its manifest"):
        commit(stage(tmp_path / "again"), there, manifest(1))


def test_a_replaced_writer_writes_nothing_more(trial: Location, tmp_path: Path) -> None:
    calls = []

    def fence() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise BadInput("replaced")

    with pytest.raises(BadInput, match="replaced"):
        commit(stage(tmp_path / "s"), trial / "checkpoint_000001", manifest(1), fence=fence)
    assert not (trial / "checkpoint_000001" / "manifest.json").exists()
    assert Catalogue(trial).entries() == []
    assert Catalogue(trial).sweep() == []


def test_links_are_refused(tmp_path: Path) -> None:
    staging = stage(tmp_path / "s")
    os.symlink("/etc/hostname", staging / "link")
    with pytest.raises(Exception, match="only regular files"):
        commit(staging, Location.of(tmp_path / "t/checkpoint_000001"), manifest(1))


def test_retention_counts_good_ones_only(trial: Location, tmp_path: Path) -> None:
    for iteration in range(1, 6):
        put(trial, tmp_path, iteration, kind="interrupted" if iteration == 2 else "periodic")
    put(trial, tmp_path, 1, name="error_000001", kind="error")
    replace(trial / "checkpoint_000001", trial / "best", kind="best")
    replace(trial / "checkpoint_000001", trial / "stages/a", kind="stage")
    cut(trial / "checkpoint_000005" / "algorithm_state.pkl")
    catalogue = Catalogue(trial)
    entries = catalogue.entries()
    paths = {k: [e.path for e in surplus(entries, RetentionPolicy(k))] for k in (None, 1, 2, 9)}
    assert paths[None] == paths[9] == []
    assert paths[1] == ["checkpoint_000001", "checkpoint_000002", "checkpoint_000003"]
    assert paths[2] == ["checkpoint_000001", "checkpoint_000002"]
    prune(catalogue, RetentionPolicy(1))
    left = [e.path for e in catalogue.entries()]
    assert left == [
        "best", "error_000001", "stages/a", "checkpoint_000004", "checkpoint_000005",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="at least 1"):
        RetentionPolicy(0)


def test_resolve(tmp_path: Path) -> None:
    experiment = tmp_path / "exp"
    trial = Location.of(experiment / "trial_a")
    put(trial, tmp_path, 1)
    put(trial, tmp_path, 2)
    replace(trial / "checkpoint_000001", trial / "best", kind="best")
    replace(trial / "checkpoint_000001", trial / "stages/easy", kind="stage")
    wanted = {
        f"{experiment}": "checkpoint_000002",
        f"{trial}": "checkpoint_000002",
        f"{trial}/checkpoint_000001": "checkpoint_000001",
        f"{trial}/stages/easy/": "stages/easy",
        f"{experiment}:best": "best",
        f"{trial}:best": "best",
        f"file://{trial}": "checkpoint_000002",
    }
    assert {given: resolve(given).path for given in wanted} == wanted
    shutil.copytree(trial.path + "/best", tmp_path / "elsewhere")
    assert resolve(str(tmp_path / "elsewhere")).good is True
    cut(trial / "best" / "algorithm_state.pkl")
    with pytest.raises(DamagedCheckpoint, match=r"algorithm_state.pkl: 2048 bytes, manifest says"):
        resolve(f"{experiment}:best")
    assert resolve(f"{experiment}:best", damaged_too=True).good is False
    for given, message in [
        (f"{experiment}:final", "no complete checkpoint"),
        (f"{tmp_path}/nothing", "no directory"),
        (f"{tmp_path}/nothing:best", "no directory"),
        (f"{experiment}:bst", "no name 'bst'.* After the colon write best or final"),
        (f"{trial}/checkpoint_000001/resume", "neither a checkpoint"),
        ("warp://x/y", "Cannot open"),
    ]:
        with pytest.raises(BadInput, match=message):
            resolve(given)
    put(Location.of(experiment / "trial_b"), tmp_path, 7)
    with pytest.raises(BadInput, match=r"2 trials(.|\n)*trial_a\n(.|\n)*trial_b"):
        resolve(str(experiment))
