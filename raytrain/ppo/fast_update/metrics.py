"""The metrics of a learner's update that RLlib counts for each minibatch, once for all of them.

Names, reduction and meaning are those of RLlib's `Learner.update`. The times of single connectors
(`learner_connector/timers/connectors/...`) are missing, since no connector runs.
"""

from __future__ import annotations

from typing import Any

from ray.rllib.utils.metrics import (
    ALL_MODULES,
    LEARNER_CONNECTOR_SUM_EPISODES_LENGTH_IN,
    LEARNER_CONNECTOR_SUM_EPISODES_LENGTH_OUT,
    MODULE_TRAIN_BATCH_SIZE_MEAN,
    NUM_ENV_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED,
    WEIGHTS_SEQ_NO,
)

from raytrain.ppo.fast_update.train_batch import TrainBatch


def log_steps(
    metrics: Any,
    module_id: str,
    *,
    batch: TrainBatch,
    minibatches: tuple[int, ...],
    sequence_number: int,
) -> None:
    """`minibatches`: (number, rows of each)."""
    count, size = minibatches
    metrics.log_value((ALL_MODULES, LEARNER_CONNECTOR_SUM_EPISODES_LENGTH_IN), batch.timesteps)
    metrics.log_value((ALL_MODULES, LEARNER_CONNECTOR_SUM_EPISODES_LENGTH_OUT), len(batch))
    metrics.log_value((module_id, WEIGHTS_SEQ_NO), sequence_number, window=1)
    metrics.log_value((module_id, MODULE_TRAIN_BATCH_SIZE_MEAN), size, reduce="mean")
    module_steps = count * size
    # RLlib counts the environment steps of the whole batch for each minibatch.
    env_steps = count * len(batch)
    steps = {
        (module_id, NUM_MODULE_STEPS_TRAINED): module_steps,
        (ALL_MODULES, NUM_MODULE_STEPS_TRAINED): module_steps,
        (ALL_MODULES, NUM_ENV_STEPS_TRAINED): env_steps,
    }
    for key, value in steps.items():
        # RLlib keeps no throughput of a single module's steps.
        metrics.log_value(key, value, reduce="sum", with_throughput=key[0] == ALL_MODULES)
    for (module, name), value in steps.items():
        key = (module, f"{name}_lifetime")
        metrics.log_value(key, value, reduce="lifetime_sum", with_throughput=True)
