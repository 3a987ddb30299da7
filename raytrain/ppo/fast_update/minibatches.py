"""Which rows each minibatch of an update takes, as RLlib's `MiniBatchCyclicIterator` would.

RLlib walks through the batch again and again, in minibatches of one size. A minibatch that reaches
the batch's end goes on at its start, in the next pass's order; it ends once the passes are complete.
The first pass is in the batch's order, and each further one shuffles the order of the one before:

    batch of 5, minibatches of 2, 2 epochs:   [0 1] [2 3] [4 | 2] [0 4] [1 3]
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from raytrain.errors import RaytrainError
from raytrain.ppo.fast_update.train_batch import Array


class Permuting(Protocol):
    """What draws the order: `numpy.random.Generator`, or anything with its `permutation`."""

    def permutation(self, x: int) -> Array: ...


def minibatch_rows(
    rows: int,
    minibatch_size: int,
    *,
    epochs: int,
    shuffle: bool,
    generator: Permuting,
    minibatches: int = 0,
) -> Array:
    """Row numbers, int64 (M, minibatch_size): a line for each of M minibatches.

    `minibatches` is how many there must be, 0 for as many as `epochs` passes take. (Several learners
    agree on it, as their shards are not equally long.)
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
    """Index of the last minibatch that holds a row of `loss_mask` (N,); None if there is none. A minibatch
    of bootstrap rows alone has no loss."""
    for index in range(len(rows) - 1, -1, -1):
        if loss_mask[rows[index]].any():
            return index
    return None


def minibatch_generator(seed: int | None, rank: int) -> np.random.Generator:
    """The generator of a learner's minibatch order; every rank has another one."""
    if seed is None:
        return np.random.default_rng()
    return np.random.default_rng([seed, rank])


def generator_state(generator: Any) -> dict[str, Any]:
    """A generator's state: names and integers, of up to 128 bits."""
    state: dict[str, Any] = generator.bit_generator.state
    return state


def set_generator_state(generator: Any, state: dict[str, Any]) -> None:
    """Put back what `generator_state` returned.

    Raises:
        RaytrainError: it is the state of another kind of generator, or damaged.
    """
    try:
        generator.bit_generator.state = state
    except (KeyError, TypeError, ValueError) as error:
        raise RaytrainError(
            f"the saved state of the minibatch order is damaged ({error!r}); use an older checkpoint"
        ) from error
