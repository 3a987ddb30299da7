"""`raytrain export`: the policy of a checkpoint in a directory of its own, for use elsewhere.

    DIR/policy.safetensors    the weights, as in the checkpoint
        policy.json           network, spaces, filters, action mapping: `load_policy` needs nothing else
        README.md             the model card
        policy.pt             TorchScript, if it was asked for
        policy.onnx           ONNX, if it was asked for

The network is described layer by layer in `policy.json`, so that `load_policy(DIR)` needs Torch,
Gymnasium and safetensors, and neither Ray nor unpickling. Before anything is written, the description
is tried against RLlib's module: the same bits for modes and for samples. A module of the user's own has
no such description; its export needs RLlib to load, and says so. `policy.json` is written last: a
directory that a kill left half-written is no policy.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """What was written. `needs_ray` says why loading needs RLlib, or is None; `onnx_difference` is the
    largest one from Torch that was seen."""

    path: str
    checkpoint: str
    weights_sha256: str
    files: tuple[str, ...]
    needs_ray: str | None
    onnx_difference: float | None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "files": list(self.files)}


def export_policy(
    argument: str, directory: str, *, onnx: bool = False, torchscript: bool = False
) -> Exported:
    """Export the policy that `argument` (see `resolve`) means into `directory`, which must be new or
    empty.

    Raises:
        BadInput: there is no such checkpoint, or `directory` holds something.
        MissingExtra: ONNX was asked for and its packages are not installed.
        PolicyFormatError: the policy cannot be exported in the form asked for; the reason is named.
    """
    target = Location.of(directory)
    with storage_errors("Looking at the directory to export to", target):
        if target.exists() and (not target.is_dir() or target.listed()):
            raise BadInput(
                f"{target} exists and is not an empty directory. Give another one, or delete it first."
            )
    entry = resolve(argument)
    with scratch("export") as here:
        parts, metadata = read_policy(fetch(entry.location, here / "checkpoint"))
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
        card = model_card(entry, parts, experiment_around(entry), needs_ray, ready)
        (ready / CARD).write_text(card, encoding="utf-8")
        with storage_errors("Exporting the policy", target):
            Location.of(ready).copy_tree(target, last=POLICY_JSON)
        files = tuple(sorted(path.name for path in ready.iterdir()))
    return Exported(str(target), str(entry.location), digest, files, needs_ray, difference)


def _described(parts: PolicyParts) -> tuple[PolicyParts, str | None]:
    """The parts with their network described, or why that cannot be."""
    from raytrain.policy.rllib_layers import NoPlainForm, layers_of
    from raytrain.policy.rllib_module import build_module

    try:
        described = replace(parts, network=layers_of(build_module(parts)))
        differs = _difference(parts, described)
    except (NoPlainForm, PolicyFormatError) as reason:
        return parts, str(reason)
    if differs:
        return parts, f"described layer by layer it gives other {differs} than RLlib's module"
    return described, None


def _difference(parts: PolicyParts, described: PolicyParts) -> str | None:
    """What differs between the two policies, to the bit: modes, samples, or None."""
    batches = [batch.numpy() for batch in observations(parts, _TRIED)]
    struct = base_struct(parts.observation_space)
    given = unstack(tree.unflatten_as(struct, batches))
    for name, deterministic in (("likeliest actions", True), ("sampled actions", False)):
        ours, theirs = (
            _bits(Policy(each, metadata={}, seed=1), given, deterministic)
            for each in (described, parts)
        )
        if ours != theirs:
            return name
    return None


def _bits(policy: Policy, given: list[Any], deterministic: bool) -> list[bytes]:
    actions = [policy.act(each, deterministic=deterministic) for each in given]
    return [np.asarray(leaf).tobytes() for leaf in tree.flatten(actions)]


def _require_portable(why_not: str | None, *, onnx: bool, torchscript: bool) -> None:
    wanted = [name for name, asked in (("ONNX", onnx), ("TorchScript", torchscript)) if asked]
    if wanted and why_not is not None:
        raise PolicyFormatError(
            f"This policy cannot be written as {' or '.join(wanted)}: {why_not}. Dense and "
            "convolutional networks of RLlib's own can; export it without."
        )


def _try_torchscript(parts: PolicyParts, path: Path) -> None:
    given: Sequence[torch.Tensor] = observations(parts, _TRIED)
    with torch.no_grad():
        ours, theirs = torch.jit.load(str(path))(*given), ActingModule(parts)(*given)
    if not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        raise PolicyFormatError("the TorchScript policy gives other actions than Torch; not kept")


def _origin(entry: Entry) -> dict[str, Any]:
    """Where the policy comes from, for `Policy.metadata`."""
    manifest = entry.manifest
    assert manifest is not None, "what is resolved was verified by its manifest"
    keys = "experiment trial_id run_id kind iteration timesteps episodes stage score created_at"
    found = {key: getattr(manifest, key) for key in keys.split()}
    return {**found, "config_digest": manifest.config_digest, "versions": dict(manifest.versions)}
