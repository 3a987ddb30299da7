"""Environment snapshots: taken at any step, restored in another process, and proved beforehand.

    proof = prove(make_env)                  # scratch copies; which strategy is exact, and why
    own = snapshotter(proof.strategy)
    env = own.wrap(make_env())               # before the first reset
    snapshot = own.take(env)                 # between any two steps; picklable, isolated
    env = own.restore(own.wrap(make_env()), snapshot)

Importing raytrain and raytrain.rollout must stay light (no Ray, no Torch): the proof imports this package in
a new process.
"""

from raytrain.rollout.env_snapshots.continuation import close
from raytrain.rollout.env_snapshots.proof import Proof, prove
from raytrain.rollout.env_snapshots.protocol import SnapshotError, Snapshotter, Strategy
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
