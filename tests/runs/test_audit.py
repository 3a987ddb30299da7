"""`raytrain audit` on real runs: equal to what is on storage, but not after a silent corruption,
nor on a node that computes differently."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support import running
from support.clusters import Cluster, environment
from support.paths import ENVS

from raytrain.checkpoint import ExactLost, Manifest
from raytrain.checkpoint.manifest import FileEntry
from raytrain.commands.audit import audit
from raytrain.commands.retraining import CannotAudit
from raytrain.errors import BadInput
from raytrain.storage import Location

FIRST, LAST = 4, 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with checkpoints of the iterations 2, 4 and 6 (`final`), one searched value."""
    config = running.write_config(
        tmp_path_factory.mktemp("audit") / "run.yaml",
        env_runners={"num_env_runners": 0},
        training={"train_batch_size_per_learner": 128, "num_epochs": 1, "lr": {"choice": [2e-3]}},
        # So large that its sums depend on the number of threads.
        rl_module={"model_config": {"fcnet_hiddens": [256, 256]}},
        stop={"iterations": LAST},
    )
    running.train(config)
    return running.experiment_of(config)


@pytest.fixture
def experiment(finished: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged; experiments may be moved."""
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def trial_in(experiment: Path) -> Path:
    (trial,) = experiment.glob("trial_*")
    return trial


def rewrite(checkpoint: Path, **changes: Any) -> None:
    """A manifest that fits the files as they are now."""
    file = checkpoint / "manifest.json"
    manifest = Manifest.from_json(file.read_bytes(), "here")
    files = tuple(
        FileEntry(f.path, *Location.of(checkpoint / f.path).digest()) for f in manifest.files
    )
    file.write_bytes(replace(manifest, files=files, **changes).to_json())


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_a_sound_run_is_equal_and_not_touched(
    experiment: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(experiment)
    found = audit(experiment)
    (trial,) = found.trials
    assert found.equal
    assert trial.difference is None
    assert (trial.start, trial.end, trial.compared) == (FIRST, LAST, LAST - FIRST)
    manifest = json.loads((trial_in(experiment) / "final" / "manifest.json").read_bytes())
    assert trial.weights_sha256 == manifest["weights_sha256"]
    assert trial.versions == {}
    assert f"iterations {FIRST + 1} to {LAST} trained again: equal" in found.text()
    assert json.loads(json.dumps(found.to_dict()))["equal"] is True
    assert contents(experiment) == before


def test_a_silently_corrupted_optimizer_is_found_and_dated(experiment: Path) -> None:
    checkpoint = trial_in(experiment) / f"checkpoint_{FIRST:06d}"
    file = checkpoint / "learner_group" / "learner" / "state.pkl"
    state = pickle.loads(file.read_bytes())
    (optimizer,) = state["optimizer"].values()
    moment = np.array(optimizer["state"]["state"][0]["exp_avg"])
    moment.flat[0] += np.float32(0.01)
    optimizer["state"]["state"][0]["exp_avg"] = moment
    file.write_bytes(pickle.dumps(state))
    rewrite(checkpoint)

    found = audit(experiment)
    (trial,) = found.trials
    assert not found.equal
    assert trial.difference is not None
    assert trial.difference.iteration == FIRST + 1
    assert "weights_sha256" in trial.difference.what
    assert f"The first difference is in iteration {FIRST + 1}:" in found.text()
    assert json.loads(json.dumps(found.to_dict()))["trials"][0]["equal"] is False


def test_a_record_that_was_changed_is_found_and_dated(experiment: Path) -> None:
    file = trial_in(experiment) / "result.json"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[LAST - 1]["env_runners"]["num_episodes_lifetime"] += 1
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (trial,) = audit(experiment, end=LAST).trials
    assert trial.difference is not None
    assert trial.difference.iteration == LAST
    assert list(trial.difference.what) == ["env_runners/num_episodes_lifetime"]


@pytest.mark.slow
def test_other_versions_are_named_and_missing_records_borne(experiment: Path) -> None:
    trial = trial_in(experiment)
    (trial / "result.json").unlink()
    manifest = json.loads((trial / "final" / "manifest.json").read_bytes())
    # Manifests of raytrain 0.1 do not say what computed them.
    versions = {**manifest["versions"], "torch": "1.0"}
    rewrite(trial / "final", versions=versions, arithmetic=None)
    (found,) = audit(trial, start=2).trials
    assert found.equal
    assert (found.start, found.end, found.compared) == (2, FIRST, 0)
    (found,) = audit(trial).trials
    assert found.equal
    assert found.versions == {"torch": ("1.0", manifest["versions"]["torch"])}
    assert "torch 1.0 -> " in found.text()


def test_what_cannot_be_compared_is_refused(experiment: Path, tmp_path: Path) -> None:
    trial = trial_in(experiment)
    with pytest.raises(CannotAudit, match=r"no good checkpoint of iteration 3\. .* 2, 4, 6"):
        audit(experiment, start=3)
    with pytest.raises(CannotAudit, match="--from 4 must be less than --to 2"):
        audit(experiment, start=4, end=2)
    with pytest.raises(CannotAudit, match="does not have two good checkpoints"):
        audit(experiment, start=LAST)
    with pytest.raises(BadInput, match="There is no directory"):
        audit(tmp_path / "nothing")
    with pytest.raises(BadInput, match="is neither an experiment nor a trial"):
        audit(tmp_path)
    lost = ExactLost("the number of env groups changed from 1 to 2", FIRST)
    rewrite(trial / "final", exact=False, exact_lost=lost)
    with pytest.raises(CannotAudit, match=r"is not exact after iteration 4"):
        audit(experiment)
    rewrite(trial / "final", exact=False, exact_lost=ExactLost("its clock is read", 0))
    with pytest.raises(CannotAudit, match=r"not exact: its clock is read\. A difference would"):
        audit(experiment)
    (trial / "params.json").unlink()
    with pytest.raises(CannotAudit, match=r"params\.json is missing"):
        audit(experiment, end=FIRST)
    (experiment / "experiment.json").unlink()
    with pytest.raises(BadInput, match=r"holds no experiment\.json"):
        audit(experiment)


@pytest.mark.slow
def test_an_environment_that_depends_on_the_order_of_hashes_is_equal(tmp_path: Path) -> None:
    shutil.copy(ENVS / "hash_order.py", tmp_path)
    config = running.write_config(
        tmp_path / "run.yaml",
        environment={"env": "hash_order:make"},
        env_runners={"num_env_runners": 0},
        training={"train_batch_size_per_learner": 512, "num_epochs": 1},
        stop={"iterations": 4},
    )
    running.train(config)
    (found,) = audit(running.experiment_of(config)).trials
    assert found.difference is None
    assert (found.start, found.end, found.compared) == (2, 4, 2)


def retraining(cluster: Cluster) -> list[psutil.Process]:
    """The processes that audit on the nodes, and all that they have started; empty until there are
    raylets among them."""
    with suppress(psutil.NoSuchProcess):
        found = [
            each
            for node in cluster.nodes
            for process in node.processes()
            if "raytrain.commands.retraining" in " ".join(process.cmdline())
            for each in (process, *process.children(recursive=True))
        ]
        if "raylet" in {process.name() for process in found}:
            return found
    return []


@pytest.mark.slow
def test_a_node_that_computes_differently_is_named_while_the_run_goes_on(tmp_path: Path) -> None:
    holds = running.Holds(tmp_path, 5)
    config = running.write_config(tmp_path / "run.yaml", stop={"iterations": 6}, **holds.sections)
    run = running.Run("train", str(config), log=tmp_path / "log.txt")
    trial = running.trial_of(config)
    run.until(lambda: running.committed(trial) == [2, 4] and running.iteration_of(trial) == 5)
    before = contents(trial)
    with Cluster(tmp_path, cpus=1, dashboard=False) as cluster:
        cluster.add(  # It stands for another CPU.
            OPENBLAS_CORETYPE="Sandybridge", MKL_CBWR="COMPATIBLE", ATEN_CPU_CAPABILITY="default"
        )
        options = ("--on-every-node", "--address", cluster.address, "--json")
        command = ("audit", str(running.experiment_of(config)), *options)
        audited = running.Run(*command, log=tmp_path / "audit.json", env=environment())
        assert audited.wait() == 1, audited.output()
        stopped = running.Run(*command, log=tmp_path / "stopped.txt", env=environment())
        family = stopped.until(lambda: retraining(cluster))
        stopped.signal()
        assert stopped.wait() == 130, stopped.output()
        assert psutil.wait_procs(family, timeout=60)[1] == []
    assert contents(trial) == before
    (found,) = json.loads(audited.output())["trials"]
    assert (found["start"], found["end"]) == (2, 4)
    equal, other = sorted(found["nodes"], key=lambda node: not node["equal"])
    assert equal["equal"], found
    assert equal["problem"] is None
    assert not other["equal"]
    assert other["problem"] is None, other
    assert other["difference"]["iteration"] == 3
    assert "OPENBLAS_CORETYPE=Sandybridge" in other["other_arithmetic"]
    assert "; the run began on " in other["other_arithmetic"]
    assert found["agreeing"] == [[other["node"]]]
    holds.release()
    assert run.wait() == 0, run.output()


@pytest.mark.slow
def test_the_command_says_nothing_but_its_result(tmp_path: Path) -> None:
    """Ray's C++ part has something to say of each env runner."""
    config = running.write_config(
        tmp_path / "run.yaml",
        env_runners={"num_env_runners": 1},
        training={"train_batch_size_per_learner": 128, "num_epochs": 1},
        stop={"iterations": 2},
        checkpoint={"checkpoint_frequency": 1},
    )
    running.train(config)
    done = subprocess.run(
        [sys.executable, "-m", "raytrain", "audit", str(running.experiment_of(config))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("trial_00000: iterations 2 to 2 trained again: equal (weights ")
