"""What an environment does wrong once training goes on: told with file and line, by both
ways of sampling."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wrong_envs
from support.tiny_ppo import TINY, built, iterate, unlike

from raytrain.config import config_from_dict, to_algorithm_config
from raytrain.config.user_code import EnvironmentFailed
from raytrain.errors import RaytrainError
from raytrain.ppo.algorithm import NonFinite, prepare
from raytrain.rollout.env_group import EnvGroup
from raytrain.storage import Location
from raytrain.trial.last_failure import where_the_traceback_is, write_traceback

needs_ray = pytest.mark.usefixtures("local_ray")


@pytest.fixture(params=["arrays", "rllib"])
def sampling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(EnvGroup, "sampling", request.param)
    return str(request.param)


def late(name: str, **sections: Any) -> dict[str, Any]:
    """After 100 steps of an environment it goes wrong; 128 are an iteration's of two of them."""
    return {"environment": {"env": f"wrong_envs:{name}", "env_config": {"after": 100}}, **sections}


def sample(name: str) -> None:
    """100 steps of an environment that goes wrong after 30, by a runner in this
    process, without Ray."""
    environment = {"env": f"wrong_envs:{name}", "env_config": {"after": 30}}
    config = config_from_dict({**TINY, "environment": environment})
    runner = EnvGroup(config=prepare(to_algorithm_config(config)), worker_index=0)
    runner.use_strategy("pickle")
    runner.sample(num_timesteps=100)


@pytest.mark.parametrize(
    ("name", "raised"),
    [
        ("Bug", r"KeyError: 3, in Bug\.wrong"),
        ("Exits", r"SystemExit: no licence, in Exits\.wrong"),
        ("Interrupts", r"KeyboardInterrupt, in Interrupts\.wrong"),
    ],
)
def test_what_a_step_raises(sampling: str, name: str, raised: str) -> None:
    said = rf"^the environment raised {raised} \(wrong_envs\.py, line \d+\)$"
    with pytest.raises(EnvironmentFailed, match=said) as caught:
        sample(name)
    assert "in step" in caught.value.trace
    assert "return self.wrong(*returned)" in caught.value.trace


@needs_ray
def test_what_a_step_raises_crosses_processes() -> None:
    with built(**late("RaisesOwn", env_runners={"num_env_runners": 1})) as algorithm:
        iterate(algorithm, 1)
        with pytest.raises(
            EnvironmentFailed, match=r"OwnError: speed -1.0 at home, in Rai"
        ) as caught:
            iterate(algorithm, 1)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.trace) == (str(caught.value), caught.value.trace)
    assert 'raise OwnError(-1.0, "home")' in again.trace


@needs_ray
def test_a_text_that_is_no_utf_8_crosses_processes() -> None:
    with built(**late("HalfACharacter", env_runners={"num_env_runners": 1})) as algorithm:
        iterate(algorithm, 1)
        with pytest.raises(EnvironmentFailed, match=r"FileNotFoundError: caf\\udcff.csv is not"):
            iterate(algorithm, 1)


@needs_ray
def test_a_process_that_calls_exit_is_no_lost_env_runner() -> None:
    with built(**late("Exits", env_runners={"num_env_runners": 1})) as algorithm:
        iterate(algorithm, 1)
        with pytest.raises(EnvironmentFailed, match="SystemExit: no licence, in Exits"):
            iterate(algorithm, 1)
        assert algorithm.told == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Shape", r"its shape is \(1, 2\), not \(2,\)"),
        (
            "RewardArray",
            "the reward must be one finite number|cannot take what .* setting an array",
        ),
        ("Nothing", "step.. must return five values|cannot take what .* NoneType"),
        ("FourValues", r"step.. must return five values|cannot take what .* not enough values"),
    ],
)
def test_what_a_step_returns(sampling: str, name: str, said: str) -> None:
    with pytest.raises(EnvironmentFailed, match=said) as caught:
        sample(name)
    assert f"{name}.step (wrong_envs.py, line " in str(caught.value)


def test_a_nan_in_the_observation_is_named_before_the_learning_rate(sampling: str) -> None:
    with pytest.raises(RaytrainError) as caught:
        sample("ObservationNan")
    assert "The environment returned the observation [nan nan]. Fix the environment" in str(
        caught.value
    )


