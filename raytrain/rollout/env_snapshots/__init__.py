"""Environment snapshots: taken at any step, restored in another process, and proved beforehand.

    proof = prove(make_env)                  # scratch copies; which strategy is exact, and why
    own = snapshotter(proof.strategy)
    env = own.wrap(make_env())               # before the first reset
    snapshot = own.take(env)                 # between any two steps; picklable, isolated
    env = own.restore(own.wrap(make_env()), snapshot)

The proof imports this package in a new process, so it must stay light, and `raytrain` and
`raytrain.rollout` too: no Ray, no Torch.
"""

from raytrain.rollout.env_snapshots.base import SnapshotError, Snapshotter, Strategy
from raytrain.rollout.env_snapshots.comparison import close
from raytrain.rollout.env_snapshots.probe import Proof, prove
from raytrain.rollout.env_snapshots.strategies import snapshotter

__all__ = [
    "Proof",
    "SnapshotError",
    "Snapshotter",
    "Strategy",
    "close",
    "prove",
    "snapshotter",
]
