"""Merging the connector states of several env runners, with correct running statistics.

After each iteration the observations that the runners' filters have seen since the last one are
merged. RLlib 2.60 computes wrong numbers: a runner reports by how much its mean has moved
(`RunningStat.mean_delta_array`), and `RunningStat.update` takes that for the mean of the new
observations, so the merged mean drifts to zero and the variance takes up the difference
(observations of mean 5 and deviation 1 end as 0.5 and 4.0 after 20 merges of 2 runners).

Here each runner's new observations (count n, mean m, sum of squared deviations s) are computed from
its statistics before (0) and after (1), and are added in group order, both by the formulas of Chan,
Golub and LeVeque (1979), eq. 2.1:

    n = n1 - n0        m = m0 + (m1 - m0) n1 / n        s = s1 - s0 - (m - m0)^2 n0 n / n1

With one runner the merged statistics are that runner's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.rllib.connectors.env_to_module.mean_std_filter import MeanStdFilter
from ray.rllib.utils.filter import RunningStat

from raytrain.policy.rllib_observations import NormalizeParts

State = Mapping[str, Any]


def merge_connector_states(pipeline: Any, before: State, states: Sequence[State]) -> dict[str, Any]:
    """The merged state of a connector pipeline. `before`: the state that all runners started from;
    `states`: their states now, in group order."""
    merged = {}
    for name, connector in pipeline.get_checkpointable_components():
        # The states have no entry for a connector without state.
        own = [state[name] for state in states if state.get(name)]
        if own and isinstance(connector, MeanStdFilter | NormalizeParts):
            merged[name] = _merge_filters(before[name], own)
        elif own:
            merged[name] = connector.merge_states(own)
    return merged


def _merge_filters(before: State, states: list[State]) -> dict[Any, Any]:
    return {
        agent: {
            **first,
            "running_stats": [
                _merge(
                    RunningStat.from_state(before[agent]["running_stats"][index]),
                    [RunningStat.from_state(s[agent]["running_stats"][index]) for s in states],
                ).to_state()
                for index in range(len(first["running_stats"]))
            ],
        }
        for agent, first in states[0].items()
    }


def _merge(before: RunningStat, after: list[RunningStat]) -> RunningStat:
    start, added = (after[0], []) if len(after) == 1 else (before, after)
    n, mean, squares = start.num_pushes, start.mean_array, start.sum_sq_diff_array
    for stats in added:
        new = stats.num_pushes - before.num_pushes
        if new == 0:
            continue
        new_mean, new_squares = _new_observations(before, stats, new)
        shift = new_mean - mean
        squares = squares + new_squares + shift * shift * (n * new / (n + new))
        mean = mean + shift * (new / (n + new))
        n += new
    # The deltas of RunningStat stay zero: nothing reads them.
    total = RunningStat(before.shape)
    total.num_pushes, total.mean_array, total.sum_sq_diff_array = n, mean, squares
    return total


def _new_observations(before: RunningStat, after: RunningStat, new: int) -> tuple[Any, Any]:
    """Mean and sum of squared deviations of the `new` observations between the two."""
    n0, n1 = before.num_pushes, after.num_pushes
    mean = before.mean_array + (after.mean_array - before.mean_array) * (n1 / new)
    shift = mean - before.mean_array
    squares = after.sum_sq_diff_array - before.sum_sq_diff_array - shift * shift * (n0 * new / n1)
    # Rounding may leave it slightly negative.
    return mean, np.maximum(squares, 0.0)
