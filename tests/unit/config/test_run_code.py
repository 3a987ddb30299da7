"""What counts as the code of a run, and when it has changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from raytrain.config import ExperimentConfig, config_from_dict
from raytrain.config.run_code import NONE, RunCode, code_here, code_of, named

ENV = """
import gymnasium, yaml, numpy, not_there_at_all
from {lib} import x
def make(**arguments): ...
"""


def config_of(place: Path, env: str = "", **env_config: Any) -> ExperimentConfig:
    env = env or f"env_{place.name}:make".replace("-", "_")
    module = env.partition(":")[0]
    if not (place / f"{module}.py").exists():
        (place / f"{module}.py").write_text(ENV.format(lib=f"lib_{module}"))
        (place / f"lib_{module}.py").write_text("x = 1")
    return config_from_dict(
        {
            "name": "run",
            "storage_path": str(place / "results"),
            "environment": {"env": env, "env_config": env_config},
            "stop": {"iterations": 1},
            "import_path": str(place),
        }
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def look(config: ExperimentConfig, known: RunCode | None = None, **options: Any) -> RunCode:
    return code_of(config, options.pop("proofs", {}), known or RunCode(), print, **options)


def test_files_packages_and_what_is_missing(place: Path) -> None:
    config = config_of(place, "plain_env:make")
    source = (place / "plain_env.py").read_bytes()
    code = look(config)
    assert code.files == {
        "plain_env.py": hashlib.sha256(source).hexdigest(),
        "lib_plain_env.py": hashlib.sha256(b"x = 1").hexdigest(),
    }
    assert code.packages.keys() == {"PyYAML", "not_there_at_all"}
    assert code.packages["not_there_at_all"] == NONE
    text = json.dumps(code.to_dict())
    assert str(place) not in text
    assert RunCode.of(json.loads(text)) == code


def test_an_environment_of_gymnasium_has_no_code_of_the_user(place: Path) -> None:
    config = config_from_dict({**config_of(place).to_dict(), "environment": {"env": "CartPole-v1"}})
    assert look(config) == RunCode()


@pytest.mark.parametrize("source", ["x = 2", "x = 1  # A comment."])
def test_every_edit_is_a_change_and_is_none_when_it_is_taken_back(place: Path, source: str) -> None:
    config = config_of(place, "edited_env:make")
    before = look(config)
    (place / "lib_edited_env.py").write_text(source)
    assert before.changes(look(config, before)) == ["lib_edited_env.py changed"]
    (place / "lib_edited_env.py").unlink()
    assert before.changes(look(config, before)) == ["lib_edited_env.py is gone"]
    (place / "lib_edited_env.py").write_text("x = 1")
    assert before.changes(look(config, before)) == []


def test_an_optional_module_that_comes(place: Path) -> None:
    config = config_of(place, "optional_env:make")
    before = look(config)
    (place / "not_there_at_all.py").touch()
    assert before.changes(look(config, before)) == ["not_there_at_all none -> found"]


def test_the_place_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the working directory of a job, which Ray unpacks elsewhere on each node."""
    codes = []
    for name in ("here", "there"):
        place = tmp_path / name
        place.mkdir()
        (place / "table.csv").write_text("1,2")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(place))
            patch.delitem(__import__("sys").modules, "placed_env", raising=False)
            codes.append(look(config_of(place, "placed_env:make", table="table.csv")))
    assert codes[0] == codes[1]
    assert codes[0].files.keys() == {"placed_env.py", "lib_placed_env.py", "table.csv"}


def test_files_that_the_config_names(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = place.parent / f"{place.name}-data.csv"
    outside.write_text("1")
    (place / "levels").mkdir()
    (place / "levels" / "one.txt").write_text("1")
    (place / "levels" / ".hidden").write_text("1")
    (place / "results").mkdir()
    (place / "results" / "old.txt").write_text("1")
    # Results of other runs, also those of the working directory.
    others = place.parent / f"{place.name}-others"
    (others / "results" / "cartpole").mkdir(parents=True)
    (others / "results" / "cartpole" / "experiment.json").write_text("{}")
    monkeypatch.chdir(others)
    arguments = {
        "other run": str(others / "results" / "cartpole"),
        "outside": str(outside),
        "nested": [{"levels": "levels"}],
        "results": "results",
        "around": str(place),
        "mode": "human",
    }
    config = config_of(place, "naming_env:make", **arguments)
    before = look(config)
    data = set(before.files) - {"naming_env.py", "lib_naming_env.py"}
    assert data == {"environment.env_config.outside", "levels/"}
    (place / "levels" / ".hidden").write_text("2")
    assert before.changes(look(config, before)) == []
    (place / "levels" / "two.txt").touch()
    outside.write_text("2")
    assert before.changes(look(config, before)) == [
        "environment.env_config.outside changed",
        "levels/ changed",
    ]


def test_a_file_that_has_come_since_the_last_start_is_the_run_s_own(place: Path) -> None:
    config = config_of(place, "logging_env:make", log="log.txt")
    before = look(config)
    (place / "log.txt").write_text("an episode")
    assert look(config, before, values_before=config.to_dict()) == before
    another = config_of(place, "logging_env:make", log="log.txt", data="log.txt")
    now = look(another, before, values_before=config.to_dict())
    assert now.files.keys() - before.files.keys() == {"log.txt"}
    assert before.changes(now) == []


def test_what_was_seen_in_a_fresh_process_counts(place: Path) -> None:
    config = config_of(place, "seeing_env:make")
    (place / "computed_name.py").write_text("import json, computed_inner")
    (place / "computed_inner.py").touch()
    (place / "rows.txt").touch()
    stage = {"imports": ["computed_name", "pydantic"], "reads": ["rows.txt"]}
    code = look(config, proofs={"imports": [], "stages": {"one": stage}})
    assert {"computed_name.py", "computed_inner.py", "rows.txt"} <= code.files.keys()
    assert "pydantic" in code.packages


def test_a_process_keeps_what_it_saw_first_and_the_rest_is_as_the_driver_saw_it(
    place: Path,
) -> None:
    (place / "kept.py").write_text("1")
    recorded = RunCode({"kept.py": "a", "elsewhere.py": "b"}, {"not_there_at_all": "1.0"})
    asked = (*recorded.keys(), str(place))
    seen = recorded.seen_by(code_here(*asked))
    (place / "kept.py").write_text("2")
    assert recorded.seen_by(code_here(*asked)) == seen
    assert seen.files == {"kept.py": hashlib.sha256(b"1").hexdigest(), "elsewhere.py": "b"}
    assert seen.packages == recorded.packages


def test_earlier_versions_and_long_lists() -> None:
    now = RunCode({f"{n}.py": "b" for n in range(5)}, {"mujoco": "3.3.0"})
    assert RunCode.of(None).changes(now) == []
    before = RunCode({f"{n}.py": "a" for n in range(4)}, {"mujoco": "3.2.0"})
    assert named(before.changes(now)) == "0.py changed, 1.py changed, 2.py changed and 2 more"
    assert named(before.changes(now)[-1:]) == "mujoco 3.2.0 -> 3.3.0"
