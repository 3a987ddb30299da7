"""The metrics that a config names, and what can be said of their names before anything is trained.

    checkpoint.score              chooses `best`
    stop.metrics                  ends the run
    curriculum[k].until.metrics   ends a stage

A name may be one of the environment's, which only a finished episode shows; so a name is refused here
only where it is surely wrong: a metric of evaluation where nothing is evaluated, and the names that
other programs have for RLlib's metrics.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from raytrain.config.errors import ConfigError, Problem, dotted

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
"""Their name -> RLlib's. A metric of an environment that has such a name is `custom/NAME`."""

_HOLDERS = ("env_runners/", "sampler_results/")


def metric_problems(config: ExperimentConfig, where: Where) -> Iterator[Problem]:
    """Every metric's name that is surely wrong, at the place where it is written."""
    searched = {space.path for space in config.search}
    evaluates = bool(config.evaluation.evaluation_interval) or (
        ("evaluation", "evaluation_interval") in searched
    )
    for path, name in _named(config):
        field = dotted(path if path[-1] != name else path[:-1])
        said = _not_a_name(name) or _of_another_program(name)
        if said is None and name.startswith(EVALUATION) and not evaluates:
            said = (
                "nothing is evaluated: give evaluation.evaluation_interval, or name a metric of training"
                f", such as {name.removeprefix(EVALUATION)!r}"
            )
        if said is not None:
            yield Problem(said, where(path), field, name)
    for path, section in _ends(config):
        yield from _end_problems(section, path, where)


def _not_a_name(name: str) -> str | None:
    if name != name.strip() or not all(name.split("/")):
        return "is not the name of a metric: there is a space around it, or a part of it is missing"
    return None


def _of_another_program(name: str) -> str | None:
    right = former_name(name)
    if right is None:
        return None
    return f"RLlib's name for it is {right!r} (one of the environment's own is 'custom/{name}')"


def _end_problems(
    section: Stop | Until, path: tuple[str | int, ...], where: Where
) -> Iterator[Problem]:
    """Ends that cannot be reached, or that contradict each other."""
    wanted: dict[tuple[str | int, ...], Any] = {
        (*path, "metrics", name): bound for name, bound in section.metrics.items()
    }
    returns = (*path, "episode_return_mean")
    if section.episode_return_mean is not None:
        wanted[returns] = section.episode_return_mean
    for key, bound in wanted.items():
        (limit,) = bound.values() if isinstance(bound, dict) else (bound,)
        if not math.isfinite(limit):
            said = "must be a finite number; leave the key out if it is not to end anything"
            yield Problem(said, where(key), dotted(key), limit)
    for name in ("episode_return_mean", "env_runners/episode_return_mean"):
        twice = (*path, "metrics", name)
        if twice in wanted and returns in wanted:
            said = f"is given twice: {dotted(returns)} is the same metric"
            yield Problem(said, where(twice), dotted(twice))


def require_metrics(config: ExperimentConfig) -> None:
    """Raise ConfigError if a metric's name is surely wrong: for a config that is in no file."""
    problems = list(metric_problems(config, lambda _: ""))
    if problems:
        raise ConfigError(*problems)


def former_name(name: str) -> str | None:
    """RLlib's name of a metric that is called by another one."""
    prefix = EVALUATION if name.startswith(EVALUATION) else ""
    bare = name.removeprefix(prefix)
    for holder in _HOLDERS:
        bare = bare.removeprefix(holder)
    return f"{prefix}{FORMER[bare]}" if bare in FORMER else None


def nearest_first(name: str, names: Iterable[str]) -> list[str]:
    """The names, those that are most like `name` first."""
    wanted = name.lower()

    def likeness(other: str) -> float:
        # A path's last part is what people remember.
        ends = (other.lower(), other.rpartition("/")[2].lower())
        return max(difflib.SequenceMatcher(None, wanted, end).ratio() for end in ends)

    return sorted(names, key=lambda other: (-likeness(other), other))


def _ends(config: ExperimentConfig) -> Iterator[tuple[tuple[str | int, ...], Stop | Until]]:
    yield ("stop",), config.stop
    for index, stage in enumerate(config.curriculum):
        yield ("curriculum", index, "until"), stage.until


def _named(config: ExperimentConfig) -> Iterator[tuple[tuple[str | int, ...], str]]:
    yield ("checkpoint", "score"), config.checkpoint.score
    for path, section in _ends(config):
        for name in section.metrics:
            yield (*path, "metrics", name), name
