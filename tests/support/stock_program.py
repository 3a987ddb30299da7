"""A program of RLlib's own classes, for `test_stock_rllib`: raytrain cannot be imported here.

    python stock_program.py RAY_ADDRESS CHECKPOINT...

Loads each checkpoint, tells what it has become, trains one iteration, evaluates and saves; prints
one JSON document."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

BLOCKER = """\
import sys

class NoRaytrain:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "raytrain":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoRaytrain())
"""


def tensors(algorithm: Any) -> dict[str, list[Any]]:
    state = algorithm.learner_group.get_state()["learner"]["rl_module"]["default_policy"]
    return {name: [str(v.dtype), v.shape, v.tobytes().hex()] for name, v in state.items()}


def of_learner(learner: Any) -> dict[str, Any]:
    (optimizer,) = learner.get_optimizers_for_module("default_policy")
    optimizer = optimizer[1]
    # Ray Train derives from the class of a learner in a process of its own.
    made_of = next(c for c in type(learner).__mro__ if not c.__module__.startswith("ray.train."))
    return {
        "class": f"{made_of.__module__}.{made_of.__name__}",
        "kl_coeff": float(learner.curr_kl_coeffs_per_module["default_policy"]),
        "lr": float(optimizer.param_groups[0]["lr"]),
        "adam_steps": sorted({int(state["step"]) for state in optimizer.state.values()}),
    }


def learners(algorithm: Any) -> list[dict[str, Any]]:
    return [each.get() for each in algorithm.learner_group.foreach_learner(of_learner)]


def filters(runner: Any) -> list[Any]:
    state = runner.get_state(components=["env_to_module_connector"])["env_to_module_connector"]
    return [
        [stats["num_pushes"], np.asarray(stats["mean_array"]).tolist()]
        for piece in state.values()
        if None in piece
        for stats in piece[None]["running_stats"]
    ]


def steps(algorithm: Any) -> int:
    return int(algorithm.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime")))


def told(directory: str) -> dict[str, Any]:
    from ray.rllib.algorithms.algorithm import Algorithm

    algorithm = Algorithm.from_checkpoint(directory)
    loaded = {
        "class": f"{type(algorithm).__module__}.{type(algorithm).__name__}",
        "tensors": tensors(algorithm),
        "learners": learners(algorithm),
        "filters": algorithm.env_runner_group.foreach_env_runner(filters, local_env_runner=True),
        "iteration": algorithm.iteration,
        "steps": steps(algorithm),
        "kl_coeff": algorithm.config.kl_coeff,
        "env": algorithm.config.env,
    }
    row = algorithm.train()
    loaded["next"] = {
        "iteration": row["training_iteration"],
        "steps": row["env_runners"]["num_env_steps_sampled_lifetime"],
        "adam_steps": learners(algorithm)[0]["adam_steps"],
    }
    if algorithm.eval_env_runner_group is not None:
        loaded["next"]["evaluated"] = algorithm.evaluate()["env_runners"]["num_episodes"]
    with tempfile.TemporaryDirectory() as place:
        algorithm.save(place)
        loaded["saved"] = (Path(place) / "algorithm_state.pkl").is_file()
    algorithm.stop()
    return loaded


def main(address: str, *directories: str) -> None:
    exec(BLOCKER)
    with tempfile.TemporaryDirectory() as place:
        # In Ray's workers too.
        (Path(place) / "sitecustomize.py").write_text(BLOCKER)
        import ray

        ray.init(address, runtime_env={"env_vars": {"PYTHONPATH": place}}, log_to_driver=False)
        found = {directory: told(directory) for directory in directories}
        assert not [name for name in sys.modules if name.startswith("raytrain")]
        print(json.dumps(found, default=lambda number: number.item()))


if __name__ == "__main__":
    main(*sys.argv[1:])
