"""Any process of a run is killed, at any moment, many times: the run ends as if left alone."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil
import pytest
from running import Reference, Run, train, trial_of, write_config
from test_disturbed_runs import assert_same_run

KILLS = 12
SECTIONS = {
    "stop": {"iterations": 120},
    "env_runners": {"num_env_runners": 2},
    "failure": {"max_failures": 100},
}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", [0, 1])
def test_random_kills(tmp_path: Path, seed: int) -> None:
    (tmp_path / "alone").mkdir()
    alone = write_config(tmp_path / "alone" / "run.yaml", **SECTIONS)
    train(alone)
    expected = Reference(trial_of(alone))

    chance = random.Random(seed)
    config = write_config(tmp_path / "run.yaml", **SECTIONS)
    log = tmp_path / "log.txt"
    killed: list[str] = []
    run = Run("train", str(config), log=log)
    while len(killed) < KILLS:
        deadline = time.monotonic() + chance.uniform(0.5, 14.0)
        while time.monotonic() < deadline and run.process.poll() is None:
            time.sleep(0.05)
        if run.process.poll() is None:
            victim = chance.choice([psutil.Process(run.process.pid), *run.processes()])
            try:
                killed.append(victim.name())
                victim.kill()
            except psutil.NoSuchProcess:
                killed.pop()
        elif run.process.returncode == 0:
            break  # It has outrun the killer.
        else:
            run = Run("train", str(config), log=log)
    while run.wait(600) != 0:
        run = Run("train", str(config), log=log)
    assert len(killed) >= KILLS // 2, killed
    assert_same_run(trial_of(config), expected)
