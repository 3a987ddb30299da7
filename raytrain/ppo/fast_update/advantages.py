"""Generalized advantage estimation over the rows of a `TrainBatch`, as RLlib computes it.

Schulman et al. 2016, https://arxiv.org/abs/1506.02438, equation 16. Intermediate values are float64
and results float32, which makes them bit-equal to those of RLlib's connector
`GeneralAdvantageEstimation`, given the same values.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from raytrain.ppo.fast_update.train_batch import Array, TrainBatch


def advantages_and_targets(
    batch: TrainBatch, values: Array, *, gamma: float, lambda_: float, standardize: bool = True
) -> tuple[Array, Array]:
    """Advantages and value targets, (N,) float32 each.

    `values` is (N,) float32: the value function of all rows, bootstrap rows included. With
    `standardize` advantages are standardized over all rows, bootstrap rows included, because RLlib
    does so.
    """
    rewards = batch.rewards.astype(np.float32)
    non_terminal = 1.0 - batch.terminateds
    propagate = non_terminal * (1.0 - batch.truncateds)
    next_values = np.append(values[1:], 0.0)
    residuals = rewards + gamma * non_terminal * next_values - values
    # advantage[t] = residual[t] + decay[t] * advantage[t + 1], from the last row to the first.
    backwards = zip(
        residuals[::-1].tolist(), (gamma * lambda_ * propagate)[::-1].tolist(), strict=True
    )
    running = accumulate(backwards, lambda later, row: row[0] + row[1] * later, initial=0.0)
    next(running)
    raw = np.fromiter(running, dtype=np.float32, count=len(values))[::-1]

    targets = (raw + values).astype(np.float32)
    advantages = targets - values
    if standardize:
        advantages = (advantages - advantages.mean()) / max(1e-4, advantages.std())
    return advantages.astype(np.float32, copy=False), targets
