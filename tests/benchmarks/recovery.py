"""Seconds from a fault to the next new result, on a cluster of real raylets in network namespaces.

`raytrain train --address` against stock Tune (`Tuner("PPO").fit()` on the same cluster, with the
same settings and checkpoints). A trial trains on one of two nodes; after some seconds

    node killed       SIGKILL to the trial's node
    learner killed    SIGKILL to one of two remote learners, each on a node of its own
    link cut          the trial's node loses its network: heads notice it in about 9 s with the
                      setting of docs/clusters/nodes.md, with which raytrain runs; stock runs with
                      Ray's own, and with that

A result is new when its iteration was not reached before the fault, and another process than before
has made it: a node without its network goes on for a while, and its files are shared here.

The second table: what a checkpoint costs with one remote learner and with two, each on a node of
its own: seconds that training waits for it, and until it is committed.

Needs root (see `tests/support/namespaces.py`).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import settings
from measuring import Options, Table, interleave, ratios, say, spread
from runs import HERE, RunFailed, scratch, write_config

sys.path.insert(0, str(HERE.parent))

from support.namespaces import ADDRESS, NOTICED_IN_9_S, Cluster, Driver, Node, why_not

ROUNDS = 3
FAULTS = ("node killed", "learner killed", "link cut")
TRAINERS = ("raytrain", "stock Tune")
SAME_SETTING = "stock Tune, same setting"
_RAYS_OWN = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
}
_REACHED = 6
_PATIENCE_S = 400.0
_PACE_S = 0.05
_TAIL = 200_000  # some rows
_WARM_S = 15.0


@dataclass(frozen=True)
class Recovered:
    """`seconds` until the next new result; `again`: iterations that were done twice."""

    seconds: float
    again: int


class Result(NamedTuple):
    """`process`: its host's name and its pid."""

    iteration: int
    process: tuple[str, int]


def measure(options: Options) -> list[Table]:
    missing = why_not()
    if missing is not None:
        say(f"recovery: left out: {missing}")
        return []
    rounds = options.rounds_or(ROUNDS)
    rows: list[dict[str, Any]] = []
    for fault in FAULTS[:1] if options.quick else FAULTS:
        trainers = (*TRAINERS, SAME_SETTING) if fault == "link cut" else TRAINERS
        found = interleave({name: partial(run, name, fault) for name in trainers}, rounds, fault)
        stock = [each.seconds for each in found["stock Tune"]]
        for name, runs in found.items():
            own, seconds = name == "raytrain", [each.seconds for each in runs]
            rows.append(
                {
                    "fault": fault,
                    "trainer": name,
                    "to the next new result s": spread(seconds, 1),
                    "of stock's": spread(ratios(seconds, stock)) if name != TRAINERS[1] else None,
                    "target": "< 0.5" if own else None,
                    "iterations done twice": statistics.median(each.again for each in runs),
                }
            )
    return [Table("Recovery", tuple(rows)), checkpoints(rounds)]


def checkpoints(rounds: int) -> Table:
    found = interleave(
        {f"{count}": partial(checkpoint, count) for count in (1, 2)}, rounds, "checkpoints"
    )
    rows = []
    for count, runs in found.items():
        for_one = found["1"]
        row: dict[str, Any] = {"learners": int(count)}
        for index, what in enumerate(("training waits s", "committed after s")):
            own, one = [each[index] for each in runs], [each[index] for each in for_one]
            row[what] = spread(own, 3)
            row["of one learner's" if index == 0 else "of one's"] = spread(ratios(own, one))
        row["target"] = "< 2" if count == "2" else None
        rows.append(row)
    return Table("Checkpoints of several learners", tuple(rows))


def checkpoint(learners: int) -> tuple[float, float]:
    """Medians over the checkpoints of one run, the first left out."""
    tiny = tiny_ppo(learners, iterations=12, checkpoint_frequency=1, num_to_keep=None)
    with scratch() as place, Cluster(head_cpus=0) as cluster:
        for name in "ab":
            cluster.add(name, cpus=4, resources={"worker": 1})
        driver = start("raytrain", cluster, write_config(place, tiny), place / "log.txt")
        if driver.wait(_PATIENCE_S) != 0:
            raise RunFailed(driver.output())
        (results,) = place.rglob("result.json")
        rows = [json.loads(line) for line in results.read_text().splitlines()]
        # Counted in the row of the iteration after it.
        waited = [row["timers"]["iteration"]["checkpoint_s"] for row in rows[2:]]
        took = []
        for manifest in sorted(place.rglob("checkpoint_*/manifest.json"))[1:]:
            began = datetime.fromisoformat(json.loads(manifest.read_text())["created_at"])
            took.append(manifest.stat().st_mtime - began.timestamp())
        return statistics.median(waited), statistics.median(took)


