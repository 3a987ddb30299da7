"""Runs that are continued where arithmetic is another: exact, or told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.clusters import Cluster
from support.running import Run, experiment_of, rows, trial_of, write_config

# Wide enough that the kernels and the threads of a matrix product count.
SECTIONS: dict[str, Any] = {
    "env_runners": {"num_env_runners": 0},
    "training": {
        "train_batch_size_per_learner": 2048,
        "minibatch_size": 1024,
        "num_epochs": 2,
        "use_kl_loss": False,
    },
    "rl_module": {"model_config": {"fcnet_hiddens": [256, 256]}},
    "checkpoint": {"checkpoint_frequency": 1},
}
OTHER_CPU = {"OPENBLAS_CORETYPE": "Sandybridge", "MKL_CBWR": "COMPATIBLE"}
"""They stand for a CPU of another maker."""


def go(
    directory: Path,
    iterations: int,
    *arguments: str,
    env: dict[str, str] | None = None,
    code: int = 0,
    **sections: Any,
) -> str:
    directory.mkdir(exist_ok=True)
    merged = {**SECTIONS, **sections, "stop": {"iterations": iterations}}
    config = write_config(directory / "run.yaml", **merged)
    run = Run("train", str(config), *arguments, log=directory / f"log{iterations}.txt", env=env)
    assert run.wait() == code, run.output()
    return run.output()


def digests(directory: Path) -> list[str]:
    return [row["weights_sha256"] for row in rows(trial_of(directory / "run.yaml"))]


def final(directory: Path) -> dict[str, Any]:
    path = trial_of(directory / "run.yaml") / "final" / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("undisturbed")
    go(directory, 4)
    return digests(directory)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("begun")
    go(directory, 2)
    return directory


@pytest.fixture
def half(begun: Path, tmp_path: Path) -> Path:
    """A run of two iterations."""
    return Path(shutil.copytree(begun, tmp_path / "half"))


def test_another_machine_is_told_and_ends_exactness(half: Path, undisturbed: list[str]) -> None:
    output = go(half, 4, env=OTHER_CPU)
    assert "From iteration 2 on this run is not exact any more: this machine computes" in output
    assert "MKL_CBWR=COMPATIBLE" in output
    assert digests(half)[:2] == undisturbed[:2]
    assert digests(half)[2:] != undisturbed[2:]
    lost = final(half)["exact_lost"]
    assert lost["since_iteration"] == 2
    assert lost["why"].startswith("this machine computes differently: ")
    stored = json.loads((experiment_of(half / "run.yaml") / "experiment.json").read_text())
    assert len(stored["arithmetic"]["computed_by"]) == 2


def test_a_run_that_may_not_continue_elsewhere_fails_and_stays_as_it_was(
    half: Path, undisturbed: list[str]
) -> None:
    fail: dict[str, Any] = {"fault_tolerance": {"on_other_arithmetic": "fail"}}
    output = go(half, 4, env=OTHER_CPU, code=1, **fail)
    assert "This machine computes differently: " in output
    assert "fault_tolerance.on_other_arithmetic: continue" in output
    assert "Traceback" not in output
    go(half, 4, **fail)
    assert digests(half) == undisturbed
    assert final(half)["exact"] is True


@pytest.mark.parametrize(
    ("sections", "env"),
    [
        ({"resources": {"num_cpus_for_main_process": 2}}, {}),
        ({}, {f"{name}_NUM_THREADS": "2" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}),
    ],
    ids=["CPUs", "variables"],
)
def test_another_number_of_cpus_and_threads_outside_changes_nothing(
    half: Path, undisturbed: list[str], sections: dict[str, Any], env: dict[str, str]
) -> None:
    output = go(half, 4, env=env, **sections)
    assert digests(half) == undisturbed
    assert final(half)["exact"] is True
    assert "exact" not in output


def test_threads_that_are_changed_on_purpose_end_exactness(
    half: Path, undisturbed: list[str]
) -> None:
    output = go(half, 4, debugging={"threads": 2})
    assert "not exact any more: the threads of arithmetic changed from 1 to 2." in output
    assert digests(half)[2:] != undisturbed[2:]
    assert final(half)["exact_lost"] == {
        "since_iteration": 2,
        "why": "the threads of arithmetic changed from 1 to 2",
    }


# -- on a cluster ----------------------------------------------------------------------------------


@pytest.fixture
def unlike_nodes(tmp_path: Path) -> Iterator[Cluster]:
    """A head without CPUs, a node like this machine, and one that computes differently."""
    with Cluster(tmp_path, cpus=0, dashboard=False) as cluster:
        yield cluster
