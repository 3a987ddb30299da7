"""Runs that are killed, interrupted, damaged and moved end as the run that was left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from support.paths import ENVS
from support.running import (
    Holds,
    Reference,
    Run,
    committed,
    experiment_of,
    iteration_of,
    rows,
    train,
    trial_of,
    write_config,
)
from support.same_run import assert_same_run
from support.small_disk import fill


def start(config: Path, *arguments: str) -> Run:
    return Run("train", str(config), *arguments, log=config.parent / "log.txt")


@pytest.fixture
def holds(tmp_path: Path) -> Holds:
    """Of the run of `config`: after its iteration 5 of 12."""
    return Holds(tmp_path, 5)


@pytest.fixture
def config(tmp_path: Path, holds: Holds) -> Path:
    return write_config(tmp_path / "run.yaml", **holds.sections)


def test_killed_interrupted_damaged_and_moved(tmp_path: Path, undisturbed: Reference) -> None:
    """One run through all of it. The tests that follow do each alone."""
    holds = Holds(tmp_path, 5, 8)
    config = write_config(tmp_path / "run.yaml", **holds.sections)
    trial = trial_of(config)
    run = start(config)
    run.until(lambda: committed(trial))
    os.kill(run.one("ray::TrialPPO"), signal.SIGKILL)
    run.until(lambda: "Continued from" in run.output())
    run.process.kill()  # The driver alone: the trial's process may still be there.
    run.process.wait()
    assert "the trial's process died: it was killed or crashed" in run.output()

    run = Run("train", str(config), log=tmp_path / "interrupted.txt")
    # Its records may have got so far before; they are cut when it continues.
    run.until(lambda: "Continued from" in run.output() and iteration_of(trial) == 5)
    os.killpg(run.process.pid, signal.SIGINT)
    run.until(lambda: "saving 1 running trial(s)" in run.output())
    holds.release()
    assert run.wait() == 130, run.output()
    assert "Continue with: " in run.output()
    # Iteration 6, or 5 if the signal came before it had begun.
    newest = trial / f"checkpoint_{iteration_of(trial):06d}"
    assert '"kind": "interrupted"' in (newest / "manifest.json").read_text()
    described = trial.parent / "experiment.json"
    described.write_bytes(described.read_bytes()[:100])

    run = Run("train", str(config), log=tmp_path / "killed.txt")
    run.until(lambda: 8 in committed(trial))
    run.kill_everything()
    holds.release()
    assert "experiment.json is damaged" in run.output()
    assert "A new one is written" in run.output()
    assert f"Continued from {newest.name}" in run.output()

    flip_a_bit(trial / "checkpoint_000008" / STATE)
    moved = cut_tuner_and_move(experiment_of(config), tmp_path)
    run = Run("resume", str(moved), log=tmp_path / "resume.txt")
    assert run.wait() == 0, run.output()
    assert f"checkpoint_000008 is damaged ({STATE}: SHA-256" in run.output()
    assert "tuner.pkl is damaged" in run.output()
    assert_same_run(moved / trial.name, undisturbed)


STATE = "learner_group/learner/state.pkl"


def flip_a_bit(file: Path) -> bytes:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return bytes(content)


def cut_tuner_and_move(experiment: Path, place: Path) -> Path:
    tuner = experiment / "tuner.pkl"
    tuner.write_bytes(tuner.read_bytes()[:100])
    moved = place / "elsewhere" / "renamed"
    moved.parent.mkdir()
    return experiment.rename(moved)


@pytest.mark.slow
def test_killed_again(config: Path, holds: Holds, undisturbed: Reference) -> None:
    """SIGKILL of the trial's process, then of the driver alone."""
    trial = trial_of(config)
    run = start(config)
    run.until(lambda: committed(trial))
    os.kill(run.one("ray::TrialPPO"), signal.SIGKILL)
    run.until(lambda: "Continued from" in run.output())
    run.process.kill()
    run.process.wait()
    holds.release()
    assert "the trial's process died: it was killed or crashed" in run.output()
    train(config)
    assert_same_run(trial, undisturbed)


