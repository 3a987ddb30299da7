"""Seconds from the command to the first result, and where they go.

`raytrain train` against the twenty lines of `stock_startup.py` (`Tuner("PPO").fit()`), with one
small iteration of the same settings. Phases end when, seen from outside,

    until Ray starts    the first of Ray's services is there: imports, and raytrain's checks of
                        config and environment
    Ray                 the first worker process is there
    trial's process     the actor of the trial is there: Tune, the actor's imports
    build               the first iteration begins: networks, env runners, learner
    first iteration     the first line of `result.json` is there

Runs are not pinned.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from typing import Any

import settings
from measuring import Options, Table, interleave, ratios, spread
from runs import HERE, RunFailed, Watched, raytrain_command, scratch, watch, write_config

ROUNDS = 3
RUNNERS = (0, 1)
PHASES = ("until Ray starts", "Ray", "trial's process", "build", "first iteration")


def run(trainer: str, runners: int) -> Watched:
    with scratch() as place:
        if trainer == "stock Tune":
            results = place / "results"
            command = [sys.executable, str(HERE / "stock_startup.py"), str(results), str(runners)]
            return watch(command, place, phases=True)
        tiny = settings.ppo(
            "CartPole-v1",
            batch=512,
            epochs=2,
            iterations=1,
            env_runners={"num_env_runners": runners},
        )
        return watch(raytrain_command(write_config(place, tiny)), place, phases=True)


def phases(found: Watched) -> dict[str, float]:
    """Seconds of each phase. One whose end was not seen is counted with the next."""
    if not found.rows:
        raise RunFailed("no result was written")
    first = found.rows[0]
    began = first.at - float(first.values["time_this_iter_s"])
    workers = [
        found.seen[name]
        for name in ("fork server", "starting worker", "idle worker")
        if name in found.seen
    ]
    ends = (
        found.seen.get("Ray"),
        min(workers, default=None),
        found.seen.get("trial"),
        began,
        first.at,
    )
    spent, before = {}, 0.0
    for name, end in zip(PHASES, ends, strict=True):
        if end is not None:
            spent[name] = end - before
            before = end
    return spent


def measure(options: Options) -> list[Table]:
    rounds = options.rounds_or(ROUNDS)
    rows: list[dict[str, Any]] = []
    for runners in RUNNERS[:1] if options.quick else RUNNERS:
        found = interleave(
            {name: partial(run, name, runners) for name in ("raytrain", "stock Tune")},
            rounds,
            f"{runners} env runners",
        )
        stock = [each.rows[0].at for each in found["stock Tune"]]
        for name, runs in found.items():
            spent = [phases(each) for each in runs]
            firsts = [each.rows[0].at for each in runs]
            own = name == "raytrain"
            row = {"env runners": runners, "trainer": name, "first result s": spread(firsts, 1)}
            row["of stock's"] = spread(ratios(firsts, stock)) if own else None
            row["target"] = "< 1" if own else None
            row["CPU s"] = spread([each.rows[0].cpu for each in runs], 1)
            for phase in PHASES:
                seconds = [each[phase] for each in spent if phase in each]
                row[f"{phase} s"] = round(statistics.median(seconds), 1) if seconds else None
            row["whole run s"] = round(statistics.median(each.seconds for each in runs), 1)
            rows.append(row)
    return [Table("Start-up", tuple(rows))]
