"""The metrics that a config names, and the checks of their names before training.

    checkpoint.score              chooses `best`
    stop.metrics                  ends the run
    curriculum[k].until.metrics   ends a stage

A name may be a metric of the environment, which only a finished episode shows. So a name is refused
here only if it is certainly wrong: a metric of evaluation without evaluation, or the name that
another program has for a metric of RLlib.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from raytrain.config.errors import ConfigError, KeyPath, Problem, dotted

if TYPE_CHECKING:
    from raytrain.config.schema import ExperimentConfig, Stop
    from raytrain.config.sections import Until
    from raytrain.config.validation import Where

EVALUATION = "evaluation/"
_LEARNER = "learners/default_policy/"

FORMER = {
    # RLlib's old API stack
    "episode_reward_mean": "episode_return_mean",
    "episode_reward_min": "episode_return_min",
    "episode_reward_max": "episode_return_max",
    "episodes_this_iter": "num_episodes",
    "episodes_total": "num_episodes_lifetime",
    "timesteps_total": "num_env_steps_sampled_lifetime",
    "agent_timesteps_total": "num_agent_steps_sampled_lifetime",
    # Stable-Baselines3
    "rollout/ep_rew_mean": "episode_return_mean",
    "rollout/ep_len_mean": "episode_len_mean",
    "ep_rew_mean": "episode_return_mean",
    "ep_len_mean": "episode_len_mean",
    "eval/mean_reward": f"{EVALUATION}episode_return_mean",
    "eval/mean_ep_length": f"{EVALUATION}episode_len_mean",
    "train/approx_kl": f"{_LEARNER}mean_kl_loss",
    "train/entropy_loss": f"{_LEARNER}entropy",
    "train/explained_variance": f"{_LEARNER}vf_explained_var",
    "train/loss": f"{_LEARNER}total_loss",
    "train/policy_gradient_loss": f"{_LEARNER}policy_loss",
    "train/value_loss": f"{_LEARNER}vf_loss",
    # CleanRL
    "charts/episodic_return": "episode_return_mean",
    "charts/episodic_length": "episode_len_mean",
}
"""Name in another program -> RLlib's. An environment's metric of such a name is `custom/NAME`."""

_HOLDERS = ("env_runners/", "sampler_results/")


def metric_problems(config: ExperimentConfig, where: Where) -> Iterator[Problem]:
    """Every metric's name that is certainly wrong, with the place where it is written."""
    sections: list[tuple[KeyPath, Stop | Until]] = [(("stop",), config.stop)]
    for index, stage in enumerate(config.curriculum):
        sections.append((("curriculum", index, "until"), stage.until))
    named: list[tuple[KeyPath, str]] = [(("checkpoint", "score"), config.checkpoint.score)]
    for path, section in sections:
        named += [((*path, "metrics", name), name) for name in section.metrics]
    for path, name in named:
        message = _name_problem(name, evaluates=bool(config.evaluation.evaluation_interval))
        if message is not None:
            field = dotted(path if path[-1] != name else path[:-1])
            yield Problem(message, where(path), field, name)
    for path, section in sections:
        yield from _end_problems(section, path, where)


def _name_problem(name: str, *, evaluates: bool) -> str | None:
    if name != name.strip() or not all(name.split("/")):
        return "is not the name of a metric: there is a space around it, or a part of it is missing"
    current = former_name(name)
    if current is not None:
        return f"RLlib's name is {current!r} (for a metric of the environment: 'custom/{name}')"
    if name.startswith(EVALUATION) and not evaluates:
        return (
            "nothing is evaluated: give evaluation.evaluation_interval, or name a metric of "
            f"training, such as {name.removeprefix(EVALUATION)!r}"
        )
    return None


def _end_problems(section: Stop | Until, path: KeyPath, where: Where) -> Iterator[Problem]:
    """Ends that cannot be reached, or that contradict each other."""
    wanted: dict[KeyPath, Any] = {
        (*path, "metrics", name): bound for name, bound in section.metrics.items()
    }
    returns = (*path, "episode_return_mean")
    if section.episode_return_mean is not None:
        wanted[returns] = section.episode_return_mean
    for key, bound in wanted.items():
        (limit,) = bound.values() if isinstance(bound, dict) else (bound,)
        if not math.isfinite(limit):
            message = "must be a finite number; leave the key out if it should end nothing"
            yield Problem(message, where(key), dotted(key), limit)
    for name in ("episode_return_mean", "env_runners/episode_return_mean"):
        twice = (*path, "metrics", name)
        if twice in wanted and returns in wanted:
            message = f"is given twice: {dotted(returns)} is the same metric"
            yield Problem(message, where(twice), dotted(twice))


def require_metrics(config: ExperimentConfig) -> None:
    """Raise ConfigError if a metric's name is certainly wrong: for a config that is in no file."""
    problems = list(metric_problems(config, lambda _: ""))
    if problems:
        raise ConfigError(*problems)


def former_name(name: str) -> str | None:
    """RLlib's name for a metric that is given by another program's name; None if it is not."""
    prefix = EVALUATION if name.startswith(EVALUATION) else ""
    bare = name.removeprefix(prefix)
    for holder in _HOLDERS:
        bare = bare.removeprefix(holder)
    return f"{prefix}{FORMER[bare]}" if bare in FORMER else None


def nearest_first(name: str, names: Iterable[str]) -> list[str]:
    """The names, the most similar to `name` first."""
    wanted = name.lower()

    def likeness(other: str) -> float:
        # People remember the last part of a path.
        ends = (other.lower(), other.rpartition("/")[2].lower())
        return max(difflib.SequenceMatcher(None, wanted, end).ratio() for end in ends)

    return sorted(names, key=lambda other: (-likeness(other), other))
