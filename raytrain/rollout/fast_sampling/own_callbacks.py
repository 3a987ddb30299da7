"""The callbacks of the user's own in an env group: which hooks they have, how the array sampler
calls them, and their state.

    on_environment_created              RLlib calls it
    on_episode_created, _start, _step   look at running episodes: RLlib samples for them
    on_episode_end                      called when the episode ends, in both ways of sampling
    on_sample_end                       called with the episodes of a fragment

State is what `get_state()` of a callbacks object returns; `set_state` restores it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.utils import force_list

from raytrain import _ray
from raytrain.rollout.fast_sampling.episode_rows import EpisodeRecorder

OF_RUNNING_EPISODES = ("on_episode_created", "on_episode_start", "on_episode_step")


def hooks(config: Any, name: str) -> list[tuple[str, Any]]:
    """What a config's own callbacks have for a hook: the names and functions of the classes that
    override it, and those of single functions."""
    return [*_overriding(config, name), *_functions(config, name)]


def wants_chunks(config: Any) -> bool:
    """Whether an `on_episode_end` takes `prev_episode_chunks` by name. Only then are the chunks of
    an episode that were returned before kept whole; otherwise it gets their totals."""
    return any(
        "prev_episode_chunks" in inspect.signature(function).parameters
        for _, function in hooks(config, "on_episode_end")
    )


def state_of(callbacks: Sequence[Any]) -> list[Any]:
    """The state of each callbacks object that has one, else None."""
    return [each.get_state() if _has_state(each) else None for each in callbacks]


def load_state(callbacks: Sequence[Any], states: Sequence[Any]) -> None:
    """Set what `state_of` returned. Other or more objects keep what they have."""
    for each, state in zip(callbacks, states, strict=False):
        if _has_state(each):
            each.set_state(state)


class OwnCallbacks:
    """Those of one env runner."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.objects = [
            each for each in _ray.runners.callbacks(runner) if not isinstance(each, EpisodeRecorder)
        ]

    def has(self, name: str) -> bool:
        """Whether any of them has a hook."""
        return bool(hooks(self._runner.config, name))

    def end_episode(self, env_index: int, episode: Any, chunks: list[Any]) -> None:
        """Call `on_episode_end` as RLlib does."""
        self._call(
            "on_episode_end",
            episode=episode,
            env=self._runner.env.unwrapped,
            rl_module=self._runner.module,
            env_index=env_index,
            prev_episode_chunks=chunks,
        )

    def end_sample(self, samples: list[Any]) -> None:
        """Call `on_sample_end` as RLlib does."""
        self._call("on_sample_end", samples=samples)

    def _call(self, name: str, **arguments: Any) -> None:
        runner = self._runner
        make_callback(
            name,
            callbacks_objects=self.objects,
            callbacks_functions=getattr(runner.config, f"callbacks_{name}"),
            kwargs={"env_runner": runner, "metrics_logger": runner.metrics, **arguments},
        )


def _overriding(config: Any, name: str) -> Iterator[tuple[str, Any]]:
    for kind in force_list(config.callbacks_class):
        function = getattr(kind, name, None)
        if kind is not EpisodeRecorder and function is not getattr(RLlibCallback, name):
            yield f"{kind.__name__}.{name}", function


def _functions(config: Any, name: str) -> Iterator[tuple[str, Any]]:
    for function in force_list(getattr(config, f"callbacks_{name}")):
        yield getattr(function, "__name__", name), function


def _has_state(callbacks: Any) -> bool:
    return hasattr(callbacks, "get_state") and hasattr(callbacks, "set_state")
