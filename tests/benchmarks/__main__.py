"""Benchmarks: `make bench` prints the tables and writes `build/benchmarks.json`.

checkpoint   seconds that a checkpoint adds to an iteration: CartPole, a checkpoint after each
             iteration against none, raytrain and stock RLlib PPO under stock Tune, on this disk.
             Runs are interleaved; a figure is the median gap between two results.
"""

from __future__ import annotations

import json
import logging
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray.tune import Callback, CheckpointConfig, RunConfig, Tuner

from raytrain.checkpoint import ExperimentFile, Location
from raytrain.config import ExperimentConfig, config_digest, config_from_dict, to_algorithm_config
from raytrain.tuner import fresh_tuner
from raytrain.versions import versions

ITERATIONS = 25
ROUNDS = 3
OUT = Path("build/benchmarks.json")


class Gaps(Callback):
    """Times of the results, as the driver sees them."""

    moments: ClassVar[list[float]] = []

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        Gaps.moments.append(time.perf_counter())

    def median(self) -> float:
        later = zip(self.moments[4:], self.moments[3:], strict=False)  # the first ones warm up
        return statistics.median(now - before for now, before in later)


def config(place: Path, every: int) -> ExperimentConfig:
    return config_from_dict(
        {
            "name": "bench",
            "storage_path": str(place),
            "environment": {"env": "CartPole-v1"},
            "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 8},
            "training": {
                "train_batch_size_per_learner": 1024,
                "minibatch_size": 256,
                "num_epochs": 2,
            },
            "rl_module": {"model_config": {"fcnet_hiddens": [256, 256]}},
            "stop": {"iterations": ITERATIONS},
            "checkpoint": {"checkpoint_frequency": every, "num_to_keep": 3},
        }
    )


def with_raytrain(place: Path, every: int) -> float:
    settings = config(place, every)
    root = Location.of(place) / "bench"
    ExperimentFile(
        name="bench",
        run_id="bench",
        config=settings.to_dict(),
        config_digest=config_digest(settings),
        snapshot={"strategy": "pickle", "exact": True, "reason": ""},
        versions=versions(),
        first_start="2026-01-01T00:00:00+00:00",
    ).write(root)
    return measured(fresh_tuner(settings, root, Gaps()))


def with_stock(place: Path, every: int) -> float:
    space = to_algorithm_config(config(place, every)).to_dict()
    keep = CheckpointConfig(checkpoint_frequency=every, num_to_keep=3)
    run = RunConfig(
        name="stock",
        storage_path=str(place),
        stop={"training_iteration": ITERATIONS},
        checkpoint_config=keep,
        callbacks=[Gaps()],
        verbose=0,
    )
    return measured(Tuner("PPO", param_space=space, run_config=run))


def measured(tuner: Tuner) -> float:
    Gaps.moments = []
    tuner.fit()
    return Gaps().median()


def checkpoint_table() -> list[dict[str, Any]]:
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for name, run in (("raytrain", with_raytrain), ("stock", with_stock)):
            for every in (0, 1):
                place = Path(tempfile.mkdtemp(prefix="raytrain-bench-"))
                found.setdefault((name, every), []).append(run(place, every))
                shutil.rmtree(place)
    table = []
    for name in ("raytrain", "stock"):
        without, each = found[name, 0], found[name, 1]
        cost = [b - a for a, b in zip(without, each, strict=True)]
        table.append(
            {
                "trainer": name,
                "iteration_ms": round(1e3 * statistics.median(without), 1),
                "with_checkpoint_ms": round(1e3 * statistics.median(each), 1),
                "checkpoint_costs_ms": round(1e3 * statistics.median(cost), 1),
            }
        )
    return table


def main() -> None:
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
    table = checkpoint_table()
    ray.shutdown()
    document = {"machine": platform.machine(), "versions": versions(), "checkpoint": table}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(document, indent=1) + "\n")
    columns = list(table[0])
    print("  ".join(f"{name:>20}" for name in columns))
    for row in table:
        print("  ".join(f"{row[name]!s:>20}" for name in columns))
    print(f"written to {OUT}")


if __name__ == "__main__":
    main()
