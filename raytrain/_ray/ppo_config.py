"""Private names of RLlib's `AlgorithmConfig`."""

from __future__ import annotations

from typing import Any

_NAMES = {
    # Attribute -> the argument of the method that sets it.
    "_env_to_module_connector": "env_to_module_connector",
    "_module_to_env_connector": "module_to_env_connector",
    "_learner_class": "learner_class",
    "_learner_connector": "learner_connector",
    "_model_config": "model_config",
    "_rl_module_spec": "rl_module_spec",
    "_train_batch_size_per_learner": "train_batch_size_per_learner",
}
_INTERNAL = frozenset({"_is_frozen", "_is_atari", "_is_online"})


def settings_of(config: Any) -> dict[str, Any]:
    """Every setting of an `AlgorithmConfig`, by the name of the argument that sets it."""
    return {
        _NAMES.get(name, name): value
        for name, value in vars(config).items()
        if name not in _INTERNAL
    }


def default_model(config: Any) -> dict[str, Any]:
    """The keys of the default network that an algorithm has besides `DefaultModelConfig`'s."""
    return dict(config._model_config_auto_includes)


def registered_env(name: str) -> Any | None:
    """What a program registered with `tune.register_env` under this name; None if nothing."""
    from ray.tune.registry import ENV_CREATOR, _global_registry

    known = _global_registry.contains(ENV_CREATOR, name)
    return _global_registry.get(ENV_CREATOR, name) if known else None
