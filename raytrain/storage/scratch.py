"""Temporary directories that are deleted even after their process was killed.

A process that is killed cannot delete its own. Each process holds a lock in its directory as long
as it lives, however it dies, so the next process of the same user can tell which directories nobody
needs any more, and deletes them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "raytrain-"
_HELD = ".held"


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A directory of this process, deleted at the end."""
    sweep()
    directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-"))
    # Locked before it gets its name, or `sweep` of another process could delete it.
    descriptor = os.open(directory / f"{_HELD}.new", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with suppress(OSError):  # Without locks in the file system, only this process deletes it.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(directory / f"{_HELD}.new", directory / _HELD)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def sweep() -> None:
    """Delete the directories of this user's killed processes."""
    for held in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_HELD}"):
        with suppress(OSError):
            if held.lstat().st_uid != os.getuid():
                continue
            descriptor = os.open(held, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(held.parent, ignore_errors=True)
            finally:
                os.close(descriptor)
