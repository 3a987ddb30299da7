"""Files that only ever hold whole rows: append at the end, cut, replace, and make durable.

A row is in the file completely or not at all, as far as its writer can ensure it. A write that
fails half way (a full disk) is cut off again. A process that is killed half way leaves a torn end,
which the next start recognises and cuts.
"""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from raytrain.checkpoint.commit import Fence, nothing
from raytrain.errors import RaytrainError

_BLOCK = 1 << 16


class AppendOnlyFile:
    """A file open for appending, with the position up to which it is known to be whole.

    Rows are written at that position and not with O_APPEND. So the remains of a failed write do no
    harm: they are cut at once if the disk allows it, and otherwise overwritten by the next row.
    """

    def __init__(self, path: Path, size: int | None = None, fence: Fence = nothing) -> None:
        """Open or create `path`, cut to `size` bytes if given.

        `fence` is called when the file is open and before it is changed. A later writer replaces
        the file by a copy, so this writer never changes the copy. Raises OSError, and what `fence`
        raises.
        """
        # The umask decides who may write.
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.size = os.fstat(self._fd).st_size
        try:
            fence()
            if size is not None and size < self.size:
                os.ftruncate(self._fd, size)
                self.size = size
        except (OSError, RaytrainError):
            self.close()
            raise

    def append(self, data: bytes) -> None:
        """Write all of `data`, or nothing and raise OSError."""
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], self.size + written)
        except OSError:
            # If the disk refuses this as well, the next append writes over the remains.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)

    def sync_at_exit(self, stack: contextlib.ExitStack) -> None:
        """fsync the file when `stack` is left: its own descriptor needs no lock on this object."""
        descriptor = os.dup(self._fd)
        stack.callback(os.close, descriptor)
        stack.callback(os.fsync, descriptor)

    def sync(self) -> None:
        """Cut the remains of a failed write, and fsync. Raises OSError."""
        os.ftruncate(self._fd, self.size)
        os.fsync(self._fd)

    def close(self) -> None:
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            # NFS may report a late write here. Rows that must be durable were synced before.
            with contextlib.suppress(OSError):
                os.close(descriptor)


def replace_file(path: Path, chunks: Iterable[bytes], name: str, fence: Fence = nothing) -> None:
    """Write `chunks` to a temporary file beside `path`, sync it, and rename it over `path`.

    After a crash at any point `path` is the old file or the new one; after an fsync of its
    directory it is certainly the new one. The temporary file is hidden, has `name` in its name, and
    no other writer uses the same; temporary files that killed writers left under `name` are deleted
    first. Raises OSError and what `fence` raises; `path` is then untouched.
    """
    fence()
    for left in path.parent.glob(f".{name}.tmp*"):
        left.unlink(missing_ok=True)
    temporary = path.parent / f".{name}.tmp.{uuid.uuid4().hex[:8]}"
    try:
        with open(temporary, "xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        fence()
        os.replace(temporary, path)
    except (OSError, RaytrainError):
        temporary.unlink(missing_ok=True)  # gives the space back
        raise


def lines_from_end(file: Any, most: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its newline) of a binary file, last line first.

    A torn last line comes without a newline. Only the blocks that the caller goes through are read,
    and no more than the last `most` bytes, of which the first may be the middle of a line.
    """
    position = file.seek(0, os.SEEK_END)
    start = 0 if most is None else max(0, position - most)
    head = b""
    while position > start:
        step = min(_BLOCK, position - start)
        position -= step
        file.seek(position)
        lines = io.BytesIO(file.read(step) + head).readlines()
        offset = position + sum(map(len, lines))
        if position > start:
            head, *lines = lines
        for line in reversed(lines):
            offset -= len(line)
            yield offset, line


def read_in_blocks(path: Path, end: int) -> Iterator[bytes]:
    """The first `end` bytes of a file."""
    with open(path, "rb") as file:
        while end > 0 and (block := file.read(min(_BLOCK, end))):
            end -= len(block)
            yield block
