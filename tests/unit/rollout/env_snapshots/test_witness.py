"""What an environment is seen to import and read while it is proved."""

from __future__ import annotations

from pathlib import Path

import pytest

from raytrain.config import EnvCreator, config_from_dict
from raytrain.config.run_code import beside_config
from raytrain.rollout.env_snapshots import prove

SOURCE = """
from importlib import import_module
from pathlib import Path

import gymnasium

HERE = Path(__file__).parent


class Reading(gymnasium.Wrapper):
    def reset(self, **options):
        import_module("read_" + "late")
        (HERE / "data" / "table.txt").read_text()
        (HERE / ".hidden").read_text()
        with (HERE / "log.txt").open("a") as log:
            log.write("reset")
        (HERE / "log.txt").read_text()
        return super().reset(**options)


def make():
    return Reading(gymnasium.make("CartPole-v1"))
"""


def test_computed_imports_and_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "reading_env.py").write_text(SOURCE)
    (tmp_path / "read_late.py").write_text("import yaml")
    (tmp_path / "data").mkdir()
    for name in ("data/table.txt", ".hidden"):
        (tmp_path / name).touch()
    proof = prove(EnvCreator("reading_env:make", str(tmp_path)))
    assert proof.exact, proof.reason
    assert {"reading_env", "read_late"} <= set(proof.imports)
    assert not {"raytrain", "json", "unit"} & set(proof.imports)
    config = config_from_dict(
        {
            "name": "run",
            "storage_path": str(tmp_path / "results"),
            "environment": {"env": "reading_env:make"},
            "stop": {"iterations": 1},
            "import_path": str(tmp_path),
        }
    )
    assert beside_config(proof.reads, config) == ["data/table.txt"]
