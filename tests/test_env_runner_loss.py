"""A killed env runner costs seconds and changes nothing: rows, digests and episodes are those of a
run that nothing happened to."""

from __future__ import annotations

import gc
import os
import re
import signal
import time
from typing import Any

import psutil
import pytest
import ray
from tiny_ppo import Told, built, iterate, unlike

from raytrain.trainable.groups import EnvGroups, NoNewEnvSteps, RunnerLost
from raytrain.trainable.runner import Rollout

pytestmark = pytest.mark.usefixtures("local_ray")

STUMBLING = {"env": "tiny_ppo:Stumbling", "env_config": {"at": 70}}
TWO = {"env_runners": {"num_env_runners": 2, "observation_filter": "MeanStdFilter"}}


def pids(algorithm: Told) -> list[int]:
    """Of the runners' processes, in group order."""
    actors = algorithm.env_runner_group._worker_manager.actors()
    return ray.get([actors[index].apply.remote(lambda r: os.getpid()) for index in sorted(actors)])


def kill(*victims: int) -> None:
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    for pid in victims:
        deadline = time.monotonic() + 10
        while psutil.pid_exists(pid) and time.monotonic() < deadline:
            time.sleep(0.01)


class KillWhileSampling:
    """Kills a process as soon as a rollout is under way: between the call of `rollout` on all
    runners and the wait for the first answer."""

    def __init__(self, algorithm: Told, victim: int) -> None:
        self._wait, self._groups, self._victim = algorithm._groups._wait, algorithm._groups, victim
        algorithm._groups._wait = self

    def __call__(self, index: int, reference: Any) -> Any:
        self._groups._wait = self._wait
        os.kill(self._victim, signal.SIGKILL)
        return self._wait(index, reference)


def assert_told(told: list[str], groups: list[int]) -> None:
    found = [
        int(match[1])
        for sentence in told
        if (match := re.match(r"The env runner of group (\d+) died \(.*nothing is lost", sentence))
    ]
    assert (found, len(told)) == (groups, len(groups)), told


def test_a_runner_killed_at_any_moment_changes_nothing():
    with built(**TWO) as algorithm:
        undisturbed = iterate(algorithm, 3)
    with built(**TWO) as algorithm:
        # Ray starts an actor again with the arguments of its first start: they must live on.
        gc.collect()
        trail = iterate(algorithm, 1)
        KillWhileSampling(algorithm, pids(algorithm)[1])
        trail += iterate(algorithm, 1)
        kill(*pids(algorithm))
        trail += iterate(algorithm, 1)
        assert_told(algorithm.told, [1, 0, 1])
    assert unlike(undisturbed, trail) == []


def test_what_a_step_raises_is_what_the_trial_raises_without_runners():
    with (
        built(environment=STUMBLING) as algorithm,
        pytest.raises(ValueError, match=r"^negative speed at step 70$") as caught,
    ):
        iterate(algorithm, 2)
    assert type(caught.value) is ValueError


def test_what_a_step_raises_in_a_runner_is_what_the_trial_raises():
    one = {**TWO, "env_runners": {"num_env_runners": 1}, "environment": STUMBLING}
    with built(**one) as algorithm:
        iterate(algorithm, 1)
        with pytest.raises(ValueError, match=r"^negative speed at step 70$") as caught:
            iterate(algorithm, 1)
        # Not a class that Ray makes of it, whose text has process ids in it.
        assert type(caught.value) is ValueError
        assert "in stumble" in str(caught.value.__cause__)
        assert algorithm.told == []


def test_a_runner_that_ray_does_not_start_again_ends_the_trial():
    with built(**{**TWO, "env_runners": {"num_env_runners": 1}}) as algorithm:
        iterate(algorithm, 1)
        (actor,) = algorithm.env_runner_group._worker_manager.actors().values()
        ray.kill(actor)
        with pytest.raises(RunnerLost, match="env runner of group 0"):
            iterate(algorithm, 1)


def test_an_iteration_without_new_steps_is_an_error(monkeypatch):
    with built() as algorithm:
        iterate(algorithm, 1)
        runner = algorithm.env_runner
        nothing = Rollout([], runner.get_metrics(), [], runner.connector_state(), None)
        monkeypatch.setattr(runner, "rollout", lambda *args, **kwargs: nothing)
        with pytest.raises(NoNewEnvSteps, match=r"Iteration 2 got no new environment steps"):
            algorithm.train()


def test_an_actor_that_hosts_several_groups_is_no_other_result_and_may_die_too():
    with built(**TWO) as algorithm:
        apart = iterate(algorithm, 3)
    with built(**TWO) as algorithm:
        algorithm._groups = EnvGroups(
            algorithm.env_runner_group,
            strategy=algorithm.strategy,
            tell=algorithm.tell,
            sample_timeout_s=algorithm.config.sample_timeout_s,
            hosts={0: 1, 1: 1},
        )
        algorithm._start_groups({}, {}, iteration=0)
        trail = iterate(algorithm, 1)
        KillWhileSampling(algorithm, pids(algorithm)[1])
        trail += iterate(algorithm, 2)
        # Each group's fragment is lost with the actor.
        assert_told(algorithm.told, [0, 1])
    assert unlike(apart, trail) == []
