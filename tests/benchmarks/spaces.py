"""Steps per second of whole runs on one core by observation space: CartPole whose observation is
shown as a Box, and in other forms at the same cost for the environment. Target: a Box is at most
1.3 times faster."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import settings
from measuring import Options, Table, interleave, ratios, spread, whole
from runs import Watched, last_core, raytrain_command, scratch, watch, write_config

ROUNDS = 3
KINDS = ("box", "discrete", "multidiscrete", "dict", "mixed")
ENVIRONMENT = Path(__file__).parents[1] / "envs" / "shown_cartpole.py"


def run(kind: str, batch: int) -> Watched:
    environment: dict[str, Any] = {"env": "shown_cartpole:Shown", "env_config": {"kind": kind}}
    config = settings.ppo("CartPole-v1", iterations=6, batch=batch, environment=environment)
    with scratch() as place:
        shutil.copy(ENVIRONMENT, place)
        path = write_config(place, config)
        return watch(raytrain_command(path), place, core=last_core())


def measure(options: Options) -> list[Table]:
    batch = 2048 if options.quick else 8 * 2048
    rivals = {kind: lambda kind=kind: run(kind, batch) for kind in KINDS}
    found = interleave(rivals, options.rounds_or(ROUNDS), "spaces")
    rates = {kind: [each.steps_per_s() for each in found[kind]] for kind in KINDS}
    cpu = {kind: [each.cpu_ms_per_1000_steps() for each in found[kind]] for kind in KINDS}
    rows = tuple(
        {
            "observation": kind,
            "steps/s": whole(rates[kind]),
            "CPU ms per 1000 steps": whole(cpu[kind]),
            "a Box is faster by": spread(ratios(rates["box"], rates[kind])),
            "in CPU time": spread(ratios(cpu[kind], cpu["box"])),
            "target": 1.3,
        }
        for kind in KINDS
    )
    return [Table("Observation spaces, one core", rows)]
