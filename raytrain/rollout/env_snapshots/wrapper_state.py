"""The state of an environment's wrappers, and a part of the base environment's state.

An environment is a stack of objects, the outermost wrapper first and `env.unwrapped` last. A
wrapper's state is its `__dict__` without `env`: elapsed steps, frame stacks, running means.
All layers are pickled as ONE object, so objects that two attributes share are shared again
after restoring. What is not copied is a reference, which is resolved in the environment that
is restored into:

- the layers themselves (a wrapper that holds `env.unwrapped` gets the new one);
- attributes that are left out: functions and classes, spaces, `spec`, what cannot be pickled, and
  the base environment's attributes that `base` leaves out. Generators of spaces and of the base
  environment are saved on their own and set in place.
"""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Callable
from typing import Any, Literal

import cloudpickle
import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from raytrain.rollout.env_snapshots import generators
from raytrain.rollout.env_snapshots.base import SnapshotError

Base = Literal["generators", "plain", "all"]
"""What of the base environment is saved: its generators; also its plain numbers, strings and
None (which cannot be aliases of anything); or all that can be pickled."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_LEFT_OUT = (
    gym.Space,
    EnvSpec,
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
)


class Layers:
    """Captures and restores stacks of one make; remembers which attributes cannot be pickled."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._unpicklable: set[tuple[int, str]] = set()

    def capture(self, env: Any, extra: Any = None) -> bytes:
        """The layers' state, with `extra` in the same pickle."""
        stack = _stack(env)
        try:
            return self._dump(stack, extra)
        except Exception:
            # Objects of a user's environment may raise anything when they are pickled. Those are
            # left out, and the proof shows whether that matters.
            before = len(self._unpicklable)
            self._find_unpicklable(stack)
            if len(self._unpicklable) == before:
                raise
            return self._dump(stack, extra)

    def restore(
        self, env: Any, captured: bytes, use_extra: Callable[[Any], None] | None = None
    ) -> None:
        """Bring a fresh stack to that state; `use_extra` is called with `extra` first.

        Raises:
            SnapshotError: `env` is built of other layers than the captured one.
        """
        stack = _stack(env)
        names, base_generators, body = pickle.loads(captured)
        present_names = [_name(layer) for layer in stack]
        if names != present_names:
            raise SnapshotError(
                f"the environment is built of {present_names}, its snapshot of "
                f"{names}: continue with the environment and the wrappers that the run was started "
                "with"
            )
        for name, state in base_generators.items():
            generators.write(vars(stack[-1]), name, state)
        saved_layers, spaces, extra = _Unpickler(io.BytesIO(body), stack).load()
        if use_extra is not None:
            use_extra(extra)
            for name, state in base_generators.items():
                generators.write(vars(stack[-1]), name, state)
        for layer, (saved, kept) in zip(stack, saved_layers, strict=True):
            present = vars(layer)
            if layer is not stack[-1] or self._base == "all":
                for name in [name for name in present if name not in saved and name not in kept]:
                    del present[name]
            present.update(saved)
        for index, name, states in spaces:
            generators.write_space(vars(stack[index])[name], states)

    def _dump(self, stack: list[Any], extra: Any) -> bytes:
        base_generators = {
            name: generators.read(value)
            for name, value in vars(stack[-1]).items()
            if isinstance(value, generators.GENERATOR_TYPES)
        }
        references = _references(stack)
        saved_layers = []
        spaces = []
        for index, layer in enumerate(stack):
            saved, kept = {}, []
            for name, value in vars(layer).items():
                if self._is_saved(stack, index, name, value):
                    saved[name] = value
                    continue
                kept.append(name)
                if not isinstance(value, (*_PLAIN, tuple)):
                    references.setdefault(id(value), ("attribute", index, name))
                if isinstance(value, gym.Space):
                    spaces.append((index, name, generators.read_space(value)))
            saved_layers.append((saved, kept))
        body = io.BytesIO()
        _Pickler(body, references).dump((saved_layers, spaces, extra))
        # The body is nested: generators must be in place before it is read, since it
        # refers to them.
        return pickle.dumps(([_name(layer) for layer in stack], base_generators, body.getvalue()))

    def _is_saved(self, stack: list[Any], index: int, name: str, value: Any) -> bool:
        if (index, name) in self._unpicklable or isinstance(value, _LEFT_OUT):
            return False
        if stack[index] is not stack[-1]:
            return not (name == "env" and value is stack[index + 1])
        if isinstance(value, generators.GENERATOR_TYPES):
            return False  # saved on its own
        return self._base == "all" or (self._base == "plain" and isinstance(value, _PLAIN))

    def _find_unpicklable(self, stack: list[Any]) -> None:
        references = _references(stack)
        for index, layer in enumerate(stack):
            for name, value in vars(layer).items():
                if not self._is_saved(stack, index, name, value):
                    continue
                try:
                    _Pickler(io.BytesIO(), references).dump(value)
                except Exception:  # as in capture: anything may be raised by a user's object
                    self._unpicklable.add((index, name))


class _Pickler(cloudpickle.Pickler):  # untyped base
    def __init__(self, file: io.BytesIO, references: dict[int, tuple[Any, ...]]) -> None:
        super().__init__(file)
        self._references = references

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        return self._references.get(id(value))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, stack: list[Any]) -> None:
        super().__init__(file)
        self._stack = stack

    def persistent_load(self, reference: Any) -> Any:
        if reference[0] == "layer":
            return self._stack[reference[1]]
        _, index, name = reference
        return vars(self._stack[index])[name]


def _references(stack: list[Any]) -> dict[int, tuple[Any, ...]]:
    return {id(layer): ("layer", index) for index, layer in enumerate(stack)}


def _stack(env: Any) -> list[Any]:
    stack = [env]
    while isinstance(stack[-1], gym.Wrapper):
        stack.append(stack[-1].env)
    return stack


def _name(layer: Any) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"
