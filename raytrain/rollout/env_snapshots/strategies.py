"""The strategies by name."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle

from raytrain.rollout.env_snapshots.base import SnapshotError, Snapshotter, Strategy
from raytrain.rollout.env_snapshots.native import NativeSnapshots
from raytrain.rollout.env_snapshots.replay import ReplaySnapshots


class PickleSnapshots(Snapshotter):
    """`restore` returns another object than it is given."""

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
