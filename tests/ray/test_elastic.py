"""Fewer or more actors, nodes that go and come, others who want room: the run stays
the same run."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import pytest
import ray
from ray.cluster_utils import Cluster
from support.tiny_ppo import Iteration, Told, built, iterate, unlike

from raytrain.cluster.placement import fits, unplaced
from raytrain.rollout.runner_pool import RunnerRules, spread
from raytrain.rollout.timeout import RolloutTimeout, StallReporter

FOUR: dict[str, Any] = {
    "env_runners": {
        "num_env_runners": 4,
        "num_envs_per_env_runner": 1,
        "observation_filter": "MeanStdFilter",
    }
}
ITERATIONS = 5


def test_groups_are_at_their_own_actors_or_spread_over_those_that_are_there() -> None:
    groups = range(4)
    assert spread(groups, [0, 1, 2, 3], {}) == {0: 0, 1: 1, 2: 2, 3: 3}
    assert spread(groups, [2], {0: 0, 1: 1, 2: 2, 3: 3}) == dict.fromkeys(groups, 2)
    assert spread(groups, [0, 2], dict.fromkeys(groups, 2)) == {0: 0, 1: 2, 2: 2, 3: 0}
    # Who may stay stays.
    assert spread(groups, [0, 2, 3], {0: 0, 1: 2, 2: 2, 3: 0}) == {0: 0, 1: 2, 2: 2, 3: 3}


def test_every_spread_is_even() -> None:
    for groups in range(1, 9):
        for pattern in range(1, 2**groups):
            pool = [index for index in range(groups) if pattern >> index & 1]
            loads = list(spread(range(groups), pool, dict.fromkeys(range(groups), 0)).values())
            counts = [loads.count(host) for host in pool]
            assert sum(counts) == groups and max(counts) - min(counts) <= 1


def test_the_number_of_actors_is_bounded_by_that_of_groups() -> None:
    assert RunnerRules().actors(4) == (1, 4)
    assert RunnerRules(min_actors=2, max_actors=3).actors(4) == (2, 3)
    assert RunnerRules(min_actors=2, max_actors=3).actors(1) == (1, 1)
    assert RunnerRules().actors(0) == (0, 0)


def test_room_is_what_no_placement_group_has_reserved() -> None:
    nodes = {"a": {"CPU": 4.0}, "b": {"CPU": 2.0, "GPU": 1.0}}
    groups = {
        "placed": {"bundles": {0: {"CPU": 1.0}, 1: {"CPU": 2.0}}, "bundles_to_node_id": {0: "a",
            1: "a"}},
        # One of its nodes is gone.
        "half": {"bundles": {0: {"CPU": 1.0}, 1: {"CPU": 2.0}}, "bundles_to_node_id": {0: "b",
            1: "z"}},
        "new": {"bundles": {0: {"GPU": 1.0}}, "bundles_to_node_id": {0: ""}},
    }  # fmt: skip
    left, waiting = unplaced(nodes, groups)
    assert left == [{"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}]
    assert waiting == {"half": [{"CPU": 2.0}], "new": [{"GPU": 1.0}]}
    assert fits(waiting["new"], left)
    assert not fits(waiting["half"], left)
    assert fits([{"CPU": 1.0}, {"CPU": 1.0}], left)
    assert not fits([{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}], left)


def test_patience_learns() -> None:
    patience = RolloutTimeout("auto")
    assert patience.limit_s() == 600
    patience.add(0.2)
    assert patience.limit_s() == 60
    patience.add(30.0)
    assert patience.limit_s() == 150
    assert RolloutTimeout(7.0).limit_s() == 7
    assert RolloutTimeout(None).limit_s() is None


class Slow(gym.Env[Any, Any]):
    def step(self, action: Any) -> Any:
        action.wait(600)


def test_a_thread_that_stands_is_found_where_it_stands() -> None:
    said: list[str] = []
    heard = threading.Event()

    def report(text: str) -> None:
        said.append(text)
        heard.set()

    reporter = StallReporter(report)
    for _ in range(3):  # What ends in time is not reported, nor is a later deadline waited for.
        with reporter.watching(60):
            pass
    with reporter.watching(0.05):
        Slow().step(heard)
    line = Slow.step.__code__.co_firstlineno + 1
    assert said[0].startswith(f"in Slow.step (test_elastic.py, line {line}), there in wait (thread")
    with reporter.watching(None):
        pass
    assert len(said) == 1


# -- with real nodes -----------------------------------------------------------------------------


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
    pool = algorithm._groups._pool
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
def test_room_is_made_for_a_placement_group_and_taken_again(cluster: Cluster) -> None:
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
        while len(algorithm._groups._pool.up) < 2:
            iterate(algorithm, 1)
            assert time.monotonic() < deadline
        done = algorithm.iteration
        digest = algorithm.weights_digest
    with built(env_runners={**two, "max_actors": 1}) as algorithm:
        assert iterate(algorithm, done)[-1].weights_sha256 == digest
