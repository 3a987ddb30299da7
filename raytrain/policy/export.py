"""`raytrain export`: the policy of a checkpoint in a directory of its own, for use elsewhere.

    DIR/policy.safetensors    the weights, as in the checkpoint
        policy.json           network, spaces, filters, action mapping: all that `load_policy` needs
        README.md             the model card
        policy.pt             TorchScript, on request
        policy.onnx           ONNX, on request

`policy.json` describes the network layer by layer, so `load_policy(DIR)` needs Torch, Gymnasium and
safetensors, but no Ray and no unpickling. Before anything is written, the description is compared
with RLlib's module: modes and samples must have the same bits. A module of the user's own cannot be
described; its export needs RLlib to load, and says so. `policy.json` is written last: a directory
that was interrupted before is no policy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tree

from raytrain.checkpoint.catalogue import Entry
from raytrain.checkpoint.lineage import experiment_around
from raytrain.checkpoint.resolve import resolve
from raytrain.checkpoint.verify import fetch
from raytrain.config.own_code import first_in_path
from raytrain.errors import BadInput
from raytrain.policy.arithmetic import base_struct, unstack
from raytrain.policy.format import POLICY_JSON, PolicyParts, read_policy, write_policy
from raytrain.policy.model_card import model_card
from raytrain.policy.onnx import (
    ONNX_FILE,
    TORCHSCRIPT_FILE,
    ActingModule,
    observations,
    write_onnx,
    write_torchscript,
)
from raytrain.policy.policy import Policy
from raytrain.policy.spaces import PolicyFormatError
from raytrain.storage.location import Location, storage_errors
from raytrain.storage.scratch import scratch

CARD = "README.md"
_TRIED = 16  # observations in the comparison with RLlib's module


@dataclass(frozen=True)
class Exported:
    """What was written. `needs_ray`: why loading needs RLlib, or None. `onnx_difference`: the
    largest difference between ONNX and Torch in the comparison, or None."""

    path: str
    checkpoint: str
    weights_sha256: str
    files: tuple[str, ...]
    needs_ray: str | None
    onnx_difference: float | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return asdict(self)


def export_policy(
    argument: str, directory: str, *, onnx: bool = False, torchscript: bool = False
) -> Exported:
    """Export the policy of the checkpoint `argument` (see `resolve`) into `directory`, which must
    be new or empty.

    Raises:
        BadInput: there is no such checkpoint, or `directory` is not empty.
        MissingExtra: the packages for ONNX are not installed.
        PolicyFormatError: the policy cannot be exported in this form; the message says why.
    """
    target = Location.of(directory)
    with storage_errors("Looking at the directory to export to", target):
        if target.exists() and (not target.is_dir() or target.listed()):
            raise BadInput(
                f"{target} exists and is not an empty directory. Name another one, or delete it."
            )
    entry = resolve(argument)
    with scratch("export") as here:
        parts, metadata = read_policy(fetch(entry.location, here / "checkpoint"))
        experiment = experiment_around(entry)
        if experiment is not None:  # A network of the user's own may lie beside the YAML file.
            first_in_path(experiment.config.get("import_path"))
        parts, needs_ray = _described(parts)
        ready = here / "policy"
        ready.mkdir()
        digest = write_policy(ready, parts, metadata={**metadata, **_origin(entry)})
        recurrent = any(layer["layer"] == "lstm" for layer in parts.network or ())
        why_not = needs_ray or ("it keeps a state from step to step" if recurrent else None)
        _require_portable(why_not, onnx=onnx, torchscript=torchscript)
        if torchscript:
            write_torchscript(parts, ready / TORCHSCRIPT_FILE)
            _try_torchscript(parts, ready / TORCHSCRIPT_FILE)
        difference = write_onnx(parts, ready / ONNX_FILE) if onnx else None
        card = model_card(entry, parts, experiment, needs_ray, ready)
        (ready / CARD).write_text(card, encoding="utf-8")
        with storage_errors("Exporting the policy", target):
            Location.of(ready).copy_tree(target, last=POLICY_JSON)
        files = tuple(sorted(path.name for path in ready.iterdir()))
    return Exported(str(target), str(entry.location), digest, files, needs_ray, difference)


def _described(parts: PolicyParts) -> tuple[PolicyParts, str | None]:
    """The parts with their network described, or unchanged with the reason why it cannot be."""
    from raytrain.policy.rllib_module import build_module
    from raytrain.policy.rllib_network import NotDefaultNetwork, describe_network

    try:
        described = replace(parts, network=describe_network(build_module(parts)))
        differs = _difference(parts, described)
    except (NotDefaultNetwork, PolicyFormatError) as reason:
        return parts, str(reason)
    if differs:
        return parts, f"its description layer by layer gives other {differs} than RLlib's module"
    return described, None


def _difference(parts: PolicyParts, described: PolicyParts) -> str | None:
    """What differs in a bit between the two policies: modes, samples, or None."""
    batches = [batch.numpy() for batch in observations(parts, _TRIED)]
    struct = base_struct(parts.observation_space)
    leaves = len(tree.flatten(struct))
    singles = unstack(tree.unflatten_as(struct, batches[:leaves]))
    masks = batches[leaves] if batches[leaves:] else [None] * _TRIED
    for name, deterministic in (("likeliest actions", True), ("sampled actions", False)):
        ours, theirs = (
            _bits(Policy(variant, metadata={}, seed=1), singles, masks, deterministic)
            for variant in (described, parts)
        )
        if ours != theirs:
            return name
    return None


def _bits(policy: Policy, singles: list[Any], masks: Any, deterministic: bool) -> list[bytes]:
    actions = [
        policy.act(observation, deterministic=deterministic, action_mask=mask)
        for observation, mask in zip(singles, masks, strict=True)
    ]
    return [np.asarray(leaf).tobytes() for leaf in tree.flatten(actions)]


def _require_portable(why_not: str | None, *, onnx: bool, torchscript: bool) -> None:
    formats = ("ONNX", onnx), ("TorchScript", torchscript)
    wanted = [name for name, is_wanted in formats if is_wanted]
    if wanted and why_not is not None:
        raise PolicyFormatError(
            f"This policy cannot be written as {' or '.join(wanted)}: {why_not}. Only RLlib's "
            "dense and convolutional networks can. Export it without this format."
        )


def _try_torchscript(parts: PolicyParts, path: Path) -> None:
    batches = observations(parts, _TRIED)
    with torch.no_grad():
        ours, theirs = torch.jit.load(str(path))(*batches), ActingModule(parts)(*batches)
    if not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        raise PolicyFormatError("the TorchScript policy gives other actions than Torch")


def _origin(entry: Entry) -> dict[str, Any]:
    """Where the policy comes from, for `Policy.metadata`."""
    manifest = entry.good_manifest
    names = "experiment trial_id run_id kind iteration timesteps episodes stage score created_at"
    origin = {name: getattr(manifest, name) for name in names.split()}
    return {**origin, "config_digest": manifest.config_digest, "versions": dict(manifest.versions)}
