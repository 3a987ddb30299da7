"""Environment snapshots: taken at any step, restored in another process, and proved beforehand.

    proof = prove(make_env)                  # scratch copies; which strategy is exact, and why
    own = snapshotter(proof.strategy)
    env = own.wrap(make_env())               # before the first reset
    snapshot = own.take(env)                 # between any two steps; picklable, isolated
    env = own.restore(own.wrap(make_env()), snapshot)

Importing raytrain and raytrain.trainable must stay light (no Ray, no Torch): the proof imports this
package in a new process.
"""

from raytrain.trainable.snapshots.continuation import close
from raytrain.trainable.snapshots.proof import Attempt, Proof, prove
from raytrain.trainable.snapshots.protocol import SnapshotError, Snapshotter, Strategy
from raytrain.trainable.snapshots.strategies import snapshotter

__all__ = [
    "Attempt",
    "Proof",
    "SnapshotError",
    "Snapshotter",
    "Strategy",
    "close",
    "prove",
    "snapshotter",
]
