"""RLlib's own checkpoint files, written outside of the training thread.

`Algorithm.save_to_path` pickles and writes while training waits, and a remote learner writes its
part to a disk of its own, from which it is fetched. Here

    RLlibFiles(algorithm)     once: what never changes (classes, constructor arguments, metadata)
    state = capture(kl_coeff) in the training thread: a copy of RLlib's `get_state()`
    state.write(directory)    in any thread: the files that `save_to_path` writes
    restore(directory)        RLlib's `restore_from_path`, but remote learners receive the files

so `Algorithm.from_checkpoint` and other tools of RLlib read them as usual. They name RLlib's own
classes (see `rllib_classes`).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import cloudpickle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import (
    COMPONENT_LEARNER,
    COMPONENT_LEARNER_GROUP,
    COMPONENT_RL_MODULE,
    DEFAULT_MODULE_ID,
)
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.rllib.utils.checkpoints import (
    CHECKPOINT_VERSION_LEARNER_AND_ENV_RUNNER,
    Checkpointable,
)

from raytrain.ppo.learner_group import Learners
from raytrain.ppo.rllib_classes import made_by, with_kl_coeff


@dataclass(frozen=True)
class _Component:
    """One directory of the checkpoint: its unchanging files, the name of its state file, and its
    subcomponents by the names of their directories, which are also their keys in the state."""

    files: dict[str, bytes]
    state_file: str
    parts: dict[str, _Component]


@dataclass(frozen=True)
class RLlibState:
    """One state of an algorithm. `module_state`: the state dict of the first learner's policy
    module; None if RLlib's copy of it is not exact."""

    module_state: Mapping[str, np.ndarray[Any, Any]] | None
    _tree: _Component
    _state: Mapping[str, Any]
    _made_by: Mapping[str, Any]

    def write(self, directory: Path) -> None:
        """Write RLlib's files into an existing directory."""
        _write(self._tree, self._state, directory)
        name = Algorithm.CLASS_AND_CTOR_ARGS_FILE_NAME
        (directory / name).write_bytes(cloudpickle.dumps(self._made_by))


class RLlibFiles:
    """See the module's docstring."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._tree: _Component | None = None
        self._made_by: dict[str, Any] = {}
        self._float32_only = False

    def capture(self, kl_coeff: float) -> RLlibState:
        """Copy the state. `kl_coeff`: the present KL coefficient, which is not in RLlib's."""
        if self._tree is None:
            self._tree = _component(self._algorithm)
            self._made_by = made_by(self._algorithm)
            learners = self._algorithm.learner_group.foreach_learner(_is_float32_only)
            self._float32_only = all(answer.get() for answer in learners)
        state = self._algorithm.get_state()
        learners = state.pop(COMPONENT_LEARNER_GROUP)
        state = {**_copied(state), COMPONENT_LEARNER_GROUP: _copied(learners, only_views=True)}
        modules = learners[COMPONENT_LEARNER][COMPONENT_RL_MODULE]
        module_state = modules[DEFAULT_MODULE_ID] if self._float32_only else None
        return RLlibState(module_state, self._tree, state, with_kl_coeff(self._made_by, kl_coeff))

    def restore(self, directory: Path, learners: Learners) -> None:
        """Restore from a directory. RLlib starts two more processes for every learner on another
        node to fetch its part, which takes seconds, and drops their errors.

        Raises:
            RaytrainError: a learner did not answer.
            Exception: of any type, the error of a remote learner.
        """
        # Not `Algorithm.restore_from_path`: it also pushes to the runners, without waiting.
        group = self._algorithm.learner_group
        if group.is_local:
            Checkpointable.restore_from_path(self._algorithm, directory.as_posix())
            return
        for name, part in self._algorithm.get_checkpointable_components():
            if part is not group and (directory / name).is_dir():
                part.restore_from_path((directory / name).as_posix())
        learners.read_files(directory / COMPONENT_LEARNER_GROUP / COMPONENT_LEARNER)
        state_file = directory / f"{self._algorithm.STATE_FILE_NAME}.pkl"
        self._algorithm.set_state(pickle.loads(state_file.read_bytes()))


def _copied(value: Any, *, only_views: bool = False) -> Any:
    """`value` with containers rebuilt and arrays copied. With `only_views`, arrays that own their
    memory are not copied: `get_state()` has copied most of a learner's weights and optimizer
    (floats become float32), but an array of bytes shares memory with its tensor."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value if only_views and value.flags.owndata else value.copy()
    if isinstance(value, dict):
        return {key: _copied(item, only_views=only_views) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item, only_views=only_views) for item in value)
    if isinstance(value, list | tuple | set):
        return cloudpickle.loads(cloudpickle.dumps(value))
    return value


def _is_float32_only(learner: Any) -> bool:
    """Whether `get_state()` returns the exact weights: it turns other floats into float32, int64
    into int32, and tensors without dimensions into numbers."""
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    return all(
        isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.ndim > 0
        for value in module.state_dict().values()
    )


def _component(component: Any) -> _Component:
    if isinstance(component, RLModule):
        component = component.unwrapped()  # out of DDP, which does not pass these methods on
    parts = {}
    for name, part in component.get_checkpointable_components():
        if isinstance(part, FaultTolerantActorManager):
            # As RLlib does: one of the actors stands for all.
            first = part.healthy_actor_ids()[:1]
            (answer,) = part.foreach_actor(_component, remote_actor_ids=first)
            parts[name] = answer.get()
        elif part is not None:
            parts[name] = _component(part)
    metadata = component.get_metadata()
    metadata.setdefault("checkpoint_version", str(CHECKPOINT_VERSION_LEARNER_AND_ENV_RUNNER))
    return _Component(
        files={
            component.METADATA_FILE_NAME: json.dumps(metadata).encode(),
            component.CLASS_AND_CTOR_ARGS_FILE_NAME: cloudpickle.dumps(made_by(component)),
        },
        state_file=f"{component.STATE_FILE_NAME}.pkl",
        parts=parts,
    )


def _write(component: _Component, state: Mapping[str, Any], directory: Path) -> None:
    for name, data in component.files.items():
        (directory / name).write_bytes(data)
    own = dict(state)
    for name, part in component.parts.items():
        # As RLlib does: a subcomponent that is not in the state has no directory.
        if name in own:
            (directory / name).mkdir()
            _write(part, own.pop(name), directory / name)
    with (directory / component.state_file).open("wb") as file:
        cloudpickle.dump(own, file)
