"""What a run takes to a cluster."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from support.paths import ROOT
from support.running import write_config

from raytrain.cluster import package
from raytrain.cluster.package import CONFIG_FILE, needs_files, pack
from raytrain.config import ExperimentConfig, load_config
from raytrain.errors import BadInput

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
OWN = {"environment": {"env": "mine:make"}}


def load(directory: Path, **sections: object) -> ExperimentConfig:
    return load_config(write_config(directory / "run.yaml", **sections), check_env=False)


def packed(config: ExperimentConfig, archive: Path) -> set[str]:
    pack(config, archive)
    with zipfile.ZipFile(archive) as file:
        return set(file.namelist())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_packed_config_is_the_resolved_one(path: Path, tmp_path: Path) -> None:
    overrides = ["seed=7", "training.gamma=0.5"]
    config = load_config(path, overrides=overrides, name="other", storage_path="s3://bucket/runs")
    archive = tmp_path / "run.zip"
    names = packed(config, archive)
    assert CONFIG_FILE in names
    assert (len(names) > 1) == needs_files(config)
    zipfile.ZipFile(archive).extractall(tmp_path)
    again = load_config(tmp_path / CONFIG_FILE, check_env=False)
    assert again.to_dict() | {"import_path": None} == config.to_dict() | {"import_path": None}


def test_files_are_taken_for_an_environment_beside_the_yaml_file_only(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    (tmp_path / "package").mkdir()
    assert not needs_files(load(tmp_path))
    assert not needs_files(load(tmp_path, environment={"env": "installed.module:make"}))
    assert needs_files(load(tmp_path, **OWN))
    assert needs_files(load(tmp_path, environment={"env": "package.envs:make"}))
    assert needs_files(load(tmp_path, environment={"env": "mine:Registered-v0"}))


def test_results_environments_caches_and_secrets_stay_here(tmp_path: Path) -> None:
    for name in (
        "mine.py",
        "data/levels.txt",
        "data/big.bin",
        "notes.tmp",
        ".env",
        ".git/config",
        ".venv/lib/site.py",
        "env311/pyvenv.cfg",
        "env311/lib/site.py",
        "old/cartpole/experiment.json",
        "old/cartpole/trial_00000/result.json",
        "results/run/trial_00000/result.json",
        "__pycache__/mine.pyc",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("*.tmp\n")
    (tmp_path / "data" / ".rayignore").write_text("/big.bin\n")
    (tmp_path / "elsewhere").symlink_to("/usr")
    config = load(tmp_path, **OWN)
    assert packed(config, tmp_path.parent / "run.zip") == {
        *(CONFIG_FILE, "run.yaml", "mine.py", "data/levels.txt"),
        *(".gitignore", "data/.rayignore"),
    }
    package = pack(config, tmp_path.parent / "run.zip")
    assert {"results/", ".venv/", "old/cartpole/", "data/big.bin", ".env"} <= set(package.left_out)
    assert "left out: " in str(package)


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    config = load(tmp_path, **OWN)
    archives = [tmp_path.parent / f"{name}.zip" for name in ("first", "second")]
    for archive in archives:
        pack(config, archive)
        (tmp_path / "mine.py").touch()
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_too_much_is_refused_and_the_largest_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").touch()
    (tmp_path / "movie.bin").write_bytes(bytes(30_000))
    monkeypatch.setattr(package, "LIMIT", 20_000)
    with pytest.raises(BadInput, match=r"The largest: movie\.bin .*\.rayignore"):
        pack(load(tmp_path, **OWN), tmp_path.parent / "run.zip")
