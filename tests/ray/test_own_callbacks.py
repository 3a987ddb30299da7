"""Callbacks of the user's own: called as often, and with the same, as RLlib calls them."""

from __future__ import annotations

import os
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import own_callbacks
import pytest
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from support.samplers import config, pair, runner, unlike
from support.tiny_ppo import TINY, built, disturb, iterate
from support.tiny_ppo import unlike as trails_unlike

from raytrain import _ray
from raytrain.rollout.env_group import EnvGroup

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(autouse=True)
def no_calls() -> None:
    own_callbacks.CALLS.clear()


def callbacks(name: str) -> dict[str, Any]:
    return {"callbacks": {"callbacks_class": f"own_callbacks:{name}"}}


def calls() -> list[tuple[str, dict[str, Any]]]:
    taken = own_callbacks.CALLS.copy()
    own_callbacks.CALLS.clear()
    return taken


@pytest.mark.parametrize("observation_filter", ["NoFilter", "MeanStdFilter"])
@pytest.mark.parametrize("name", ["Ends", "Chunks"])
def test_episodes_that_end_are_seen_as_rllib_shows_them(name: str, observation_filter: str) -> None:
    filtered: Any = {"env_runners": {"observation_filter": observation_filter}}
    ours, theirs = pair(config(**callbacks(name), **filtered))
    calls()
    ends = 0
    for _ in range(8):
        mine, seen = ours.sample(num_timesteps=40), calls()
        other, expected = theirs.sample(num_timesteps=40), calls()
        assert seen == expected
        assert unlike(mine, other) == []
        ends += [name for name, _ in seen].count("on_episode_end")
    assert ends > 2


def test_an_episode_that_a_callback_changes_is_the_one_that_is_learned_from() -> None:
    ours, theirs = pair(config(**callbacks("Shapes")))
    for _ in range(3):
        mine, other = ours.sample(num_timesteps=60), theirs.sample(num_timesteps=60)
        assert unlike(mine, other) == []
        assert [e.custom_data for e in mine] == [e.custom_data for e in other]
        ended = [row["return"] for row in ours.take_finished()]
        assert ended == [row["return"] for row in theirs.take_finished()]
        assert all(value > 10 for value in ended)


def test_whole_chunks_come_through_a_snapshot() -> None:
    given = config(**callbacks("Chunks"))
    first = runner(EnvGroup, given)
    for _ in range(2):
        first.sample(num_timesteps=9)
    snapshot = first.snapshot()
    calls()
    first.sample(num_timesteps=90)
    expected = calls()
    assert any(arguments["prev_episode_chunks"] for _, arguments in expected)
    again = runner(EnvGroup, given)
    again.restore(snapshot, iteration=2)
    again.sample(num_timesteps=90)
    assert calls() == expected


def test_a_callback_of_running_episodes_needs_rllibs_sampling_and_the_run_says_so() -> None:
    with built(**callbacks("Ends")) as algorithm:
        assert algorithm.told == []
    with built(**callbacks("Steps")) as algorithm:
        assert algorithm.told == [
            "RLlib's own sampling is used, which is several times slower: the callback "
            "Steps.on_episode_step looks at running episodes."
        ]


def test_every_hook_is_called_as_often_and_with_the_same_as_by_rllib(tmp_path: Path) -> None:
    evaluation = {"evaluation_interval": 2, "evaluation_duration": 2}
    with built(**callbacks("Everything"), evaluation=evaluation) as algorithm:
        ours = [*[calls()], *[(algorithm.train(), calls())[1] for _ in range(2)]]
        algorithm.save_exact(tmp_path / "saved")
        calls()
        algorithm.load_exact(tmp_path / "saved")
        loaded = [name for name, _ in calls()]
    assert loaded.count("on_checkpoint_loaded") == 1
    stock = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(**TINY["training"])
        .rl_module(model_config={"fcnet_hiddens": [16]})
        .debugging(seed=5)
        .evaluation(**evaluation)
        .callbacks(own_callbacks.Everything)
    )
    with _ray.local.files_below(tempfile.gettempdir()):
        theirs_algorithm = PPO(stock)
    theirs = [*[calls()], *[(theirs_algorithm.train(), calls())[1] for _ in range(2)]]
    theirs_algorithm.stop()
    # Which episodes end when follows from the seeds, which differ; the rest does not.
    random = {"on_episode_created", "on_episode_start", "on_episode_step", "on_episode_end"}
    for one, other in zip(ours, theirs, strict=True):
        count, expected = Counter(name for name, _ in one), Counter(name for name, _ in other)
        assert {k: n for k, n in count.items() if k not in random} == {
            k: n for k, n in expected.items() if k not in random
        }
        assert count.keys() == expected.keys()
        assert {(n, *a.items()) for n, a in one if n in random} == {
            (n, *a.items()) for n, a in other if n in random
        }
        names = {name: arguments.keys() for name, arguments in one}
        assert names == {name: arguments.keys() for name, arguments in other}


@pytest.mark.parametrize("runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_state_of_callbacks_is_saved_and_their_metrics_are_in_the_result(
    tmp_path: Path, runners: int
) -> None:
    sections: dict[str, Any] = {
        "callbacks": {
            "callbacks_class": ["own_callbacks:Counting", "own_callbacks:Ends"],
            "on_episode_end": "own_callbacks:on_end",
        },
        "env_runners": {"num_env_runners": runners},
    }
    with built(**sections) as algorithm:
        iterate(algorithm, 2)
        algorithm.save_exact(tmp_path / "saved")
        trail = iterate(algorithm, 2)
    assert [iteration.row["results_seen"] for iteration in trail] == [3, 4]
    metrics = trail[-1].row["env_runners"]
    assert metrics["episodes_seen"] > 3
    assert metrics["length_of_function"] >= 1
    disturb()
    with built(**sections) as restored:
        restored.load_exact(tmp_path / "saved")
        assert trails_unlike(trail, iterate(restored, 2)) == []


@pytest.mark.slow
def test_a_runner_that_comes_back_is_told_and_callbacks_of_its_group_go_on() -> None:
    sections: dict[str, Any] = {
        "callbacks": {"callbacks_class": ["own_callbacks:Counting", "own_callbacks:Everything"]},
        "env_runners": {"num_env_runners": 2},
    }
    with built(**sections) as undisturbed:
        trail = iterate(undisturbed, 4)
    with built(**sections) as algorithm:
        first = iterate(algorithm, 1)
        calls()
        pool = algorithm.env_groups._pool
        (victim, *_) = pool.up
        assert victim.process is not None
        os.kill(victim.process.pid, signal.SIGKILL)
        rest = iterate(algorithm, 2)
        pool.wait_for(2)
        assert trails_unlike(trail, first + rest + iterate(algorithm, 1)) == []
        assert [name for name, _ in calls()].count("on_env_runners_recreated") == 1
