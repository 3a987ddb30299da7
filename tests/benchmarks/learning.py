"""Do raytrain and stock RLlib learn the same? Final returns of both with the same hyperparameters.

Each environment and seed is trained once by each. A run's final return is the mean of
`episode_return_mean` over its last tenth of iterations. Shown are interquartile means over the
seeds with 95 % bootstrap intervals (Agarwal et al. 2021, computed by rliable), and the interval of
their difference: the two agree where it holds zero. `--rounds` is the number of seeds of every
environment (by default those of `SEEDS`), `--jobs` how many runs go at a time. Each run's return is
kept in build/learning_runs.jsonl, and a benchmark that was broken off goes on from there; delete
the file to begin again."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import sys
import types
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import settings
from measuring import Options, Table, say
from runs import Watched, program, raytrain_command, scratch, watch, write_config

KEPT = Path(__file__).parents[2] / "build" / "learning_runs.jsonl"
SEEDS = {"HalfCheetah-v5": 15}
"""Seeds of an environment whose returns scatter more than those of the others,
which have `ROUNDS`."""
ROUNDS = 5
REPETITIONS = 5000
TRAINERS = ("raytrain", "stock RLlib")
# Iterations of 2048 steps. Pendulum is learned in so few with a shorter horizon and a higher rate.
TASKS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"minibatch": 128, "iterations": 40},
    "Acrobot-v1": {"minibatch": 128, "iterations": 50},
    "Pendulum-v1": {
        "minibatch": 128,
        "iterations": 75,
        "continuous": True,
        "training": {"lr": 1e-3, "gamma": 0.9},
    },
    "HalfCheetah-v5": {"minibatch": 128, "iterations": 75, "continuous": True},
}


def run(trainer: str, env: str, seed: int, quick: bool) -> float:
    task = {**TASKS[env], **({"iterations": 4} if quick else {})}
    key = {"trainer": trainer, "env": env, "seed": seed, "task": task}
    known = [each["return"] for each in _kept() if each["key"] == key]
    if known:
        return float(known[-1])
    with scratch() as place:
        path = write_config(place, settings.ppo(env, seed=seed, **task))
        command = raytrain_command(path) if trainer == "raytrain" else program("stock", path)
        found = final_return(watch(command, place))
    say(f"{env}, seed {seed}, {trainer}: {found:.1f}")
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("a") as out:
        out.write(json.dumps({"key": key, "return": found}) + "\n")
    return found


def _kept() -> list[dict[str, Any]]:
    return [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []


def final_return(found: Watched) -> float:
    """NaN if no episode ended in the last tenth of the iterations."""
    last = found.rows[-max(1, len(found.rows) // 10) :]
    returns = [return_of(row.values) for row in last]
    known = [value for value in returns if not math.isnan(value)]
    return statistics.mean(known) if known else math.nan


def return_of(row: dict[str, Any]) -> float:
    value = row.get("episode_return_mean", row.get("env_runners", {}).get("episode_return_mean"))
    return math.nan if value is None else float(value)


def measure(options: Options) -> list[Table]:
    tasks = list(TASKS)[:1] if options.quick else list(TASKS)
    seeds = {env: options.rounds_or(SEEDS.get(env, ROUNDS)) for env in tasks}
    runs = [
        (trainer, env, seed) for env in tasks for seed in range(seeds[env]) for trainer in TRAINERS
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        returns = list(pool.map(partial(run, quick=options.quick), *zip(*runs, strict=True)))
    found: dict[tuple[str, str], list[float]] = {}
    for (trainer, env, _), value in zip(runs, returns, strict=True):
        found.setdefault((env, trainer), []).append(value)
    rows = tuple(row(env, *(found[env, name] for name in TRAINERS)) for env in tasks)
    return [Table("Final returns", rows)]


def row(env: str, own: Sequence[float], stock: Sequence[float]) -> dict[str, Any]:
    points, intervals = estimates(own, stock)
    low, high = intervals["difference"]
    return {
        "environment": env,
        "seeds": len(own),
        "raytrain": with_interval(points["raytrain"], intervals["raytrain"]),
        "stock RLlib": with_interval(points["stock"], intervals["stock"]),
        "difference": with_interval(points["difference"], (low, high)),
        "agree": "yes" if low <= 0 <= high else "NO",
    }


def estimates(
    own: Sequence[float], stock: Sequence[float]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Interquartile means of both and of their difference, and 95 % bootstrap intervals."""
    import numpy as np

    library, metrics = rliable()

    def of_one(scores: Any) -> Any:
        return np.array([metrics.aggregate_iqm(scores)])

    def of_both(mine: Any, others: Any) -> Any:
        return np.array([metrics.aggregate_iqm(mine) - metrics.aggregate_iqm(others)])

    warnings.filterwarnings("ignore", "random_state is deprecated", FutureWarning)
    one, other = np.array(own)[:, None], np.array(stock)[:, None]
    points, intervals = library.get_interval_estimates(
        {"raytrain": one, "stock": other},
        of_one,
        reps=REPETITIONS,
        random_state=np.random.RandomState(0),
    )
    between, bounds = library.get_interval_estimates(
        {"difference": (one, other)},
        of_both,
        reps=REPETITIONS,
        random_state=np.random.RandomState(0),
    )
    points, intervals = {**points, **between}, {**intervals, **bounds}
    return (
        {name: float(value[0]) for name, value in points.items()},
        {name: (float(value[0, 0]), float(value[1, 0])) for name, value in intervals.items()},
    )


def rliable() -> tuple[Any, Any]:
    """Its `library` and `metrics`.

    It needs no more of arch than `arch.bootstrap`, but arch 7 as a whole cannot be imported beside
    pandas 3 (`deprecate_kwarg` takes other arguments there), and rliable 1.2 wants arch below 8.
    So the package is put in place without running its `__init__`.
    """
    if "arch" not in sys.modules:
        spec = importlib.util.find_spec("arch")
        if spec is None:
            raise ImportError("arch is missing: install the extra `bench`")
        package = types.ModuleType("arch")
        package.__path__ = list(spec.submodule_search_locations or ())
        package.__spec__ = spec
        sys.modules["arch"] = package
    from rliable import library, metrics

    return library, metrics


def with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"
