"""Real raylets with addresses of their own die, are cut off and are taken away: the run ends as if
left alone, and none of it is counted as its failure (`max_failures` is 0 throughout)."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.namespaces import ADDRESS, Cluster, Driver, Node, stopped, why_not
from support.paths import TESTS
from support.running import (
    Holds,
    Reference,
    began_after,
    committed,
    iteration_of,
    train,
    trial_of,
    write_config,
)
from support.same_run import assert_same_run

from raytrain.records import EVENT_LOG, notices_of, read_events

_reason = why_not()
pytestmark = [
    pytest.mark.skipif(_reason is not None, reason=str(_reason)),
    pytest.mark.timeout(1800),
]

ON_WORKERS = {"custom_resources_for_main_process": {"worker": 0.1}}
_names = (f"w{i}" for i in itertools.count())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as made:
        yield made


@pytest.fixture
def two(cluster: Cluster) -> Cluster:
    """The cluster with two nodes that can carry the trial."""
    workers = [node for node in cluster.nodes.values() if node.name != "head" and node.alive()]
    for _ in range(2 - len(workers)):
        cluster.add(next(_names), cpus=3, resources={"worker": 1})
    return cluster


def start(cluster: Cluster, config: Path) -> Driver:
    return cluster.driver("train", str(config), log=config.parent / "log.txt")


def configured(path: Path, **sections: Any) -> Path:
    return write_config(
        path, **{"failure": {"max_failures": 0}, "resources": ON_WORKERS, **sections}
    )


def held(path: Path, *iterations: int, **sections: Any) -> tuple[Path, Holds]:
    """The config of a run that waits after these iterations."""
    holds = Holds(path.parent, *iterations)
    return configured(path, **{**holds.sections, **sections}), holds


def lead(holds: Holds, done: Callable[[], bool]) -> None:
    """Let the run go on by one iteration every few seconds, in which a notice can arrive."""
    while not done():
        holds.release()
        deadline = time.monotonic() + 5
        while not done() and time.monotonic() < deadline:
            time.sleep(0.1)


def losses(trial: Path) -> tuple[int, int, int]:
    found = json.loads((trial / "losses.json").read_text())
    return found["failure"], found["lost_node"], found["preemption"]


def where(cluster: Cluster, title: str = "ray::TrialPPO") -> Node:
    (node,) = cluster.where(title)
    return node


def ended(driver: Driver, trial: Path, reference: Reference) -> str:
    assert driver.wait() == 0, driver.output()
    assert_same_run(trial, reference)
    return driver.output()


@pytest.mark.slow
def test_a_node_that_gets_sigterm_is_left_in_time(
    two: Cluster, tmp_path: Path, undisturbed: Reference
) -> None:
    config, holds = held(tmp_path / "run.yaml", *range(3, 10))
    trial = trial_of(config)
    driver = start(two, config)
    driver.until(lambda: iteration_of(trial) == 3)
    node = where(two)
    node.terminate()
    lead(holds, lambda: "is taken away" in driver.output())
    holds.release_all()
    output = ended(driver, trial, undisturbed)
    assert f"the node {node.ip} is taken away: checkpoint_" in output
    assert ", interrupted)" in output
    assert "done again" not in output
    assert losses(trial) == (0, 0, 1)
    node.wait()


@pytest.mark.slow
def test_a_node_that_was_cut_off_and_comes_back_changes_nothing(
    two: Cluster, tmp_path: Path, undisturbed: Reference
) -> None:
    """Its trial has all it needs on that node, and storage besides: it trains on by itself."""
    config, holds = held(tmp_path / "run.yaml", 3)
    trial = trial_of(config)
    driver = start(two, config)
    driver.until(lambda: iteration_of(trial) == 3)
    node = where(two)
    zombies = node.processes("ray::TrialPPO")
    node.cut()
    driver.until(lambda: "Continued from" in driver.output())
    assert all(process.is_running() for process in zombies)
    holds.release()
    node.heal()
    output = ended(driver, trial, undisturbed)
    assert f"the node {node.ip} was lost" in output
    assert "shut out of this directory" in output
    assert losses(trial) == (0, 1, 0)
    assert max(began_after(trial)) == 2
    node.kill()


@pytest.mark.slow
def test_a_node_that_dies(two: Cluster, tmp_path: Path, undisturbed: Reference) -> None:
    config, holds = held(tmp_path / "run.yaml", 3)
    trial = trial_of(config)
    driver = start(two, config)
    driver.until(lambda: committed(trial))
    node = where(two)
    node.kill()
    holds.release()
    output = ended(driver, trial, undisturbed)
    assert f"the node {node.ip} was lost, and the trial's process with it" in output
    assert "this is not counted as a failure" in output
    assert "survived 1 lost node" in output
    assert losses(trial) == (0, 1, 0)


@pytest.mark.slow
def test_a_crash_of_the_trial_counts_on_a_cluster_too(two: Cluster, tmp_path: Path) -> None:
    config, _ = held(tmp_path / "run.yaml", 3)
    trial = trial_of(config)
    driver = start(two, config)
    driver.until(lambda: committed(trial))
    where(two).processes("ray::TrialPPO")[0].kill()
    assert driver.wait() == 1, driver.output()
    assert "the trial's process died: it was killed or crashed" in driver.output()
    assert losses(trial) == (1, 0, 0)


@pytest.mark.slow
def test_drained_nodes_and_none_left(two: Cluster, tmp_path: Path, undisturbed: Reference) -> None:
    """Both nodes are drained on request, one after the other; the run waits for a third."""
    config, holds = held(tmp_path / "run.yaml", *range(3, 11))
    trial = trial_of(config)
    driver = start(two, config)
    driver.until(lambda: iteration_of(trial) == 3)
    drained = []

    def told_of(count: int) -> bool:
        return driver.output().count("is taken away") == count

    def has_left(node: Node) -> bool:
        now = two.where("ray::TrialPPO")
        return bool(now) and node not in now

    for count in (1, 2):
        node = where(two)
        drained.append(node)
        drain(two, node)
        lead(holds, partial(told_of, count))
        if count == 1:  # It is on the other node, and held there.
            driver.until(partial(has_left, node))
    driver.until(lambda: "waits for a node to join" in driver.output())
    saved = iteration_of(trial)
    two.add(next(_names), cpus=3, resources={"worker": 1})
    holds.release_all()
    output = ended(driver, trial, undisturbed)
    assert "A node with the resources is available again" in output
    assert "done again" not in output
    assert losses(trial) == (0, 0, 2)
    assert began_after(trial)[3] == saved
    events = read_events(trial / EVENT_LOG)
    for node in drained:
        assert len(notices_of(node.ip, events, 0.0)) == 1
        assert output.count(f"The node {node.ip} is being drained and ends at ") == 1
        node.kill()  # They stay until their deadline, and carry nothing.


def drain(cluster: Cluster, node: Node) -> None:
    """As a person does it who has the node's address."""
    listed = cluster.run(
        sys.executable,
        "-c",
        f"import ray; ray.init({ADDRESS!r}, log_to_driver=False, logging_level='ERROR');"
        'print(*(f\'{n["NodeManagerAddress"]}={n["NodeID"]}\' for n in ray.nodes() if '
        "n['Alive']))",
    )
    ids = dict(each.split("=") for each in listed.split() if each.startswith("10.77."))
    why = "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message test"
    command = f"drain-node --address {ADDRESS} --node-id {ids[node.ip]} {why}"
    cluster.run(
        *(sys.executable, "-m", "ray.scripts.scripts", *command.split()),
        *("--deadline-remaining-seconds", "120"),
    )


