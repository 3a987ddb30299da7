"""Run a program for Ray Tune as it is, with `raytrain.Tuner` in the place of `ray.tune.Tuner`:

python rllib_example.py PROGRAM ARGUMENTS...
"""

from __future__ import annotations

import runpy
import sys

import ray.tune

import raytrain

if __name__ == "__main__":
    ray.tune.Tuner = raytrain.Tuner
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
