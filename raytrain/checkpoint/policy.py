"""A trained policy without Ray running: observations in, actions out, bit for bit as in training.

    policy = load_policy("results/cartpole/ppo_0/best")
    action = policy.act(observation)                  # one observation: one action for env.step
    actions = policy.act(observations)                # a batch: what a vector environment takes

Between the observation and the action it does what RLlib's connectors do around the module: cast
to the space's dtype (as Gymnasium's vector environments do), FlattenObservations and MeanStdFilter
with frozen statistics, batch, forward pass, mode or sample of the distribution, unsquash or clip.
The same observations in a batch of the same size give the same bits as in training; in a batch of
another size the matrix product may round differently.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.catalog import Catalog
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.utils.numpy import SMALL_NUMBER, convert_to_numpy, flatten_inputs_to_1d_tensor
from ray.rllib.utils.spaces.space_utils import (
    batch,
    clip_action,
    get_base_struct_from_space,
    unbatch,
    unsquash_action,
)
from ray.rllib.utils.torch_utils import convert_to_torch_tensor

from raytrain.checkpoint.policy_format import (
    FlattenStep,
    MeanStdStep,
    PolicyParts,
    Step,
    read_policy,
)
from raytrain.checkpoint.spaces import PolicyFormatError
from raytrain.errors import BadInput


class ObservationError(BadInput):
    """An observation that is neither one of the policy's observation space nor a batch of such."""


def load_policy(path: str | os.PathLike[str], *, seed: int | None = None) -> Policy:
    """Load the policy of a checkpoint directory or an exported one, verified, without unpickling.

    Ray is neither started nor needed running. `seed` seeds the policy's own generator for sampled
    actions (default 0). Raises PolicyNotFound, ManifestError, or PolicyFormatError naming the file
    that is damaged or the class that cannot be imported.
    """
    parts, metadata = read_policy(Path(path))
    return Policy(parts, metadata=metadata, seed=0 if seed is None else seed)


class Policy:
    """Acts; keeps the recurrent state of the episodes it acts in, and its own random generator."""

    def __init__(self, parts: PolicyParts, *, metadata: Mapping[str, Any], seed: int = 0) -> None:
        self.observation_space = parts.observation_space
        self.action_space = parts.action_space
        self.env = parts.env
        self.env_config = dict(parts.env_config)
        self.metadata = dict(metadata)
        self.module = _build_module(parts)
        self._normalize_actions = parts.normalize_actions
        self._clip_actions = parts.clip_actions
        self._steps = _prepared(parts.preprocessing, parts.observation_space)
        self._observation_struct = get_base_struct_from_space(parts.observation_space)
        self._action_struct = get_base_struct_from_space(parts.action_space)
        self._generator = torch.Generator()
        self._states: list[Any] | None = None
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
        flags = np.asarray(mask, dtype=bool)
        if flags.shape != (len(self._states),):
            raise BadInput(
                f"reset got a mask of shape {flags.shape}, but the policy acts in "
                f"{len(self._states)} episodes"
            )
        initial = self._initial_state()
        self._states = [
            initial if starts else state for starts, state in zip(flags, self._states, strict=True)
        ]

    def act(self, observation: Any, deterministic: bool = True) -> Any:
        """The action for one observation, or the actions for a batch of them, ready for `env.step`.

        Which of the two it is follows from the observation space. One Discrete action is an int,
        any other an array (or a Tuple or Dict of these); a batch is what a vector environment
        takes. A batch of Tuple or Dict observations is either the Tuple or Dict of batched arrays
        or a list of observations. Sampling leaves torch's global generator alone.
        """
        items, is_batch = self._observations(observation)
        with torch.no_grad(), self._own_randomness():
            actions = self._actions(self._forward(items, deterministic), deterministic)
        actions = convert_to_numpy(actions)
        if self.module.is_stateful():
            actions = tree.map_structure(lambda leaf: np.squeeze(leaf, axis=1), actions)
        # The order of NormalizeAndClipActions: `clip_actions` counts only without normalization.
        if self._normalize_actions:
            actions = unsquash_action(actions, self._action_struct)
        elif self._clip_actions:
            actions = clip_action(actions, self._action_struct)
        if is_batch:
            return actions
        return tree.map_structure(
            lambda leaf: int(leaf) if isinstance(leaf, np.integer) else leaf, unbatch(actions)[0]
        )

    def _forward(self, items: list[Any], deterministic: bool) -> dict[str, Any]:
        """Forward pass over preprocessed single observations; keeps the state for the next call."""
        stateful = self.module.is_stateful()
        columns: dict[str, Any] = {Columns.OBS: batch(items)}
        if stateful:
            # A time axis of length one, as AddTimeDimToBatchAndZeroPad adds it.
            columns[Columns.OBS] = tree.map_structure(
                lambda leaf: np.expand_dims(leaf, axis=1), columns[Columns.OBS]
            )
            columns[Columns.STATE_IN] = batch(self._current_states(len(items)))
        tensors = convert_to_torch_tensor(columns)
        forward = (
            self.module.forward_inference if deterministic else self.module.forward_exploration
        )
        outputs: dict[str, Any] = forward(tensors)
        if stateful:
            self._states = unbatch(convert_to_numpy(outputs[Columns.STATE_OUT]))
        return outputs

    def _actions(self, outputs: Mapping[str, Any], deterministic: bool) -> Any:
        """RLlib's GetActions: actions of the module itself, or of the distribution it describes."""
        if Columns.ACTIONS in outputs:
            return outputs[Columns.ACTIONS]
        logits = outputs[Columns.ACTION_DIST_INPUTS]
        if deterministic:
            distribution = self.module.get_inference_action_dist_cls().from_logits(logits)
            return distribution.to_deterministic().sample()
        distribution = self.module.get_exploration_action_dist_cls().from_logits(logits)
        return distribution.sample()

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        # torch.distributions draw from the global generator alone, so it is lent our state.
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._generator.get_state())
            yield
            self._generator.set_state(torch.get_rng_state())

    def _initial_state(self) -> Any:
        return convert_to_numpy(self.module.get_initial_state())

    def _current_states(self, size: int) -> list[Any]:
        if self._states is None:
            initial = self._initial_state()
            return [initial] * size
        if len(self._states) != size:
            raise ObservationError(
                f"got {size} observations, but the policy keeps the recurrent state of "
                f"{len(self._states)} episodes. Call reset() before acting in others."
            )
        return self._states

    def _observations(self, observation: Any) -> tuple[list[Any], bool]:
        """Preprocessed single observations, and whether they came as a batch."""
        raw, is_batch = _split(observation, self.observation_space, self._observation_struct)
        for step in self._steps:
            raw = [step(item) for item in raw]
        return raw, is_batch


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
    return list(unbatch(arrays)), True


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
                    f"the observation has no part {path!r}, expected is one of {space}"
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
                f"expected is {shape} for one observation or (N, {str(shape)[1:]} for a batch of N"
            )
        if not (isinstance(value, list) or np.can_cast(array.dtype, leaf_space.dtype, "same_kind")):
            raise ObservationError(
                f"got an observation of dtype {array.dtype}; the policy's space has "
                f"{leaf_space.dtype}"
            )
        cast = array.astype(leaf_space.dtype)
        # A scalar, not an array without axes: that is what an environment's step returns here.
        return cast[()] if cast.ndim == 0 else cast

    return tree.map_structure_with_path(convert, struct), sizes


