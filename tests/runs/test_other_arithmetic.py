"""Runs that are continued where arithmetic is another: exact, or told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.clusters import NO_TOKEN, Cluster, environment
from support.running import Holds, Run, experiment_of, rows, trial_of, write_config
from support.unseen_cpus import unseen

from raytrain.records import read_events

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


def written(directory: Path, iterations: int, **sections: Any) -> Path:
    """The config of a run to so many iterations."""
    merged = {**SECTIONS, **sections, "stop": {"iterations": iterations}}
    return write_config(directory / "run.yaml", **merged)


def go(
    directory: Path,
    iterations: int,
    *arguments: str,
    env: dict[str, str] | None = None,
    code: int = 0,
    **sections: Any,
) -> str:
    directory.mkdir(exist_ok=True)
    config = written(directory, iterations, **sections)
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_other_cpus_and_threads_outside_change_nothing(half: Path, undisturbed: list[str]) -> None:
    outside = {f"{name}_NUM_THREADS": "2" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    output = go(half, 4, env=outside, resources={"num_cpus_for_main_process": 2})
    assert digests(half) == undisturbed
    assert final(half)["exact"] is True
    assert "exact" not in output


@pytest.mark.slow
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


PORTABLE = "8699d00bb33c4f4a73db0be1b535616d833dc30b0ada62c5a73b6e624c609437"
"""The weights after two portable iterations, on every machine."""


@unseen
@pytest.mark.slow
def test_a_portable_run_has_these_weights_whatever_is_set_outside(tmp_path: Path) -> None:
    portable: dict[str, Any] = {
        "debugging": {"portable": True},
        "env_runners": {"num_env_runners": 1},
    }
    outside = {
        "OPENBLAS_CORETYPE": "Sandybridge",
        "MKL_CBWR": "AVX2",
        "ATEN_CPU_CAPABILITY": "default",
        "NUMBA_CPU_NAME": "generic",
    }
    go(tmp_path / "run", 2, env=outside, **portable)
    assert digests(tmp_path / "run")[-1] == PORTABLE
    assert final(tmp_path / "run")["arithmetic"]["settings"]["portable"] is True


# -- on a cluster ----------------------------------------------------------------------------------

HOLD = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
@ray.remote(num_cpus=1, resources={"like": 0.1})
class Holder:
    def up(self): pass
holder = Holder.remote()
ray.get(holder.up.remote())
print("held", flush=True)
time.sleep(3600)
"""


@pytest.fixture
def unlike(tmp_path: Path) -> Iterator[Cluster]:
    """A head without CPUs, a node like this machine with one CPU, and one that computes
    differently."""
    with Cluster(tmp_path, cpus=0, dashboard=False) as cluster:
        cluster.add('--resources={"like": 1}')
        cluster.add('--resources={"unlike": 1}', cpus=1, **OTHER_CPU)
        yield cluster


@contextmanager
def occupied(cluster: Cluster) -> Iterator[None]:
    """The CPU of the node that is like this machine is taken."""
    command = [sys.executable, "-c", HOLD, cluster.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield
        holder.kill()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_trial_leaves_a_node_that_computes_differently(
    unlike: Cluster, half: Path, undisturbed: list[str]
) -> None:
    config = written(half, 4)
    with occupied(unlike):
        run = on(unlike, config)
        run.until(lambda: "it is started on another node" in run.output())
    assert run.wait() == 0, run.output()
    assert "The nodes compute differently (" in run.output()
    assert "this is not counted as a failure" in run.output()
    assert digests(half) == undisturbed
    assert final(half)["exact"] is True


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_without_another_node_a_run_goes_on_and_says_so(unlike: Cluster, half: Path) -> None:
    unlike.nodes.pop(1).kill()
    run = on(unlike, written(half, 4))
    assert run.wait() == 0, run.output()
    assert "no other node has the resources" in run.output()
    assert final(half)["exact_lost"]["since_iteration"] == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_waits_goes_on_exactly_once_a_node_is_there(
    unlike: Cluster, half: Path, undisturbed: list[str]
) -> None:
    unlike.nodes.pop(1).kill()
    run = on(unlike, written(half, 4, fault_tolerance={"on_other_arithmetic": "wait"}))
    run.until(lambda: "it waits for another node" in run.output())
    unlike.add('--resources={"like": 1}')
    assert run.wait() == 0, run.output()
    assert digests(half) == undisturbed
    assert final(half)["exact"] is True


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_env_runner_that_computes_differently_gets_no_work(
    unlike: Cluster, tmp_path: Path
) -> None:
    unlike.nodes.pop(1).kill()
    unlike.add('--resources={"like": 1}', cpus=2)  # For the trial and one env runner.
    holds = Holds(make(tmp_path / "cluster"), 1)
    runners: dict[str, Any] = {**holds.sections, "env_runners": {"num_env_runners": 2}}
    there = {"custom_resources_for_main_process": {"like": 0.1}}
    config = written(tmp_path / "cluster", 3, resources=there, **runners)
    run = on(unlike, config)
    told = "gets no work as long as others can do it, since it computes differently"
    # The console has it with the next result, which the hold may keep back.
    events = trial_of(config) / "events.jsonl"
    run.until(
        lambda: told in run.output() or any(told in event.message for event in read_events(events))
    )
    holds.release()
    assert run.wait() == 0, run.output()
    assert told in run.output()
    assert final(tmp_path / "cluster")["exact"] is True
    Holds(make(tmp_path / "alone"))
    go(tmp_path / "alone", 3, **runners)
    assert digests(tmp_path / "cluster") == digests(tmp_path / "alone")


def make(directory: Path) -> Path:
    directory.mkdir()
    return directory


def on(cluster: Cluster, config: Path) -> Run:
    arguments = ("train", str(config), "--address", cluster.address)
    return Run(*arguments, log=config.parent / "cluster.txt", env=NO_TOKEN)
