"""`env_actions` and `action_masks` as RLlib connectors, for RLlib's own sampling.

RLlib's NormalizeAndClipActions knows only the spaces in which a policy of RLlib can act, ignores
the `start` of a discrete space, and clips nothing if a Box that is to be normalized has an infinite
bound. If it neither normalizes nor clips, the environment receives the arrays of the learner
itself, and may write into them. `ActionsForEnvironment` replaces it in the module-to-env pipeline
where this makes a difference.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.module_to_env import NormalizeAndClipActions
from ray.rllib.core.columns import Columns
from ray.rllib.utils.annotations import override

from raytrain.policy.action_masks import COLUMN, MaskReader, masked
from raytrain.policy.arithmetic import base_struct
from raytrain.policy.env_actions import ActionMapping, LeafMapping, policy_space


class ActionsForEnvironment(NormalizeAndClipActions):
    """Adds the column of actions for the environment, by raytrain's rules."""

    @override(ConnectorV2)
    def __call__(self, *, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        for_environment = ActionMapping(
            self.input_action_space, normalize=self.normalize_actions, clip=self.clip_actions
        )
        batch[Columns.ACTIONS_FOR_ENV] = copy.deepcopy(batch[Columns.ACTIONS])
        self.foreach_batch_item_change_in_place(
            batch=batch,
            column=Columns.ACTIONS_FOR_ENV,
            func=lambda action, *_: for_environment(action),
        )
        return batch


class MaskActions(ConnectorV2):
    """Masks the inputs of the action distribution, and adds the column of masks."""

    def __init__(self, *args: Any, reader: MaskReader, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reader = reader

    @override(ConnectorV2)
    def __call__(
        self, *, rl_module: Any, batch: dict[str, Any], episodes: list[Any], **kwargs: Any
    ) -> dict[str, Any]:
        # In the step that resets an environment, its next episode has nothing yet.
        infos = [episode.get_infos(-1) if episode.is_reset else {} for episode in episodes]
        masks = np.ones((len(infos), self._reader.layout.entries), np.bool_)
        over = np.array([not episode.is_reset for episode in episodes])
        self._reader.read(infos, over, masks)
        inputs = batch[Columns.ACTION_DIST_INPUTS]
        allowed = torch.from_numpy(masks).to(inputs.device)
        if rl_module.is_stateful():
            allowed = allowed.unsqueeze(1)  # The axis of time.
        batch[Columns.ACTION_DIST_INPUTS] = masked(inputs, allowed)
        batch[COLUMN] = allowed
        return batch


def mask_actions(pipeline: Any, reader: MaskReader | None) -> None:
    """Make a module-to-env pipeline mask actions, before any are drawn."""
    pipeline.connectors[:] = [
        piece for piece in pipeline.connectors if not isinstance(piece, MaskActions)
    ]
    if reader is not None:
        pipeline.connectors.insert(0, MaskActions(reader=reader))


def map_actions(pipeline: Any, space: gym.Space[Any], *, normalize: bool, clip: bool) -> None:
    """Make a module-to-env pipeline turn actions into those of `space` with these settings."""
    for index, piece in enumerate(pipeline.connectors):
        if not isinstance(piece, NormalizeAndClipActions):
            continue
        kind = (
            ActionsForEnvironment if _differs(space, normalize, clip) else NormalizeAndClipActions
        )
        pipeline.connectors[index] = kind(
            piece.input_observation_space,
            space,
            normalize_actions=normalize,
            clip_actions=clip,
        )


def _differs(space: gym.Space[Any], normalize: bool, clip: bool) -> bool:
    """Whether RLlib's connector would do something else."""
    return (
        policy_space(space) is not space
        or not (normalize or clip)
        or any(
            _leaf_differs(leaf, LeafMapping.of(leaf, normalize=normalize, clip=clip), normalize)
            for leaf in tree.flatten(base_struct(space))
        )
    )


def _leaf_differs(leaf: gym.Space[Any], mapping: LeafMapping, normalize: bool) -> bool:
    if not isinstance(leaf, gym.spaces.Box):
        return mapping.shift is not None or mapping.dtype is not None
    unscaled = normalize and mapping.scale is None and mapping.shift is None
    return unscaled or mapping.dtype is not None
