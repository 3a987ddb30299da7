"""A killed env runner costs seconds and changes nothing: rows, digests and episodes are those of a
run that nothing happened to."""

from __future__ import annotations

import gc
import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from support.clusters import until
from support.tiny_ppo import Iteration, Told, built, iterate, unlike

from raytrain.config.user_code import EnvironmentFailed
from raytrain.rollout import group_calls
from raytrain.rollout.collector import NoNewEnvSteps
from raytrain.rollout.group_calls import RetryingCall, RunnerLost
from raytrain.rollout.rollout import Rollout

pytestmark = pytest.mark.usefixtures("local_ray")

STUMBLING = {"env": "tiny_envs:Stumbling", "env_config": {"at": 70}}
STUMBLED = (
    r"^the environment raised ValueError: negative speed at step 70, in Stumbling\.stumble "
    r"\(tiny_envs\.py, line \d+\)$"
)
TWO: dict[str, Any] = {"env_runners": {"num_env_runners": 2, "observation_filter": "MeanStdFilter"}}


def one_actor(sections: dict[str, Any]) -> dict[str, Any]:
    """The same groups, all hosted by one actor."""
    return {**sections, "env_runners": {**sections["env_runners"], "max_actors": 1}}


@pytest.fixture(scope="module")
def undisturbed(local_ray: None) -> list[Iteration]:
    with built(**TWO) as algorithm:
        return iterate(algorithm, 3)


def pids(algorithm: Told, count: int) -> list[int]:
    """Of the runners' processes, in group order, once so many are there."""
    pool = algorithm.env_groups._pool
    deadline = time.monotonic() + 600
    while len(pool.up) < count:
        assert time.monotonic() < deadline, f"{len(pool.up)} of {count} came"
        pool.refresh(0.1)
    return [runner.process.pid for runner in pool.up if runner.process is not None]


def _is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def kill(*victims: int) -> None:
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    for pid in victims:
        until(partial(_is_gone, pid), 600, lambda: "it lives on")


