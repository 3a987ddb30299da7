"""Checkpoints as JSON documents and as text, for the commands that look at them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from raytrain.checkpoint import MANIFEST_NAME, Entry, line_of_descent
from raytrain.checkpoint.lineage import generation_text
from raytrain.storage import Location
from raytrain.storage.escapes import printable
from raytrain.storage.json import read_json


def checkpoint_rows(entries: Iterable[Entry], argument: str) -> list[dict[str, Any]]:
    """A row for each checkpoint; `path` is relative to the directory that was asked for."""
    asked = Location.of(argument).path.rstrip("/")
    rows = []
    for entry in entries:
        row = entry.as_dict()
        place = entry.location.path
        row["path"] = place.removeprefix(asked).lstrip("/") or entry.path
        rows.append(row)
    return rows


def manifest_document(entry: Entry) -> Any:
    """The manifest as it lies on storage; of a fork, with its `line_of_descent`."""
    document = read_json(entry.location / MANIFEST_NAME)
    descent = line_of_descent(entry)
    return {**document, "line_of_descent": descent} if descent else document


def manifest_text(entry: Entry) -> str:
    """The manifest for a person: everything but the long lists, then how big it is."""
    document = manifest_document(entry)
    files, metrics = document.pop("files"), document.pop("metrics")
    descent = document.pop("line_of_descent", [])
    lines = [f"{key}: {_short(value)}" for key, value in document.items()]
    if entry.manifest is not None and entry.manifest.stage is not None:
        stage = f"stage: {entry.manifest.stage_text}"
        lines = [stage if line.startswith("stage: ") else line for line in lines]
    size = sum(each["size"] for each in files)
    lines.append(f"files: {len(files)}, {size / 1e6:.2f} MB")
    lines.append(f"metrics: {len(metrics)} (with --json)")
    if descent:
        lines.append("line of descent:")
        lines += [f"  from {generation_text(each)}" for each in descent]
    return "".join(f"{printable(line)}\n" for line in [str(entry.location), *lines])


def json_ready(value: Any) -> Any:
    """`value` with NaN and infinities as null, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return "none" if value is None else str(value)
