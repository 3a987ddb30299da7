"""Action masks: which choices a policy has in a state.

A mask has an entry for each of the policy's choices: n for Discrete(n); for MultiDiscrete(nvec)
sum(nvec), the choices of its first number first; for MultiBinary two for each number, "no" first.
1 or true means allowed. It may be an array of any shape, or a tuple of arrays, one for each number
(as `MultiDiscrete.sample` takes them).

The logits of choices that are not allowed become `MASKED`, of which the softmax is exactly 0, and
so is every derivative by them. This is done before sampling (`fast_sampling.forward`), in the loss
with its entropy and KL divergence (`ppo.fast_update`, `ppo.learner`), and in exported policies.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import tree
from gymnasium.spaces import Discrete, MultiDiscrete

from raytrain.config.action_mask import DEFAULT_NAME, MaskSource, without_mask
from raytrain.config.user_code import EnvironmentFailed
from raytrain.errors import BadInput
from raytrain.policy.env_actions import ActionMapping, policy_space

if TYPE_CHECKING:  # A start is checked without Torch.
    import torch

    from raytrain.policy.format import PolicyParts

Array = np.ndarray[Any, Any]

COLUMN = "raytrain_action_mask"
"""Of fragments, episodes and train batches: (N, K) bool. Networks of the user's own put columns of
their own into a batch, as RLlib's example of action masks does with `action_mask`."""

MASKED = float(np.finfo(np.float32).min)


class MaskBroken(EnvironmentFailed):
    """An environment gave no mask, one of another size, or one that forbids every action."""


class NoMasks(BadInput):
    """Actions of this space cannot be masked."""


class MaskLayout:
    """The masks of one action space: K entries. Raises NoMasks for a space without choices."""

    def __init__(self, space: gym.Space[Any]) -> None:
        inner = policy_space(space)
        if not isinstance(inner, Discrete | MultiDiscrete):
            raise NoMasks(
                f"environment.action_mask: the action space is {space}; masks are for Discrete, "
                "MultiDiscrete, MultiBinary and a Box of few integers. Leave the key out."
            )
        sizes = [inner.n] if isinstance(inner, Discrete) else inner.nvec
        self.sizes = [int(size) for size in sizes]
        self.entries = sum(self.sizes)
        self._is_one = isinstance(inner, Discrete)
        self._starts = np.cumsum([0, *self.sizes[:-1]])

    def one(self, mask: Any) -> Array:
        """A mask as (K,) bool. Raises BadInput if it has another number of entries."""
        try:
            leaves = [np.asarray(leaf).reshape(-1) for leaf in tree.flatten(mask)]
            flat = leaves[0] if len(leaves) == 1 else np.concatenate(leaves)
        except ValueError as error:
            raise BadInput(f"an action mask is not an array: {error}") from error
        if flat.shape != (self.entries,) or flat.dtype.kind not in "biuf":
            raise BadInput(
                f"an action mask has {flat.size} entries of dtype {flat.dtype}, and the policy "
                f"has {self.entries} choices: give an array of so many zeros and ones"
            )
        return flat.astype(np.bool_)

    def forbids_all(self, masks: Array) -> int | None:
        """The first of the masks (N, K) that leaves a number without a choice."""
        possible = np.logical_or.reduceat(masks, self._starts, axis=1).all(axis=1)
        return None if possible.all() else int(np.flatnonzero(~possible)[0])

    def drawn(self, mask: Array, random: np.random.Generator) -> Array:
        """A choice for each number that a mask (K,) allows, each with the same probability: () for
        a Discrete, (A,) otherwise."""
        parts = np.split(mask, self._starts[1:])
        choices = np.array([random.choice(np.flatnonzero(part)) for part in parts], np.int32)
        return choices[0] if self._is_one else choices


