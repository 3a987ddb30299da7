"""Groups of environments that are sampled by raytrain, and the same ones by RLlib (`Stock`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import tree
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from raytrain.config import config_from_dict, to_algorithm_config
from raytrain.ppo.algorithm import prepare
from raytrain.rollout.env_group import EnvGroup
from raytrain.rollout.rollout import Rollout
from support.tiny_ppo import TINY

FILTER = {"observation_filter": "MeanStdFilter"}
CONV = {"model_config": {"conv_filters": [[4, 3, 2], [8, 3, 2]], "head_fcnet_hiddens": [8]}}


class Stock(EnvGroup):
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


def runner(kind: type[EnvGroup], given: Any, group: int = 0, **options: Any) -> Any:
    torch.manual_seed(3)  # for the weights
    made = kind(config=given, worker_index=group + 1, **options)
    made.use_strategy("pickle")
    return made


def pair(given: Any) -> tuple[Any, Any]:
    ours, theirs = runner(EnvGroup, given), runner(Stock, given)
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
            *((name, x, y) for (name, x), (_, y) in zip(_bits(a), _bits(b), strict=True)),
        ]:
            if one != other:
                found.append((index, name, one, other))
    return found


def numbers(metrics: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Values of the stats that are no times, by name."""
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{at}{name}/")
        elif not any(word in name for word in ("time", "sec", "sample", "timers")) or (
            name.startswith("num_")
        ):
            found[f"{at}{name}"] = repr(value).split("; track")[0]
    return {k: v for k, v in found.items() if "timer" not in k and "connector" not in k}


def require_same_rollouts(ours: EnvGroup, theirs: EnvGroup, version: int) -> Rollout:
    """Our rollout of the next fragment, with weights of this version, which is theirs."""
    for each in (ours, theirs):
        each.set_state({**each.get_state(components=["rl_module"]), "weights_seq_no": version})
    one, other = ours.rollout(None, snapshot=True), theirs.rollout(None, snapshot=True)
    assert unlike(one.episodes, other.episodes) == []
    assert one.finished == other.finished
    assert numbers(one.metrics) == {
        k: v for k, v in numbers(other.metrics).items() if "sum_episodes_length" not in k
    }
    assert repr(one.connectors) == repr(other.connectors)
    return one


def _spaces(episode: Any) -> Any:
    buffers = (episode.observations, episode.actions, episode.rewards)
    return (episode.observation_space, episode.action_space, *(each.space for each in buffers))


def _plain(episode: Any) -> Any:
    infos = [
        {key: _without_arrays(value) for key, value in info.items() if not key.startswith("_")}
        for info in episode.infos.data
    ]
    return episode.infos.lookback, infos


def _without_arrays(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return list(map(_without_arrays, value)) if isinstance(value, list | tuple) else value


def _bits(episode: Any) -> list[Any]:
    buffers = {name: getattr(episode, name) for name in ("observations", "actions", "rewards")}
    buffers |= episode.extra_model_outputs
    return [
        (name, (buffer.lookback, leaf.dtype, leaf.shape, leaf.tobytes()))
        for name, buffer in buffers.items()
        for leaf in tree.flatten(buffer.data)
    ]
