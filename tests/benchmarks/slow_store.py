"""`slow://`: a local directory as a remote store of which every request takes 50 ms longer.

A request is one call from outside: a listing, a look at a file, opening one, deleting one. Reading
and writing an open file is as fast as the disk. pyarrow sees it through fsspec, as it sees any
store that it does not know itself. Processes that get such a file system from another find this
module on their path."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pyarrow.fs as pafs
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

LATENCY_S = 0.05
SCHEME = "slow"
_REQUESTS = (
    "_open",
    "ls",
    "info",
    "exists",
    "isfile",
    "isdir",
    "find",
    "glob",
    "mkdir",
    "makedirs",
    "rmdir",
    "rm",
    "rm_file",
    "cp_file",
    "mv",
    "touch",
    "created",
    "modified",
    "cat_file",
    "put_file",
    "get_file",
)
_inside = threading.local()


def _slowed(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if getattr(_inside, "request", False):  # A call of the file system to itself.
            return method(*args, **kwargs)
        _inside.request = True
        try:
            time.sleep(LATENCY_S)
            return method(*args, **kwargs)
        finally:
            _inside.request = False

    return call


class SlowFileSystem(LocalFileSystem):
    """See the module's docstring."""

    protocol = SCHEME

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, str):
            path = path.removeprefix(f"{SCHEME}://")
        return super()._strip_protocol(path)


for _name in _REQUESTS:
    setattr(SlowFileSystem, _name, _slowed(getattr(LocalFileSystem, _name)))


def register() -> None:
    """Let `slow://` be opened by its name in this process."""
    fsspec.register_implementation(SCHEME, SlowFileSystem, clobber=True)


def uri(place: Path) -> str:
    return f"{SCHEME}://{place}"


def local_path(text: str) -> Path:
    return Path(text.removeprefix(f"{SCHEME}://"))


def arrow_file_system() -> pafs.PyFileSystem:
    return pafs.PyFileSystem(pafs.FSSpecHandler(SlowFileSystem()))
