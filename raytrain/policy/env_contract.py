"""Gymnasium's contract, checked on what an environment returns.

    reset(seed=..., options=...)  ->  observation, info
    step(action)                  ->  observation, reward, terminated, truncated, info

An observation has its space's structure and shapes, and a dtype that can be cast to the space's; every
number in it is finite. A reward is one finite number, terminated and truncated are bools, info is a
dict. Whatever else is returned cannot be trained on. The spaces stay what they are.

An observation may leave the bounds of its space: many environments do in an episode's last step, and
nothing in training depends on the bounds. That is noted and told.

The check runs in the rehearsal, and once more when a step of the training has failed, to say why; never
in a step that goes well.
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
_LIBRARIES = ("gymnasium", "raytrain")


class ContractBroken(EnvironmentFailed):
    """What the environment returned is not what Gymnasium's interface asks for."""


class Contract:
    """Checks the results of one environment, and remembers where it left its observation space."""

    def __init__(self, env: Any) -> None:
        """Raises ContractBroken if the environment has no spaces or methods, or several agents."""
        kind = type(env.unwrapped)
        if any(each.__name__ == "MultiAgentEnv" for each in kind.__mro__):
            raise ContractBroken(f"{kind.__name__} has several agents, and raytrain trains one")
        for method in ("reset", "step"):
            if getattr(kind, method) is getattr(gym.Env, method):
                raise ContractBroken(f"{kind.__name__} does not define {method}()")
        for name in ("observation_space", "action_space"):
            found = getattr(env, name, None)
            if not isinstance(found, gym.Space):
                raise ContractBroken(
                    f"{name} must be a space of gymnasium.spaces; that of {kind.__name__} is "
                    f"{shown(found)}. Set it in __init__, or in the class."
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
            hint = ". Before version 0.26 `done` stood for both: return True in terminated where the task"
            hint += " ends, in truncated where time is up"
            self._break("step", _STEP, returned, hint if old else "")
        observation, reward, terminated, truncated, info = returned
        self.observation("step", observation)
        self._reward(reward)
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if np.ndim(flag) != 0 or isinstance(flag, str) or flag not in (False, True):
                self._break("step", f"{name} must be True or False", flag)
        self._info("step", info)

    def observation(self, method: str, found: Any) -> None:
        """Check an observation that `method` returned. Raises ContractBroken."""
        self._seen += 1
        for said in breaches(self._space, found):
            self._break(method, f"the observation must fit its space {self._space}", found, said)
        said = next(outside(self._space, found), "")
        if said:
            self._outside += 1
            self._first_outside = self._first_outside or said

    def warnings(self) -> tuple[str, ...]:
        """What can be trained on and is probably not meant."""
        if not self._outside:
            return ()
        return (
            f"{self._outside} of {self._seen} observations of the trial lay outside of the observation "
            f"space: {self._first_outside}. Training goes on, as nothing in it depends on the bounds; "
            "correct the space, or the observation.",
        )

    def _reward(self, reward: Any) -> None:
        rule = "the reward must be one finite number"
        if np.ndim(reward) != 0 or np.asarray(reward).dtype.kind in "SUmMc":
            self._break("step", rule, reward)
        try:
            number = float(reward)
        except (OverflowError, TypeError, ValueError):
            self._break("step", rule, reward)
        if not math.isfinite(number):
            self._break("step", rule, reward)
        if not _finite_in_float32(number):
            self._break("step", f"{rule}, and is kept with 32 bits (at most 3.4e38)", reward)

    def _info(self, method: str, info: Any) -> None:
        if not isinstance(info, Mapping):
            self._break(method, "info must be a dict ({} if there is nothing to say)", info)

    def _break(self, method: str, rule: str, returned: Any, more: str = "") -> Any:
        place = method_place(self._env, method)
        raise ContractBroken(f"{rule}. {place or method} returned {shown(returned)}{more}.")


def breaches(space: Any, value: Any, name: str = "") -> Iterator[str]:
    """Why `value` has not the structure of `space`, or holds numbers that are none."""
    at = f" at {name}" if name else ""
    if isinstance(space, gym.spaces.Box):
        yield from _box_breaches(space, value, at)
    elif isinstance(space, gym.spaces.Dict):
        keys = set(value) if isinstance(value, Mapping) else None
        if keys != set(space.spaces):
            yield f"{at}: it must be a dict with the keys {', '.join(map(str, space.spaces))}"
            return
        for key, inner in space.spaces.items():
            yield from breaches(inner, value[key], f"{name}[{key!r}]")
    elif isinstance(space, gym.spaces.Tuple):
        if not isinstance(value, tuple) or len(value) != len(space.spaces):
            yield f"{at}: it must be a tuple of {len(space.spaces)}"
            return
        for index, inner in enumerate(space.spaces):
            yield from breaches(inner, value[index], f"{name}[{index}]")
    elif not space.contains(value):
        yield f"{at}: it is not in {space}" if at else ""


def outside(space: Any, value: Any, name: str = "") -> Iterator[str]:
    """Where a value of the right structure lies outside of the bounds."""
    if isinstance(space, gym.spaces.Box):
        found = np.asarray(value).astype(space.dtype)  # Rounding is not meant.
        beyond = np.argwhere((found < space.low) | (found > space.high))
        if len(beyond):
            at = tuple(int(each) for each in beyond[0])
            index = f"{name}[{', '.join(map(str, at))}]" if at else name
            low, high = space.low[at], space.high[at]
            yield f"{f'at {index} ' if index else ''}it is {found[at]}, and the bounds are {low} and {high}"
    elif isinstance(space, gym.spaces.Dict):
        for key, inner in space.spaces.items():
            yield from outside(inner, value[key], f"{name}[{key!r}]")
    elif isinstance(space, gym.spaces.Tuple):
        for part, inner in enumerate(space.spaces):
            yield from outside(inner, value[part], f"{name}[{part}]")


def shown(value: Any) -> str:
    """A returned value in a few words."""
    if isinstance(value, np.ndarray):
        text = f"an array of shape {value.shape} and dtype {value.dtype}"
        return f"{text}, {np.array2string(value, threshold=6)}" if value.size <= 6 else text
    if isinstance(value, tuple):
        kinds = ", ".join(type(each).__name__ for each in value)
        return f"a tuple of {len(value)} ({kinds})"
    if value is None or isinstance(value, bool):
        return str(value)
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else f'{text[:57]}...'} (a {type(value).__name__})"


