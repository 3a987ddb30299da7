"""Strategies "pickle", the whole environment as one object, and "reset", nothing at all."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle

from raytrain.rng import preserved
from raytrain.rollout.env_snapshots.protocol import Strategy, check_strategy


class PickleSnapshots:
    """`restore` returns another object than it is given."""

    strategy: Strategy = "pickle"

    def wrap(self, env: Any) -> Any:
        return env

    def take(self, env: Any) -> dict[str, Any]:
        return {"strategy": self.strategy, "env": cloudpickle.dumps(env)}

    def restore(self, env: Any, snapshot: dict[str, Any]) -> Any:
        check_strategy(snapshot, self.strategy)
        with preserved():
            return pickle.loads(snapshot["env"])


class ResetSnapshots:
    """Not exact: a running episode is lost, and a restored environment waits for its reset."""

    strategy: Strategy = "reset"

    def wrap(self, env: Any) -> Any:
        return env

    def take(self, env: Any) -> dict[str, Any]:
        return {"strategy": self.strategy}

    def restore(self, env: Any, snapshot: dict[str, Any]) -> Any:
        check_strategy(snapshot, self.strategy)
        return env
