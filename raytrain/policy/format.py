"""The two files of a policy that loads without Ray running and without unpickling.

`policy.safetensors` holds the module's state dict under its own names and nothing else, so that the
weights digest over the file is the training module's. `policy.json` says how to rebuild the module
and what lies between the environment and it:

    {"format": 1,
     "module": {"class": "pkg.mod:Class", "catalog": "pkg.mod:Class" | null, "model_config": {...},
                "observation_space": SPACE},          # what the module sees, after the steps below
     "network": [LAYER...] | null,      # the same network in plain Torch; in exported policies only
     "observation_space": SPACE, "action_space": SPACE,                     # the environment's own
     "preprocessing": [{"step": "flatten", "keys_to_remove": []} | {"step": "float"},
                       {"step": "mean_std", "count": 4000, "mean": ARRAY, "sum_sq_diff": ARRAY,
                        "center": true, "scale": true, "clip": 10.0, "columns": [...]}],
     "actions": {"normalize": true, "clip": false,
                 "mask": "info.NAME"},                 # or a key; only if actions are masked, in
                                                       # format 2, which is format 1 else
     "environment": {"env": "CartPole-v1", "env_config": {}},
     "weights": {"file": "policy.safetensors", "weights_sha256": "..."},
     "metadata": {...}}                                                     # iteration, versions

SPACE, ARRAY and the model settings are in the encoding of `raytrain.policy.spaces`, LAYER in that
of `raytrain.policy.network`. The two files lie in a checkpoint, listed in its `manifest.json`, or
alone in an exported directory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import safetensors
import safetensors.torch
import torch

from raytrain.checkpoint.digest import weights_sha256
from raytrain.checkpoint.manifest import MANIFEST_NAME, Manifest
from raytrain.errors import BadInput
from raytrain.policy.spaces import (
    PolicyFormatError,
    decode_array,
    decode_settings,
    decode_space,
    encode_array,
    encode_settings,
    encode_space,
)
from raytrain.storage.json import parse_json

FORMAT = 1
FORMAT_WITH_MASKS = 2
"""So that versions that would ignore a mask refuse the policy."""
POLICY_JSON = "policy.json"
POLICY_WEIGHTS = "policy.safetensors"


class PolicyNotFound(BadInput):
    """There is no policy in the directory that the user named."""


@dataclass(frozen=True)
class FlattenStep:
    """RLlib's FlattenObservations: one float32 vector; Discrete and MultiDiscrete one-hot."""

    keys_to_remove: tuple[str, ...] = ()


@dataclass(frozen=True)
class FloatStep:
    """An array as float32."""


@dataclass(frozen=True)
class MeanStdStep:
    """RLlib's MeanStdFilter with its running statistics as they were when the policy was taken.

    `mean` and `sum_sq_diff` (Welford's sum of squared differences) are float64, of the shape of the
    observation that arrives at this step, or of the `columns` of a vector that alone are
    normalized; `count` is the number of observations seen.
    """

    count: int
    mean: np.ndarray[Any, Any]
    sum_sq_diff: np.ndarray[Any, Any]
    center: bool = True
    scale: bool = True
    clip: float | None = 10.0
    columns: tuple[int, ...] | None = None


Step = FlattenStep | FloatStep | MeanStdStep


@dataclass(frozen=True)
class PolicyParts:
    """All that a policy consists of, detached from the algorithm it came from.

    `observation_space` and `action_space` are those of one raw environment;
    `module_observation_space` is what the module sees after `preprocessing`. `module_class` and
    `catalog_class` are written "package.module:Class". `module_state` is the whole state dict, the
    value function included.
    """

    module_state: Mapping[str, torch.Tensor | np.ndarray[Any, Any]]
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    module_observation_space: gym.Space[Any]
    module_class: str
    catalog_class: str | None
    model_config: Mapping[str, Any]
    normalize_actions: bool
    clip_actions: bool
    preprocessing: Sequence[Step] = ()
    action_mask: str | None = None
    """As `environment.action_mask` of the config."""
    env: str | None = None
    env_config: Mapping[str, Any] = field(default_factory=dict)
    network: Sequence[Mapping[str, Any]] | None = None
    """The network in plain layers (see `network`), if it has been described."""