class MaskReader:
    """The masks of N environments, in their infos."""

    def __init__(self, layout: MaskLayout, source: MaskSource) -> None:
        self.layout, self._source = layout, source

    def read(self, infos: Sequence[Mapping[str, Any]], over: Array, into: Array) -> None:
        """Write the masks of the next step `into` (N, K) bool. `over`: (N,) bool, the episodes that
        have ended: nothing is chosen after their last observations, and every choice is allowed.

        Raises MaskBroken.
        """
        name = self._source.name
        for index, (info, is_over) in enumerate(zip(infos, over, strict=True)):
            if is_over:
                into[index] = True
                continue
            mask = info.get(name)
            if type(mask) is np.ndarray and mask.shape == into.shape[1:]:
                into[index] = mask
            else:
                into[index] = self.one(mask, index)
        self._require_possible(into)

    def of_info(self, info: Any) -> Array:
        """The mask of one environment, (K,). Raises MaskBroken."""
        mask = self.one(info.get(self._source.name) if isinstance(info, Mapping) else None)
        self._require_possible(mask[None])
        return mask

    def _require_possible(self, masks: Array) -> None:
        index = self.layout.forbids_all(masks)
        if index is not None:
            raise MaskBroken(
                f"The action mask of environment {index} ({self._source.place}) forbids every "
                f"action: {_shown(masks[index])}. Allow at least one for each number of the "
                "action, or end the episode in the step before: the mask of its last observation "
                "is not used."
            )

    def one(self, mask: Any, index: int = 0) -> Array:
        """The mask of environment `index`, (K,). Raises MaskBroken."""
        place = self._source.place
        if mask is None:
            raise MaskBroken(
                f"Environment {index} gave no action mask: {place} is missing "
                "(environment.action_mask). It must be in what reset() and every step() return."
            )
        try:
            return self.layout.one(mask)
        except BadInput as error:
            raise MaskBroken(f"Environment {index}, {place}: {error}.") from error


class RandomActions:
    """Actions of a space, drawn for trials of an environment; those that its masks allow."""

    def __init__(
        self, space: gym.Space[Any], setting: str | None, random: np.random.Generator
    ) -> None:
        """Raises NoMasks."""
        # A copy: the environment may draw from its own space.
        self._space = copy.deepcopy(space)
        self._space.seed(int(random.integers(2**31)))
        self._random = random
        self._asked = setting is not None
        self._reader: MaskReader | None = None
        with nullcontext() if self._asked else suppress(NoMasks):
            source = MaskSource.of(setting) or MaskSource(None, DEFAULT_NAME)
            self._reader = MaskReader(MaskLayout(space), source)
        self._mapping = ActionMapping(space, normalize=True, clip=True)

    def sample(self, info: Any, observation: Any = None) -> Any:
        """An action after `info`. Without a setting, a mask under its usual name in `observation`
        or in `info` is followed, too: the user's own network may follow it. Raises MaskBroken."""
        if self._asked and self._reader is not None:
            return self._allowed(self._reader, info)
        for shown in (observation, info):
            if self._reader is not None and isinstance(shown, Mapping) and DEFAULT_NAME in shown:
                with suppress(MaskBroken):
                    return self._allowed(self._reader, shown)
        return self._space.sample()

    def _allowed(self, reader: MaskReader, info: Any) -> Any:
        choices = reader.layout.drawn(reader.of_info(info), self._random)
        return self._mapping.split(self._mapping(choices[None]))[0]


def mask_key(parts: PolicyParts) -> str | None:
    """The key of the observations that holds their action masks, or None."""
    source = MaskSource.of(parts.action_mask)
    return None if source is None else source.key


def unmasked_space(parts: PolicyParts) -> gym.Space[Any]:
    """The space of the observations without their action masks."""
    key = mask_key(parts)
    space = parts.observation_space
    return space if key is None else without_mask(space, key)


def masked(inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits (..., K) with those of forbidden choices replaced. `mask`: (..., K) bool."""
    return inputs.where(mask, MASKED)


def _shown(mask: Array) -> str:
    return np.array2string(mask.astype(np.int8), threshold=16)
