"""Seconds that training waits for a checkpoint, raytrain against stock Tune.

CartPole-v1 with layers so wide that weights and Adam's two moments are 1, 20 and 200 MB; a checkpoint
every 5 iterations (raytrain's default), to this machine's disk and to a store of which each request
takes 50 ms (`slow_store.py`). Within a run, the time between two results is compared: what the 5 iterations of a
cycle take beyond five times the median iteration is the wait for that cycle's checkpoint. It holds all that a
checkpoint costs: staging, the work behind the next iterations, and Tune's own part.

With 20 and 200 MB iterations are made short, or a run would take hours. For the share of the wall time, the wait is
divided by five iterations of 2048 steps, 10 passes, minibatch 64, of which only the matrix arithmetic is
counted: a real iteration is longer, and the share smaller. One commit may run and one wait behind training; a third
is waited for, and that belongs to the cost.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import settings
import slow_store
from measuring import Options, Table, interleave, spread
from runs import Watched, program, raytrain_command, scratch, watch, write_config

ROUNDS = 2
CADENCE = 5
# Megabytes of state, width of both hidden layers, steps of an iteration and passes over them.
SIZES = ((1, 200, 2048, 10), (20, 912, 512, 1), (200, 2886, 128, 1))
STORES = ("local disk", "50 ms store")


def config(width: int, batch: int, epochs: int, cycles: int) -> dict[str, Any]:
    return settings.ppo(
        "CartPole-v1",
        hiddens=(width, width),
        batch=batch,
        epochs=epochs,
        # The first cycle warms up; what comes after the last checkpoint is not measured.
        iterations=CADENCE * (cycles + 2),
        checkpoint={"checkpoint_frequency": CADENCE, "num_to_keep": 2},
    )


def run(trainer: str, store: str, settings_of_run: dict[str, Any]) -> Watched:
    with scratch() as place:
        slow = store != "local disk"
        if slow:
            results = place / "results"
            settings_of_run = {**settings_of_run, "storage_path": slow_store.uri(results)}
        path = write_config(place, settings_of_run)
        if trainer == "stock Tune":
            command = program("tune", path, *(["slow"] if slow else []))
        else:
            command = program("raytrain", path) if slow else raytrain_command(path)
        return watch(command, place)


def waits(gaps: Sequence[float], cadence: int = CADENCE) -> list[float]:
    """Seconds beyond the median iteration, summed over each cycle. `gaps[i]` is the time from result
    i + 1 to result i + 2; a cycle begins with the gap after a result whose number is a multiple of
    the cadence, in which the save lies. The first cycle is left out, and what is not whole."""
    later = gaps[cadence - 1 :]
    base = statistics.median(later)
    whole = len(later) // cadence
    return [sum(later[i * cadence : (i + 1) * cadence]) - cadence * base for i in range(whole)]


def iteration_s(width: int) -> float:
    """Matrix arithmetic of an iteration at the usual settings, from a part of it."""
    with scratch() as place:
        path = write_config(
            place, settings.ppo("CartPole-v1", hiddens=(width, width), iterations=2)
        )
        rows = watch(program("arithmetic", path, "5"), place).rows
        return float(rows[-1].values["matmul_s"])


def measure(options: Options) -> list[Table]:
    rounds = options.rounds_or(ROUNDS)
    cycles = 1 if options.quick else 3
    table = []
    for megabytes, width, batch, epochs in SIZES[:1] if options.quick else SIZES:
        usual = iteration_s(width)
        values = config(width, batch, epochs, cycles)
        for store in STORES:
            found = interleave(
                {
                    name: lambda n=name, s=store, v=values: run(n, s, v)
                    for name in ("raytrain", "stock Tune")
                },
                rounds,
                f"{megabytes} MB, {store}",
            )
            table += rows(megabytes, store, found, usual)
    return [Table("Seconds that training waits for a checkpoint", tuple(table))]


def rows(
    megabytes: int, store: str, found: dict[str, list[Watched]], usual_s: float
) -> list[dict[str, Any]]:
    each = {
        name: [statistics.median(waits(run.gaps())) for run in runs] for name, runs in found.items()
    }
    stock = each["stock Tune"]
    table = []
    for name, seconds in each.items():
        row: dict[str, Any] = {
            "state": f"{megabytes} MB",
            "to": store,
            "trainer": name,
            "iteration s": round(statistics.median(_iterations(found[name])), 2),
            "waits s": spread(seconds, 3),
            "of stock's": None,
            "share of wall time": f"{_share(statistics.median(seconds), usual_s):.2f} %",
            "targets": None,
        }
        if name == "raytrain":
            shares = [100 * own / other for own, other in zip(seconds, stock, strict=True)]
            row["of stock's"] = spread(shares, 0) + " %"
            row["targets"] = "< 1 % of wall time"
            if megabytes == 200:
                row["targets"] = "<= 10 % of stock's, " + row["targets"]
        table.append(row)
    return table


def _iterations(runs: Sequence[Watched]) -> list[float]:
    return [statistics.median(run.gaps()) for run in runs]


def _share(wait: float, iteration: float) -> float:
    return 100 * max(wait, 0.0) / (CADENCE * iteration)
