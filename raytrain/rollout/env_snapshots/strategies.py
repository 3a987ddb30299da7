"""The strategies by name."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle

from raytrain.rollout.env_snapshots.ale import RecordedEmulator
from raytrain.rollout.env_snapshots.base import SnapshotError, Snapshotter, Strategy
from raytrain.rollout.env_snapshots.replay import ReplaySnapshots
from raytrain.rollout.env_snapshots.wrapper_state import Layers


class NativeSnapshots(Snapshotter):
    """The environment hands out its state itself.

    Either `env.unwrapped` has `get_state()` and `set_state(state)`, or it is an ALE game, whose
    emulator state (with its own random generator) is `env.unwrapped.ale.cloneSystemState()` and
    what `ale.py` adds to it. Wrappers, spaces' generators and `np_random` are saved beside it.
    """

    strategy = "native"

    def __init__(self) -> None:
        # `get_state()` is all that the environment wants saved of itself. An ALE game's emulator
        # state is not: the Python object around it has attributes too.
        self._own = Layers("generators")
        self._ale = Layers("all")

    def wrap(self, env: Any) -> Any:
        base = env.unwrapped
        if not _has_own_state(base) and _is_emulator(getattr(base, "ale", None)):
            base.ale = RecordedEmulator(base.ale)
        return env

    def _take(self, env: Any) -> dict[str, Any]:
        layers, get_state, _ = self._access(env)
        return {"state": layers.capture(env, extra=get_state())}

    def _restore(self, env: Any, snapshot: dict[str, Any]) -> Any:
        layers, _, set_state = self._access(env)
        layers.restore(env, snapshot["state"], use_extra=set_state)
        return env

    def _access(self, env: Any) -> tuple[Layers, Callable[[], Any], Callable[[Any], Any]]:
        base = env.unwrapped
        if _has_own_state(base):
            return self._own, base.get_state, base.set_state
        ale = getattr(base, "ale", None)
        if isinstance(ale, RecordedEmulator):
            return self._ale, ale.get_state, ale.set_state
        raise SnapshotError(
            f"{type(base).__name__} has no get_state() and set_state(), and is not an ALE game"
        )


class PickleSnapshots(Snapshotter):
    """The whole environment as one pickle. `restore` returns another object than it is given."""

    strategy = "pickle"

    def _take(self, env: Any) -> dict[str, Any]:
        return {"env": cloudpickle.dumps(env)}

    def _restore(self, env: Any, snapshot: dict[str, Any]) -> Any:
        return pickle.loads(snapshot["env"])


class ResetSnapshots(Snapshotter):
    """Not exact: a running episode is lost, and a restored environment waits for its reset."""

    strategy = "reset"

    def _take(self, env: Any) -> dict[str, Any]:
        return {}

    def _restore(self, env: Any, snapshot: dict[str, Any]) -> Any:
        return env


_STRATEGIES: dict[str, type[Snapshotter]] = {
    kind.strategy: kind
    for kind in (NativeSnapshots, PickleSnapshots, ReplaySnapshots, ResetSnapshots)
}


def snapshotter(strategy: Strategy) -> Snapshotter:
    """A snapshotter for environments of one make (one `make_env`).

    Raises:
        SnapshotError: there is no such strategy.
    """
    if strategy not in _STRATEGIES:
        names = ", ".join(_STRATEGIES)
        raise SnapshotError(f"unknown snapshot strategy {strategy!r}; choose from {names}")
    return _STRATEGIES[strategy]()


def _has_own_state(base: Any) -> bool:
    return callable(getattr(base, "get_state", None)) and callable(getattr(base, "set_state", None))


def _is_emulator(ale: Any) -> bool:
    return hasattr(ale, "cloneSystemState") and hasattr(ale, "restoreSystemState")
