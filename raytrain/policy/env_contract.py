"""Gymnasium's contract, checked on what an environment returns.

    reset(seed=..., options=...)  ->  observation, info
    step(action)                  ->  observation, reward, terminated, truncated, info

An observation has its space's structure and shapes, and a dtype that can be cast to the space's;
every number in it is finite. A reward is one finite number, terminated and truncated are bools,
info is a dict. The spaces never change. An environment that breaks this cannot be trained on.

An observation may leave the bounds of its space: in many environments it does in an episode's last
step, and training does not depend on the bounds. This is a warning.

The rehearsal checks the contract. Training checks it only after a step has failed, to say why.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from raytrain.config.user_code import EnvironmentFailed, Place

_RESET = "reset() must return two values: observation, info"
_STEP = "step() must return five values: observation, reward, terminated, truncated, info"
_BEFORE_0_26 = (
    ". Before version 0.26 `done` stood for both: return True in terminated where the task ends, "
    "in truncated where time is up"
)
_LIBRARIES = ("gymnasium", "raytrain")


class ContractBroken(EnvironmentFailed):
    """The environment returned something that Gymnasium's interface does not allow."""


class Contract:
    """Checks the results of one environment, and counts observations outside of their space."""

    def __init__(self, env: Any) -> None:
        """Raises ContractBroken if the environment has no spaces or methods, or several agents."""
        kind = type(env.unwrapped)
        if any(base.__name__ == "MultiAgentEnv" for base in kind.__mro__):
            raise ContractBroken(f"{kind.__name__} has several agents, and raytrain trains one")
        for method in ("reset", "step"):
            if getattr(kind, method) is getattr(gym.Env, method):
                raise ContractBroken(f"{kind.__name__} does not define {method}()")
        for name in ("observation_space", "action_space"):
            space = getattr(env, name, None)
            if not isinstance(space, gym.Space):
                raise ContractBroken(
                    f"{name} must be a space of gymnasium.spaces; that of {kind.__name__} is "
                    f"{shown(space)}. Set it in __init__, or in the class."
                )
        self._env = env
        self._space, self._actions = env.observation_space, env.action_space
        self._outside = self._seen = 0
        self._first_outside = ""

    def reset(self, returned: Any) -> None:
        """Raises ContractBroken."""
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            self._break("reset", _RESET, returned)
        observation, info = returned
        self.observation("reset", observation)
        self._info("reset", info)
        for what, before, now in (
            ("observation", self._space, self._env.observation_space),
            ("action", self._actions, self._env.action_space),
        ):
            if now is not before and now != before:
                raise ContractBroken(
                    f"the {what} space must stay {before}; after reset() it is {now}"
                )

    def step(self, returned: Any) -> None:
        """Raises ContractBroken."""
        if not isinstance(returned, tuple | list) or len(returned) != 5:
            old = isinstance(returned, tuple | list) and len(returned) == 4
            self._break("step", _STEP, returned, _BEFORE_0_26 if old else "")
        observation, reward, terminated, truncated, info = returned
        self.observation("step", observation)
        self._reward(reward)
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if np.ndim(flag) != 0 or isinstance(flag, str) or flag not in (False, True):
                self._break("step", f"{name} must be True or False", flag)
        self._info("step", info)

    def observation(self, method: str, observation: Any) -> None:
        """Check an observation that `method` returned. Raises ContractBroken."""
        self._seen += 1
        for why in breaches(self._space, observation):
            rule = f"the observation must fit its space {self._space}"
            self._break(method, rule, observation, why)
        where = next(outside(self._space, observation), "")
        if where:
            self._outside += 1
            self._first_outside = self._first_outside or where

    def warnings(self) -> tuple[str, ...]:
        """What is allowed and probably not intended."""
        if not self._outside:
            return ()
        return (
            f"{self._outside} of {self._seen} observations of the trial were outside of the "
            f"observation space: {self._first_outside}. Training continues, since it does not "
            "depend on the bounds; correct the space, or the observation.",
        )

    def _reward(self, reward: Any) -> None:
        rule = "the reward must be one finite number"
        plain = np.ndim(reward) == 0 and np.asarray(reward).dtype.kind not in "SUmMc"
        try:
            number = float(reward) if plain else math.nan
        except (OverflowError, TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            self._break("step", rule, reward)
        if not _finite_in_float32(number):
            self._break("step", f"{rule}, and is stored with 32 bits (at most 3.4e38)", reward)

    def _info(self, method: str, info: Any) -> None:
        if not isinstance(info, Mapping):
            self._break(method, "info must be a dict ({} if there is nothing to say)", info)

    def _break(self, method: str, rule: str, returned: Any, more: str = "") -> Any:
        place = method_place(self._env, method)
        raise ContractBroken(f"{rule}. {place or method} returned {shown(returned)}{more}.")


def breaches(space: Any, value: Any, name: str = "") -> Iterator[str]:
    """Why `value` has not the structure of `space`, or holds NaN or infinity."""
    at = f" at {name}" if name else ""
    if isinstance(space, gym.spaces.Box):
        yield from _box_breaches(space, value, at)
    elif isinstance(space, gym.spaces.Dict) and (
        not isinstance(value, Mapping) or set(value) != set(space.spaces)
    ):
        yield f"{at}: it must be a dict with the keys {', '.join(map(str, space.spaces))}"
    elif isinstance(space, gym.spaces.Tuple) and (
        not isinstance(value, tuple) or len(value) != len(space.spaces)
    ):
        yield f"{at}: it must be a tuple of {len(space.spaces)}"
    elif isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        for inner, part, index in _parts(space, value):
            yield from breaches(inner, part, f"{name}{index}")
    elif not space.contains(value):
        yield f"{at}: it is not in {space}" if at else ""


def outside(space: Any, value: Any, name: str = "") -> Iterator[str]:
    """Where a value of the right structure is outside of the bounds."""
    if isinstance(space, gym.spaces.Box):
        array = np.asarray(value).astype(space.dtype)  # Rounding does not count.
        beyond = np.argwhere((array < space.low) | (array > space.high))
        if len(beyond):
            at = tuple(beyond[0].tolist())
            index = f"{name}[{', '.join(map(str, at))}]" if at else name
            where, low, high = f"at {index} " if index else "", space.low[at], space.high[at]
            yield f"{where}it is {array[at]}, and the bounds are {low} and {high}"
    elif isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        for inner, part, index in _parts(space, value):
            yield from outside(inner, part, f"{name}{index}")


def _parts(space: Any, value: Any) -> Iterator[tuple[Any, Any, str]]:
    """The spaces in a Dict or Tuple space, their values, and their indices as text."""
    is_dict = isinstance(space, gym.spaces.Dict)
    for key, inner in space.spaces.items() if is_dict else enumerate(space.spaces):
        yield inner, value[key], f"[{key!r}]"


def shown(value: Any) -> str:
    """A returned value in short."""
    if isinstance(value, np.ndarray):
        text = f"an array of shape {value.shape} and dtype {value.dtype}"
        return f"{text}, {np.array2string(value, threshold=6)}" if value.size <= 6 else text
    if isinstance(value, tuple):
        kinds = ", ".join(type(part).__name__ for part in value)
        return f"a tuple of {len(value)} ({kinds})"
    if value is None or isinstance(value, bool):
        return str(value)
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else f'{text[:57]}...'} (a {type(value).__name__})"


