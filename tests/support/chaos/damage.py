"""Damage to the files of a checkpoint, on a disk or in an object store."""

from __future__ import annotations

import json
import re
from typing import Any

import pyarrow.fs as pafs

WAYS = ("a flipped bit in", "cut short:", "deleted:")


_CHECKPOINT = re.compile(
    r"checkpoint_(\d+)(\.\d+)?"
)  # Elsewhere than on a disk, an attempt is in the name.


def checkpoints(files: pafs.FileSystem, trial: str) -> dict[int, str]:
    """Names of the committed periodic checkpoints of a trial by their iterations, in order."""
    listed = files.get_file_info(pafs.FileSelector(trial, allow_not_found=True, recursive=True))
    parts = [info.path.removeprefix(f"{trial}/").split("/") for info in listed]
    folders = sorted(part[0] for part in parts if len(part) == 2 and part[1] == "manifest.json")
    found = {int(m[1]): folder for folder in folders if (m := _CHECKPOINT.fullmatch(folder))}
    return dict(sorted(found.items()))


def read_json(files: pafs.FileSystem, path: str) -> dict[str, Any]:
    """An empty one if there is no such file."""
    try:
        found = json.loads(read(files, path))
    except FileNotFoundError:
        return {}
    assert isinstance(found, dict)
    return found


def read(files: pafs.FileSystem, path: str) -> bytes:
    with files.open_input_file(path) as stream:
        return bytes(stream.read())


def damage(files: pafs.FileSystem, checkpoint: str, how: float) -> str:
    """Damage one file of a checkpoint; `how`, in [0, 1), chooses file and way. Returns
    what was done."""
    listed = read_json(files, f"{checkpoint}/manifest.json")["files"]
    names = sorted(each["path"] for each in listed if each["size"] > 1)
    name, way = names[int(how * len(names))], WAYS[int(how * 1000) % len(WAYS)]
    path = f"{checkpoint}/{name}"
    content = bytearray(read(files, path))
    if way == WAYS[0]:
        content[len(content) // 2] ^= 1
    elif way == WAYS[1]:
        del content[len(content) // 2 :]
    if way == WAYS[2]:
        files.delete_file(path)
    else:
        with files.open_output_stream(path) as stream:
            stream.write(bytes(content))
    return f"{way} {path}"
