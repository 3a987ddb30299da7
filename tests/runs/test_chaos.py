"""Whatever strikes an experiment of four trials, it ends as if left alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from support.chaos import local, nodes
from support.chaos.campaign import Campaign
from support.chaos.schedule import scattered
from support.chaos.trials import Trials
from support.clusters import free_port
from support.namespaces import SWITCH, Cluster, why_not
from support.running import Holds, Reference, Run, experiment_of, trial_of, write_config
from support.s3_store import Proxy, environment, file_system
from support.same_run import assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

TRIALS, ITERATIONS = 4, 32
SECTIONS: dict[str, Any] = {
    "training": {"lr": {"grid_search": [1e-3, 3e-4]}, "gamma": {"grid_search": [0.9, 0.99]}},
    # All four side by side, on however few cores: each is held shortly before its end.
    "env_runners": {"num_env_runners": 1, "num_cpus_per_env_runner": 0},
    "learners": {"num_learners": 1, "num_cpus_per_learner": 0},
    "resources": {"num_cpus_for_main_process": 0},
    "stop": {"iterations": ITERATIONS},
    "failure": {"max_failures": 100},
}
# Begun, but not done. Each waits in its iteration HELD + 1 until the last fault has struck, so that
# none ends before, however fast it is.
HELD = ITERATIONS - 4
FIRST, LAST = TRIALS * ITERATIONS // 16, TRIALS * ITERATIONS * 3 // 4
FURTHER = 4
PATIENCE_S = 900.0
_no_nodes = why_not()


def seeds(*usual: int) -> list[int]:
    given = os.environ.get("CHAOS_SEEDS", "").split()
    return [int(seed) for seed in given] or list(usual)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Reference]:
    """The same experiment, left alone."""
    config = write_config(tmp_path_factory.mktemp("alone") / "run.yaml", **SECTIONS)
    run = Run("train", str(config), log=config.parent / "log.txt")
    assert run.wait(PATIENCE_S) == 0, run.output()
    found = [Reference(trial_of(config, index)) for index in range(TRIALS)]
    assert len({each.digests()[-1] for each in found}) == TRIALS
    return found


def assert_all_same(experiment: Path, alone: list[Reference]) -> None:
    """All done, each iteration once in every record, and all digests equal."""
    found = sorted(path for path in experiment.glob("trial_*") if path.is_dir())
    assert len(found) == TRIALS
    for trial, reference in zip(found, alone, strict=True):
        assert_same_run(trial, reference)
        assert (trial / "final" / "manifest.json").exists()


@pytest.mark.parametrize("seed", seeds(0, 1))
def test_processes_and_files(tmp_path: Path, alone: list[Reference], seed: int) -> None:
    holds = Holds(tmp_path, HELD)
    config = write_config(tmp_path / "run.yaml", **SECTIONS, **holds.sections)
    stage = local.LocalStage(config)
    schedule = scattered(seed, local.KINDS, len(local.KINDS) + FURTHER, FIRST, LAST)
    campaign = Campaign(stage, schedule, patience_s=PATIENCE_S)
    campaign.carry_out(holds.release)
    assert campaign.counts() == Counter(fault.kind for fault in schedule.faults)
    assert stage.trials.unnoticed() == []
    try:
        assert_all_same(experiment_of(config), alone)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{campaign.history()}") from error


@pytest.fixture
def cluster_and_proxy(s3_port: int) -> Iterator[tuple[Cluster, Proxy]]:
    """A cluster that has its storage behind a proxy in its own network."""
    port = free_port()
    with (
        Cluster(env=environment(port, SWITCH)) as cluster,
        Proxy(s3_port, SWITCH, cluster.new_socket, port) as proxy,
    ):
        yield cluster, proxy


@pytest.mark.skipif(_no_nodes is not None, reason=str(_no_nodes))
@pytest.mark.parametrize("seed", seeds(0))
def test_processes_nodes_links_files_and_the_store(
    tmp_path: Path,
    alone: list[Reference],
    s3_port: int,
    cluster_and_proxy: tuple[Cluster, Proxy],
    seed: int,
) -> None:
    name, root = f"run{seed}", "s3://bucket/chaos"
    holds = Holds(tmp_path, HELD)
    sections = {**SECTIONS, **holds.sections}
    sections["resources"] = {
        **sections["resources"],
        "custom_resources_for_main_process": {"worker": 0.5},
    }
    config = write_config(tmp_path / "run.yaml", **sections, name=name, storage_path=root)
    store = file_system(s3_port)
    trials = Trials(store, f"bucket/chaos/{name}")
    cluster, proxy = cluster_and_proxy
    log = tmp_path / "log.txt"
    command = partial(cluster.driver, "train", str(config), log=log)
    stage = nodes.NodesAndStore(cluster, proxy, command, trials)
    schedule = scattered(seed, nodes.KINDS, len(nodes.KINDS) + FURTHER, FIRST, LAST)
    campaign = Campaign(stage, schedule, patience_s=PATIENCE_S, pace_s=1.0)
    campaign.carry_out(holds.release)
    assert campaign.counts() == Counter(fault.kind for fault in schedule.faults)
    assert trials.unnoticed() == []
    assert "The storage does not answer" in log.read_text()
    try:
        pafs.copy_files(
            f"bucket/chaos/{name}",
            str(tmp_path / "found"),
            source_filesystem=store,
            destination_filesystem=pafs.LocalFileSystem(),
        )
        assert_all_same(tmp_path / "found", alone)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{campaign.history()}") from error