def method_place(env: Any, method: str) -> Place | None:
    """Where the outermost layer that is not Gymnasium's own defines what `method` returns; the base
    environment's method if there is none."""
    layer = env
    while layer is not env.unwrapped and _is_library(type(layer)):
        layer = layer.env
    kind = type(layer)
    names = {"reset": ("reset", "observation"), "step": ("step", "observation", "reward")}[method]
    classes = [base for base in kind.__mro__ if not _is_library(base) and base is not object]
    own = [name for name in names if any(name in vars(base) for base in classes)]
    function = inspect.unwrap(getattr(kind, own[0] if own else method))
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    return Place(code.co_filename, code.co_firstlineno, f"{kind.__name__}.{function.__name__}")


def _is_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARIES


def _box_breaches(space: gym.spaces.Box, value: Any, at: str) -> Iterator[str]:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        yield f"{at}: it is no array"
        return
    if array.shape != space.shape:
        yield f"{at}: its shape is {array.shape}, not {space.shape}"
    elif not np.can_cast(array.dtype, space.dtype, "same_kind"):
        yield f"{at}: its dtype {array.dtype} cannot be cast to {space.dtype}"
    elif np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
        yield f"{at}: it contains NaN or infinity"
    elif not _finite_in_float32(array):
        yield f"{at}: a number in it is beyond 3.4e38, the largest of a network's 32 bits"


def _finite_in_float32(numbers: Any) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.asarray(numbers, np.float64).astype(np.float32)).all())
