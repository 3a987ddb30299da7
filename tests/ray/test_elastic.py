"""Nodes that go and come, and others who want their room: the run stays the same run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from support.tiny_ppo import Iteration, Told, built, iterate, unlike

FOUR: dict[str, Any] = {
    "env_runners": {
        "num_env_runners": 4,
        "num_envs_per_env_runner": 1,
        "observation_filter": "MeanStdFilter",
    }
}
ITERATIONS = 5


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    ray.shutdown()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def actors(algorithm: Told, count: int) -> list[Any]:
    """The runners that are there, once it is so many."""
    pool = algorithm.env_groups._pool
    deadline = time.monotonic() + 600
    while len(pool.up) != count:
        assert time.monotonic() < deadline, f"{len(pool.up)} instead of {count}: {algorithm.told}"
        pool.refresh(0.1)
    return pool.up


def hosted_by(trail: list[Iteration]) -> list[int]:
    return [each.row["fault_tolerance"]["num_healthy_workers"] for each in trail]


@pytest.mark.slow
def test_four_actors_then_one_then_three_as_nodes_go_and_come(cluster: Cluster) -> None:
    """4 groups. A node is lost with three of four actors in the middle of an iteration; another one
    with room for two joins; one of those is killed."""
    node = cluster.add_node(num_cpus=3)
    with built(**FOUR) as algorithm:
        actors(algorithm, 4)
        trail = iterate(algorithm, 1)
        cluster.remove_node(node, allow_graceful=False)
        trail += iterate(algorithm, 2)
        cluster.add_node(num_cpus=2)
        last = actors(algorithm, 3)[-1]
        trail += iterate(algorithm, 1)
        os.kill(last.process.pid, signal.SIGKILL)
        trail += iterate(algorithm, 1)
        assert hosted_by(trail[:4]) == [4, 1, 1, 3]
        assert any("4 env group(s) are hosted by 3" in each for each in algorithm.told)
    one_actor = {**FOUR["env_runners"], "max_actors": 1}
    with built(env_runners=one_actor) as algorithm:
        undisturbed = iterate(algorithm, ITERATIONS)
    assert set(hosted_by(undisturbed)) == {1}
    assert unlike(undisturbed, trail) == []


@pytest.mark.slow
def test_further_actors_make_room_for_a_placement_group_and_come_back(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1)
    two = {**FOUR["env_runners"], "num_env_runners": 2, "max_actors": 2}
    with built(env_runners=two) as algorithm:
        actors(algorithm, 2)
        trail = iterate(algorithm, 1)
        wanted = ray.util.placement_group([{"CPU": 1}])
        deadline = time.monotonic() + 600
        while not wanted.wait(0.1):
            trail += iterate(algorithm, 1)
            assert time.monotonic() < deadline
        assert hosted_by(iterate(algorithm, 1)) == [1]
        assert any(
            "another trial is waiting for resources" in message for message in algorithm.told
        )
        ray.util.remove_placement_group(wanted)
        while len(algorithm.env_groups._pool.up) < 2:
            iterate(algorithm, 1)
            assert time.monotonic() < deadline
        done = algorithm.iteration
        digest = algorithm.weights_digest
    with built(env_runners={**two, "max_actors": 1}) as algorithm:
        assert iterate(algorithm, done)[-1].weights_sha256 == digest
