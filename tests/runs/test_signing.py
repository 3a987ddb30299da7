"""With a signing key, what somebody else put into a run's directory is not executed."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.running import Run, trial_of, write_config

from raytrain.storage.signing import KEY_VARIABLE

LICENCE = "canary-of-the-licence-abcdef"
KEY = "canary-of-the-signing-key-0123456789"


class Plant:
    """Unpickling it leaves a file."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return open, (str(self._trace), "w")


ENVIRONMENT_FILE = """
import gymnasium as gym

def make(licence_key):
    assert licence_key.startswith("canary-of-the-licence")
    env = gym.make("CartPole-v1")
    env.unwrapped.licence_key = licence_key  # pickled with the environment, into every checkpoint
    return env
"""


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """Ray puts sockets there, whose paths must be short."""
    place = Path(tempfile.mkdtemp(prefix="rs-"))
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
def test_planted_pickles_are_not_executed_and_secrets_are_nowhere(
    tmp_path: Path, short_tmp: Path
) -> None:
    """A signed run is stopped; somebody who may write to its directory plants pickles in every
    place that a resume might look at; the run continues as if nothing were there."""
    variables = {KEY_VARIABLE: KEY, "SIM_LICENCE": LICENCE, "TMPDIR": str(short_tmp)}
    (tmp_path / "licensed_env.py").write_text(ENVIRONMENT_FILE)
    environment = {
        "env": "licensed_env:make",
        "env_config": {"licence_key": {"from_environment": "SIM_LICENCE"}},
    }
    config = write_config(tmp_path / "run.yaml", environment=environment, stop={"iterations": 5})
    train_with(variables, config)
    trial = trial_of(config)
    experiment = trial.parent
    trace = tmp_path / "trace"
    evil = pickle.dumps(Plant(trace))

    newest = trial / "checkpoint_000004"
    for file in newest.rglob("*.pkl"):
        file.write_bytes(evil)
    shutil.copytree(newest, trial / "checkpoint_000009")
    unsigned = json.loads((newest / "manifest.json").read_text())
    unsigned.pop("signature")
    for each in unsigned["files"]:
        data = (newest / each["path"]).read_bytes()
        each["size"], each["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    (trial / "checkpoint_000009/manifest.json").write_text(json.dumps({**unsigned, "iteration": 9}))
    for name in ("tuner.pkl", "searcher-state.pkl", "basic-variant-state-9.json"):
        (experiment / name).write_bytes(evil)
    for state in experiment.glob("experiment_state-*.json"):
        _plant_in_state(state, evil)
    (trial / "error.pkl").write_bytes(evil)
    (trial / "final/algorithm_state.pkl").write_bytes(evil)
    (trial / "best/resume/algorithm.pkl").write_bytes(evil)

    said = train_with(variables, config, "--set", "stop.iterations=6")
    assert not trace.exists()
    assert "not signed" in said and "Continued from checkpoint_000002" in said

    other = write_config(
        tmp_path / "other.yaml", name="other", environment=environment, stop={"iterations": 6}
    )
    train_with(variables, other)
    assert digest_of_final(trial) == digest_of_final(trial_of(other))
    _nowhere([KEY, LICENCE], [tmp_path, short_tmp])

    # Without the key nothing is written into the signed run, and nothing of it is unpickled.
    run = Run("resume", str(experiment), log=tmp_path / "without.log", env={"SIM_LICENCE": LICENCE})
    assert run.wait() == 2 and "is signed" in run.output()
    assert not trace.exists()


def train_with(variables: dict[str, str], config: Path, *arguments: str) -> str:
    log = config.with_suffix(f".{len(list(config.parent.glob('*.log')))}.log")
    run = Run("train", str(config), *arguments, log=log, env=variables)
    assert run.wait() == 0, run.output()
    return run.output()


def digest_of_final(trial: Path) -> str:
    return str(json.loads((trial / "final/manifest.json").read_text())["weights_sha256"])


def _plant_in_state(file: Path, evil: bytes) -> None:
    """Tune decodes such an entry with cloudpickle, wherever it stands."""
    state = json.loads(file.read_text())
    state["runner_data"]["planted"] = {"_type": "CLOUDPICKLE_FALLBACK", "value": evil.hex()}
    file.write_text(json.dumps(state))


def _nowhere(canaries: list[str], places: list[Path]) -> None:
    """In no file that the runs have written, their logs and Ray's among them."""
    files = [p for place in places for p in place.rglob("*") if p.is_file() and not p.is_symlink()]
    assert len(files) > 50
    for canary in canaries:
        holding = [str(p) for p in files if canary.encode() in p.read_bytes()]
        assert holding == []
