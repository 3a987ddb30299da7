"""RLlib's MeanStdFilter on a batch of observations: the same numbers, without episodes.

RLlib pushes the observations of a batch into the running statistics one by one, in the order of the
environments, and normalises each with the statistics that include it. The pushes depend on one
another and remain a loop; the normalisation is done for all at once. The statistics of RLlib's
connector are updated in place, so its state is the same. (RLlib's filter also fills a buffer, which
is in no state and which nothing reads.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raytrain import _ray
from raytrain.policy.arithmetic import filter_divisor, normalize
from raytrain.rollout.fast_sampling.fragments import Array


class BatchFilter:
    """Normalises with the running statistics of an RLlib MeanStdFilter connector. Construct a new
    one whenever the connector's state was set. `columns`: those of vectors that it normalises;
    None: all of an observation."""

    def __init__(self, connector: Any, columns: list[int] | None = None) -> None:
        self._filter, self._update = _ray.runners.mean_std_filter(connector)
        self._columns = columns
        self._stats = self._filter.running_stats

    def __call__(self, observations: Array) -> None:
        """Update the statistics with `observations` [N, ...], in order, and normalise
        them in place."""
        if self._columns is not None:
            chosen = observations[:, self._columns]
            self._normalise(chosen)
            observations[:, self._columns] = chosen
            return
        self._normalise(observations)

    def _normalise(self, observations: Array) -> None:
        stats = self._stats
        shape = observations.shape
        means = np.empty(shape)
        squares = np.empty(shape)
        counts = np.empty(shape[0])
        for index in range(shape[0]):
            if self._update:
                _push(stats, observations[index])
            means[index] = stats.mean_array
            squares[index] = stats.sum_sq_diff_array
            counts[index] = stats.num_pushes
        divisor = filter_divisor(squares, counts.reshape(-1, *[1] * (squares.ndim - 1)))
        observations[...] = normalize(
            observations,
            means if self._filter.demean else None,
            divisor if self._filter.destd else None,
            self._filter.clip,
        )


def _push(stats: Any, observation: Array) -> None:
    """`RunningStat.push`, operation by operation."""
    stats.num_pushes += 1
    stats.num_pushes_delta += 1
    mean = stats.mean_array
    if stats.num_pushes == 1:
        mean[...] = observation
        stats.mean_delta_array[...] = observation
        return
    delta = observation - mean
    moved = delta / stats.num_pushes
    mean += moved
    stats.mean_delta_array += moved
    delta *= observation - mean
    stats.sum_sq_diff_array += delta
    stats.sum_sq_diff_delta_array += delta
