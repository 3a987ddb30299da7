"""Random generators that an environment's objects hold, read and set in place.

In place, because other objects of the environment may hold the same generator: if it were replaced,
they would still draw from the old one. See `raytrain.rng` for the global generators.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np

GENERATOR_TYPES = (np.random.Generator, np.random.RandomState, random.Random)

_NEW: dict[str, Callable[[Any], Any]] = {
    "Generator": lambda bits_class: np.random.Generator(bits_class()),
    "RandomState": lambda _: np.random.RandomState(),
    "Random": lambda _: random.Random(),
}


def read(generator: Any) -> tuple[str, Any, Any]:
    """A generator's kind, bit generator class and state, sharing nothing with it."""
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return "Generator", type(bits), bits.state
    if isinstance(generator, np.random.RandomState):
        # The state names the bit generator; RandomState hides the object and its class.
        return "RandomState", None, generator.get_state(legacy=False)
    return "Random", None, generator.getstate()


def write(holder: dict[str, Any], name: str, saved: tuple[str, Any, Any]) -> None:
    """Bring `holder[name]` to a state that `read` gave; a generator of another kind is replaced."""
    kind, bits_class, state = saved
    present: Any = holder.get(name)
    if not isinstance(present, GENERATOR_TYPES) or read(present)[:2] != (kind, bits_class):
        present = holder[name] = _NEW[kind](bits_class)
    if kind == "Generator":
        present.bit_generator.state = state
    elif kind == "RandomState":
        present.set_state(state)
    else:
        present.setstate(state)


def read_space(space: gym.Space[Any]) -> list[Any]:
    """The states of the generators of a space and its subspaces; None for one not yet created."""
    return [
        None if (own := vars(part).get("_np_random")) is None else read(own)
        for part in _parts(space)
    ]


def write_space(space: gym.Space[Any], states: list[Any]) -> None:
    for part, state in zip(_parts(space), states, strict=True):
        if state is not None:
            write(vars(part), "_np_random", state)


def _parts(space: gym.Space[Any]) -> Iterator[gym.Space[Any]]:
    yield space
    for value in vars(space).values():
        inner = value.values() if isinstance(value, dict) else value
        for item in inner if isinstance(value, (dict, list, tuple)) else [inner]:
            if isinstance(item, gym.Space):
                yield from _parts(item)
