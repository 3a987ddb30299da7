"""What a signature covers, and what is refused where there is a key."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_children import manifest, put

from raytrain.checkpoint import Catalogue, ExperimentFile, ExperimentFileError, Manifest, fetch
from raytrain.checkpoint.catalogue import NoGoodCheckpoint
from raytrain.checkpoint.commit import DamagedCheckpoint
from raytrain.checkpoint.experiment_file import require_key
from raytrain.checkpoint.manifest import ManifestError
from raytrain.checkpoint.resolve import local_policy_directory
from raytrain.driver.tuner import read_tune_files
from raytrain.errors import BadInput, RaytrainError
from raytrain.storage import Location
from raytrain.storage.signing import FILE_VARIABLE, KEY_VARIABLE, signed, signing_key, unsigned

KEY = "canary-of-the-signing-key-0123456789"


class Plant:
    """Unpickling it leaves a file."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return open, (str(self._trace), "w")


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    return KEY


def test_a_signature_covers_every_entry(key: str) -> None:
    data = manifest(3).to_json()
    plain = json.loads(data)
    assert Manifest.from_json(data, "x") == manifest(3)
    for name in plain:
        altered = {**plain, name: _other(plain[name])}
        with pytest.raises(ManifestError):
            Manifest.from_json(json.dumps(altered).encode(), "x")
    with pytest.raises(ManifestError, match="not trusted"):
        Manifest.from_json(json.dumps({**plain, "iteration": 4}).encode(), "x")


def _other(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    return [*value, {"path": "evil.pkl"}] if isinstance(value, list) else {**value, "more": 1}


def test_a_signature_of_one_kind_of_file_is_none_of_another(key: str) -> None:
    document = signed("manifest", {"iteration": 3})
    assert unsigned("manifest", document) == {"iteration": 3}
    with pytest.raises(ValueError, match="its signature does not match"):
        unsigned("experiment", document)


def test_unsigned_and_otherwise_signed_are_refused(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = manifest(1).to_json()
    monkeypatch.setenv(KEY_VARIABLE, "another-key-of-some-length")
    with pytest.raises(ManifestError, match="altered, or signed with another key"):
        Manifest.from_json(mine, "x")
    monkeypatch.delenv(KEY_VARIABLE)
    unsigned = manifest(1).to_json()
    assert Manifest.from_json(mine, "x") == Manifest.from_json(unsigned, "x")  # nobody looks
    assert b"signature" in mine and b"signature" not in unsigned
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with pytest.raises(ManifestError, match="not signed"):
        Manifest.from_json(unsigned, "x")


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert signing_key() is None
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "key"))
    with pytest.raises(BadInput, match="cannot be read"):
        signing_key()
    (tmp_path / "key").write_text(KEY + "\n")
    assert signing_key() == KEY.encode()
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(BadInput, match="shorter than 16") as caught:
        signing_key()
    assert "short'" not in str(caught.value)


def test_an_unsigned_newest_is_set_aside_and_a_signed_one_is_used(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Location.of(tmp_path / "trial")
    put(trial, tmp_path, 1)
    monkeypatch.delenv(KEY_VARIABLE)
    put(trial, tmp_path, 2)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    choice = Catalogue(trial).choose_for_resume()
    assert choice is not None and choice.entry is not None and choice.entry.iteration == 1
    assert [e.path for e in choice.damaged] == ["checkpoint_000002"]
    assert "not signed" in str(choice.damaged[0].problem)
    (trial / "checkpoint_000001").delete_tree()
    with pytest.raises(NoGoodCheckpoint, match="not signed"):
        Catalogue(trial).choose_for_resume()


def test_what_was_checked_is_what_is_read(key: str, tmp_path: Path) -> None:
    trial = Location.of(tmp_path / "trial")
    place = put(trial, tmp_path, 1)
    got = fetch(place, tmp_path / "fetched")
    (place / "algorithm_state.pkl").write_bytes(b"altered after the check")
    assert got == tmp_path / "fetched"
    assert (got / "algorithm_state.pkl").read_bytes() != b"altered after the check"
    with pytest.raises(DamagedCheckpoint):
        fetch(place, tmp_path / "again")


def test_an_altered_experiment_file_is_refused(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Location.of(tmp_path)
    content = ExperimentFile(
        "n", "r", {"lr": 1}, "d", {"exact": True}, {"ray": "2"}, "2026-01-01T00:00:00+00:00"
    )
    content.write(place)
    read = ExperimentFile.read(place)
    assert read is not None and read.config == {"lr": 1} and read.was_signed
    file = tmp_path / "experiment.json"
    genuine = file.read_text()
    file.write_text(genuine.replace('"lr": 1', '"lr": 2'))
    with pytest.raises(ExperimentFileError, match="not trusted"):
        ExperimentFile.read(place)
    file.write_text(genuine)
    monkeypatch.delenv(KEY_VARIABLE)
    unchecked = ExperimentFile.read(place)
    assert unchecked is not None
    with pytest.raises(BadInput, match="is not set on this machine"):
        require_key(unchecked, place)  # it would write what all others refuse


def test_an_exported_policy_is_not_trusted_with_a_key(key: str, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text("{}")
    with pytest.raises(RaytrainError), local_policy_directory(str(tmp_path)):
        raise AssertionError("it was handed out")


def test_tunes_pickles_are_not_read_with_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "tuner.pkl").write_bytes(pickle.dumps(Plant(trace)))
    read_tune_files(Location.of(tmp_path))
    assert trace.exists()  # the plant works where there is no key
    trace.unlink()
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert read_tune_files(Location.of(tmp_path)).problem == "they are not signed"
    assert not trace.exists()