@needs_ray
def test_a_nan_reward_is_named_before_the_learning_rate(sampling: str) -> None:
    with built(**late("RewardNan")) as algorithm:
        algorithm.raise_if_not_finite(algorithm.train())
        with pytest.raises(NonFinite) as caught:
            algorithm.raise_if_not_finite(algorithm.train())
    assert "The environment returned the reward nan in step 0 of an episode." in str(caught.value)
    assert "a smaller training.lr cannot help" in str(caught.value)


@needs_ray
def test_without_a_nan_the_learning_rate_is_named() -> None:
    with (
        built(**late("Right", training={"lr": 1e30})) as algorithm,
        pytest.raises(RaytrainError) as caught,
    ):
        for _ in range(4):
            algorithm.raise_if_not_finite(algorithm.train())
    assert "try a smaller training.lr" in str(caught.value)
    assert "finite" in str(caught.value)


@needs_ray
def test_episodes_of_evaluation_end_at_their_limit() -> None:
    evaluation = {
        "evaluation_interval": 1,
        "evaluation_duration": 3,
        "max_episode_steps": 17,
    }
    sections = late("NeverEnds", evaluation=evaluation)
    sections["environment"]["env_config"]["after"] = 0
    with built(**sections) as algorithm:
        first, second = iterate(algorithm, 2)
        assert first.row["evaluation"]["env_runners"]["episode_len_max"] == 17
        assert first.row["evaluation"]["env_runners"]["num_episodes"] == 3
        assert "episode_len_max" not in first.row["env_runners"]  # Training is not limited.
    with built(**sections) as algorithm:
        assert unlike(iterate(algorithm, 2), [first, second]) == []


@needs_ray
def test_a_nan_in_evaluation_alone_is_told() -> None:
    evaluation = {"evaluation_interval": 1, "evaluation_config": {"env_config": {"after": 0}}}
    sections = late("RewardNan", evaluation=evaluation)
    sections["environment"]["env_config"]["after"] = 10**6
    with built(**sections) as algorithm:
        iterate(algorithm, 1)
        assert any(
            "mean return of this evaluation is nan: the env" in each for each in algorithm.told
        )


@needs_ray
def test_a_long_evaluation_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytrain.ppo.slow_evaluation._FIRST_S", 0.05)
    told: list[str] = []
    evaluation = {"evaluation_interval": 1, "evaluation_duration": 1}
    sections = late("NeverEnds", evaluation=evaluation)
    sections["environment"]["env_config"]["after"] = 0

    class Enough(BaseException):
        pass

    def enough(self: Any, action: Any) -> Any:
        if told:
            raise Enough
        return step(self, action)

    step = wrong_envs.Right.step
    with built(**sections) as algorithm:
        monkeypatch.setattr(algorithm, "tell_now", told.append)
        monkeypatch.setattr(wrong_envs.NeverEnds, "step", enough)
        with pytest.raises(EnvironmentFailed, match="Enough"):
            iterate(algorithm, 1)
    assert "training waits for it: no episode has ended in " in told[0]
    assert "evaluation.max_episode_steps" in told[0]


def test_the_whole_traceback_is_kept(tmp_path: Path) -> None:
    place = Location.of(tmp_path)
    error = EnvironmentFailed("the environment raised KeyError: 3")
    error.trace = "Traceback (most recent call last): ..."
    assert write_traceback(place, 6, error)
    text = (tmp_path / "error.txt").read_text()
    assert ", iteration 6\n\nTraceback (most recent call last): ..." in text
    assert where_the_traceback_is(place, error) is None
    error.traceback_in = "error.txt"  # type: ignore[attr-defined]
    delivered: Any = SimpleNamespace(cause=pickle.loads(pickle.dumps(error)))
    assert where_the_traceback_is(place, delivered) == str(tmp_path / "error.txt")


@needs_ray
def test_what_a_factory_raises_in_another_process() -> None:
    environment = {"env": "wrong_envs:here_only", "env_config": {"pid": os.getpid()}}
    with (
        pytest.raises(RaytrainError) as caught,
        built(environment=environment, env_runners={"num_env_runners": 1}) as algorithm,
    ):
        iterate(algorithm, 1)
    assert "raised RuntimeError: no display, in here_only (wrong_envs.py, line " in str(
        caught.value
    )
