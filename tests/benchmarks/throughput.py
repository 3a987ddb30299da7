"""Steps per second of whole runs on one core, learning included; checkpoints on for raytrain.

raytrain is `raytrain train` with a checkpoint every 5 iterations (its default), stock RLlib PPO is
`algo.train()` in a loop, Stable-Baselines3 PPO is `learn`. Every process of a run, Ray's own among
them, stays on the same core. Steady state: from the second result to the last, which is the sixth
with raytrain (one checkpoint lies between them) and the fourth with the others (none does)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import settings
from measuring import Options, Table, interleave, median_of_ratios, ratios, spread, whole
from runs import Watched, last_core, program, raytrain_command, scratch, watch, write_config

ROUNDS = 3
BATCH = 8 * 2048
"""Stable-Baselines3's default is 2048 steps of each environment, of which there are 8."""
TRAINERS = ("raytrain", "stock RLlib", "Stable-Baselines3")
RIVALS_ITERATIONS = 4


@dataclass(frozen=True, eq=False)
class Case:
    """One setting; `targets`: raytrain against stock and against Stable-Baselines3."""

    name: str
    config: dict[str, Any]
    targets: tuple[float, float] | None = None


def cases(quick: bool) -> list[Case]:
    size: dict[str, Any] = {"iterations": 6, "batch": 2048 if quick else BATCH}
    small = settings.ppo("CartPole-v1", **size)
    large = settings.ppo("CartPole-v1", hiddens=(256, 256), minibatch=128, **size)
    cheetah = settings.ppo("HalfCheetah-v5", continuous=True, **size)
    chosen = [
        Case("CartPole-v1, [64, 64], minibatch 64", small, (3.0, 2.0)),
        Case("CartPole-v1, [256, 256], minibatch 128", large, (2.0, 1.2)),
        Case("HalfCheetah-v5, [64, 64], minibatch 64", cheetah),
    ]
    return chosen[1:2] if quick else chosen


def run(trainer: str, config: dict[str, Any]) -> Watched:
    if trainer != "raytrain":
        config = {**config, "stop": {"iterations": RIVALS_ITERATIONS}}
    with scratch() as place:
        path = write_config(place, config)
        command = {
            "raytrain": raytrain_command(path),
            "stock RLlib": program("stock", path),
            "Stable-Baselines3": program("sb3", path),
        }[trainer]
        return watch(command, place, core=last_core())


def measure(options: Options) -> list[Table]:
    rounds = options.rounds_or(ROUNDS)
    found = {}
    for case in cases(options.quick):
        rivals = {name: lambda n=name, c=case: run(n, c.config) for name in TRAINERS}
        found[case] = interleave(rivals, rounds, case.name)
    rows = tuple(row for case in found for row in rate_rows(case, found[case]))
    return [Table("Throughput, one core", rows)]


def rate_rows(case: Case, runs: dict[str, list[Watched]]) -> list[dict[str, Any]]:
    rates = {name: [each.steps_per_s() for each in runs[name]] for name in TRAINERS}
    cpu = {name: [each.cpu_ms_per_1000_steps() for each in runs[name]] for name in TRAINERS}
    rows = []
    for name in TRAINERS:
        row: dict[str, Any] = {
            "setting": case.name,
            "trainer": name,
            "steps/s": whole(rates[name]),
            "CPU ms per 1000 steps": whole(cpu[name]),
            "raytrain is faster by": None,
            "in CPU time": None,
            "target": None,
        }
        if name != "raytrain":
            row["raytrain is faster by"] = spread(ratios(rates["raytrain"], rates[name]))
            row["in CPU time"] = f"{median_of_ratios(cpu[name], cpu['raytrain']):.2f}"
            if case.targets is not None:
                row["target"] = case.targets[TRAINERS.index(name) - 1]
        rows.append(row)
    return rows
