"""The model card of an exported policy (Markdown): its contents, its origin, how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raytrain.checkpoint.catalogue import Entry
from raytrain.checkpoint.experiment_file import ExperimentFile
from raytrain.checkpoint.lineage import generation_text, line_of_descent
from raytrain.checkpoint.manifest import Manifest
from raytrain.policy.format import FlattenStep, FloatStep, PolicyParts, Step
from raytrain.policy.onnx import ONNX_FILE, TORCHSCRIPT_FILE, all_input_names, input_names
from raytrain.storage.escapes import printable

_LINE = 100


def model_card(
    entry: Entry,
    parts: PolicyParts,
    experiment: ExperimentFile | None,
    needs_ray: str | None,
    directory: Path,
) -> str:
    """The text of the card. `directory` holds the files that it describes."""
    manifest = entry.good_manifest
    sections = [
        printable(
            f"# {manifest.experiment}: a PPO policy for {parts.env or 'an environment of its own'}"
        ),
        printable(
            f"Exported by raytrain from `{entry.location}`, after {manifest.timesteps:,} steps of "
            "training."
        ),
        "## Run\n\n" + _table(_run_rows(entry, manifest)),
        "## Scores\n\n" + _table(_score_rows(manifest, experiment)),
        "## Lineage\n\n" + _lineage(entry, manifest),
        "## Policy\n\n" + _table(_policy_rows(parts)),
        "## Use\n\n" + _use(parts, needs_ray, directory),
    ]
    if experiment is not None:
        config = yaml.safe_dump(dict(experiment.config), sort_keys=False, width=_LINE)
        sections.append(f"## Config\n\n```yaml\n{config}```")
    return printable("\n\n".join(sections), lines=True) + "\n"


def _run_rows(entry: Entry, manifest: Manifest) -> list[tuple[str, str]]:
    lost = manifest.exact_lost
    exact = "yes" if lost is None else f"no, since iteration {lost.since_iteration}: {lost.why}"
    return [
        ("experiment", manifest.experiment),
        ("trial", manifest.trial_id),
        ("run", manifest.run_id),
        ("checkpoint", f"{entry.path} ({manifest.kind})"),
        ("iteration", f"{manifest.iteration:,}"),
        ("steps", f"{manifest.timesteps:,}"),
        ("episodes", f"{manifest.episodes:,}"),
        ("stage", manifest.stage_text or "none"),
        ("saved", manifest.created_at),
        ("exact", exact),
        ("weights SHA-256", manifest.weights_sha256),
        ("config SHA-256", manifest.config_digest),
        ("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
    ]


_SCORES = ("env_runners", "evaluation/env_runners")


def _score_rows(manifest: Manifest, experiment: ExperimentFile | None) -> list[tuple[str, str]]:
    settings = {} if experiment is None else experiment.config.get("checkpoint", {})
    score = "none yet" if manifest.score is None else f"{manifest.score:g}"
    rows = [(f"score (`{settings.get('score', 'checkpoint.score')}`)", score)]
    for holder in _SCORES:
        metrics: Any = manifest.metrics
        for part in holder.split("/"):
            metrics = metrics.get(part, {}) if isinstance(metrics, Mapping) else {}
        for name in ("episode_return_mean", "episode_return_min", "episode_return_max"):
            if isinstance(metrics.get(name), int | float):
                rows.append((f"{holder}/{name}", f"{metrics[name]:g}"))
    return rows


def _lineage(entry: Entry, manifest: Manifest) -> str:
    parent = manifest.parent
    if parent is None:
        return "Trained from the beginning: no parent."
    line = "\n".join(
        printable(f"- from {generation_text(each)}") for each in line_of_descent(entry)
    )
    forked = f"Forked from {parent.checkpoint} of {parent.experiment}/{parent.trial}, weights "
    return (
        f"{printable(forked)}{parent.weights_sha256}.\n\n"
        f"The line of descent, the parent first:\n\n{line}"
    )


def _policy_rows(parts: PolicyParts) -> list[tuple[str, str]]:
    size = sum(int(np.prod(tuple(value.shape))) for value in parts.module_state.values())
    network = parts.module_class
    if parts.network is not None:
        network = _network_text(parts.network)
    steps = [_step_text(step) for step in parts.preprocessing]
    mapping = "as they are"
    if parts.normalize_actions:
        mapping = "from [-1, 1] to the bounds of the space"
    elif parts.clip_actions:
        mapping = "clipped to the bounds of the space"
    return [
        ("environment", f"{parts.env} {json.dumps(dict(parts.env_config))}"),
        ("observations", _one_line(parts.observation_space)),
        ("actions", _one_line(parts.action_space)),
        ("before the network", "; ".join(steps) or "nothing"),
        ("network", network),
        ("numbers in it, value function included", f"{size:,}"),
        ("continuous actions", mapping),
        ("action masks", "none" if parts.action_mask is None else f"from `{parts.action_mask}`"),
    ]


def _network_text(layers: Sequence[Mapping[str, Any]]) -> str:
    texts = []
    for layer in layers:
        images = [_network_text(image["layers"]) for image in layer.get("images", ())]
        texts.append(f"{layer['layer']} ({'; '.join(images)})" if images else str(layer["layer"]))
    return " > ".join(texts)


def _step_text(step: Step) -> str:
    if isinstance(step, FlattenStep):
        return "one vector, Discrete and MultiDiscrete one-hot"
    if isinstance(step, FloatStep):
        return "as float32"
    what = "" if step.columns is None else f"{len(step.columns):,} of its numbers "
    return f"{what}normalised by the mean and deviation of {step.count:,} observations"


def _use(parts: PolicyParts, needs_ray: str | None, directory: Path) -> str:
    needs = "Neither Ray nor unpickling is needed."
    if needs_ray is not None:
        needs = f"RLlib is imported (Ray is not started), for {needs_ray}. Nothing is unpickled."
    texts = [
        f"{needs}\n\n```python\nimport raytrain\n\npolicy = raytrain.load_policy(DIR)\n"
        "action = policy.act(observation)  # or a batch; policy.reset() between episodes\n```"
    ]
    inputs = ", ".join(f"`{name}`" for name in all_input_names(parts))
    outputs = ", ".join(f"`{name}`" for name in input_names(parts.action_space, "action"))
    if (directory / TORCHSCRIPT_FILE).exists():
        texts.append(
            f"`{TORCHSCRIPT_FILE}` (TorchScript) takes batches of raw observations and returns a "
            "tuple of the likeliest actions, ready for the environment:"
            "\n\n```python\nimport torch\n\n"
            f'(actions,) = torch.jit.load("{TORCHSCRIPT_FILE}")(observations)\n```'
        )
    if (directory / ONNX_FILE).exists():
        texts.append(
            f"`{ONNX_FILE}` does the same in onnxruntime, to 1e-5: {inputs} in, {outputs} out."
        )
    return "\n\n".join(texts)


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())


def _table(rows: list[tuple[str, str]]) -> str:
    lines = ["| | |", "| --- | --- |"]
    lines += [printable(f"| {name} | {text.replace('|', chr(92) + '|')} |") for name, text in rows]
    return "\n".join(lines)
