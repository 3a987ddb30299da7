"""A run of many short iterations: the driver and the trial do not grow with their number."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
from support.running import Run, iteration_of, trial_of, write_config

ITERATIONS = 20_000
WARM_UP = 3_000
MOST_MB = 8.0


def newest(trial: Path) -> int:
    """The iteration of the last row, without reading all rows."""
    try:
        with (trial / "result.json").open("rb") as rows:
            rows.seek(-min(rows.seek(0, 2), 20_000), 2)
            last = rows.read().rsplit(b"\n", 2)[-2]
    except (FileNotFoundError, IndexError):
        return 0
    return int(json.loads(last)["training_iteration"])


def own_memory(process: psutil.Process) -> float:
    """Megabytes that are no file's. What forks share is counted: it becomes a process's own when
    the others write there, or end."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    (line,) = [each for each in rollup if each.startswith("Anonymous:")]
    return float(line.split()[1]) / 2**10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_neither_driver_nor_trial_grows(tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "run.yaml",
        env_runners={"num_env_runners": 0, "num_envs_per_env_runner": 1},
        training={"train_batch_size_per_learner": 16, "minibatch_size": 16, "num_epochs": 1},
        rl_module={"model_config": {"fcnet_hiddens": [8]}},
        stop={"iterations": ITERATIONS},
        checkpoint={"checkpoint_frequency": 20, "num_to_keep": 3},
    )
    trial = trial_of(config)
    run = Run("train", str(config), log=tmp_path / "log.txt")

    def sizes(iteration: int) -> tuple[float, float]:
        run.until(lambda: newest(trial_of(config)) >= iteration, timeout=3000)
        processes = (run.process.pid, run.pids("ray::TrialPPO")[0])
        driver, actor = (own_memory(psutil.Process(each)) for each in processes)
        return driver, actor

    before = sizes(WARM_UP)
    after = sizes(ITERATIONS - 200)
    assert run.wait(240) == 0, run.output()
    trial = trial_of(config)
    assert iteration_of(trial) == ITERATIONS
    grown = {
        name: round(late - early, 1)
        for name, early, late in zip(("driver", "trial"), before, after, strict=True)
    }
    assert max(grown.values()) < MOST_MB, f"megabytes grown: {grown}"
