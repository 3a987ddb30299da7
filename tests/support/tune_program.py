"""A program for Ray, unchanged, with raytrain in the place of Ray Tune:

python tune_program.py PROGRAM ARGUMENTS...

`raytrain.Tuner` is in the place of `ray.tune.Tuner`. Where the program builds the algorithm itself,
`raytrain.train` is in the place of that and of its loop.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any, NoReturn

import raytrain


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


if __name__ == "__main__":
    import ray.tune
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    ray.tune.Tuner = raytrain.Tuner
    AlgorithmConfig.build = train
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
