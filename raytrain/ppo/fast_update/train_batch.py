"""From episodes to columns: the train batch that RLlib's default learner connectors would build.

The rows are those of RLlib's batch, in its order: the timesteps of each chunk, followed by one row
with the chunk's last observation, which is there for its value (the bootstrap value). Minibatches
are cut from all rows, and `loss_mask` excludes the bootstrap rows from the loss. Their reward is 0,
and their other columns repeat the row before.

    episodes    a0 a1 a2 | b0 b1                 two chunks, of 3 and 2 timesteps
    rows        a0 a1 a2 a3* b0 b1 b2*           * bootstrap rows: loss_mask is False
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from raytrain.policy.action_masks import COLUMN as ACTION_MASKS

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TrainBatch:
    """N rows. Floats are float32, but rewards (float64, as environments return them)."""

    columns: dict[str, Array]
    """What the loss needs, by RLlib's names: `obs` (N, ...), `actions` (N,) or (N, A) (of Tuple and
    Dict spaces the numbers of all leaves, float32, in the order of `tree.flatten`),
    `action_logp` (N,) and `action_dist_inputs` (N, K) of the policy that sampled them,
    `raytrain_action_mask` (N, K) bool if actions are masked, `loss_mask` (N,) bool, and
    `weights_seq_no` (N,), the version of its weights, if the env runner reports it."""
    rewards: Array
    terminateds: Array
    """(N,) bool: there is no next state. Never set on a bootstrap row."""
    truncateds: Array
    """(N,) bool: the chunk ends here, though the episode has a next state."""
    timesteps: int
    """Timesteps of the episodes: N less the bootstrap rows."""

    def __len__(self) -> int:
        return len(self.rewards)


def train_batch(episodes: Sequence[Any], *, everything: bool = False) -> TrainBatch:
    """The columns of RLlib `SingleAgentEpisode` chunks, none of them empty. They are not changed.
    `everything`: also the columns of RLlib's batch that PPO's loss does not read.

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
    names = [Columns.ACTION_LOGP, Columns.ACTION_DIST_INPUTS]
    names += [name for name in (WEIGHTS_SEQ_NO, ACTION_MASKS) if name in outputs[0]]
    rewards = np.where(
        loss_mask,
        np.concatenate([_items(episode.rewards) for episode in episodes])[source],
        0.0,
    )
    more = {}
    if everything:
        names = list(outputs[0])
        more = {
            Columns.REWARDS: _float32(rewards),
            Columns.TERMINATEDS: terminateds,
            Columns.TRUNCATEDS: truncateds,
        }
    return TrainBatch(
        columns={
            Columns.OBS: _float32(
                np.concatenate([_items(episode.observations) for episode in episodes])
            ),
            Columns.ACTIONS: per_step([_flat_actions(episode.actions) for episode in episodes]),
            Columns.LOSS_MASK: loss_mask,
            **{name: per_step([_items(columns[name]) for columns in outputs]) for name in names},
            **more,
        },
        rewards=rewards,
        terminateds=terminateds,
        truncateds=truncateds,
        timesteps=int(lengths.sum()),
    )


def _items(buffer: Any) -> Array:
    """What an `InfiniteLookbackBuffer` holds, without its lookback."""
    if isinstance(buffer.data, np.ndarray):
        return buffer.data[buffer.lookback :]
    return np.asarray(buffer.data[buffer.lookback :])


def _flat_actions(buffer: Any) -> Array:
    if isinstance(buffer.data, dict | tuple):
        leaves = [leaf[buffer.lookback :] for leaf in tree.flatten(buffer.data)]
        return np.concatenate(
            [leaf.reshape(len(leaf), -1).astype(np.float32, copy=False) for leaf in leaves], axis=1
        )
    return _items(buffer)


def _float32(column: Array) -> Array:
    # As RLlib's `NumpyToTensor` does; integers and bools stay what they are.
    return column.astype(np.float32) if column.dtype == np.float64 else column
