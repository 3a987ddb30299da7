"""What `raytrain/_ray/cluster.py` relies on in Ray. Each test fails when Ray changes that; then
look at the entry of the same name. (`drain_node` is tried on real nodes in `test_nodes.py`.)"""

from __future__ import annotations

import inspect
import os

import pytest
import ray
from ray._private.worker import global_worker
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from support.tiny_ppo import built

from raytrain import _ray
from raytrain.driver.tuner import ExperimentScheduler
from raytrain.trial.trainable import remote_actors

pytestmark = pytest.mark.usefixtures("local_ray")


@ray.remote(num_cpus=0)
class Actor:
    def answer(self) -> int:
        return 42

    def pid(self) -> int:
        return os.getpid()


@ray.remote(num_cpus=0)
def task() -> int:
    return os.getpid()


def test_actors_are_found_on_their_nodes() -> None:
    (node,) = ray.nodes()
    actor = Actor.remote()
    ray.get(actor.answer.remote())
    assert _ray.cluster.actor_node(actor) == node["NodeID"]
    assert _ray.cluster.actor_node("f" * 32) is None


def test_nodes_that_are_not_draining_are_not_said_to() -> None:
    assert _ray.cluster.draining_nodes() == {}
    assert callable(global_worker.gcs_client.drain_node)


def test_a_group_that_learns_in_the_trial_has_no_learner_actors() -> None:
    with built() as algorithm:
        assert _ray.cluster.learner_actors(algorithm.learner_group) == []
        assert remote_actors(algorithm) == {}
    assert "self._workers = [w.actor for w in" in inspect.getsource(LearnerGroup.__init__)


def test_a_trial_says_what_it_asks_for() -> None:
    asked = PlacementGroupFactory([{"CPU": 1.0}, {"GPU": 0.5}])
    trial = Trial("PPO", stub=True)
    assert hasattr(trial, "placement_group_factory")
    trial.placement_group_factory = asked
    assert trial.placement_group_factory.bundles == [{"CPU": 1.0}, {"GPU": 0.5}]


def test_a_trial_that_leaves_is_paused_and_no_other() -> None:
    scheduler = ExperimentScheduler({}, lambda trial: None)
    assert isinstance(scheduler, FIFOScheduler)
    leaves = {"raytrain/leaving/address": "10.0.0.1", "training_iteration": 3}
    assert scheduler.on_trial_result(None, None, leaves) == TrialScheduler.PAUSE
    assert scheduler.on_trial_result(None, None, {"raytrain/attempt": 2}) == TrialScheduler.CONTINUE