def write_policy(directory: Path, parts: PolicyParts, *, metadata: Mapping[str, Any]) -> str:
    """Write both files into `directory`, which exists, and return the weights digest.

    Nothing is synced: the commit of the checkpoint does that. Raises PolicyFormatError, before any
    file is written, for a policy that has no exact plain form.
    """
    tensors = _own_tensors(parts.module_state)
    digest = weights_sha256(tensors)
    document = {
        "format": FORMAT if parts.action_mask is None else FORMAT_WITH_MASKS,
        "module": {
            "class": parts.module_class,
            "catalog": parts.catalog_class,
            "model_config": encode_settings(parts.model_config, "model_config"),
            "observation_space": encode_space(
                parts.module_observation_space, "the module's observation space"
            ),
        },
        "network": None if parts.network is None else [dict(layer) for layer in parts.network],
        "observation_space": encode_space(parts.observation_space, "the observation space"),
        "action_space": encode_space(parts.action_space, "the action space"),
        "preprocessing": [_encode_step(step) for step in parts.preprocessing],
        "actions": {
            "normalize": parts.normalize_actions,
            "clip": parts.clip_actions,
            **({} if parts.action_mask is None else {"mask": parts.action_mask}),
        },
        "environment": {
            "env": parts.env,
            "env_config": encode_settings(parts.env_config, "env_config"),
        },
        "weights": {"file": POLICY_WEIGHTS, "weights_sha256": digest},
        "metadata": encode_settings(metadata, "metadata"),
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    try:
        weights = safetensors.torch.save(tensors)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise PolicyFormatError(f"the weights cannot be stored as safetensors: {error}") from error
    (directory / POLICY_WEIGHTS).write_bytes(weights)
    (directory / POLICY_JSON).write_text(text + "\n", encoding="utf-8")
    return digest


def _own_tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors that share no memory, which is what safetensors accepts."""
    tensors = {}
    for name, value in state.items():
        if isinstance(value, (np.ndarray, np.generic)):
            # Not np.ascontiguousarray: it turns a scalar into a vector.
            tensors[name] = torch.from_numpy(np.array(value, order="C"))
        elif isinstance(value, torch.Tensor):
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        else:
            raise PolicyFormatError(
                f"the module's state {name!r} is a {type(value).__name__}: a policy can be "
                "exported when its module's state consists of tensors alone"
            )
    return tensors


_STEPS: dict[str, type[Step]] = {
    "flatten": FlattenStep,
    "float": FloatStep,
    "mean_std": MeanStdStep,
}


def _encode_step(step: Step) -> dict[str, Any]:
    (name,) = (name for name, kind in _STEPS.items() if kind is type(step))
    values = {
        key: encode_array(value) if isinstance(value, np.ndarray) else value
        for key, value in vars(step).items()
        if (key, value) != ("columns", None)  # Older versions read it then.
    }
    return {"step": name, **values}


def _decode_step(encoded: Mapping[str, Any]) -> Step:
    kind = _STEPS.get(encoded["step"])
    if kind is None:
        raise PolicyFormatError(f"unknown preprocessing step {encoded['step']!r}")
    values = {
        entry.name: encoded[entry.name]
        for entry in fields(kind)
        if entry.name in encoded or entry.name != "columns"
    }
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = decode_array(value)
        elif isinstance(value, list):
            values[name] = tuple(value)
    return kind(**values)


def read_policy(directory: Path) -> tuple[PolicyParts, dict[str, Any]]:
    """The parts and the metadata of the policy in `directory`, verified before they are used.

    Where there is a `manifest.json`, both files must have its sizes and SHA-256, and the weights
    its `weights_sha256`. Raises PolicyNotFound, ManifestError, PolicyFormatError naming the file.
    """
    for name in (POLICY_JSON, POLICY_WEIGHTS):
        if not (directory / name).is_file():
            raise PolicyNotFound(
                f"no policy in {directory}: it has no {name}. Name a checkpoint directory or one "
                "that `raytrain export` wrote."
            )
    path = directory / MANIFEST_NAME
    manifest = Manifest.from_json(path.read_bytes(), str(path)) if path.is_file() else None
    # What is hashed is what is used: each file is read once.
    raw_document = _verified_bytes(directory / POLICY_JSON, manifest)
    raw_weights = _verified_bytes(directory / POLICY_WEIGHTS, manifest)
    document = _parse_json(directory / POLICY_JSON, raw_document)
    if document.get("format") not in (FORMAT, FORMAT_WITH_MASKS):
        raise PolicyFormatError(
            f"{directory / POLICY_JSON} has format {document.get('format')!r}; this version of "
            f"raytrain reads formats {FORMAT} and {FORMAT_WITH_MASKS}"
        )
    tensors = _verified_tensors(directory, raw_weights, document, manifest)
    try:
        return _decode_document(document, tensors), decode_settings(document["metadata"])
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise PolicyFormatError(
            f"{directory / POLICY_JSON} is not a policy description "
            f"({type(error).__name__}: {error}). Use another checkpoint, or export it again."
        ) from error


def _decode_document(
    document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> PolicyParts:
    module, actions, environment = document["module"], document["actions"], document["environment"]
    return PolicyParts(
        module_state=tensors,
        observation_space=decode_space(document["observation_space"]),
        action_space=decode_space(document["action_space"]),
        module_observation_space=decode_space(module["observation_space"]),
        module_class=module["class"],
        catalog_class=module["catalog"],
        model_config=decode_settings(module["model_config"]),
        normalize_actions=actions["normalize"],
        clip_actions=actions["clip"],
        action_mask=actions.get("mask"),
        preprocessing=tuple(_decode_step(step) for step in document["preprocessing"]),
        env=environment["env"],
        env_config=decode_settings(environment["env_config"]),
        network=document.get("network"),
    )


def _verified_tensors(
    directory: Path,
    raw: bytes,
    document: Mapping[str, Any],
    manifest: Manifest | None,
) -> dict[str, torch.Tensor]:
    path = directory / POLICY_WEIGHTS
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(raw)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise PolicyFormatError(f"{path} is damaged ({error}). Use another checkpoint.") from error
    actual = weights_sha256(tensors)
    weights = document.get("weights")
    expected = {POLICY_JSON: weights.get("weights_sha256") if isinstance(weights, dict) else None}
    if manifest is not None:
        expected[MANIFEST_NAME] = manifest.weights_sha256
    for source, digest in expected.items():
        if digest != actual:
            raise PolicyFormatError(
                f"{path} holds the weights {actual}, but {source} beside it says {digest}: the "
                "files do not belong together. Use another checkpoint, or export it again."
            )
    return tensors


def _parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        document = parse_json(raw)
    except ValueError as error:
        raise PolicyFormatError(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(document, dict):
        raise PolicyFormatError(f"{path} is damaged: not a JSON object")
    return document


def _verified_bytes(path: Path, manifest: Manifest | None) -> bytes:
    """The content of `path`, which must be what the manifest lists, if there is a manifest."""
    raw = path.read_bytes()
    if manifest is None:
        return raw
    entry = next((entry for entry in manifest.files if entry.path == path.name), None)
    if entry is None:
        raise PolicyFormatError(f"{path} is not listed in the {MANIFEST_NAME} beside it")
    for actual, listed in (
        (f"{len(raw)} bytes", f"{entry.size} bytes"),
        (f"SHA-256 {hashlib.sha256(raw).hexdigest()}", f"SHA-256 {entry.sha256}"),
    ):
        if actual != listed:
            raise PolicyFormatError(
                f"{path} is damaged: {actual}, its manifest says {listed}. Use another checkpoint."
            )
    return raw