@pytest.mark.slow
def test_killed_everywhere(tmp_path: Path, undisturbed: Reference) -> None:
    """SIGKILL of an env runner, of everything at once, of the raylet."""
    holds = Holds(tmp_path, 3, 5, 8)
    config = write_config(tmp_path / "run.yaml", **holds.sections)
    trial = trial_of(config)
    run = start(config)
    run.until(lambda: iteration_of(trial) == 3)
    os.kill(run.one("ray::EnvRunnerActor"), signal.SIGKILL)
    holds.release()
    run.until(lambda: iteration_of(trial) == 5)
    run.kill_everything()
    holds.release()

    run = start(config)
    run.until(lambda: iteration_of(trial) == 8)
    os.kill(run.one("raylet"), signal.SIGKILL)
    holds.release()
    assert run.wait() == 0, run.output()
    assert "Ray is started again" in run.output()
    assert_same_run(trial, undisturbed)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["SIGINT", "SIGTERM"],
)
@pytest.mark.slow
def test_interrupted_saves_first(
    config: Path, holds: Holds, undisturbed: Reference, number: signal.Signals, code: int
) -> None:
    trial = trial_of(config)
    run = start(config)
    run.until(lambda: iteration_of(trial) == 5)
    if number is signal.SIGINT:
        os.killpg(run.process.pid, number)  # As a terminal does: to every process of the group.
    else:
        run.signal(number)
    run.until(lambda: "saving 1 running trial(s)" in run.output())
    holds.release()
    assert run.wait() == code, run.output()
    assert "Continue with: " in run.output()
    last = iteration_of(trial)
    assert last == 6
    newest = trial / f"checkpoint_{last:06d}" / "manifest.json"
    assert '"kind": "interrupted"' in newest.read_text()
    # What Tune does not know of must not be needed either.
    described = trial.parent / "experiment.json"
    described.write_bytes(described.read_bytes()[:100])
    output = train(config)
    assert "experiment.json is damaged" in output
    assert "A new one is written" in output
    assert f"Continued from checkpoint_{last:06d}" in output
    assert_same_run(trial, undisturbed)


@pytest.mark.slow
def test_a_second_interrupt_leaves_at_once(
    config: Path, holds: Holds, undisturbed: Reference
) -> None:
    trial = trial_of(config)
    run = start(config)
    run.until(lambda: committed(trial))
    run.signal(signal.SIGINT)
    run.until(lambda: "again to exit at once" in run.output())
    run.signal(signal.SIGINT)
    assert run.wait() == 130, run.output()  # The trial has saved nothing: it is held.
    holds.release()
    train(config)
    assert_same_run(trial, undisturbed)


@pytest.mark.slow
def test_damaged_moved_and_robbed_of_tunes_files(
    config: Path, holds: Holds, undisturbed: Reference, tmp_path: Path
) -> None:
    """The newest checkpoint has a flipped bit, tuner.pkl is cut, and the directory lies elsewhere
    under another name."""
    trial = trial_of(config)
    run = start(config)
    run.until(lambda: len(committed(trial)) >= 2)
    run.kill_everything()
    holds.release()
    newest = trial / f"checkpoint_{committed(trial)[-1]:06d}"
    content = flip_a_bit(newest / STATE)
    moved = cut_tuner_and_move(experiment_of(config), tmp_path)

    run = Run("resume", str(moved), log=tmp_path / "resume.txt")
    assert run.wait() == 0, run.output()
    assert f"{newest.name} is damaged ({STATE}: SHA-256" in run.output()
    assert "tuner.pkl is damaged" in run.output()
    aside = moved / trial.name / "quarantine" / newest.name / STATE
    assert aside.read_bytes() == content
    assert_same_run(moved / trial.name, undisturbed)


