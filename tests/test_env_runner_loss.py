"""A killed env runner costs seconds and changes nothing: rows, digests and episodes are those of a
run that nothing happened to."""

from __future__ import annotations

import gc
import os
import re
import signal
import time

import psutil
import pytest
import ray
from tiny_ppo import Told, built, iterate, unlike

from raytrain.trainable.groups import NoNewEnvSteps
from raytrain.trainable.rounds import Round, RunnerLost
from raytrain.trainable.runner import Rollout

pytestmark = pytest.mark.usefixtures("local_ray")

STUMBLING = {"env": "tiny_ppo:Stumbling", "env_config": {"at": 70}}
TWO = {"env_runners": {"num_env_runners": 2, "observation_filter": "MeanStdFilter"}}


def pids(algorithm: Told) -> list[int]:
    """Of the runners' processes that are there, in group order."""
    return [host.where.pid for host in algorithm._groups._hosts.up]


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

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *victims: int) -> None:
        self._take_answers, self._victims = Round._take_answers, list(victims)
        monkeypatch.setattr(Round, "_take_answers", lambda round_: self(round_))

    def __call__(self, round_: Round) -> None:
        if self._victims and round_._question.sampling:
            os.kill(self._victims.pop(0), signal.SIGKILL)
        self._take_answers(round_)


DIED = r"The env runner of group (\d+) \(pid \d+ on .+\) died \(.*nothing is lost"


def losses(told: list[str]) -> list[int]:
    """Whose loss was told, in order. Other sentences are about who hosts what."""
    others = ("2 env group(s) are hosted by", "4 env group(s) are hosted by")
    sentences = [each for each in told if not each.startswith(others)]
    found = [int(match[1]) for each in sentences if (match := re.match(DIED, each))]
    assert len(found) == len(sentences), sentences
    return found


def test_a_runner_killed_at_any_moment_changes_nothing(monkeypatch):
    with built(**TWO) as algorithm:
        undisturbed = iterate(algorithm, 3)
    with built(**TWO) as algorithm:
        # Ray starts an actor again with the arguments of its first start: they must live on.
        gc.collect()
        trail = iterate(algorithm, 1)
        KillWhileSampling(monkeypatch, pids(algorithm)[1])
        trail += iterate(algorithm, 1)
        kill(*pids(algorithm))
        trail += iterate(algorithm, 1)
        assert losses(algorithm.told) == [1, 0, 1]
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
        (host,) = algorithm._groups._hosts.up
        ray.kill(host.actor)
        with pytest.raises(RunnerLost, match="No env runner is left, and Ray starts none again"):
            iterate(algorithm, 1)


def test_an_iteration_without_new_steps_is_an_error(monkeypatch):
    with built() as algorithm:
        iterate(algorithm, 1)
        runner = algorithm.env_runner
        nothing = Rollout([], runner.get_metrics(), [], runner.connector_state(), None)
        monkeypatch.setattr(runner, "rollout", lambda *args, **kwargs: nothing)
        with pytest.raises(NoNewEnvSteps, match=r"Iteration 2 got no new environment steps"):
            algorithm.train()
