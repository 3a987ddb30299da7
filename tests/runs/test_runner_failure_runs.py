"""Whole runs that lose env runners, again and again, and continue with fewer or more of them."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.running import (
    Holds,
    Reference,
    Run,
    committed,
    iteration_of,
    rows,
    train,
    trial_of,
    write_config,
)
from support.same_run import assert_same_run

FOUR = {"num_env_runners": 4, "num_envs_per_env_runner": 1}
pytestmark = pytest.mark.slow


def start(config: Path, *overrides: str) -> Run:
    options = [part for override in overrides for part in ("--set", override)]
    return Run("train", str(config), *options, log=config.parent / "log.txt")


def runners(run: Run) -> list[int]:
    return run.pids("ray::EnvRunnerActor")


def healthy(trial: Path) -> list[int]:
    return [row["fault_tolerance"]["num_healthy_workers"] for row in rows(trial)]


@pytest.fixture(scope="module")
def four_groups(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Left alone, on one actor."""
    config = four(tmp_path_factory.mktemp("alone"), max_actors=1)
    train(config)
    return Reference(trial_of(config))


def four(place: Path, holds: Holds | None = None, **options: Any) -> Path:
    held = {} if holds is None else holds.sections
    return write_config(place / "run.yaml", env_runners={**FOUR, **options}, **held)


STEPS = 1024 // 4
"""Of each environment in an iteration of `four`."""


def test_four_actors_then_one_then_three_with_a_kill_at_each_change(
    tmp_path: Path, four_groups: Reference
) -> None:
    holds = Holds(tmp_path, 5, 9, steps=STEPS)
    config = four(tmp_path, holds)
    trial = trial_of(config)
    run = start(config)
    run.until(lambda: committed(trial))
    run.kill_everything()
    holds.release()
    reached = committed(trial)[-1]
    run = start(config, "env_runners.max_actors=1")
    run.until(lambda: committed(trial)[-1] > reached)
    run.until(lambda: len(runners(run)) == 1)
    run.kill_everything()
    holds.release()
    train(config, "--set", "env_runners.max_actors=3")
    assert max(healthy(trial)[:reached]) == 4
    assert healthy(trial)[reached] == 1
    assert max(healthy(trial)[-2:]) == 3
    assert_same_run(trial, four_groups)
    assert json.loads((trial / "final" / "manifest.json").read_text())["exact"] is True


def test_runners_are_killed_again_and_again(tmp_path: Path, four_groups: Reference) -> None:
    """One of two in every iteration, all of them in every third."""
    holds = Holds(tmp_path, *range(1, 10), steps=STEPS)
    config = four(tmp_path, holds, max_actors=2)
    trial = trial_of(config)
    run = start(config)
    killed = 0

    def held(iteration: int) -> bool:
        return iteration_of(trial) == iteration and len(runners(run)) == 2

    for iteration in range(1, 10):
        run.until(partial(held, iteration))
        for pid in runners(run) if iteration % 3 == 0 else runners(run)[:1]:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        holds.release()
    assert run.wait() == 0, run.output()
    assert run.output().count("nothing is lost") >= 9
    assert "Continued from" not in run.output()
    assert_same_run(trial, four_groups)


def test_going_on_with_fewer_samples_is_in_the_manifest(tmp_path: Path) -> None:
    holds = Holds(tmp_path, 3, steps=STEPS)
    config = write_config(
        tmp_path / "run.yaml",
        env_runners={"num_env_runners": 2},
        environment=holds.sections["environment"],
        fault_tolerance={
            **holds.sections["fault_tolerance"],
            "on_env_runner_loss": "continue",
        },
    )
    trial = trial_of(config)
    run = start(config)
    run.until(lambda: iteration_of(trial) == 3 and len(runners(run)) == 2)
    os.kill(run.one("ray::EnvRunnerActor"), signal.SIGKILL)
    holds.release()
    assert run.wait() == 0, run.output()
    lost = json.loads((trial / "final" / "manifest.json").read_text())["exact_lost"]
    since = lost["since_iteration"]
    assert f"iteration {since} continued without env group(s)" in lost["why"]
    assert f"From iteration {since} on this run is not exact any more" in run.output()
    steps = [row["num_env_steps_sampled_lifetime"] for row in rows(trial)]
    taken = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    assert taken[since - 1] < 0.6 * taken[0]
    assert len([each for each in taken if each < 0.6 * taken[0]]) == 1
