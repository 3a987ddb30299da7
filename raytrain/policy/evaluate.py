"""Play whole episodes with a policy and summarize their returns and lengths.

Episode i is reset with the seed `seed + i`, and the policy's own generator is seeded with the same
number, so an episode does not depend on those before it: the first ten of a hundred are the ten of
an evaluation with `episodes=10`. Neither this module nor the policy uses a global generator.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from raytrain.config.action_mask import MaskSource
from raytrain.config.user_code import EnvironmentFailed, users_code
from raytrain.errors import BadInput
from raytrain.policy.action_masks import MaskLayout, MaskReader
from raytrain.policy.env_contract import Contract

if TYPE_CHECKING:  # it imports RLlib, which takes seconds
    from raytrain.policy.policy import Policy


_SLOW_S = 10.0  # The first report of an episode that does not end; each takes twice as long.


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
    max_steps: int | None = None
    episodes_cut: int = 0
    """Episodes that `max_steps` ended."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`; `episodes` is the number of episodes."""
        return {"episodes": len(self.returns), **asdict(self)}


def evaluate(
    policy: Policy,
    make_env: Callable[[], gym.Env[Any, Any]],
    *,
    episodes: int,
    seed: int,
    deterministic: bool = True,
    max_steps: int | None = None,
    track: Callable[[range], Iterable[int]] = iter,
    tell: Callable[[str], None] = lambda message: None,
) -> Evaluation:
    """Play `episodes` episodes in one environment, closed at the end. `track` yields the numbers of
    the episodes, and may show how many are done.

    `max_steps` cuts an episode that neither terminates nor is truncated before. `tell` is called
    with a sentence when an episode takes long, and about errors that change no number.

    Raises:
        BadInput: a number is below one, or the environment's spaces are not the policy's.
        EnvironmentFailed: the environment raised, or broke Gymnasium's contract.
    """
    if episodes < 1:
        raise BadInput(f"episodes is {episodes}: at least one is needed")
    if max_steps is not None and max_steps < 1:
        raise BadInput(f"max_steps is {max_steps}: at least one is needed, or none for no limit")
    env = make_env()
    try:
        _require_same_spaces(policy, env)
        played = [
            _play(
                policy,
                env,
                episode,
                seed=seed + episode,
                deterministic=deterministic,
                max_steps=max_steps,
                tell=tell,
            )
            for episode in track(range(episodes))
        ]
    finally:
        policy.reset()
        try:
            with users_code("close()"):
                env.close()
        except EnvironmentFailed as error:
            tell(f"{error}. The results do not depend on it.")
    returns, lengths, cut = zip(*played, strict=True)
    return Evaluation(
        seed=seed,
        deterministic=deterministic,
        returns=returns,
        lengths=lengths,
        **_statistics("episode_return", returns),
        **_statistics("episode_len", lengths),
        max_steps=max_steps,
        episodes_cut=sum(cut),
    )


def _play(
    policy: Policy,
    env: gym.Env[Any, Any],
    episode: int,
    *,
    seed: int,
    deterministic: bool,
    max_steps: int | None,
    tell: Callable[[str], None],
) -> tuple[float, int, bool]:
    """The return and length of one episode, and whether `max_steps` cut it."""
    began, report_after_s = time.monotonic(), _SLOW_S
    policy.reset()
    policy.seed(seed)
    contract = Contract(env)
    source = MaskSource.of(policy.action_mask)
    reader = None
    if source is not None and source.key is None:
        reader = MaskReader(MaskLayout(policy.action_space), source)
    with users_code("reset()"):
        returned = env.reset(seed=seed)
    contract.reset(returned)
    observation, info = returned
    episode_return, length, ended = 0.0, 0, False
    while not ended and length != max_steps:
        mask = None if reader is None else reader.of_info(info)
        action = policy.act(observation, deterministic=deterministic, action_mask=mask)
        with users_code("step()"):
            stepped = env.step(action)
        contract.step(stepped)
        observation, reward, terminated, truncated, info = stepped
        episode_return += float(reward)
        length += 1
        ended = bool(terminated or truncated)
        took = time.monotonic() - began
        if took >= report_after_s:
            report_after_s *= 2
            tell(
                f"Episode {episode} has not ended after {length:,} steps and {took:.0f} s. An "
                "environment that neither terminates nor truncates never ends: limit its episodes "
                "with --max-steps (Ctrl-C stops this evaluation), or with "
                "evaluation.max_episode_steps in the config."
            )
    return episode_return, length, not ended


def _statistics(name: str, values: Sequence[float]) -> dict[str, Any]:
    # fsum is exact, so the numbers do not depend on the order of the episodes.
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return {
        f"{name}_mean": mean,
        f"{name}_std": math.sqrt(variance),
        f"{name}_min": min(values),
        f"{name}_max": max(values),
    }


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