@pytest.mark.slow
def test_a_clouds_notice(two: Cluster, tmp_path: Path, undisturbed: Reference) -> None:
    config, holds = held(
        tmp_path / "run.yaml",
        *range(3, 10),
        preemption={
            "notice_command": f"test -e {tmp_path}/going-$(hostname)",
            "notice_every_s": 0.2,
        },
    )
    trial = trial_of(config)
    driver = start(two, config)
    driver.until(lambda: iteration_of(trial) == 3)
    node = where(two)
    (tmp_path / f"going-n{node.ip.rpartition('.')[2]}").touch()
    lead(holds, lambda: "is taken away" in driver.output())
    holds.release_all()
    output = ended(driver, trial, undisturbed)
    assert "done again" not in output
    assert losses(trial) == (0, 0, 1)
    node.kill()


# -- two learners on two nodes -------------------------------------------------------------------

LEARNERS: dict[str, Any] = {
    "learners": {"num_learners": 2, "custom_resources_per_learner": {"worker": 0.6}},
    "env_runners": {"num_env_runners": 0},
    "training": {"train_batch_size_per_learner": 512},
    "stop": {"iterations": 12},
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    config = write_config(
        tmp_path_factory.mktemp("learned") / "run.yaml",
        **{**LEARNERS, "learners": {"num_learners": 2}},
    )
    train(config)
    return Reference(trial_of(config))


def learning(cluster: Cluster, config: Path) -> tuple[Driver, list[psutil.Process]]:
    """Two learners on different nodes, which have trained; their processes."""
    driver = start(cluster, config)
    driver.until(lambda: len(committed(trial_of(config))) >= 1)
    nodes = cluster.where("ray::_WrappedExecutable")
    assert len(nodes) == 2
    return driver, [node.processes("ray::_WrappedExecutable")[0] for node in nodes]


@pytest.mark.slow
def test_the_node_of_a_learner_is_cut_off_in_the_middle_of_a_collective(
    two: Cluster, tmp_path: Path, learned: Reference
) -> None:
    config, holds = held(tmp_path / "run.yaml", 3, **LEARNERS)
    two.add(next(_names), cpus=3, resources={"worker": 1})
    driver, _ = learning(two, config)
    home = where(two)
    (other,) = [n for n in two.where("ray::_WrappedExecutable") if n is not home]
    other.cut()
    holds.release()
    output = ended(driver, trial_of(config), learned)
    assert f"the node {other.ip} was lost, and learner" in output
    assert losses(trial_of(config)) == (0, 1, 0)
    other.heal()
    other.kill()


@pytest.mark.slow
def test_a_learner_that_is_killed(two: Cluster, tmp_path: Path, learned: Reference) -> None:
    config, holds = held(tmp_path / "run.yaml", 3, **LEARNERS, failure={"max_failures": 1})
    driver, processes = learning(two, config)
    processes[1].kill()
    holds.release()
    output = ended(driver, trial_of(config), learned)
    assert "died: it was killed or crashed" in output
    assert losses(trial_of(config)) == (1, 0, 0)


@pytest.mark.slow
def test_a_learner_that_hangs_is_named_and_replaced(
    two: Cluster, tmp_path: Path, learned: Reference
) -> None:
    config, holds = held(
        tmp_path / "run.yaml",
        3,
        **LEARNERS,
        failure={"max_failures": 1},
        fault_tolerance={"hang_floor_s": 40},
    )
    driver, processes = learning(two, config)
    with stopped(processes[1]):
        holds.release()
        driver.until(lambda: "no sign of life from" in driver.output())
    output = ended(driver, trial_of(config), learned)
    assert "no sign of life from learner 0 (node 10.77.0." in output
    assert losses(trial_of(config)) == (1, 0, 0)


# -- several trials ------------------------------------------------------------------------------

GRID: dict[str, Any] = {
    "training": {"lr": {"grid_search": [1e-3, 3e-4]}, "gamma": {"grid_search": [0.9, 0.99]}},
    "env_runners": {"num_env_runners": 0},
    "learners": {"num_gpus_per_learner": 0.5},
    "resources": {},
    "stop": {"iterations": 10},
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_several_trials_survive_nodes_that_die_and_then_the_driver(tmp_path: Path) -> None:
    """Four trials of half a (counted) GPU each on two nodes; these die one after another while
    others join; then the driver dies; the same command brings all to their ends."""
    (tmp_path / "alone").mkdir()
    env = {
        "RAY_preload_python_modules": "support.counted_gpus",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    with Cluster(env=env) as cluster:
        for name in "ab":
            cluster.add(name, cpus=2, gpus=1)
        alone = write_config(tmp_path / "alone" / "run.yaml", **GRID)
        left = start(cluster, alone)
        assert left.wait(900) == 0, left.output()
        expected = [Reference(trial_of(alone, index)) for index in range(4)]
        assert len({each.digests()[-1] for each in expected}) == 4

        config, holds = held(tmp_path / "run.yaml", 3, 6, **GRID)
        driver = start(cluster, config)
        for dying, joining in (("a", "c"), ("b", "d")):
            driver.until(lambda: sum(bool(committed(each)) for each in all_of(config)) >= 2)
            cluster.nodes[dying].kill()
            cluster.add(joining, cpus=2, gpus=1)
        holds.release()
        driver.until(lambda: any(iteration_of(each) >= 5 for each in all_of(config)))
        driver.kill()
        holds.release()
        done = {each: finished_at(each) for each in all_of(config) if finished_at(each)}
        again = start(cluster, config)
        assert again.wait(900) == 0, again.output()
        counts = []
        for trial, reference in zip(all_of(config), expected, strict=True):
            assert_same_run(trial, reference)
            counts.append(losses(trial) if (trial / "losses.json").exists() else (0, 0, 0))
        assert sum(failures for failures, _, _ in counts) == 0, again.output()
        assert sum(lost for _, lost, _ in counts) >= 2
        assert all(finished_at(trial) == moment for trial, moment in done.items())


def all_of(config: Path) -> list[Path]:
    return [trial_of(config, index) for index in range(4)]


def finished_at(trial: Path) -> float:
    manifest = trial / "final" / "manifest.json"
    return manifest.stat().st_mtime if manifest.exists() else 0.0
