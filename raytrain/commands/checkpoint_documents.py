"""Checkpoints as JSON documents: those of `--json`, and those of the server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from raytrain.checkpoint import MANIFEST_NAME, Entry
from raytrain.checkpoint.lineage import line_of_descent
from raytrain.storage import Location
from raytrain.storage.json import read_json


def checkpoint_rows(entries: Iterable[Entry], argument: str) -> list[dict[str, Any]]:
    """A row for each checkpoint; `path` is relative to the directory `argument`."""
    directory = Location.of(argument).path.rstrip("/")
    return [
        {
            **entry.as_dict(),
            "path": entry.location.path.removeprefix(directory).lstrip("/") or entry.path,
        }
        for entry in entries
    ]


def manifest_document(entry: Entry) -> Any:
    """The manifest as it is on storage; for a fork, with its `line_of_descent`."""
    document = read_json(entry.location / MANIFEST_NAME)
    descent = line_of_descent(entry)
    return {**document, "line_of_descent": descent} if descent else document