@pytest.fixture
def kill_while_sampling(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Kills a process as soon as a rollout is under way: between the call of `rollout` on all
    runners and the wait for the first answer."""
    victims: list[int] = []
    take_answers = RetryingCall._take_answers

    def take(call: RetryingCall) -> None:
        if victims and call.sampling:
            os.kill(victims.pop(), signal.SIGKILL)
        take_answers(call)

    monkeypatch.setattr(RetryingCall, "_take_answers", take)
    return victims.append


DIED = r"The env runner of group (\d+) \(pid \d+ on .+\) died \(.*nothing is lost"


def losses(told: list[str]) -> list[int]:
    """Whose loss was told, in order. The other sentences are about who hosts what, and of a slow
    machine, that nobody is there yet."""
    others = (" env group(s) are hosted by ", "No env runner is alive ")
    sentences = [each for each in told if not any(other in each for other in others)]
    found = [int(match[1]) for each in sentences if (match := re.match(DIED, each))]
    assert len(found) == len(sentences), sentences
    return found


def test_a_runner_killed_at_any_moment_changes_nothing(
    undisturbed: list[Iteration], kill_while_sampling: Callable[[int], None]
) -> None:
    with built(**TWO) as algorithm:
        # Ray starts an actor again with the arguments of its first start: they must live on.
        gc.collect()
        trail = iterate(algorithm, 1)
        kill_while_sampling(pids(algorithm, 2)[1])
        trail += iterate(algorithm, 1)
        kill(*pids(algorithm, 2))
        trail += iterate(algorithm, 1)
        pids(
            algorithm, 2
        )  # The loss of one that had done nothing yet is told when the next one comes.
        assert sorted(losses(algorithm.told)) == [0, 1, 1]
        assert algorithm.env_groups._pool.failures == 3
    assert unlike(undisturbed, trail) == []


@pytest.mark.slow
def test_one_actor_for_several_groups_gives_the_same_result_and_may_die(
    undisturbed: list[Iteration],
    kill_while_sampling: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_calls, "_NO_RUNNER_MESSAGE_S", -1.0)
    with built(**one_actor(TWO)) as algorithm:
        trail = iterate(algorithm, 1)
        kill_while_sampling(*pids(algorithm, 1))
        trail += iterate(algorithm, 2)
        nobody, loss = algorithm.told
    assert re.match(DIED, loss)
    assert "Iteration 2 of groups 0, 1 is sampled again from their last state" in loss
    # Whoever looks meanwhile is told why nothing happens.
    assert nobody.startswith("No env runner is alive for groups 0, 1: the last one died (")
    assert unlike(undisturbed, trail) == []


@pytest.mark.slow
def test_with_continue_an_iteration_goes_on_with_fewer_samples_but_not_for_ever(
    kill_while_sampling: Callable[[int], None],
) -> None:
    rules = {"on_env_runner_loss": "continue", "max_short_iterations": 1}
    with built(**TWO, fault_tolerance=rules) as algorithm:
        trail = []
        # Not the same one twice: whether one that came again had answered anything before it is
        # killed again is chance, and nothing is dropped for the loss of one that had not.
        for index in (1, 0):
            kill_while_sampling(pids(algorithm, 2)[index])
            trail += iterate(algorithm, 1)
            row = trail[-1].row["fault_tolerance"]
            assert row["num_env_runners_dropped_lifetime"] == 1
        pids(algorithm, 2)
        first, second = (each for each in algorithm.told if " died (" in each)
    one, both = (each.row["num_env_steps_sampled_lifetime"] for each in trail)
    # Two groups take some 64 steps each; the second iteration in a row waits for both.
    assert 60 <= one <= 70 and 120 <= both - one <= 140
    assert "Iteration 1 continues without group 1 (fault_tolerance.on_env_runner_loss" in first
    assert re.search(r"Iteration 2 of groups? 0.* is sampled again", second)
    (why,) = algorithm.inexact
    assert "iteration 1 continued without env group(s) 1" in why


def hanging(place: Path) -> dict[str, Any]:
    """CartPole that hangs in its 40th step, unless the file is there."""
    return {"env": "tiny_envs:Hanging", "env_config": {"at": 40, "unless": str(place)}}


@pytest.mark.slow
def test_a_hanging_step_is_named_and_sampled_again_elsewhere(
    undisturbed: list[Iteration], tmp_path: Path
) -> None:
    sections = {**TWO, "fault_tolerance": {"env_runner_timeout_s": 20}}
    with built(**sections, environment=hanging(tmp_path / "hung")) as algorithm:
        trail = iterate(algorithm, 3)
        told = next(each for each in algorithm.told if "hung for" in each)
    assert re.match(
        r"The env runner of group \d \(pid \d+ on .+\) hung for \d+ s in group \d "
        r"\(in Hanging.step \(tiny_envs.py, line \d+\), there in wait \(threading.py, line \d+\)\) "
        r"and was killed. Iteration 2 of group \d is sampled again",
        told,
    ), told
    assert unlike(undisturbed, trail) == []


@pytest.mark.slow
def test_a_step_that_hangs_each_time_ends_the_trial(tmp_path: Path) -> None:
    sections = {**TWO, "fault_tolerance": {"env_runner_timeout_s": 10}}
    place = tmp_path / "no" / "such" / "directory"
    with built(**sections, environment=hanging(place)) as algorithm:
        iterate(algorithm, 1)
        said = r"lost 3 times in a row in iteration 2 .*in Hanging.step \(tiny_envs.py"
        with pytest.raises(RunnerLost, match=said):
            iterate(algorithm, 1)


def test_what_a_step_raises_is_what_the_trial_raises_without_runners() -> None:
    with (
        built(environment=STUMBLING) as algorithm,
        pytest.raises(EnvironmentFailed, match=STUMBLED),
    ):
        iterate(algorithm, 2)


def test_what_a_step_raises_in_a_runner_is_what_the_trial_raises() -> None:
    one = {**TWO, "env_runners": {"num_env_runners": 1}, "environment": STUMBLING}
    with built(**one) as algorithm:
        iterate(algorithm, 1)
        with pytest.raises(EnvironmentFailed, match=STUMBLED) as caught:
            iterate(algorithm, 1)
        # Not a class that Ray makes of it, whose text has process ids in it.
        assert type(caught.value) is EnvironmentFailed
        assert "in stumble" in caught.value.trace
        assert algorithm.told == []


@pytest.mark.slow
def test_a_runner_that_ray_does_not_start_again_ends_the_trial() -> None:
    with built(**{**TWO, "env_runners": {"num_env_runners": 1}}) as algorithm:
        iterate(algorithm, 1)
        (host,) = algorithm.env_groups._pool.up
        ray.kill(host.actor)
        with pytest.raises(RunnerLost, match="No env runner is left, and Ray restarts none"):
            iterate(algorithm, 1)


def test_an_iteration_without_new_steps_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with built() as algorithm:
        iterate(algorithm, 1)
        runner = algorithm.env_runner
        nothing = Rollout([], runner.get_metrics(), [], runner.connector_state(), None)
        monkeypatch.setattr(runner, "rollout", lambda *args, **kwargs: nothing)
        with pytest.raises(NoNewEnvSteps, match=r"Iteration 2 got no new environment steps"):
            algorithm.train()
