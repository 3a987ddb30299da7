"""The strategies by name."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle

from raytrain.rng import preserved
from raytrain.rollout.env_snapshots.native import NativeSnapshots
from raytrain.rollout.env_snapshots.protocol import (
    SnapshotError,
    Snapshotter,
    Strategy,
    check_strategy,
)
from raytrain.rollout.env_snapshots.replay import ReplaySnapshots


def snapshotter(strategy: Strategy) -> Snapshotter:
    """A snapshotter for environments of one make (one `make_env`).

    Raises:
        SnapshotError: there is no such strategy.
    """
    kinds: dict[str, type[Snapshotter]] = {
        kind.strategy: kind
        for kind in (NativeSnapshots, PickleSnapshots, ReplaySnapshots, ResetSnapshots)
    }
    if strategy not in kinds:
        raise SnapshotError(f"unknown snapshot strategy {strategy!r}; there are {', '.join(kinds)}")
    return kinds[strategy]()


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
