"""How much of the work stays when something dies once a minute, on a cluster of real raylets.

An experiment of four trials trains on two workers, `raytrain train --address` against stock Tune
(`Tuner("PPO").fit()`, started again with `Tuner.restore`) on the same cluster, with the same
settings, checkpoints and number of failures that may be survived:

    warm-up ── undisturbed, 20 s ── fault, rest of a minute ── undisturbed, 20 s ── fault, ...

    trial, env runner    SIGKILL to one of these processes
    driver               SIGKILL; the command is given again at once
    raylet               SIGKILL to a node that carries a trial; another one joins in its place
    link                 such a node loses its network, for some seconds or for good

Goodput is the iterations per second in the minutes that begin with a fault over those in the
undisturbed times between them, of the same run: a shared machine gets faster and slower by a tenth
within minutes, and so nothing is compared that is far apart. Only useful iterations count, those
that the result consists of: how far all trials are at the end, less how far they were at the
beginning, so one that is done again counts once.

Both trainers meet the same schedule, which a seed has drawn (`tests/support/chaos/schedule.py`); in
each further round it is another one. Needs root (see `tests/support/namespaces.py`)."""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import recovery
import settings
from measuring import Options, Table, interleave, say, spread
from runs import HERE, RunFailed, scratch, write_config

sys.path.insert(0, str(HERE.parent))

from support.chaos.campaign import PROCESSES, Campaign
from support.chaos.nodes import Nodes
from support.chaos.schedule import Schedule, regular
from support.namespaces import Cluster, why_not

ROUNDS = 1
TRIALS = 4
KINDS = ("trial", "env runner", "driver", "raylet", "link")
QUIET_S, EVERY_S = 20.0, 60.0
_WARM_S = 45.0
_PATIENCE_S = 600.0
TITLES = {
    "raytrain": {kind: PROCESSES[kind] for kind in ("trial", "env runner")},
    "stock Tune": {"trial": "ray::PPO", "env runner": "ray::SingleAgentEnvRunner"},
}


@dataclass(frozen=True)
class Goodput:
    """Useful iterations per second, of all trials together."""

    quiet: float
    disturbed: float

    @property
    def share(self) -> float:
        return 100 * self.disturbed / self.quiet


class Mark(NamedTuple):
    """Seconds, and the useful iterations done in them."""

    time: float
    done: int


def measure(options: Options) -> list[Table]:
    missing = why_not()
    if missing is not None:
        say(f"goodput: left out: {missing}")
        return []
    rounds, kinds = options.rounds_or(ROUNDS), KINDS[:1] if options.quick else KINDS
    every_s = 20.0 if options.quick else EVERY_S
    found: dict[str, list[Goodput]] = {name: [] for name in TITLES}
    for number in range(rounds):
        starts = [QUIET_S + index * (QUIET_S + every_s) for index in range(len(kinds))]
        schedule = regular(number, kinds, starts)
        once = interleave(
            {name: partial(run, name, schedule, every_s) for name in TITLES},
            1,
            f"schedule {number}",
        )
        for name, results in once.items():
            found[name] += results
    rows = tuple(row(name, results) for name, results in found.items())
    return [Table(f"Goodput, a fault every {every_s:.0f} s", rows)]


def row(trainer: str, found: list[Goodput]) -> dict[str, Any]:
    return {
        "trainer": trainer,
        "iterations/s undisturbed": spread([each.quiet for each in found]),
        "useful iterations/s with faults": spread([each.disturbed for each in found]),
        "goodput %": spread([each.share for each in found], 1),
        "target %": 90 if trainer == "raytrain" else None,
    }


class Timed(Nodes):
    """Its measure is seconds since `began`."""

    began = 0.0

    def reached(self) -> float:
        return time.monotonic() - self.began


def run(trainer: str, schedule: Schedule, every_s: float) -> Goodput:
    config = settings.ppo(
        "CartPole-v1",
        iterations=1_000_000,
        epochs=6,
        env_runners={"num_env_runners": 1},
        resources={"custom_resources_for_main_process": {"worker": 0.3}},
        checkpoint={"checkpoint_frequency": 5, "num_to_keep": 3},
        failure={"max_failures": 1000},
        tune={"num_samples": TRIALS},
    )
    with scratch() as place, Cluster(head_cpus=0) as cluster:
        path = write_config(place, config)
        command = partial(recovery.start, trainer, cluster, path, place / "log.txt")
        stage = Timed(cluster, command, cpus=8, titles=TITLES[trainer])
        campaign = Campaign(stage, schedule, patience_s=_PATIENCE_S, tell=say)
        try:
            campaign.start()
            campaign.until(lambda: all_begun(place, cluster), "before all trials had begun")
            stage.began = time.monotonic()
            campaign.until(lambda: stage.reached() >= _WARM_S, "in the warm-up")
            stage.began = time.monotonic()
            marks = [mark(stage, place, cluster)]

            def until(moment: float) -> None:
                campaign.until(lambda: stage.reached() >= moment, f"before {moment:.0f} s")
                marks.append(mark(stage, place, cluster))

            for fault in schedule.faults:
                until(fault.moment)
                campaign.strike(fault)
                until(fault.moment + every_s)
            until(marks[-1].time + QUIET_S)
        except AssertionError as error:
            raise RunFailed(f"{trainer}: {error}") from error
    spans = [Mark(b.time - a.time, b.done - a.done) for a, b in itertools.pairwise(marks)]
    return Goodput(rate(spans[::2]), rate(spans[1::2]))


def mark(stage: Timed, place: Path, cluster: Cluster) -> Mark:
    return Mark(stage.reached(), useful(place, cluster))


def rate(spans: list[Mark]) -> float:
    return sum(span.done for span in spans) / sum(span.time for span in spans)


def all_begun(place: Path, cluster: Cluster) -> bool:
    found = recovery.result_files(place, cluster).values()
    return len(found) == TRIALS and all(recovery.read(path, last=True) for path in found)


def useful(place: Path, cluster: Cluster) -> int:
    """How far the trials are, together."""
    files = recovery.result_files(place, cluster).values()
    return sum(result.iteration for path in files for result in recovery.read(path, last=True))
