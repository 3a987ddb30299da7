"""The share of an iteration that is neither env stepping nor matrix arithmetic.

`raytrain train` with its checkpoints, all its processes on one core, against bare loops of what has
to be done in any case (`programs.py arithmetic`): as many env steps, and matrix products of the
shapes and the number that the networks need. Steady state: what lies before the fourth result is
left out, as processes still start by then."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import settings
from measuring import Options, Table, interleave, spread, whole
from runs import Watched, last_core, program, raytrain_command, scratch, watch, write_config

ROUNDS = 5
NAME = "CartPole-v1, [256, 256], minibatch 128"
ITERATIONS = {"raytrain": 13, "arithmetic": 4}
_WARM = 4


def run(what: str, quick: bool) -> Watched:
    batch = 2048 if quick else 8 * 2048
    config = settings.ppo(
        "CartPole-v1",
        hiddens=(256, 256),
        minibatch=128,
        batch=batch,
        iterations=ITERATIONS[what],
    )
    with scratch() as place:
        path = write_config(place, config)
        command = raytrain_command(path) if what == "raytrain" else program("arithmetic", path)
        return watch(command, place, core=last_core())


def measure(options: Options) -> list[Table]:
    found = interleave(
        {what: partial(run, what, options.quick) for what in ITERATIONS},
        options.rounds_or(ROUNDS),
        NAME,
    )
    row = {"setting": NAME, **share_row(found["raytrain"], found["arithmetic"])}
    return [Table("Where an iteration of 16,384 steps goes", (row,))]


def share_row(runs: list[Watched], bare: list[Watched], warm: int = _WARM) -> dict[str, Any]:
    wall, env, matmul, other, other_cpu = [], [], [], [], []
    for trained, loops in zip(runs, bare, strict=True):
        values = [row.values for row in loops.rows[1:]]
        least = {name: statistics.median(v[name] for v in values) for name in values[0]}
        steps = loops.rows[0].steps
        wall.append(steps / trained.steps_per_s(warm))
        env.append(least["env_s"])
        matmul.append(least["matmul_s"])
        other.append(1 - (env[-1] + matmul[-1]) / wall[-1])
        cpu = steps / 1e6 * trained.cpu_ms_per_1000_steps(warm)
        other_cpu.append(1 - (least["env_cpu_s"] + least["matmul_cpu_s"]) / cpu)
    return {
        "iteration ms": whole([1e3 * value for value in wall]),
        "env stepping ms": whole([1e3 * value for value in env]),
        "matrix arithmetic ms": whole([1e3 * value for value in matmul]),
        "everything else": spread([100 * value for value in other], 0) + " %",
        "in CPU time": spread([100 * value for value in other_cpu], 0) + " %",
        "target": "< 25 %",
    }
