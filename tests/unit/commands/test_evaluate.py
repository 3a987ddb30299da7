"""Episodes that do not end, and environments that fail, in `raytrain evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import wrong_envs
from support.commands import here

from raytrain.checkpoint import ExperimentFile
from raytrain.config import config_digest, config_from_dict
from raytrain.config.user_code import EnvironmentFailed
from raytrain.policy.evaluate import Evaluation, evaluate
from raytrain.storage import Location


class Still:
    """A policy that always takes action 0."""

    observation_space = wrong_envs.Right.observation_space
    action_space = wrong_envs.Right.action_space
    env_config: ClassVar[dict[str, Any]] = {}
    action_mask = None

    def reset(self) -> None:
        pass

    def seed(self, seed: int) -> None:
        pass

    def act(self, observation: Any, *, deterministic: bool, action_mask: Any = None) -> Any:
        return np.int64(0)


def played(env: Any, **options: Any) -> tuple[Evaluation, list[str]]:
    told: list[str] = []
    policy: Any = Still()
    return evaluate(policy, env, episodes=3, seed=0, tell=told.append, **options), told


def test_an_episode_is_cut_at_the_limit_and_counted() -> None:
    result, _ = played(wrong_envs.NeverEnds, max_steps=7)
    assert (result.lengths, result.episodes_cut, result.max_steps) == ((7, 7, 7), 3, 7)
    result, _ = played(wrong_envs.Right, max_steps=10)  # which end there by themselves
    assert (result.lengths, result.episodes_cut) == ((10, 10, 10), 0)
    assert played(wrong_envs.Right)[0].to_dict()["episodes_cut"] == 0


def test_an_episode_that_takes_long_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytrain.policy.evaluate._SLOW_S", 0.0)
    _, told = played(wrong_envs.NeverEnds, max_steps=2)
    assert told[0].startswith("Episode 0 has not ended after 1 steps and 0 s. An environment that")
    assert "--max-steps" in told[0]
    assert "evaluation.max_episode_steps" in told[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Bug", r"^step\(\) raised KeyError: 3, in Bug\.wrong \(wrong_envs\.py, line \d+\)$"),
        ("NoInfo", r"^reset\(\) must return two values"),
        ("FourValues", r"^step\(\) must return five values"),
        ("RewardNone", "^the reward must be one finite number"),
        ("RewardNan", "^the reward must be one finite number.* returned nan"),
        ("ObservationNan", "^the observation must fit its space.*it contains NaN or infinity"),
        ("Shape", r"^the observation must fit its space.*its shape is \(1, 2\), not \(2,\)"),
        ("FlagNone", "^terminated must be True or False"),
        ("InfoNone", "^info must be a dict"),
    ],
)
def test_what_an_environment_does_wrong(name: str, said: str) -> None:
    with pytest.raises(EnvironmentFailed, match=said):
        played(getattr(wrong_envs, name))


def test_a_close_that_raises_does_not_cost_the_results() -> None:
    result, told = played(wrong_envs.BrokenClose)
    assert result.lengths == (10, 10, 10)
    assert told[0].startswith(
        "close() raised OSError: still open, in BrokenClose.close (wrong_envs"
    )


@pytest.fixture
def never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment with a limit in its config, and the policy above as its checkpoint."""
    config = config_from_dict(
        {
            "name": "run",
            "environment": {"env": "wrong_envs:NeverEnds"},
            "evaluation": {"max_episode_steps": 4},
            "stop": {"iterations": 1},
        }
    )
    place = tmp_path / "run"
    place.mkdir()
    ExperimentFile(
        name="run",
        run_id="0",
        config=config.to_dict(),
        config_digest=config_digest(config),
        snapshot={"strategy": "pickle", "exact": True, "reason": "", "global_random": []},
        versions={},
        first_start="2026-01-01T00:00:00+00:00",
    ).write(Location.of(place))
    monkeypatch.setattr("raytrain.commands.evaluate.load_policy", lambda path: Still())
    return place


def test_the_limit_is_the_options_or_the_configs(never_ends: Path) -> None:
    ended = here("evaluate", never_ends, "--episodes", 2, "--max-steps", 3, "--json")
    assert ended.code == 0
    assert ended.document["lengths"] == [3, 3]
    assert ended.document["episodes_cut"] == 2
    ended = here("evaluate", never_ends, "--episodes", 2)
    assert ended.out.splitlines()[-1] == "2 of 2 episodes ended after 4 steps"
