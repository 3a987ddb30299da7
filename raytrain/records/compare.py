"""Whether two runs reported the same: result rows without what depends on time and place.

A row is flattened with "/", and the keys that match `LEFT_OUT` are dropped. Everything else that
RLlib reports is a function of the run and is compared without tolerance: returns, lengths, losses,
counters, learning rates, weights_seq_no. A key of env_config or a metric of the environment that
matches `LEFT_OUT`, such as one that ends in `_s`, is not compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate
from typing import Any

import numpy as np

LEFT_OUT = (  # `*` is any text, also across "/"
    # time and speed
    "date",
    "timestamp",
    "time_*",
    "timesteps_since_restore",
    "iterations_since_restore",
    "warmup_time",
    "*_s",
    "*timer",
    "timers/*",
    "*/timers/*",
    "*throughput*",
    "*_duration_sec_*",
    "*time_between_sampling",
    "*/sample",
    "perf/*",
    "*memory*",
    "*_ms",
    "*_seconds",
    # place
    "pid",
    "hostname",
    "node_ip",
    "trial_id",
    "trial_name",
    "trial_dir",
    "trial_log_path",
    "logdir",
    "experiment_id",
    "experiment_tag",
    "checkpoint_dir_name",
    "restored_from_trial_id",
    # the actors
    "fault_tolerance/*",
    "env_runner_group/*",
    "*num_healthy_workers",
    "*num_remote_worker_restarts",
    "*num_env_runners_dropped_lifetime",
    "*actor_manager_num_outstanding_async_reqs",
    # the end; a stop criterion may differ between two equal runs
    "done",
    "exact",
    "should_checkpoint",
    "stop/*",
    # the settings, and the score that they choose
    "config",
    "config/*",
    "checkpoint/*",
)
_LEFT_OUT = re.compile("|".join(translate(pattern) for pattern in LEFT_OUT))
MISSING = "(missing)"


def comparable(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` (nested or flat) flattened with "/", without the keys that `LEFT_OUT` names."""
    # Imported late: commands that only look at files need not wait for Ray.
    from ray.tune.utils import flatten_dict

    flat = flatten_dict(dict(row), delimiter="/")
    return {key: value for key, value in flat.items() if not _LEFT_OUT.match(key)}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value in a, value in b) of every comparable key that differs, sorted by key.

    There is no tolerance. NaN equals NaN; a key that only one row has differs from `MISSING`.
    """
    left, right = comparable(a), comparable(b)
    keys = sorted(left.keys() | right.keys())
    pairs = ((key, left.get(key, MISSING), right.get(key, MISSING)) for key in keys)
    return [(key, one, other) for key, one, other in pairs if not _same(one, other)]


def _same(one: Any, other: Any) -> bool:
    sequences = [isinstance(value, (list, tuple, np.ndarray)) for value in (one, other)]
    if any(sequences):
        return all(sequences) and len(one) == len(other) and all(map(_same, one, other))
    both_nan = one != one and other != other  # noqa: PLR0124
    return bool(one == other or both_nan)
