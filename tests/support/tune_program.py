"""A program for Ray Tune, unchanged, with `raytrain.Tuner` in the place of `ray.tune.Tuner`:

python tune_program.py PROGRAM ARGUMENTS...
"""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    import ray.tune

    import raytrain

    ray.tune.Tuner = raytrain.Tuner
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
