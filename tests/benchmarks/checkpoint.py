"""Seconds that training waits for a checkpoint, raytrain against stock Tune.

CartPole-v1 with layers so wide that weights and Adam's two moments are 1, 20 and 200 MB; a
checkpoint every 5 iterations (raytrain's default), to this machine's disk and to a store of which
each request takes 50 ms (`slow_store.py`).

    waits         how long the trial does not train because of a checkpoint: stock's `save()`, and
                  what raytrain reports as `timers/iteration/checkpoint_s`
    cycle longer  what 5 iterations from one checkpoint to the next take beyond five times the
                  median iteration: with what the commit in the background takes from training,
                  and Tune's own part

With 20 and 200 MB iterations are made short, or a run would take hours; but not so short that five
of them are over before a checkpoint is committed. For the share of the wall time, the wait is
divided by five iterations of 2048 steps, 10 passes, minibatch 64, of which only the matrix
arithmetic is counted: a real iteration is longer, and the share smaller."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import settings
import slow_store
from measuring import Options, Table, interleave, ratios, spread
from programs import SAVES
from runs import program, raytrain_command, scratch, watch, write_config

ROUNDS = 2
CADENCE = 5
# Megabytes of state, width of both hidden layers, steps of an iteration and passes over them.
SIZES = ((1, 200, 2048, 10), (20, 912, 512, 5), (200, 2886, 128, 1))
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


@dataclass(frozen=True)
class Costs:
    """Of one run: medians over its checkpoints, the first left out; in seconds."""

    iteration: float
    waits: float
    cycle_longer: float


def run(trainer: str, store: str, settings_of_run: dict[str, Any]) -> Costs:
    with scratch() as place:
        slow = store != "local disk"
        if slow:
            results = place / "results"
            settings_of_run = {**settings_of_run, "storage_path": slow_store.uri(results)}
        path = write_config(place, settings_of_run)
        if trainer == "stock Tune":
            watched = watch(program("timed", path, *(["slow"] if slow else [])), place)
            lines = (place / SAVES).read_text().splitlines()
            waited = [float(json.loads(line)["seconds"]) for line in lines]
        else:
            watched = watch(program("raytrain", path) if slow else raytrain_command(path), place)
            # Told by the row after it; the last checkpoint has none.
            told = [row.values["timers"]["iteration"]["checkpoint_s"] for row in watched.rows]
            waited = told[CADENCE::CADENCE]
    gaps = watched.gaps()
    return Costs(
        iteration=statistics.median(gaps),
        waits=statistics.median(waited[1:]),
        cycle_longer=statistics.median(longer(gaps)),
    )


def longer(gaps: Sequence[float], cadence: int = CADENCE) -> list[float]:
    """Seconds beyond the median iteration, summed over each cycle. `gaps[i]` is the time
    from result i + 1 to result i + 2; a cycle begins with the gap after a result whose
    number is a multiple of the cadence, in which the save lies. The first cycle is left out,
    and what is not whole."""
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
                {name: partial(run, name, store, values) for name in ("raytrain", "stock Tune")},
                rounds,
                f"{megabytes} MB, {store}",
            )
            table += rows(megabytes, store, found, usual)
    return [Table("Seconds that training waits for a checkpoint", tuple(table))]


def rows(
    megabytes: int, store: str, found: dict[str, list[Costs]], usual_s: float
) -> list[dict[str, Any]]:
    stock = [each.waits for each in found["stock Tune"]]
    table = []
    for name, runs in found.items():
        own, seconds = name == "raytrain", [each.waits for each in runs]
        row: dict[str, Any] = {
            "state": f"{megabytes} MB",
            "to": store,
            "trainer": name,
            "waits s": spread(seconds, 3),
            "of stock's": None,
            "target": None,
            "share of wall time": f"{100 * statistics.median(seconds) / (CADENCE * usual_s):.2f} %",
            "its target": "< 1 %" if own else None,
            "iteration s": round(statistics.median(each.iteration for each in runs), 2),
            "cycle longer by s": spread([each.cycle_longer for each in runs]),
        }
        if own:
            shares = [100 * each for each in ratios(seconds, stock)]
            row["of stock's"] = spread(shares, 1) + " %"
            row["target"] = "<= 10 %" if megabytes == 200 else None
        table.append(row)
    return table
