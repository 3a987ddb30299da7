"""Action masks against MaskablePPO of sb3-contrib: steps per second on one core, and the returns.

Both learn the environment of `masked_env`, with one seed in each round: iterations of 2048 steps in
8 environments, and what Stable-Baselines3 does otherwise than RLlib (`HABITS`). A return is the
mean over the last 5 iterations, in which about 100 episodes end; 100 is the highest possible one.
As in `learning`, the two agree where the interval of their difference holds zero."""

from __future__ import annotations

import shutil
import statistics
from typing import Any

import settings
from learning import estimates, return_of, with_interval
from measuring import Options, Table, median_of_ratios, ratios, say, spread, whole
from runs import HERE, Watched, last_core, program, raytrain_command, scratch, watch, write_config

ROUNDS = 5
ITERATIONS = 40
WINDOW = 5
SHOWN = (10, 15, 20, 25, 30, 40)
"""Iterations after which the returns are compared."""
HABITS: dict[str, Any] = {
    "training": {"adam_epsilon": 1e-5, "normalize_advantages": "minibatch"},
    "rl_module": {
        "model_config": {
            "fcnet_hiddens": [64, 64],
            "fcnet_activation": "tanh",
            "orthogonal_init": True,
        }
    },
}
TRAINERS = ("raytrain", "MaskablePPO")


def run(trainer: str, seed: int, iterations: int) -> Watched:
    config = settings.ppo(
        "masked_env:Numbers",
        iterations=iterations,
        seed=seed,
        environment={"action_mask": "info"},
        **HABITS,
    )
    with scratch() as place:
        shutil.copy(HERE / "masked_env.py", place)
        path = write_config(place, config)
        command = raytrain_command(path) if trainer == "raytrain" else program("maskable", path)
        return watch(command, place, core=last_core())


def return_after(found: Watched, iterations: int) -> float:
    last = found.rows[max(0, iterations - WINDOW) : iterations]
    return statistics.mean(return_of(row.values) for row in last)


def measure(options: Options) -> list[Table]:
    rounds, iterations = options.rounds_or(ROUNDS), 4 if options.quick else ITERATIONS
    shown = [at for at in SHOWN if at <= iterations] or [iterations]
    found: dict[str, list[Watched]] = {name: [] for name in TRAINERS}
    for seed in range(rounds):
        for name in TRAINERS:
            found[name].append(run(name, seed, iterations))
            curve = [f"{return_after(found[name][-1], at):.1f}" for at in shown]
            say(f"masks, seed {seed}, {name}: returns {' '.join(curve)}")
    tables = [Table("Action masks, one core", tuple(rows(found)))]
    if rounds > 1:
        compared = tuple(returns(found, at) for at in shown)
        tables.append(Table(f"Returns with action masks, {rounds} seeds", compared))
    return tables


def rows(found: dict[str, list[Watched]]) -> list[dict[str, Any]]:
    rates = {name: [each.steps_per_s() for each in found[name]] for name in TRAINERS}
    cpu = {name: [each.cpu_ms_per_1000_steps() for each in found[name]] for name in TRAINERS}
    own = TRAINERS[0]
    return [
        {
            "trainer": name,
            "steps/s": whole(rates[name]),
            "CPU ms per 1000 steps": whole(cpu[name]),
            "raytrain is faster by": None
            if name == own
            else spread(ratios(rates[own], rates[name])),
            "in CPU time": None if name == own else f"{median_of_ratios(cpu[name], cpu[own]):.2f}",
        }
        for name in TRAINERS
    ]


def returns(found: dict[str, list[Watched]], after: int) -> dict[str, Any]:
    own, other = ([return_after(each, after) for each in found[name]] for name in TRAINERS)
    points, intervals = estimates(own, other)
    low, high = intervals["difference"]
    return {
        "iterations": after,
        "raytrain": with_interval(points["raytrain"], intervals["raytrain"]),
        "MaskablePPO": with_interval(points["stock"], intervals["stock"]),
        "difference": with_interval(points["difference"], (low, high)),
        "agree": "yes" if low <= 0 <= high else "NO",
    }
