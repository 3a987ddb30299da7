"""Whether the user's own code can be restored: a small run with it is saved, restored in another
process, and both train on. This module has what those processes do.

    begin       two iterations, saved, a third one
    go_on       restored in a fresh process, the third iteration
    begin       once more in a fresh process, if the third iterations differ

The run has one env group and one learner, both in its own process, and no Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tree
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModule

from raytrain import _ray
from raytrain.config import config_from_dict
from raytrain.config.own_code import own_code
from raytrain.config.user_code import failed_while
from raytrain.errors import RaytrainError
from raytrain.ppo.algorithm import ExactPPO, algorithm_arguments
from raytrain.records.compare import comparable

_BEFORE = 2
"""Iterations before the state is saved."""
_DIRECTORY = "state"


@dataclass(frozen=True)
class Iteration:
    """What one iteration was: digests of the sampled episodes and of the weights, and the result
    without clock times."""

    episodes: str
    weights: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Trail:
    """Iterations, and the attributes of each object of the user's own (a key of the config and its
    name) at the moment of the save: attribute -> digest."""

    iterations: tuple[Iteration, ...]
    attributes: Mapping[str, Mapping[str, str]]


def begin(plain: Mapping[str, Any], strategy: str, scratch: str) -> Trail:
    """Train, save, and train on. Raises EnvironmentFailed for what the user's code raises."""
    with _algorithm(plain, strategy, scratch) as algorithm:
        before = [_iterate(algorithm) for _ in range(_BEFORE)]
        directory = Path(scratch, _DIRECTORY)
        attributes = _attributes(algorithm, plain)
        if not directory.exists():
            algorithm.save_exact(directory)
        return Trail((*before, _iterate(algorithm)), attributes)


def go_on(plain: Mapping[str, Any], strategy: str, scratch: str) -> Trail:
    """Restore what `begin` saved, and train on."""
    with _algorithm(plain, strategy, scratch) as algorithm:
        algorithm.load_exact(Path(scratch, _DIRECTORY))
        attributes = _attributes(algorithm, plain)
        return Trail((_iterate(algorithm),), attributes)


@contextmanager
def _algorithm(plain: Mapping[str, Any], strategy: str, scratch: str) -> Iterator[ExactPPO]:
    _ray.tune.silence_ray()
    config = config_from_dict(plain)
    with _ray.local.no_instance(), _ray.local.files_below(scratch):
        try:
            arguments = algorithm_arguments(config, {"strategy": strategy})
            algorithm = ExactPPO(**arguments)
            try:
                yield algorithm
            finally:
                algorithm.stop()
        except RaytrainError:
            raise
        except Exception as error:  # Of the user's code: of any kind.
            raise failed_while("a rehearsal of two iterations with your own code", error) from None


def _iterate(algorithm: ExactPPO) -> Iteration:
    result = dict(algorithm.train())
    episodes = hashlib.sha256()
    for episode in algorithm.last_episodes:
        for buffer in (episode.observations, episode.actions, episode.rewards):
            for leaf in tree.flatten(buffer.data):
                episodes.update(np.ascontiguousarray(leaf).tobytes())
    algorithm.raise_if_not_finite(result)
    return Iteration(episodes.hexdigest(), algorithm.weights_digest, comparable(result))


def _attributes(algorithm: ExactPPO, plain: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    return {
        name: {
            key: digest
            for key, value in vars(piece).items()
            # RLlib's own in a network or a learner, such as what it has looked up once.
            if not (key.startswith("_") and isinstance(piece, RLModule | Learner))
            and (digest := _digest(value)) is not None
        }
        for name, piece in _pieces(algorithm, plain)
    }


def _pieces(algorithm: ExactPPO, plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The objects of the user's own, each by its key in the config and its class; first those whose
    state is forgotten most often."""
    (learner,) = algorithm.learners.local()
    runner: Any = algorithm.env_runner
    kinds = {named.kind for named in own_code(config_from_dict(plain))}
    to_module, to_env = _ray.runners.connectors(runner)
    several: tuple[tuple[str, str, Sequence[Any]], ...] = (
        ("callbacks.callbacks_class", "trial", algorithm.callbacks),
        ("callbacks.callbacks_class", "env runners", _ray.runners.callbacks(runner)),
        ("env_runners.env_to_module_connector", "env runners", to_module.connectors),
        ("env_runners.module_to_env_connector", "env runners", to_env.connectors),
        (
            "training.learner_connector",
            "learners",
            _ray.learners.learner_connector(learner).connectors,
        ),
        ("training.learner_class", "learners", [learner]),
        ("rl_module.module_class", "env runners", [runner.module]),
        ("rl_module.module_class", "learners", [learner.policy_module()]),
    )
    for key, where, pieces in several:
        for piece in pieces if key in kinds else ():
            if isinstance(piece, Learner) or not _is_rllibs(piece):
                yield f"{key} ({type(piece).__name__}, in {where})", piece


def _is_rllibs(piece: Any) -> bool:
    return type(piece).__module__.startswith(("ray.", "raytrain."))


def _digest(value: Any) -> str | None:
    """Of plain values, arrays and generators; None for anything else, such as a network."""
    digest = hashlib.sha256()
    try:
        for part in _parts(value):
            digest.update(part + b"\0")
    except TypeError:
        return None
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, np.random.Generator):
        value = value.bit_generator.state
    if isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _parts(key)
            yield from _parts(item)
    elif isinstance(value, list | tuple):
        yield f"{len(value)}".encode()
        for item in value:
            yield from _parts(item)
    elif isinstance(value, set | frozenset):
        yield from sorted(b"\0".join(_parts(item)) for item in value)
    elif isinstance(value, bool | int | float | str | bytes | np.generic | None):
        yield repr(value).encode()
    else:
        raise TypeError
