"""A trained policy without Ray: observations in, actions out, bit for bit as in training.

    policy = load_policy("results/cartpole/ppo_0/best")
    action = policy.act(observation)                  # one observation: one action for env.step
    actions = policy.act(observations)                # a batch: what a vector environment takes

From the observation to the action it does what connectors do around the module: cast to the space's
dtype (as Gymnasium's vector environments do), encode (see `observations`) and normalize with frozen
statistics, batch, forward pass, mode or sample of the distribution, unsquash or clip. The
same observations in a batch of the same size give the same bits as in training; in a batch of
another size the matrix product may round differently.

An exported policy describes its network layer by layer and is built of plain Torch (`network`),
without an import of RLlib. A checkpoint's policy, and one whose network cannot be described so, is
RLlib's module (`rllib_module`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
import tree

from raytrain.errors import BadInput
from raytrain.policy import arithmetic
from raytrain.policy.action_masks import MaskLayout, mask_key, masked, unmasked_space
from raytrain.policy.distributions import ActionDistribution
from raytrain.policy.env_actions import ActionMapping, policy_space
from raytrain.policy.format import (
    FlattenStep,
    FloatStep,
    MeanStdStep,
    PolicyParts,
    Step,
    read_policy,
)
from raytrain.policy.network import build_network, run_recurrent


def load_policy(path: str | os.PathLike[str], *, seed: int | None = None) -> Policy:
    """Load the policy of a checkpoint directory or an exported one, verified, without unpickling.

    Ray is neither started nor needed running. `seed` seeds the policy's own generator for sampled
    actions (default 0). Raises PolicyNotFound, ManifestError, or PolicyFormatError naming the file
    that is damaged or the class that cannot be imported.
    """
    parts, metadata = read_policy(Path(path))
    return Policy(parts, metadata=metadata, seed=0 if seed is None else seed)


class Network(Protocol):
    """Chooses actions for preprocessed observations."""

    module: Any
    initial_state: Any
    """Of an episode that begins, as nested arrays; None if the network keeps no state."""

    def actions(
        self,
        items: list[Any],
        states: list[Any] | None,
        masks: torch.Tensor | None,
        *,
        deterministic: bool,
    ) -> tuple[Any, list[Any] | None]:
        """The nested actions of all `items`, as tensors or arrays with a batch axis in front, and
        the states of their episodes after the step. `masks`: (N, K) bool, or None."""


class ObservationError(BadInput):
    """An observation that is neither one of the policy's observation space nor a batch of such."""


