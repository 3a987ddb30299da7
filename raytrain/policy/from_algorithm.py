"""The parts of a policy, copied from a live RLlib algorithm (PPO, new API stack, one agent).

This runs in the trial between two iterations, so it only copies; encoding, digest and files follow
in another thread (`write_policy`). It refuses what `Policy` cannot repeat bit for bit: connectors
of the user's own, and modules whose class has no importable name.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import io
import pkgutil
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from raytrain._ray.connectors import (
    ENV_TO_MODULE,
    MODULE_TO_ENV,
    is_default,
    why_not_default,
)
from raytrain.policy.format import FlattenStep, FloatStep, MeanStdStep, PolicyParts, Step
from raytrain.policy.spaces import PolicyFormatError, encode_settings


def policy_parts(
    algo: Any,
    *,
    env_runner: Any = None,
    module_state: Mapping[str, torch.Tensor | np.ndarray[Any, Any]] | None = None,
) -> PolicyParts:
    """Copies of all parts of the policy of `algo`; they share no memory with it.

    `env_runner` (by default the local one) provides connectors, spaces and the module's
    construction; it needs no environments. `module_state` is a copy of the training module's state
    dict; by default it is fetched from the first learner.
    Raises PolicyFormatError for a policy that cannot be exported exactly.
    """
    config = algo.config
    if config.is_multi_agent:
        raise PolicyFormatError("a policy can be exported from single-agent training only")
    runner = env_runner if env_runner is not None else algo.env_runner
    components = dict(runner.get_checkpointable_components())
    module = runner.module.unwrapped()
    spaces = runner.get_spaces()
    # Of the environment itself: an action mask in the observations is not taken out of them.
    observation_space, action_space = spaces.get("__observed__", spaces["__env_single__"])
    _require_default_actions(components["module_to_env_connector"])
    model_config = _plain_model_config(module.model_config)
    for where, settings in (("model_config", model_config), ("env_config", config.env_config)):
        encode_settings(settings, where)  # While it is early enough to train without a policy.
    return PolicyParts(
        module_state=_learner_state(algo) if module_state is None else module_state,
        observation_space=observation_space,
        action_space=action_space,
        module_observation_space=module.observation_space,
        module_class=_importable_name(type(module), "the module class"),
        catalog_class=(
            _importable_name(type(module.catalog), "the catalog class") if module.catalog else None
        ),
        model_config=model_config,
        normalize_actions=bool(config.normalize_actions),
        clip_actions=bool(config.clip_actions),
        action_mask=config.learner_config_dict.get("action_mask"),
        preprocessing=_preprocessing(components["env_to_module_connector"]),
        env=_env_name(config.env),
        env_config=copy.deepcopy(dict(config.env_config)),
    )


def _learner_state(algo: Any) -> dict[str, torch.Tensor]:
    # Not `get_weights`: it turns float64 into float32 and int64 into int32.
    group = algo.learner_group
    first_only = {} if group.is_local else {"remote_actor_ids": [0]}
    state: dict[str, torch.Tensor]
    (state,) = [result.get() for result in group.foreach_learner(_copied_state_dict, **first_only)]
    return state


def _copied_state_dict(learner: Any) -> dict[str, Any]:
    state = learner.module["default_policy"].unwrapped().state_dict()
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
    }


def _plain_model_config(model_config: Any) -> dict[str, Any]:
    """A copy as the dict that `RLModuleSpec.build` hands to the module.

    Initializers that are functions are left out: they only set the weights that are loaded over.
    """
    if dataclasses.is_dataclass(model_config) and not isinstance(model_config, type):
        settings = dataclasses.asdict(model_config)
    else:
        settings = copy.deepcopy(dict(model_config or {}))
    for key in [key for key, value in settings.items() if callable(value)]:
        if not key.endswith("_initializer"):
            raise PolicyFormatError(f"model_config.{key} is {settings[key]!r}: not plain data")
        settings[key] = settings[f"{key}_kwargs"] = None
    return settings


def _importable_name(cls: type, what: str) -> str:
    name = f"{cls.__module__}:{cls.__qualname__}"
    imported: Any = None
    if cls.__module__ != "__main__":
        with suppress(AttributeError, ImportError, ValueError):  # ValueError: a local class
            imported = pkgutil.resolve_name(name)
    if imported is not cls:
        raise PolicyFormatError(
            f"{what} {name} cannot be imported by that name, so no other program could load the "
            "policy. Define it at the top level of a module that is importable."
        )
    return name


def _env_name(env: Any) -> str | None:
    if env is None:
        return None
    if isinstance(env, str):
        return env.partition("@")[0]  # Without the digest under which a factory is registered.
    name = getattr(env, "__qualname__", None)
    return None if name is None else f"{env.__module__}:{name}"


def _preprocessing(pipeline: Any) -> tuple[Step, ...]:
    from ray.rllib.connectors.common.flatten_observations import FlattenObservations
    from ray.rllib.connectors.env_to_module.mean_std_filter import MeanStdFilter

    from raytrain.policy.rllib_observations import EncodeObservations, NormalizeParts

    steps: list[Step] = []
    own = [piece for piece in pipeline.connectors if not is_default(type(piece), ENV_TO_MODULE)]
    for connector in own:
        if type(connector) is EncodeObservations:
            assert connector.encoding is not None
            steps.append(FlattenStep() if connector.encoding.kind == "flat" else FloatStep())
        elif type(connector) is FlattenObservations:
            _, kwargs = connector.get_ctor_args_and_kwargs()
            steps.append(FlattenStep(tuple(kwargs.get("keys_to_remove") or ())))
        elif type(connector) is MeanStdFilter:
            steps.extend(_mean_std_steps(connector, None))
        elif type(connector) is NormalizeParts:
            steps.extend(_mean_std_steps(connector, connector.columns))
        else:
            raise PolicyFormatError(
                f"the env-to-module connector {type(connector).__name__} cannot be exported: a "
                "policy repeats FlattenObservations and MeanStdFilter. Do this work in a wrapper "
                "of the environment instead."
            )
    if why_not_default(map(type, pipeline.connectors[len(own) :]), ENV_TO_MODULE):
        raise PolicyFormatError(
            "the env-to-module pipeline lacks RLlib's default connectors, so a policy cannot "
            "repeat it. Set add_default_connectors_to_env_to_module_pipeline."
        )
    return tuple(steps)


def _mean_std_steps(connector: Any, columns: Sequence[int] | None) -> list[Step]:
    """One step; none for observations that the filter passes through (Discrete, MultiDiscrete)."""
    state = connector.get_state()[None]
    if state["shape"] is None:
        return []
    (stats,) = state["running_stats"]
    return [
        MeanStdStep(
            count=int(stats["num_pushes"]),
            mean=_unpacked(stats["mean_array"]),
            sum_sq_diff=_unpacked(stats["sum_sq_diff_array"]),
            center=bool(state["de_mean_to_zero"]),
            scale=bool(state["de_std_to_one"]),
            clip=None if state["clip_by_value"] is None else float(state["clip_by_value"]),
            columns=None if columns is None else tuple(columns),
        )
    ]


def _unpacked(packed: str) -> np.ndarray[Any, Any]:
    """An array of RLlib's filter state: base64 of zlib of .npy; pickled objects are refused."""
    raw = zlib.decompress(base64.b64decode(packed))
    array: np.ndarray[Any, Any] = np.load(io.BytesIO(raw), allow_pickle=False)
    return array


def _require_default_actions(pipeline: Any) -> None:
    from ray.rllib.connectors.module_to_env import NormalizeAndClipActions

    from raytrain.policy.rllib_env_actions import ActionsForEnvironment, MaskActions

    stands_for = {ActionsForEnvironment: NormalizeAndClipActions}
    kinds = [type(connector) for connector in pipeline.connectors]
    kinds = [kind for kind in kinds if kind is not MaskActions]
    if why_not_default([stands_for.get(kind, kind) for kind in kinds], MODULE_TO_ENV):
        raise PolicyFormatError(
            f"the module-to-env connectors are {', '.join(kind.__name__ for kind in kinds)}: a "
            f"policy can be exported with RLlib's default ones alone ({', '.join(MODULE_TO_ENV)})"
        )
