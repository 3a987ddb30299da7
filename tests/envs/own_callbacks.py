"""Callbacks of one's own. What they are called with is in `CALLS`, in this process."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback

CALLS: list[tuple[str, dict[str, Any]]] = []


def _seen(value: Any) -> Any:
    """What a callback can see of an argument, comparable and without clock times."""
    if isinstance(value, list):
        return [_seen(item) for item in value]
    if type(value).__name__ == "SingleAgentEpisode":
        buffers = [value.observations, value.actions, value.rewards]
        buffers += value.extra_model_outputs.values()
        return [
            *((type(b.data).__name__, b.lookback, _bits(b.data)) for b in buffers),
            list(value.extra_model_outputs),
            _infos(value),
            (len(value), float(value.get_return()), value.t_started, value.t, value.is_numpy),
            (bool(value.is_terminated), bool(value.is_truncated), value.custom_data),
        ]
    if hasattr(value, "envs"):
        return [np.asarray(env.unwrapped.state).tolist() for env in value.envs]
    return value if isinstance(value, int | float | str) else _kind(value)


def _kind(value: Any) -> str:
    """The name of RLlib's own class."""
    kinds = (kind for kind in type(value).__mro__ if kind.__module__.startswith("ray."))
    return next(kinds, type(value)).__name__


def _bits(data: Any) -> Any:
    array = np.stack([np.asarray(item) for item in data]) if len(data) else np.zeros(0)
    return array.dtype.str, array.shape, array.tobytes()


def _infos(episode: Any) -> Any:
    return [{k: v for k, v in info.items() if k[0] != "_"} for info in episode.infos.data]


def note(name: str, arguments: dict[str, Any]) -> None:
    CALLS.append((name, {key: _seen(value) for key, value in sorted(arguments.items())}))


class Ends(RLlibCallback):
    """Looks at finished episodes and fragments."""

    def on_episode_end(self, **kwargs: Any) -> None:
        note(
            "on_episode_end", {**kwargs, "prev_episode_chunks": len(kwargs["prev_episode_chunks"])}
        )
        kwargs["metrics_logger"].log_value("last_length", len(kwargs["episode"]), window=1)

    def on_sample_end(self, **kwargs: Any) -> None:
        note("on_sample_end", kwargs)


class Chunks(RLlibCallback):
    """Looks at whole episodes, whatever fragments they were cut into."""

    def on_episode_end(self, *, prev_episode_chunks: Any, **kwargs: Any) -> None:
        note("on_episode_end", {**kwargs, "prev_episode_chunks": prev_episode_chunks})


class Shapes(RLlibCallback):
    """Changes the rewards of finished episodes."""

    def on_episode_end(self, *, episode: Any, **kwargs: Any) -> None:
        episode.rewards.data[-1] = episode.rewards.data[-1] + 10.0
        episode.custom_data["shaped"] = True


class Steps(RLlibCallback):
    """Looks at running episodes."""

    def on_episode_step(self, **kwargs: Any) -> None:
        pass


class Everything(RLlibCallback):
    """Has every hook."""


def _hook(name: str) -> Any:
    def hook(self: Any, **kwargs: Any) -> None:
        CALLS.append((name, {key: _kind(value) for key, value in sorted(kwargs.items())}))

    return hook


_HOOKS = """
on_algorithm_init on_train_result on_evaluate_start on_evaluate_end on_checkpoint_loaded
on_environment_created on_episode_created on_episode_start on_episode_step on_episode_end
on_sample_end on_env_runners_recreated
"""
for _name in _HOOKS.split():
    setattr(Everything, _name, _hook(_name))


class Counting(RLlibCallback):
    """Has state, which it logs, and which ends up in the result."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes = 0
        self.results = 0

    def on_episode_end(self, *, metrics_logger: Any, **kwargs: Any) -> None:
        self.episodes += 1
        metrics_logger.log_value("episodes_seen", self.episodes, window=1)

    def on_train_result(self, *, result: Any, **kwargs: Any) -> None:
        self.results += 1
        result["results_seen"] = self.results

    def get_state(self) -> Any:
        return pickle.dumps((self.episodes, self.results))

    def set_state(self, state: Any) -> None:
        self.episodes, self.results = pickle.loads(state)


class Forgetful(Counting):
    """Has state that it does not offer."""

    get_state = set_state = property()


def on_end(*, metrics_logger: Any, episode: Any, **kwargs: Any) -> None:
    """A single function."""
    metrics_logger.log_value("length_of_function", len(episode), window=1)