def method_place(env: Any, method: str) -> Place | None:
    """Where the outermost layer that is not Gymnasium's own says what `method` returns; that of the base
    environment if there is none."""
    layer = env
    while layer is not env.unwrapped and _is_library(type(layer)):
        layer = layer.env
    kind = type(layer)
    names = {"reset": ("reset", "observation"), "step": ("step", "observation", "reward")}[method]
    own = [name for name in names if any(name in vars(each) for each in _own_classes(kind))]
    function = inspect.unwrap(getattr(kind, own[0] if own else method))
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    return Place(code.co_filename, code.co_firstlineno, f"{kind.__name__}.{function.__name__}")


def _own_classes(kind: type) -> list[type]:
    return [each for each in kind.__mro__ if not _is_library(each) and each is not object]


def _is_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARIES


def _box_breaches(space: gym.spaces.Box, value: Any, at: str) -> Iterator[str]:
    try:
        found = np.asarray(value)
    except ValueError:  # lists of different lengths
        yield f"{at}: it is no array"
        return
    if found.shape != space.shape:
        yield f"{at}: its shape is {found.shape}, not {space.shape}"
    elif not np.can_cast(found.dtype, space.dtype, "same_kind"):
        yield f"{at}: its dtype {found.dtype} cannot be cast to {space.dtype}"
    elif np.issubdtype(found.dtype, np.inexact) and not np.isfinite(found).all():
        yield f"{at}: NaN or infinity is in it"
    elif not _finite_in_float32(found):
        yield f"{at}: a number in it is beyond 3.4e38, the largest that a network takes (32 bits)"


def _finite_in_float32(numbers: Any) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.asarray(numbers, np.float64).astype(np.float32)).all())
