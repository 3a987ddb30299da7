"""Checkpoints as text, for the commands that look at them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from raytrain.arithmetic.machine import describe
from raytrain.checkpoint import Entry
from raytrain.checkpoint.lineage import generation_text
from raytrain.cli.tables import code_text
from raytrain.storage.escapes import printable
from raytrain.trial.score import CHECKPOINT


def score_note(entries: Iterable[Entry]) -> str:
    """A line that says that the scores are of several metrics; empty if they are of one."""
    labels = [
        entry.manifest.metrics.get(CHECKPOINT)
        for entry in entries
        if entry.manifest is not None and entry.manifest.score is not None
    ]
    metrics = {
        label["metric"] for label in labels if isinstance(label, Mapping) and "metric" in label
    }
    if len(metrics) < 2:
        return ""
    return (
        f"The scores are of different metrics ({', '.join(sorted(metrics))}): checkpoint.score was "
        "changed. `raytrain show` lists the scores of the present metric.\n"
    )


def manifest_text(entry: Entry, document: Mapping[str, Any]) -> str:
    """`manifest_document` for a person: everything but the long lists, and the size."""
    files, metrics = document["files"], document["metrics"]
    descent = document.get("line_of_descent", [])
    lists = ("files", "metrics", "line_of_descent")
    short = {**document, "stage": entry.good_manifest.stage_text}
    if "code" in short:
        short["code"] = code_text(short["code"])
    if "arithmetic" in short:
        short["arithmetic"] = _arithmetic_text(short["arithmetic"])
    lines = [f"{key}: {_short(value)}" for key, value in short.items() if key not in lists]
    size = sum(file["size"] for file in files)
    lines.append(f"files: {len(files)}, {size / 1e6:.2f} MB")
    lines.append(f"metrics: {len(metrics)} (with --json)")
    if descent:
        lines.append("line of descent:")
        lines += [f"  from {generation_text(generation)}" for generation in descent]
    return "".join(f"{printable(line)}\n" for line in [str(entry.location), *lines])


def _arithmetic_text(arithmetic: Mapping[str, Any]) -> str:
    """`learner AMD EPYC 7763 with ... (1:e88df4ee...); threads 1; portable False`"""
    texts = [
        f"{role} {describe(entry['machine'])} ({entry['fingerprint']})"
        for role, entry in arithmetic.items()
        if role != "settings"
    ]
    settings = arithmetic.get("settings", {})
    threads = settings.get("threads", {})
    texts += [f"{role} threads {number}" for role, number in threads.items()]
    texts += [f"{key} {value}" for key, value in settings.items() if key != "threads"]
    return "; ".join(texts)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "none" if value is None else str(value)
