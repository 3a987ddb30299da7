"""A group is sampled into arrays, and nobody can tell: episodes, rows, counters and filter state are
those of RLlib's own sampling from the same random streams, without tolerance."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from tiny_ppo import TINY

from raytrain import _ray
from raytrain.config import config_from_dict, to_algorithm_config
from raytrain.errors import RaytrainError
from raytrain.trainable.algorithm import prepare
from raytrain.trainable.eligibility import observation_filter
from raytrain.trainable.runner import GroupEnvRunner, Rollout

FILTER = {"observation_filter": "MeanStdFilter"}
CONV = {"model_config": {"conv_filters": [[4, 3, 2], [8, 3, 2]], "head_fcnet_hiddens": [8]}}


class Stock(GroupEnvRunner):
    sampling = "rllib"


def env(name: str) -> dict[str, Any]:
    return {"environment": {"env": f"sampling_envs:{name}"}}


def config(change: Callable[[Any], Any] | None = None, **sections: Any) -> Any:
    given = {**TINY, "env_runners": {**TINY["env_runners"], "num_envs_per_env_runner": 3}}
    for key, value in sections.items():
        given[key] = {**given.get(key, {}), **value}
    prepared = prepare(to_algorithm_config(config_from_dict(given)))
    if change is not None:
        change(prepared)
    return prepared


def runner(kind: type[GroupEnvRunner], given: Any, group: int = 0, **options: Any) -> Any:
    torch.manual_seed(3)  # for the weights
    made = kind(config=given, worker_index=group + 1, **options)
    made.use_strategy("pickle")
    return made


def pair(given: Any) -> tuple[Any, Any]:
    ours, theirs = runner(GroupEnvRunner, given), runner(Stock, given)
    assert ours._sampler is not None
    assert theirs._sampler is None
    return ours, theirs


def unlike(ours: list[SingleAgentEpisode], theirs: list[SingleAgentEpisode]) -> list[Any]:
    """Everything in which two lists of episodes differ but their ids and times."""
    found: list[Any] = [] if len(ours) == len(theirs) else [(len(ours), len(theirs))]
    for index, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        a.validate()
        for name, one, other in [
            *((name, getattr(a, name), getattr(b, name)) for name in ("t", "t_started")),
            *((n, bool(getattr(a, n)), bool(getattr(b, n))) for n in ("is_terminated", "is_done")),
            ("outputs", list(a.extra_model_outputs), list(b.extra_model_outputs)),
            ("numpy", a.is_numpy, b.is_numpy),
            ("spaces", _spaces(a), _spaces(b)),
            ("infos", _plain(a), _plain(b)),
            *zip(("observations", "actions", "rewards"), _bits(a)[:3], _bits(b)[:3], strict=True),
            ("outputs", _bits(a)[3:], _bits(b)[3:]),
        ]:
            if one != other:
                found.append((index, name, one, other))
    return found


def _spaces(episode: Any) -> Any:
    buffers = (episode.observations, episode.actions, episode.rewards)
    return (episode.observation_space, episode.action_space, *(each.space for each in buffers))


def _plain(episode: Any) -> Any:
    infos = [
        {key: value for key, value in info.items() if not key.startswith("_")}
        for info in episode.infos.data
    ]
    return episode.infos.lookback, infos


def _bits(episode: Any) -> list[Any]:
    buffers = [episode.observations, episode.actions, episode.rewards]
    buffers += episode.extra_model_outputs.values()
    return [(b.lookback, b.data.dtype, b.data.shape, b.data.tobytes()) for b in buffers]


def numbers(metrics: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Values of the stats that are no times, by name."""
    found = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{at}{name}/")
        elif not any(word in name for word in ("time", "sec", "sample", "timers")) or (
            name.startswith("num_")
        ):
            found[f"{at}{name}"] = repr(value).split("; track")[0]
    return {k: v for k, v in found.items() if "timer" not in k and "connector" not in k}


CASES: dict[str, Any] = {
    "discrete": {},
    "discrete-one-env": {"env_runners": {"num_envs_per_env_runner": 1}},
    "float64-observations": {"environment": {"env": "awkward_envs:Walk"}},
    "multi-discrete": env("levers"),
    "box-unsquashed": env("forces"),
    "box-clipped": {**env("forces"), "change": lambda c: c.environment(normalize_actions=False, clip_actions=True)},
    "box-as-it-is": {**env("one_way"), "change": lambda c: c.environment(normalize_actions=False)},
    "box-half-bounded": env("one_way"),
    "box-float64": env("fine_forces"),
    "infos-and-truncations": env("Drift"),
    "images": {**env("Pictures"), "rl_module": CONV},
    "filter": {**env("forces"), "env_runners": FILTER},
    "filter-float64": {**env("fine_forces"), "env_runners": FILTER},
    "filter-still": {**env("Drift"), "env_runners": FILTER, "change": lambda c: still(c)},
    "complete-episodes": {**env("Drift"), "env_runners": {"batch_mode": "complete_episodes"}},
    "likeliest-actions": {**env("forces"), "env_runners": {"explore": False}},
    "likeliest-levers": {**env("levers"), "env_runners": {"explore": False}},
    "shared-layers": {"rl_module": {"model_config": {"vf_share_layers": True, "fcnet_hiddens": [16, 8]}}},
    "free-log-std": {**env("forces"), "rl_module": {"model_config": {"free_log_std": True}}},
    "relu": {"rl_module": {"model_config": {"fcnet_activation": "relu"}}},
    "silu": {"rl_module": {"model_config": {"fcnet_activation": "silu", "head_fcnet_hiddens": [8]}}},
    "longer-lookback": {**env("Drift"), "change": lambda c: c.env_runners(episode_lookback_horizon=4)},
    "no-lookback": {**env("Drift"), "change": lambda c: c.env_runners(episode_lookback_horizon=0)},
    "short-fragments": {**env("Drift"), "change": lambda c: c.env_runners(rollout_fragment_length=2)},
}  # fmt: skip


def still(given: Any) -> None:
    from ray.rllib.connectors.env_to_module import MeanStdFilter

    given.env_runners(
        env_to_module_connector=lambda *_, **__: MeanStdFilter(update_stats=False, clip_by_value=1.0)
    )


@pytest.mark.parametrize("name", CASES)
def test_episodes_are_those_of_rllib(name: str):
    ours, theirs = pair(config(**CASES[name]))
    for version in (1, 2, 3):
        for each in (ours, theirs):
            each.set_state({**each.get_state(components=["rl_module"]), "weights_seq_no": version})
        one, other = ours.rollout(None, snapshot=True), theirs.rollout(None, snapshot=True)
        assert unlike(one.episodes, other.episodes) == []
        assert one.finished == other.finished
        assert numbers(one.metrics) == {
            k: v for k, v in numbers(other.metrics).items() if "sum_episodes_length" not in k
        }
        assert ours._streams == theirs._streams
        assert repr(one.connectors) == repr(other.connectors)
    assert one.episodes
