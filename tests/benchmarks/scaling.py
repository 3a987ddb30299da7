"""More env runners and more learners: steps/s, samples/s, and memory.

Env runners: HalfCheetah-v5, 4 environments each, an iteration that samples 8192 steps and learns
little (one pass, one gradient step), so that its rate is that of sampling. Learners: CartPole-v1,
[256, 256], 2048 steps for each learner, minibatch 128, 20 passes, so that its rate is that of
learning; samples are timesteps times passes. Whole iterations are counted in both. Runs are not
pinned. Memory is PSS, in which what processes share is counted once."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import settings
from measuring import Options, Table, interleave, ratios, spread, whole
from runs import Watched, raytrain_command, scratch, watch, write_config

ROUNDS = 2
RUNNERS = (1, 2, 4)
LEARNERS = (1, 2)
PASSES = 20
_PARTS = ("trial", "env runner", "learner", "driver", "Ray", "fork server", "idle worker")


def with_runners(count: int, iterations: int) -> dict[str, Any]:
    return settings.ppo(
        "HalfCheetah-v5",
        batch=8192,
        minibatch=8192,
        epochs=1,
        envs=4,
        iterations=iterations,
        continuous=True,
        env_runners={"num_env_runners": count},
    )


def with_learners(count: int, iterations: int) -> dict[str, Any]:
    return settings.ppo(
        "CartPole-v1",
        hiddens=(256, 256),
        minibatch=128,
        epochs=PASSES,
        iterations=iterations,
        learners={"num_learners": count},
    )


def run(config: dict[str, Any]) -> Watched:
    with scratch() as place:
        path = write_config(place, config)
        # Before the last result: then the processes are still there.
        enough = config["stop"]["iterations"] - 1
        watched = watch(raytrain_command(path), place, memory_at=enough)
        # Measuring memory took its time from the last iteration.
        return Watched(watched.rows[:enough], watched.seconds, memory=watched.memory)


def measure(options: Options) -> list[Table]:
    rounds = options.rounds_or(ROUNDS)
    iterations = 5 if options.quick else 12
    runners = interleave(
        {str(n): partial(run, with_runners(n, iterations)) for n in RUNNERS},
        rounds,
        "env runners",
    )
    learners = interleave(
        {str(n): partial(run, with_learners(n, iterations)) for n in LEARNERS},
        rounds,
        "learners",
    )
    return [
        Table("Env runners (HalfCheetah-v5)", rows("env runners", "env steps/s", 1, runners)),
        Table(
            "Learners (CartPole-v1, [256, 256])", rows("learners", "samples/s", PASSES, learners)
        ),
    ]


def rows(
    what: str, unit: str, each_step: int, found: dict[str, list[Watched]]
) -> tuple[dict[str, Any], ...]:
    """`each_step`: how often a step counts. Memory is the median over the rounds."""
    rates = {n: [each_step * run.steps_per_s() for run in runs] for n, runs in found.items()}
    first = next(iter(rates))
    table = []
    for number, runs in found.items():
        memory = [run.memory for run in runs]
        row: dict[str, Any] = {
            what: int(number),
            unit: whole(rates[number]),
            "against one": spread(ratios(rates[number], rates[first])) if number != first else None,
            "CPU ms per 1000 steps": whole([run.cpu_ms_per_1000_steps() for run in runs]),
            "all processes, MB": whole([sum(map(sum, each.values())) for each in memory]),
        }
        for part in _PARTS:
            each = part in ("env runner", "learner")
            of = statistics.mean if each else sum
            sizes = [of(found_there[part]) for found_there in memory if part in found_there]
            name = f"{part}, MB each" if each else f"{part}, MB"
            row[name] = whole(sizes) if sizes else None
        table.append(row)
    return tuple(table)
