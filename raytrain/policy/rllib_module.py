"""A policy's module as RLlib builds it, for checkpoints and for networks without a description.

RLlib is imported, Ray is not started. Forward pass and distributions are RLlib's own.
"""

from __future__ import annotations

import logging
import pkgutil
from typing import Any

import numpy as np
import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.catalog import Catalog
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor

from raytrain._ray.patch import patched
from raytrain.policy.action_masks import masked
from raytrain.policy.arithmetic import stack, unstack
from raytrain.policy.env_actions import policy_space
from raytrain.policy.format import PolicyParts
from raytrain.policy.spaces import PolicyFormatError


class RLlibNetwork:
    """RLlib's module as a `policy.Network`."""

    def __init__(self, parts: PolicyParts) -> None:
        self.module = build_module(parts)
        stateful = self.module.is_stateful()
        self.initial_state = convert_to_numpy(self.module.get_initial_state()) if stateful else None

    def actions(
        self,
        items: list[Any],
        states: list[Any] | None,
        masks: torch.Tensor | None,
        *,
        deterministic: bool,
    ) -> tuple[Any, list[Any] | None]:
        columns: dict[str, Any] = {Columns.OBS: stack(items)}
        if states is not None:
            # A time axis of length one, as AddTimeDimToBatchAndZeroPad adds it.
            columns[Columns.OBS] = tree.map_structure(
                lambda leaf: np.expand_dims(leaf, axis=1), columns[Columns.OBS]
            )
            columns[Columns.STATE_IN] = stack(states)
        module = self.module
        forward = module.forward_inference if deterministic else module.forward_exploration
        outputs = forward(convert_to_torch_tensor(columns))
        actions = outputs.get(Columns.ACTIONS)
        if actions is None:
            inputs = outputs[Columns.ACTION_DIST_INPUTS]
            if masks is not None:
                inputs = masked(inputs, masks if states is None else masks.unsqueeze(1))
            actions = action_distribution(module, inputs, deterministic=deterministic).sample()
        actions = convert_to_numpy(actions)
        if states is None:
            return actions, None
        actions = tree.map_structure(lambda leaf: np.squeeze(leaf, axis=1), actions)
        return actions, unstack(convert_to_numpy(outputs[Columns.STATE_OUT]))


def action_distribution(module: Any, inputs: Any, *, deterministic: bool) -> Any:
    """RLlib's distribution for a module's outputs. `deterministic`: its mode alone."""
    if deterministic:
        return module.get_inference_action_dist_cls().from_logits(inputs).to_deterministic()
    return module.get_exploration_action_dist_cls().from_logits(inputs)


def build_module(parts: PolicyParts) -> Any:
    """The module with its weights; torch's global generator is as before."""
    module_class = _imported(parts.module_class, RLModule)
    catalog_class = None if parts.catalog_class is None else _imported(parts.catalog_class, Catalog)
    spec = RLModuleSpec(
        module_class=module_class,
        observation_space=parts.module_observation_space,
        action_space=policy_space(parts.action_space),
        inference_only=False,
        model_config=dict(parts.model_config),
        catalog_class=catalog_class,
    )
    # In Ray 2.60 `RLModule.__init__` always makes a deprecated object, so the first module of a
    # process logs a warning that the user cannot act upon.
    deprecations = logging.getLogger("ray._common.deprecation")
    with torch.random.fork_rng(devices=[]), patched(deprecations, disabled=True):
        module = spec.build()
    try:
        module.load_state_dict(dict(parts.module_state), strict=True)
    except RuntimeError as error:
        raise PolicyFormatError(
            f"the weights do not fit the module {parts.module_class} as this program builds it: "
            f"{error}"
        ) from error
    # RLlib's forward methods switch to eval mode and back; switching back takes a third of
    # their time.
    return module.eval()


def _imported(name: str, base: type) -> type:
    """The class of "package.module:Class"; raises PolicyFormatError if it is not there."""
    try:
        imported = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise PolicyFormatError(
            f"the policy needs the class {name}, which cannot be imported ({error}). Install the "
            "package it was trained with, or add its directory to PYTHONPATH."
        ) from error
    if not (isinstance(imported, type) and issubclass(imported, base)):
        raise PolicyFormatError(f"{name} is not a {base.__name__}: the policy cannot be built")
    return imported
