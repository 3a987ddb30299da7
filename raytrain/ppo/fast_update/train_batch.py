"""Episodes -> columns: the train batch that RLlib's default learner connectors would build.

The rows are those of RLlib's batch, in its order: every chunk's timesteps, followed by one row that
holds the chunk's last observation. That row exists for its value (the bootstrap value); it is part
of the batch that minibatches are cut from, and `loss_mask` keeps it out of the loss. Its
reward is 0, and its other columns repeat the row before it.

    episodes    a0 a1 a2 | b0 b1                 two chunks, of 3 and 2 timesteps
    rows        a0 a1 a2 a3* b0 b1 b2*           * bootstrap rows: loss_mask is False
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

ACTION_DIST_INPUTS = "action_dist_inputs"
ACTION_LOGP = "action_logp"
WEIGHTS_SEQ_NO = "weights_seq_no"


@dataclass(frozen=True)
class TrainBatch:
    """Columns of N rows. Floats are float32, but rewards (float64, as environments return them)."""

    obs: Array
    """(N, ...)"""
    actions: Array
    """(N,) or (N, A)"""
    logp: Array
    """(N,): log-probabilities of the actions under the policy that sampled them."""
    dist_inputs: Array
    """(N, K): what that policy put into its action distribution."""
    rewards: Array
    terminateds: Array
    """(N,) bool: there is no next state. Never set on a bootstrap row."""
    truncateds: Array
    """(N,) bool: the chunk ends here, though the episode has a next state."""
    loss_mask: Array
    """(N,) bool: False on bootstrap rows."""
    weights_seq_no: Array | None
    """(N,): version of the weights that sampled the row, if the env runner says it."""
    timesteps: int
    """Timesteps of the episodes: N less the bootstrap rows."""

    def __len__(self) -> int:
        return len(self.loss_mask)


def train_batch(episodes: Sequence[Any]) -> TrainBatch:
    """The columns of RLlib `SingleAgentEpisode` chunks, none of them empty. They are not changed.

    Raises:
        ValueError: there is no timestep in the episodes, or a chunk has none.
    """
    lengths = np.array([len(episode) for episode in episodes], dtype=np.int64)
    if len(lengths) == 0 or lengths.min() < 1:
        raise ValueError(
            f"A train batch needs episode chunks of at least one timestep, got lengths {lengths}."
        )
    rows = int(lengths.sum()) + len(lengths)
    bootstrap = np.cumsum(lengths + 1) - 1
    last = bootstrap - 1

    loss_mask = np.ones(rows, dtype=bool)
    loss_mask[bootstrap] = False
    terminateds = np.zeros(rows, dtype=bool)
    terminateds[last] = [episode.is_terminated for episode in episodes]
    truncateds = np.zeros(rows, dtype=bool)
    # A chunk that simply ends counts as truncated.
    truncateds[last] = ~terminateds[last]

    # Index of the timestep whose values a row takes: its own, or the one before a bootstrap row.
    source = np.cumsum(loss_mask) - 1

    def per_step(parts: list[Array]) -> Array:
        return _float32(np.concatenate(parts)[source])

    outputs = [episode.extra_model_outputs for episode in episodes]
    return TrainBatch(
        obs=_float32(np.concatenate([_items(episode.observations) for episode in episodes])),
        actions=per_step([_items(episode.actions) for episode in episodes]),
        logp=per_step([_items(columns[ACTION_LOGP]) for columns in outputs]),
        dist_inputs=per_step([_items(columns[ACTION_DIST_INPUTS]) for columns in outputs]),
        rewards=np.where(
            loss_mask,
            np.concatenate([_items(episode.rewards) for episode in episodes])[source],
            0.0,
        ),
        terminateds=terminateds,
        truncateds=truncateds,
        loss_mask=loss_mask,
        weights_seq_no=(
            per_step([_items(columns[WEIGHTS_SEQ_NO]) for columns in outputs])
            if WEIGHTS_SEQ_NO in outputs[0]
            else None
        ),
        timesteps=int(lengths.sum()),
    )


def _items(buffer: Any) -> Array:
    """What an `InfiniteLookbackBuffer` holds, without its lookback."""
    if isinstance(buffer.data, np.ndarray):
        return buffer.data[buffer.lookback :]
    return np.asarray(buffer.data[buffer.lookback :])


def _float32(column: Array) -> Array:
    # As RLlib's `NumpyToTensor` does; integers and bools stay what they are.
    return column.astype(np.float32) if column.dtype == np.float64 else column