class Policy:
    """Keeps the recurrent states of its episodes, and a random generator of its own."""

    def __init__(self, parts: PolicyParts, *, metadata: Mapping[str, Any], seed: int = 0) -> None:
        self.observation_space = parts.observation_space
        self.action_space = parts.action_space
        self.env = parts.env
        self.env_config = dict(parts.env_config)
        self.metadata = dict(metadata)
        self.action_mask = parts.action_mask
        self._masks = None if parts.action_mask is None else MaskLayout(parts.action_space)
        self._mask_key = mask_key(parts)
        self._network: Network
        if parts.network is not None:
            self._network = _PlainNetwork(parts)
        else:
            from raytrain.policy.rllib_module import RLlibNetwork  # RLlib takes seconds to import.

            self._network = RLlibNetwork(parts)
        self.module = self._network.module
        self._states: list[Any] | None = None  # one for each episode
        self._steps = _prepared(parts.preprocessing, unmasked_space(parts))
        self._observation_struct = arithmetic.base_struct(parts.observation_space)
        self._for_environment = ActionMapping(
            parts.action_space, normalize=parts.normalize_actions, clip=parts.clip_actions
        )
        self._generator = torch.Generator()
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Seed the generator of sampled actions. Nothing else draws from it."""
        self._generator.manual_seed(seed)

    def reset(self, mask: Sequence[bool] | np.ndarray[Any, Any] | None = None) -> None:
        """Forget the recurrent state: of all episodes, or of those where `mask` is true.

        Call it when an episode starts. Without effect on modules that keep no state.
        """
        if mask is None or self._states is None:
            self._states = None
            return
        starts = np.asarray(mask, dtype=bool)
        if starts.shape != (len(self._states),):
            raise BadInput(
                f"reset got a mask of shape {starts.shape}, but the policy acts in "
                f"{len(self._states)} episodes"
            )
        for index in np.flatnonzero(starts):
            self._states[index] = self._network.initial_state

    def act(self, observation: Any, deterministic: bool = True, *, action_mask: Any = None) -> Any:
        """The action for one observation, or the actions for a batch of them, ready for `env.step`.

        Which of the two it is follows from the observation space. One Discrete action is an int,
        any other an array (or a Tuple or Dict of these); a batch is what a vector environment
        takes. A batch of Tuple or Dict observations is either the Tuple or Dict of batched arrays
        or a list of observations. Sampling leaves torch's global generator alone.

        `action_mask`: for a policy that was trained with masks in the info, the mask of the
        observation, or a sequence of masks for a batch. A mask in the observation is taken from
        there.
        """
        items, is_batch = _split(observation, self.observation_space, self._observation_struct)
        masks = self._allowed(items, action_mask, is_batch)
        if self._mask_key is not None:
            items = [{key: x for key, x in item.items() if key != self._mask_key} for item in items]
        for step in self._steps:
            items = [step(item) for item in items]
        states = self._states
        if states is None and self._network.initial_state is not None:
            states = [self._network.initial_state] * len(items)
        if states is not None and len(states) != len(items):
            raise ObservationError(
                f"got {len(items)} observations, but the policy keeps the recurrent state of "
                f"{len(states)} episodes. Call reset() before acting in others."
            )
        # Sampling draws from Torch's global generator, which gets our state meanwhile.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._generator.get_state())
            actions, self._states = self._network.actions(
                items, states, masks, deterministic=deterministic
            )
            self._generator.set_state(torch.get_rng_state())
        actions = tree.map_structure(arithmetic.as_array, actions)
        actions = self._for_environment(actions)
        if is_batch:
            return actions
        return tree.map_structure(
            lambda leaf: int(leaf) if isinstance(leaf, np.integer) else leaf,
            self._for_environment.split(actions)[0],
        )

    def _allowed(self, items: list[Any], given: Any, is_batch: bool) -> torch.Tensor | None:
        """The masks of N observations, (N, K). Raises BadInput."""
        if self._masks is None or self._mask_key is not None:
            if given is not None:
                where = "in the observations" if self._masks else "without action masks"
                raise BadInput(f"action_mask is given, but the policy was trained {where}")
            if self._masks is None:
                return None
        if self._mask_key is not None:
            masks = [item[self._mask_key] for item in items]
        elif given is None:
            raise BadInput(
                "this policy was trained with action masks in the info: "
                f"give act(observation, action_mask=...) what `{self.action_mask}` is there"
            )
        else:
            masks = list(given) if is_batch else [given]
        if len(masks) != len(items):
            raise BadInput(f"got {len(items)} observations and {len(masks)} action masks")
        allowed = np.stack([self._masks.one(mask) for mask in masks])
        forbidding = self._masks.forbids_all(allowed)
        if forbidding is not None:
            raise BadInput(f"the action mask of observation {forbidding} forbids every action")
        return torch.from_numpy(allowed)


def _split(observation: Any, space: gym.Space[Any], struct: Any) -> tuple[list[Any], bool]:
    """Single observations in the dtype of the space."""
    if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)) and isinstance(observation, list):
        parts = [_leaves(item, space, struct) for item in observation]
        if not parts or any(sizes != {None} for _, sizes in parts):
            raise ObservationError(f"a list must hold observations of {space}, at least one")
        return [item for item, _ in parts], True
    arrays, sizes = _leaves(observation, space, struct)
    if sizes == {None}:
        return [arrays], False
    if len(sizes) != 1 or 0 in sizes:
        raise ObservationError(
            f"the parts of the observation are batches of different sizes, or empty: {sizes}"
        )
    return arithmetic.unstack(arrays), True


def _leaves(observation: Any, space: gym.Space[Any], struct: Any) -> tuple[Any, set[int | None]]:
    """The observation as arrays, and the batch sizes of its parts (None: no batch axis)."""
    sizes: set[int | None] = set()

    def convert(path: tuple[Any, ...], leaf_space: gym.Space[Any]) -> Any:
        value = observation
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError) as error:
                raise ObservationError(
                    f"the observation has no part {path!r}; expected an observation of {space}"
                ) from error
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ObservationError(f"the observation is not an array: {error}") from error
        shape = leaf_space.shape
        if array.shape == shape:
            sizes.add(None)
        elif array.ndim == len(shape) + 1 and array.shape[1:] == shape:
            sizes.add(array.shape[0])
        else:
            raise ObservationError(
                f"got an observation of shape {array.shape}{f' at {path!r}' if path else ''}: "
                f"expected {shape} for one observation or (N, {str(shape)[1:]} for a batch of N"
            )
        if not (isinstance(value, list) or np.can_cast(array.dtype, leaf_space.dtype, "same_kind")):
            raise ObservationError(
                f"got an observation of dtype {array.dtype}; the policy's space has "
                f"{leaf_space.dtype}"
            )
        cast = array.astype(leaf_space.dtype)
        # A scalar, not an array without axes, as an environment's step returns it.
        return cast[()] if cast.ndim == 0 else cast

    return tree.map_structure_with_path(convert, struct), sizes


def _prepared(steps: Sequence[Step], space: gym.Space[Any]) -> list[Callable[[Any], Any]]:
    prepared: list[Callable[[Any], Any]] = []
    for step in steps:
        if isinstance(step, FlattenStep):
            prepared.append(_flattening(step, space))
            # From here on it is a vector of floats, nothing to be one-hot.
            space = gym.spaces.Box(-np.inf, np.inf, shape=(1,))
        elif isinstance(step, FloatStep):
            prepared.append(_in_float32)
        else:
            prepared.append(_normalizing(step))
    return prepared


def _in_float32(observation: Any) -> Any:
    return np.asarray(observation).astype(np.float32)


def _normalizing(step: MeanStdStep) -> Callable[[Any], Any]:
    mean = step.mean if step.center else None
    divisor = arithmetic.filter_divisor(step.sum_sq_diff, step.count) if step.scale else None
    columns = None if step.columns is None else list(step.columns)

    def apply(observation: Any) -> Any:
        value = np.asarray(observation)
        if columns is None:
            return arithmetic.normalize(value, mean, divisor, step.clip).astype(value.dtype)
        value = value.copy()
        value[columns] = arithmetic.normalize(value[columns], mean, divisor, step.clip)
        return value

    return apply


def _flattening(step: FlattenStep, space: gym.Space[Any]) -> Callable[[Any], Any]:
    struct, removed = arithmetic.base_struct(space), set(step.keys_to_remove)
    if removed:
        struct = {key: leaf for key, leaf in struct.items() if key not in removed}

    def apply(observation: Any) -> Any:
        if removed:
            observation = {key: leaf for key, leaf in observation.items() if key not in removed}
        return arithmetic.flat_vector(observation, struct)

    return apply


class _PlainNetwork:
    """Layers and distributions of plain Torch."""

    def __init__(self, parts: PolicyParts) -> None:
        assert parts.network is not None
        self.module = build_network(parts.network, parts.module_state)
        self._distribution = ActionDistribution(policy_space(parts.action_space))
        lstms = [layer for layer in self.module if isinstance(layer, torch.nn.LSTM)]
        zeros = [np.zeros((lstm.num_layers, lstm.hidden_size), np.float32) for lstm in lstms]
        self.initial_state = tuple((zero, zero) for zero in zeros) or None

    def actions(
        self,
        items: list[Any],
        states: list[Any] | None,
        masks: torch.Tensor | None,
        *,
        deterministic: bool,
    ) -> tuple[Any, list[Any] | None]:
        inputs = arithmetic.as_tensor(arithmetic.stack(items))
        if states is None:
            outputs, after = self.module(inputs), None
        else:
            outputs, stacked = run_recurrent(self.module, inputs, arithmetic.stack(states))
            after = arithmetic.unstack(stacked)
        if masks is not None:
            outputs = masked(outputs, masks)
        return self._distribution.actions(outputs, deterministic=deterministic), after
