"""`environment.action_mask`: where an environment says which actions are allowed.

    info            info["action_mask"] of reset() and of step()
    info.NAME       info["NAME"]
    KEY             the key KEY of the observation, which is a Dict; the network does not see it

From there on every mask is in the info: `MaskIntoInfo` moves it there from an observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym

from raytrain.config.errors import ConfigError, Problem, nearest

FIELD = "environment.action_mask"
DEFAULT_NAME = "action_mask"


class MaskSource(NamedTuple):
    """What the setting says. `key`: of the observation, or None if the mask is in the info.
    `name`: in the info, from which it is read in any case."""

    key: str | None
    name: str

    @classmethod
    def of(cls, setting: str | None) -> MaskSource | None:
        """None if there are no masks."""
        if setting is None:
            return None
        if setting == "info":
            return cls(None, DEFAULT_NAME)
        if setting.startswith("info."):
            return cls(None, setting.removeprefix("info."))
        return cls(setting, DEFAULT_NAME)

    @property
    def place(self) -> str:
        """For messages."""
        if self.key is not None:
            return f"the observation's key {self.key!r}"
        return f"info[{self.name!r}]"


class MaskIntoInfo(gym.Wrapper[Any, Any, Any, Any]):
    """Takes the mask out of every observation and puts it into the info."""

    def __init__(self, env: gym.Env[Any, Any], key: str) -> None:
        """Raises ConfigError if the observations have no such key, or no other."""
        super().__init__(env)
        self._key = key
        self.observation_space = without_mask(env.observation_space, key)

    @property
    def observed(self) -> gym.Space[Any]:
        """The space of the observations with their masks."""
        return self.env.observation_space

    def reset(self, **arguments: Any) -> Any:
        returned = self.env.reset(**arguments)
        if not isinstance(returned, tuple) or len(returned) != 2:
            return returned  # Which breaks Gymnasium's contract, and is reported so.
        return self._moved(*returned)

    def step(self, action: Any) -> Any:
        returned = self.env.step(action)
        if not isinstance(returned, tuple) or len(returned) != 5:
            return returned
        observation, reward, terminated, truncated, info = returned
        observation, info = self._moved(observation, info)
        return observation, reward, terminated, truncated, info

    def _moved(self, observation: Any, info: Any) -> tuple[Any, Any]:
        if not (isinstance(observation, Mapping) and self._key in observation):
            return observation, info
        rest = {key: value for key, value in observation.items() if key != self._key}
        if isinstance(info, Mapping):
            info = {**info, DEFAULT_NAME: observation[self._key]}
        return rest, info


def without_mask(space: gym.Space[Any], key: str) -> gym.Space[Any]:
    """A Dict space without one of its keys. Raises ConfigError if it has no such key, or no
    other."""
    if not isinstance(space, gym.spaces.Dict):
        raise _problem(
            f"the observation space is {space}, and only a Dict has keys; for masks in the info "
            "write info, or info.NAME",
            key,
        )
    if key not in space.spaces:
        near = nearest(key, [name for name in space.spaces if isinstance(name, str)])
        keys = ", ".join(map(str, space.spaces))
        raise _problem(f"the observation has no such key; its keys are {keys}", key, near)
    rest = [(name, part) for name, part in space.spaces.items() if name != key]
    if not rest:
        raise _problem("the observation has no other key, so there is nothing to observe", key)
    return gym.spaces.Dict(rest)


def observed_space(env: gym.Env[Any, Any]) -> gym.Space[Any]:
    """The observation space of an environment, with the mask if `MaskIntoInfo` takes it out."""
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, MaskIntoInfo):
            return layer.observed
        layer = layer.env
    return env.observation_space


def _problem(message: str, key: str, near: str | None = None) -> ConfigError:
    return ConfigError(Problem(message, "", FIELD, key, near))
