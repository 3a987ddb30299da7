"""Play whole episodes with a policy and summarize their returns and lengths.

Episode i is reset with the seed `seed + i`, and the policy's own generator is seeded with the same
number, so an episode does not depend on those before it: the first ten of a hundred are the ten of
an evaluation with `episodes=10`. Neither this module nor the policy uses a global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from raytrain.errors import BadInput

if TYPE_CHECKING:  # it imports RLlib, which takes seconds
    from raytrain.checkpoint.policy import Policy


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of the episodes in their order; stds are those of the population."""

    seed: int
    deterministic: bool
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    episode_return_mean: float
    episode_return_std: float
    episode_return_min: float
    episode_return_max: float
    episode_len_mean: float
    episode_len_std: float
    episode_len_min: int
    episode_len_max: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`; `episodes` is the number of episodes."""
        plain = asdict(self)
        return {
            "episodes": len(self.returns),
            **plain,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
        }


def evaluate(
    policy: Policy,
    make_env: Callable[[], gym.Env[Any, Any]],
    *,
    episodes: int,
    seed: int,
    deterministic: bool = True,
    max_steps: int | None = None,
    track: Callable[[range], Iterable[int]] = iter,
) -> Evaluation:
    """Play `episodes` episodes in one environment, closed at the end. `track` passes the numbers of
    the episodes on, and may show how many are done.

    `max_steps` cuts an episode that neither terminates nor is truncated before. Raises BadInput for
    numbers below one, and for an environment whose spaces are not the policy's.
    """
    if episodes < 1:
        raise BadInput(f"episodes is {episodes}: at least one is needed")
    if max_steps is not None and max_steps < 1:
        raise BadInput(f"max_steps is {max_steps}: at least one is needed, or none for no limit")
    env = make_env()
    try:
        _require_same_spaces(policy, env)
        played = [
            _play(policy, env, seed=seed + i, deterministic=deterministic, max_steps=max_steps)
            for i in track(range(episodes))
        ]
    finally:
        env.close()
        policy.reset()
    returns = tuple(episode_return for episode_return, _ in played)
    lengths = tuple(length for _, length in played)
    return_mean, return_std = _mean_and_std(returns)
    len_mean, len_std = _mean_and_std(lengths)
    return Evaluation(
        seed=seed,
        deterministic=deterministic,
        returns=returns,
        lengths=lengths,
        episode_return_mean=return_mean,
        episode_return_std=return_std,
        episode_return_min=min(returns),
        episode_return_max=max(returns),
        episode_len_mean=len_mean,
        episode_len_std=len_std,
        episode_len_min=min(lengths),
        episode_len_max=max(lengths),
    )


def _play(
    policy: Policy,
    env: gym.Env[Any, Any],
    *,
    seed: int,
    deterministic: bool,
    max_steps: int | None,
) -> tuple[float, int]:
    policy.reset()
    policy.seed(seed)
    observation, _ = env.reset(seed=seed)
    episode_return, length, ended = 0.0, 0, False
    while not ended and length != max_steps:
        action = policy.act(observation, deterministic=deterministic)
        observation, reward, terminated, truncated, _ = env.step(action)
        episode_return += float(reward)
        length += 1
        ended = bool(terminated or truncated)
    return episode_return, length


def _mean_and_std(values: tuple[float, ...]) -> tuple[float, float]:
    # fsum is exact, so the numbers do not depend on the order of the episodes.
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def _require_same_spaces(policy: Policy, env: gym.Env[Any, Any]) -> None:
    for what, ours, theirs in (
        ("observation space", policy.observation_space, env.observation_space),
        ("action space", policy.action_space, env.action_space),
    ):
        if ours != theirs:
            raise BadInput(
                f"the environment has the {what} {theirs}, the policy was trained with {ours}. "
                "Make the environment with the same wrappers and settings."
            )
