"""A program for Ray, unchanged, with raytrain in the place of Ray Tune:

python tune_program.py PROGRAM ARGUMENTS...

`raytrain.Tuner` is in the place of `ray.tune.Tuner`. Where the program builds the algorithm itself,
`raytrain.train` is in the place of that and of its loop. An iteration may take an hour: a machine
that is busy with something else is not one that hangs.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any, NoReturn

import raytrain
from raytrain.migrate import ppo_config, tuner
from raytrain.migrate.ppo_config import TakenOver


def train(config: Any) -> NoReturn:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stop-iters", type=int)
    given, _ = parser.parse_known_args()
    outcome = raytrain.train(
        config,
        stop={"training_iteration": given.stop_iters},
        checkpoint={"checkpoint_frequency": 1},
        storage_path=Path.home() / "ray_results",
    )
    raise SystemExit(outcome.exit_code)


def take_over(config: Any, code: Any) -> TakenOver:
    taken = ppo_config.take_over(config, code)
    taken.values["fault_tolerance"] = {"env_runner_timeout_s": 3600, "hang_floor_s": 3600}
    return taken


if __name__ == "__main__":
    import ray.tune
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    ray.tune.Tuner = raytrain.Tuner
    AlgorithmConfig.build = train
    vars(tuner)["take_over"] = take_over
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