def tiny_ppo(learners: int, *, iterations: int, **checkpoint: Any) -> dict[str, Any]:
    return settings.ppo(
        "CartPole-v1",
        batch=2048 // max(1, learners),
        epochs=6,
        iterations=iterations,
        env_runners={"num_env_runners": 1},
        learners={"num_learners": learners, "custom_resources_per_learner": {"worker": 0.6}},
        resources={"custom_resources_for_main_process": {"worker": 0.1}},
        checkpoint=checkpoint,
        failure={"max_failures": 10},
    )


def run(trainer: str, fault: str) -> Recovered:
    learners = 2 if fault == "learner killed" else 0
    tiny = tiny_ppo(learners, iterations=100_000, checkpoint_frequency=2, num_to_keep=3)
    setting = _RAYS_OWN if trainer == TRAINERS[1] else NOTICED_IN_9_S
    with scratch() as place, Cluster(head_cpus=0, env=setting) as cluster:
        for name in "ab":
            cluster.add(name, cpus=4, resources={"worker": 1})
        config = write_config(place, tiny)
        driver = start(trainer, cluster, config, place / "log.txt")

        def newest() -> list[Result]:
            found = (read(path, last=True) for path in result_files(place, cluster).values())
            return [result for results in found for result in results]

        driver.until(lambda: any(each.iteration >= _REACHED for each in newest()), _PATIENCE_S)
        time.sleep(_WARM_S)
        before = newest()
        spoil(fault, cluster)
        began, spoilt = time.monotonic(), {each.process for each in before}
        highest = max(each.iteration for each in before)
        while not any(each.iteration > highest and each.process not in spoilt for each in newest()):
            # What the process before reaches meanwhile is not new.
            highest = max([highest, *(e.iteration for e in newest() if e.process in spoilt)])
            if driver.process.poll() is not None or time.monotonic() - began > _PATIENCE_S:
                raise RunFailed(f"{trainer}, {fault}: no new result:\n{driver.output()}")
            time.sleep(_PACE_S)
        seconds = time.monotonic() - began
        everything = [each for path in result_files(place, cluster).values() for each in read(path)]
        again = min(each.iteration for each in everything if each.process not in spoilt)
        return Recovered(seconds, highest + 1 - again)


def start(trainer: str, cluster: Cluster, config: Path, log: Path) -> Driver:
    if trainer == "raytrain":
        return cluster.driver("train", str(config), log=log)
    cluster.env["RAY_ADDRESS"] = ADDRESS
    return cluster.driver(
        "tune", str(config), log=log, program=[sys.executable, str(HERE / "programs.py")]
    )


def spoil(fault: str, cluster: Cluster) -> None:
    (home,) = cluster.where("ray::TrialPPO") or cluster.where("ray::PPO")
    if fault == "node killed":
        home.kill()
    elif fault == "link cut":
        home.cut()
    else:
        learner_elsewhere(cluster, home).processes("ray::_WrappedExecutable")[0].kill()


def learner_elsewhere(cluster: Cluster, home: Node) -> Node:
    (other,) = [node for node in cluster.where("ray::_WrappedExecutable") if node is not home]
    return other


def result_files(place: Path, cluster: Cluster) -> dict[str, Path]:
    """The `result.json` of each trial. Tune writes it on the driver's node, in the
    session's directory, and copies it to the storage every ten seconds or so; raytrain
    writes to the storage."""
    staged = "head/session_2*/artifacts/*/*/driver_artifacts/*/result.json"
    found = [*place.glob("results/*/*/result.json"), *cluster.files.glob(staged)]
    return {path.parent.name: path for path in sorted(found, key=lambda path: path.stat().st_mtime)}


def read(path: Path, *, last: bool = False) -> list[Result]:
    """What is in a `result.json`, in the order of its writing; or the last result alone, which
    costs little enough to be read again and again beside the run."""
    with path.open("rb") as file:
        if last:
            file.seek(max(0, path.stat().st_size - _TAIL))
        lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
    rows = [json.loads(line) for line in (lines[-1:] if last else lines)]
    return [
        Result(int(row["training_iteration"]), (str(row["hostname"]), int(row["pid"])))
        for row in rows
    ]
