"""The strategies by name."""

from __future__ import annotations

from raytrain.rollout.env_snapshots.native import NativeSnapshots
from raytrain.rollout.env_snapshots.protocol import SnapshotError, Snapshotter, Strategy
from raytrain.rollout.env_snapshots.replay import ReplaySnapshots
from raytrain.rollout.env_snapshots.whole import PickleSnapshots, ResetSnapshots


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