class _Flatten:
    def __init__(self, step: FlattenStep, space: gym.Space[Any]) -> None:
        struct = get_base_struct_from_space(space)
        self._removed = set(step.keys_to_remove)
        self._struct = (
            {key: sub for key, sub in struct.items() if key not in self._removed}
            if self._removed
            else struct
        )

    def __call__(self, observation: Any) -> Any:
        if self._removed:
            observation = {k: v for k, v in observation.items() if k not in self._removed}
        return flatten_inputs_to_1d_tensor(observation, self._struct, batch_axis=False)


class _MeanStd:
    """The arithmetic, dtypes included, of `ray.rllib.utils.filter.MeanStdFilter` without update."""

    def __init__(self, step: MeanStdStep) -> None:
        if step.count <= 1:
            variance = np.zeros_like(step.mean).astype(np.float32)
        else:
            variance = (step.sum_sq_diff / (float(step.count) - 1)).astype(np.float32)
        self._mean = step.mean if step.center else None
        self._divisor = np.sqrt(np.maximum(0, variance)) + SMALL_NUMBER if step.scale else None
        self._clip = step.clip

    def __call__(self, observation: Any) -> Any:
        value = np.asarray(observation)
        dtype = value.dtype
        if self._mean is not None:
            value = value - self._mean
        if self._divisor is not None:
            value = value / self._divisor
        if self._clip:
            value = np.clip(value, -self._clip, self._clip)
        return value.astype(dtype)


def _prepared(steps: Sequence[Step], space: gym.Space[Any]) -> list[_Flatten | _MeanStd]:
    prepared: list[_Flatten | _MeanStd] = []
    for step in steps:
        if isinstance(step, FlattenStep):
            prepared.append(_Flatten(step, space))
            # From here on it is a vector of floats, nothing to be one-hot.
            space = gym.spaces.Box(-np.inf, np.inf, shape=(1,))
        else:
            prepared.append(_MeanStd(step))
    return prepared


def _build_module(parts: PolicyParts) -> Any:
    """The module with its weights; torch's global generator is as before."""
    module_class = _imported(parts.module_class, RLModule)
    catalog_class = None if parts.catalog_class is None else _imported(parts.catalog_class, Catalog)
    spec = RLModuleSpec(
        module_class=module_class,
        observation_space=parts.module_observation_space,
        action_space=parts.action_space,
        inference_only=False,
        model_config=dict(parts.model_config),
        catalog_class=catalog_class,
    )
    with torch.random.fork_rng(devices=[]), _without_deprecations():
        module = spec.build()
    try:
        module.load_state_dict(dict(parts.module_state), strict=True)
    except RuntimeError as error:
        raise PolicyFormatError(
            f"the weights do not fit the module {parts.module_class} as this program builds it: "
            f"{error}"
        ) from error
    # RLlib's forward methods switch to eval mode and back; the way back is a third of their time.
    return module.eval()


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Ray 2.60: `RLModule.__init__` makes an object that is deprecated, whatever it is given, and so
    each first module of a process logs a warning that nobody can act upon."""
    logger = logging.getLogger("ray._common.deprecation")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _imported(name: str, base: type) -> type:
    """The class of "package.module:Class"; raises PolicyFormatError if it is not there."""
    module_name, _, qualname = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise PolicyFormatError(
            f"the policy needs the class {name}, which cannot be imported ({error}). Install the "
            "package it was trained with, or add its directory to PYTHONPATH."
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise PolicyFormatError(f"{name} is not a {base.__name__}: the policy cannot be built")
    return found
