"""Action masks against MaskablePPO of sb3-contrib: steps per second on one core, and the returns.

Both learn the environment of `masked_env`, with one seed in each round: iterations of 2048 steps in
8 environments. The return is the mean of the last 100 episodes after the last iteration; 100 is the
highest possible one."""

from __future__ import annotations

import statistics
from typing import Any

import settings
from measuring import Options, Table, median_of_ratios, ratios, say, spread, whole
from runs import HERE, Watched, last_core, program, raytrain_command, scratch, watch, write_config

ROUNDS = 3
ITERATIONS = 40
TRAINERS = ("raytrain", "MaskablePPO")


def run(trainer: str, seed: int, iterations: int) -> Watched:
    config = settings.ppo(
        "masked_env:Numbers",
        iterations=iterations,
        seed=seed,
        environment={"action_mask": "info"},
    )
    config["import_path"] = str(HERE)
    with scratch() as place:
        path = write_config(place, config)
        command = raytrain_command(path) if trainer == "raytrain" else program("maskable", path)
        return watch(command, place, core=last_core())


def final_return(found: Watched) -> float:
    row = found.rows[-1].values
    return float(row.get("episode_return_mean", row.get("env_runners", {})["episode_return_mean"]))


def measure(options: Options) -> list[Table]:
    rounds, iterations = options.rounds_or(ROUNDS), 4 if options.quick else ITERATIONS
    found: dict[str, list[Watched]] = {name: [] for name in TRAINERS}
    for seed in range(rounds):
        for name in TRAINERS:
            found[name].append(run(name, seed, iterations))
            say(f"masks, seed {seed}, {name}: return {final_return(found[name][-1]):.1f}")
    return [Table("Action masks, one core", tuple(rows(found)))]


def rows(found: dict[str, list[Watched]]) -> list[dict[str, Any]]:
    rates = {name: [each.steps_per_s() for each in found[name]] for name in TRAINERS}
    cpu = {name: [each.cpu_ms_per_1000_steps() for each in found[name]] for name in TRAINERS}
    own = TRAINERS[0]
    return [
        {
            "trainer": name,
            "return": _returns(found[name]),
            "steps/s": whole(rates[name]),
            "CPU ms per 1000 steps": whole(cpu[name]),
            "raytrain is faster by": None
            if name == own
            else spread(ratios(rates[own], rates[name])),
            "in CPU time": None if name == own else f"{median_of_ratios(cpu[name], cpu[own]):.2f}",
        }
        for name in TRAINERS
    ]


def _returns(runs: list[Watched]) -> str:
    found = [final_return(each) for each in runs]
    return f"{statistics.mean(found):.1f} ({min(found):.1f}-{max(found):.1f})"
