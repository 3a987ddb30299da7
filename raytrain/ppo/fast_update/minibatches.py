"""The rows of each minibatch of an update, as RLlib's `MiniBatchCyclicIterator` returns them.

RLlib walks through the batch again and again, in minibatches of one size. A minibatch that
reaches the end of the batch continues at its start, in the order of the next pass; it ends when
the passes are complete. The first pass has the batch's order, and each further one shuffles that
of the one before:

    batch of 5, minibatches of 2, 2 epochs:   [0 1] [2 3] [4 | 2] [0 4] [1 3]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raytrain.ppo.fast_update.train_batch import Array


def minibatch_rows(
    rows: int,
    minibatch_size: int,
    *,
    epochs: int,
    shuffle: bool,
    generator: Any,
    minibatches: int = 0,
) -> Array:
    """Row numbers, int64 (M, minibatch_size): a line for each of M minibatches.

    `generator` (a `numpy.random.Generator`) draws the permutations. `minibatches` is M, 0
    for as many as `epochs` passes take; several learners agree on it, since their shards
    have different lengths.
    """
    count = minibatches or -(-epochs * rows // minibatch_size)
    order = np.arange(rows)
    passes = [order]
    # RLlib shuffles as soon as a pass is complete, needed or not.
    for _ in range(count * minibatch_size // rows):
        if shuffle:
            order = order[generator.permutation(rows)]
        passes.append(order)
    return np.concatenate(passes)[: count * minibatch_size].reshape(count, minibatch_size)


def last_with_a_step(rows: Array, loss_mask: Array) -> int | None:
    """Index of the last minibatch with a row in `loss_mask` (N,), None if there is none: a
    minibatch of bootstrap rows alone has no loss."""
    for index in range(len(rows) - 1, -1, -1):
        if loss_mask[rows[index]].any():
            return index
    return None


def minibatch_generator(seed: int | None, rank: int) -> np.random.Generator:
    """The generator of a learner's minibatch order; each rank has its own."""
    if seed is None:
        return np.random.default_rng()
    return np.random.default_rng([seed, rank])