@pytest.mark.slow
def test_no_good_checkpoint_left_is_said_and_nothing_is_begun_anew(tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml")
    train(config)
    trial = trial_of(config)
    shutil.rmtree(trial / "final")
    for manifest in trial.glob("*/manifest.json"):
        (manifest.parent / "algorithm_state.pkl").write_bytes(b"")
    before = rows(trial)
    output = train(config, code=1)
    assert "No good checkpoint is left" in output
    assert "algorithm_state.pkl: 0 bytes, manifest says" in output
    assert "--fresh" in output
    assert rows(trial) == before


@pytest.mark.slow
def test_two_runs_in_one_directory_are_refused(config: Path, holds: Holds) -> None:
    trial = trial_of(config)
    run = start(config)
    run.until(lambda: iteration_of(trial) >= 1)
    second = train(config, log=config.parent / "second.txt", code=1)
    assert f"is being written by process {run.process.pid}" in second
    holds.release()
    assert run.wait() == 0, run.output()
    assert [row["training_iteration"] for row in rows(trial)] == list(range(1, 13))
    assert "is finished" in train(config)


@pytest.mark.slow
def test_a_grid_continues_as_one_experiment(tmp_path: Path) -> None:
    """Four trials; everything dies in the middle. Each ends as it does undisturbed."""
    sections: dict[str, Any] = {
        "training": {"lr": {"grid_search": [1e-3, 3e-4]}, "gamma": {"grid_search": [0.9, 0.99]}},
        "env_runners": {"num_env_runners": 0},
        "stop": {"iterations": 6},
    }
    (tmp_path / "left_alone").mkdir()
    alone = write_config(tmp_path / "left_alone" / "run.yaml", **sections)
    train(alone)
    holds = Holds(tmp_path, 3)
    config = write_config(tmp_path / "run.yaml", **sections, **holds.sections)
    run = start(config)
    run.until(lambda: iteration_of(trial_of(config, 0)) == 3)
    run.kill_everything()
    holds.release()
    output = train(config)
    assert "4 trial" not in output
    for index in range(4):
        expected = Reference(trial_of(alone, index))
        assert len(expected.rows) == 6
        assert_same_run(trial_of(config, index), expected)
    assert len({Reference(trial_of(alone, index)).digests()[-1] for index in range(4)}) == 4


ROOM_FOR_A_FEW = pytest.mark.parametrize("small_disk", ["4m"], indirect=True)


@pytest.mark.slow
@ROOM_FOR_A_FEW
def test_a_full_disk_delays_checkpoints_only(
    tmp_path: Path, small_disk: Path, undisturbed: Reference
) -> None:
    holds = Holds(tmp_path, 3, 9)
    config = write_config(
        tmp_path / "run.yaml",
        storage_path=str(small_disk / "results"),
        checkpoint={"max_failed_saves": 100},
        **holds.sections,
    )
    trial = trial_of(config)
    run = start(config)
    run.until(lambda: committed(trial))
    kept = committed(trial)[-1]
    filler = fill(small_disk)
    holds.release()
    run.until(lambda: "could not be written" in run.output())
    assert (trial / f"checkpoint_{kept:06d}" / "manifest.json").exists()
    filler.unlink()
    holds.release()
    assert run.wait() == 0, run.output()
    assert "Training continues" in run.output()
    assert_same_run(trial, undisturbed)


@pytest.mark.slow
@ROOM_FOR_A_FEW
def test_a_disk_that_stays_full_stops_the_trial(
    tmp_path: Path, small_disk: Path, undisturbed: Reference
) -> None:
    holds = Holds(tmp_path, 3)
    config = write_config(
        tmp_path / "run.yaml",
        storage_path=str(small_disk / "results"),
        checkpoint={"max_failed_saves": 1},
        **holds.sections,
    )
    trial = trial_of(config)
    run = start(config)
    run.until(lambda: committed(trial))
    filler = fill(small_disk)
    holds.release()
    assert run.wait() == 1, run.output()
    assert "checkpoints in a row could not be written" in run.output()
    filler.unlink()
    train(config)
    assert_same_run(trial, undisturbed)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        pytest.param("nan", "total_loss is nan", marks=pytest.mark.slow),
        pytest.param("raise", "ValueError: negative speed", marks=pytest.mark.slow),
    ],
)
def test_an_error_that_comes_back_is_not_retried_for_ever(
    tmp_path: Path, what: str, told: str
) -> None:
    shutil.copy(ENVS / "broken_env.py", tmp_path)
    config = write_config(
        tmp_path / "run.yaml",
        environment={"env": "broken_env:BrokenEnv", "env_config": {"what": what}},
        env_runners={"num_env_runners": 0},
        failure={"max_failures": 50},
    )
    output = train(config, code=1)
    assert told in output
    assert "failed again with the same error" in output
    trial = trial_of(config)
    kept = [path.name for path in trial.glob("error_*")]
    assert kept == (["error_000004"] if what == "nan" else [])
    assert committed(trial) == [2]
    if what == "raise":  # Started once more it fails at once, still from the good checkpoint.
        assert "Continued from checkpoint_000002" in train(config, code=1)


@pytest.mark.slow
def test_another_number_of_groups_continues_and_says_that_exactness_is_lost(
    config: Path, holds: Holds
) -> None:
    trial = trial_of(config)
    run = start(config)
    run.until(lambda: iteration_of(trial) == 5)
    run.signal(signal.SIGINT)
    run.until(lambda: "saving 1 running trial(s)" in run.output())
    holds.release()
    assert run.wait() == 130, run.output()
    last = iteration_of(trial)
    more = ["--set", "env_runners.num_env_runners=2", "--set", f"stop.iterations={last + 2}"]
    assert f"From iteration {last} on this run is not exact" in train(config, *more)
    wider = ["--set", "env_runners.num_envs_per_env_runner=3"]
    end = ["--set", "env_runners.num_env_runners=2", "--set", f"stop.iterations={last + 4}"]
    train(config, *wider, *end)
    manifest = json.loads((trial / "final" / "manifest.json").read_text())
    assert manifest["iteration"] == last + 4
    assert manifest["exact"] is False
    assert manifest["exact_lost"]["since_iteration"] == last
    assert "groups changed from 1 to 2" in manifest["exact_lost"]["why"]
    groups = sorted(path.name for path in (trial / "final/resume/groups").iterdir())
    assert groups == ["group_0000.pkl", "group_0001.pkl"]
