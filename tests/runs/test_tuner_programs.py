"""Programs for Ray Tune that import `Tuner` from raytrain: killed, started again, restored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.running import Holds, Reference, Run, committed, iteration_of, rows
from support.same_run import assert_same_run

# Without `if __name__ == "__main__"`, as people write them: it must not run when its class is used.
PROGRAM = """
import json
import sys

import gymnasium as gym
import held_env
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig

from raytrain import Tuner

where, holds = sys.argv[1], json.loads(sys.argv[2])

class Same(gym.Wrapper):  # A class of the program's own.
    pass

tune.register_env("mine", lambda _: Same(held_env.make(holds=holds)))
config = (
    PPOConfig()
    .environment("mine")
    .env_runners(num_env_runners=1, num_envs_per_env_runner=2)
    .training(
        lr=1e-3,
        train_batch_size_per_learner=1024,
        minibatch_size=64,
        num_epochs=4,
        kl_coeff=0.3,
        kl_target=0.002,
    )
    .rl_module(model_config={"fcnet_hiddens": [16, 16]})
    .debugging(seed=3)
)
results = Tuner(
    "PPO",
    param_space=config,
    run_config=tune.RunConfig(
        storage_path=where,
        stop={"training_iteration": 12},
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=2, num_to_keep=3),
        failure_config=tune.FailureConfig(max_failures=3),
    ),
).fit()
best = results.get_best_result("env_runners/episode_return_mean", mode="max")
frame = results.get_dataframe()
print("RESULT", json.dumps({
    "number": len(results),
    "iterations": [result.metrics["training_iteration"] for result in results],
    "errors": results.num_errors,
    "terminated": results.num_terminated,
    "error": best.error,
    "checkpoint": best.checkpoint.path,
    "path": best.path,
    "lr": best.config["lr"],
    "rows": len(best.metrics_dataframe),
    "frame": [len(frame), float(frame["env_runners/episode_return_mean"][0])],
    "mean": best.metrics["env_runners"]["episode_return_mean"],
}))
"""

RESTORE = """
import sys

from raytrain import Tuner

path = sys.argv[1]
assert Tuner.can_restore(path) and not Tuner.can_restore(path + "_no")
results = Tuner.restore(path, trainable="PPO", resume_errored=True).fit()
print("RESULT", results[0].metrics["training_iteration"])
"""


def result_of(output: str) -> Any:
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == 1, output
    return json.loads(lines[0].removeprefix("RESULT "))


@pytest.mark.slow
def test_a_program_that_is_killed_and_started_again_is_the_yaml_files_run(
    tmp_path: Path, undisturbed: Reference
) -> None:
    """The same digests as the run of the equivalent YAML file that nothing disturbed."""
    holds = Holds(tmp_path, 5)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    arguments = (
        str(tmp_path / "results"),
        json.dumps(holds.sections["environment"]["env_config"]["holds"]),
    )

    def start(name: str) -> Run:
        return Run(*arguments, log=tmp_path / name, program=(str(program),))

    def trials() -> list[Path]:
        return list((tmp_path / "results").glob("PPO_mine_*/trial_00000"))

    run = start("first.txt")
    (trial,) = run.until(trials)
    run.until(lambda: committed(trial) and iteration_of(trial) == 5)
    run.kill_everything()
    holds.release_all()
    run = start("second.txt")
    assert run.wait() == 0, run.output()
    assert "Continued from checkpoint_000004" in run.output()
    assert_same_run(trial, undisturbed)
    (code,) = trial.parent.glob("code/*.py")
    assert "class Same" in code.read_text()
    assert "PPOConfig" not in code.read_text()
    found = result_of(run.output())
    mean = rows(trial)[-1]["env_runners"]["episode_return_mean"]
    assert found == {
        "number": 1,
        "iterations": [12],
        "errors": 0,
        "terminated": 1,
        "error": None,
        "checkpoint": str(trial / "final"),
        "path": str(trial),
        "lr": 1e-3,
        "rows": 12,
        "frame": [1, mean],
        "mean": mean,
    }

    # Another program, which knows the directory only, finds it finished, wherever it is.
    moved = tmp_path / "moved"
    trial.parent.rename(moved)
    (tmp_path / "restore.py").write_text(RESTORE)
    command = [sys.executable, str(tmp_path / "restore.py"), str(moved)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result_of(done.stdout) == 12, done.stderr
    assert "is finished" in done.stderr
