"""Whether two runs reported the same: a result row without what depends on time and place.

Left out of a flattened row (`*` is any text, also across "/"):

    time and speed   date, timestamp, time_*, timesteps_since_restore, iterations_since_restore,
                     warmup_time, *_s, *timer, *timers/*, *throughput*, *_duration_sec_*,
                     *time_between_sampling, */sample, perf/*, *memory*, *_ms, *_seconds
    place            pid, hostname, node_ip, trial_id, trial_name, trial_dir, trial_log_path,
                     logdir, experiment_id, experiment_tag, checkpoint_dir_name,
                     restored_from_trial_id
    the actors       fault_tolerance/*, env_runner_group/*, *num_healthy_workers,
                     *num_remote_worker_restarts, *num_env_runners_dropped_lifetime,
                     *actor_manager_num_outstanding_async_reqs
    the end          done, should_checkpoint, stop/* (a stop criterion may differ between two equal runs)
    the settings     config, config/*, checkpoint/* (so may the score)

Everything else RLlib reports is a function of the run and is compared without tolerance: returns,
lengths, losses, counters, learning rates, weights_seq_no. In env_config and metric names of one's
own, avoid the endings above, or they are not compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate
from typing import Any

import numpy as np

LEFT_OUT = (
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
    # the end
    "done",
    "should_checkpoint",
    "stop/*",
    # the settings
    "config",
    "config/*",
    "checkpoint/*",
)
_LEFT_OUT = re.compile("|".join(translate(pattern) for pattern in LEFT_OUT))
MISSING = "(missing)"


def comparable(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` (nested or flat) flattened with "/", without the keys that `LEFT_OUT` names."""
    # Not at the top: commands that only look at files need not wait for Ray's import.
    from ray.tune.utils import flatten_dict

    flat = flatten_dict(dict(row), delimiter="/")
    return {key: value for key, value in flat.items() if not _LEFT_OUT.match(key)}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value in a, value in b) of every comparable key that differs, sorted by key.

    Exact: no tolerance. NaN equals NaN; a key that only one has differs from `MISSING`.
    """
    left, right = comparable(a), comparable(b)
    found = []
    for key in sorted(left.keys() | right.keys()):
        one, other = left.get(key, MISSING), right.get(key, MISSING)
        if not _same(one, other):
            found.append((key, one, other))
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple, np.ndarray)) or isinstance(other, (list, tuple, np.ndarray)):
        sequences = isinstance(one, (list, tuple, np.ndarray)) and isinstance(
            other, (list, tuple, np.ndarray)
        )
        return sequences and len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other) or (_is_nan(one) and _is_nan(other))


def _is_nan(value: Any) -> bool:
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))
