"""YAML -> validated `ExperimentConfig` -> RLlib's `PPOConfig`, and Tune's parameter space.

Nothing here imports Ray until `to_algorithm_config`, `register_env` or `param_space` is called, and
no module is imported before a name of it is used: processes that make an environment, of which a
start has several, need no schema.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain.config.compatibility import (
        allowed_on_continue,
        config_digest,
        differences,
        gives_up_exactness,
        has_digest,
        same_value,
    )
    from raytrain.config.curriculum import eras, stage_config, total_timesteps
    from raytrain.config.environment import EnvCreator, env_creator, make_env, resolve_env
    from raytrain.config.errors import ConfigError, Problem
    from raytrain.config.loading import (
        config_from_dict,
        config_from_text,
        load_config,
        stored_config,
        with_trial_values,
    )
    from raytrain.config.metric_names import require_metrics
    from raytrain.config.schema import (
        ALGORITHM_SECTIONS,
        NOT_YAML_KEYS,
        ExperimentConfig,
        cpus_at_most,
        most_env_runners,
        num_trials,
    )
    from raytrain.config.to_rllib import name_for_others, param_space, to_algorithm_config

__all__ = [
    "ALGORITHM_SECTIONS",
    "NOT_YAML_KEYS",
    "ConfigError",
    "EnvCreator",
    "ExperimentConfig",
    "Problem",
    "allowed_on_continue",
    "config_digest",
    "config_from_dict",
    "config_from_text",
    "cpus_at_most",
    "differences",
    "env_creator",
    "eras",
    "gives_up_exactness",
    "has_digest",
    "load_config",
    "make_env",
    "most_env_runners",
    "name_for_others",
    "num_trials",
    "param_space",
    "require_metrics",
    "resolve_env",
    "same_value",
    "stage_config",
    "stored_config",
    "to_algorithm_config",
    "total_timesteps",
    "with_trial_values",
]

_MODULES = {
    "compatibility": (
        "allowed_on_continue",
        "config_digest",
        "differences",
        "gives_up_exactness",
        "has_digest",
        "same_value",
    ),
    "curriculum": ("eras", "stage_config", "total_timesteps"),
    "environment": ("EnvCreator", "env_creator", "make_env", "resolve_env"),
    "errors": ("ConfigError", "Problem"),
    "loading": (
        "config_from_dict",
        "config_from_text",
        "load_config",
        "stored_config",
        "with_trial_values",
    ),
    "metric_names": ("require_metrics",),
    "schema": (
        "ALGORITHM_SECTIONS",
        "NOT_YAML_KEYS",
        "ExperimentConfig",
        "cpus_at_most",
        "most_env_runners",
        "num_trials",
    ),
    "to_rllib": ("name_for_others", "param_space", "to_algorithm_config"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
