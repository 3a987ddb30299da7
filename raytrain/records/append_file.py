"""Files that only ever hold whole rows: append at the end, cut, replace, and make durable.

A row is in the file completely or not at all as far as its writer can help it. A write that fails
half way (a full disk) is cut off again; a process that is killed half way leaves a torn end, which
the next start recognises and cuts.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from raytrain.checkpoint.commit import Fence, nothing
from raytrain.errors import RaytrainError

_BLOCK = 1 << 16


class AppendOnlyFile:
    """A file open for appending, with the position up to which it is known to be whole.

    Writing at that position (and not with O_APPEND) makes the remains of a failed write harmless:
    they are cut at once if the disk allows it, and overwritten by the next row in any case.
    """

    def __init__(self, path: Path, size: int | None = None, fence: Fence = nothing) -> None:
        """Open or create `path`, cut to `size` bytes if given. Raises OSError, and what `fence` raises.

        `fence` is called when the file is open and before it is changed. A later writer replaces the file by
        a copy, so this writer never changes the copy.
        """
        # The umask says who may write.
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.path = path
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
            self._cut_remains()
            raise
        self.size += len(data)

    def _cut_remains(self) -> None:
        try:
            os.ftruncate(self._fd, self.size)
        except OSError:
            # The disk takes no change at all just now. The next append writes over the remains.
            return

    def duplicate(self) -> int:
        """A second descriptor, so that a slow fsync needs no lock on this object."""
        return os.dup(self._fd)

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            # NFS may report a late write here. Who needs the rows durable has synced them before.
            with contextlib.suppress(OSError):
                os.close(descriptor)


def sync_and_close(descriptors: Iterable[int]) -> None:
    """fsync and close each; raises the first OSError after all of them are closed."""
    problem: OSError | None = None
    for descriptor in descriptors:
        try:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            problem = problem or error
    if problem is not None:
        raise problem


def sync_directory(directory: Path) -> None:
    """Make created, renamed and deleted names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, chunks: Iterable[bytes], name: str, fence: Fence = nothing) -> None:
    """Write `chunks` to a temporary file beside `path`, sync it, and rename it over `path`.

    After a crash at any point `path` is the old file or the new one; it is the new one for sure
    after `sync_directory`. The temporary file is hidden, `name` is in its name, and no other writer has
    the same; what killed ones left under `name` is deleted first. Raises OSError and what `fence` raises,
    `path` untouched.
    """
    fence()
    for left in path.parent.glob(f".{name}.tmp*"):
        left.unlink(missing_ok=True)
    temporary = path.parent / f".{name}.tmp.{uuid.uuid4().hex[:8]}"
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        fence()
        os.replace(temporary, path)
    except (OSError, RaytrainError):
        temporary.unlink(missing_ok=True)  # gives the space back
        raise


def leave_behind(path: Path, fence: Fence) -> None:
    """Put a copy in the place of `path`. A process that still has the old file open, on a node that
    was cut off, writes where nobody reads from now on. Raises OSError."""
    size = path.stat().st_size
    # TensorBoard reads every file with "tfevents" in its name.
    name = path.name.replace("tfevents", "left_behind")
    replace_file(path, read_in_blocks(path, 0, size), name, fence)


def lines_from_end(path: Path, size: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its newline) of the first `size` bytes, last line first.

    A torn last line comes without a newline. Only the blocks that the caller goes through are read.
    """
    with open(path, "rb") as file:
        position = file.seek(0, os.SEEK_END) if size is None else size
        head = b""
        while position > 0:
            step = min(_BLOCK, position)
            position -= step
            file.seek(position)
            pieces = (file.read(step) + head).split(b"\n")
            lines = [piece + b"\n" for piece in pieces[:-1]] + [p for p in pieces[-1:] if p]
            offset = position + sum(map(len, lines))
            if position > 0:
                head, *lines = lines
            for line in reversed(lines):
                offset -= len(line)
                yield offset, line


def read_in_blocks(path: Path, start: int, end: int) -> Iterator[bytes]:
    """The bytes [start, end) of a file."""
    with open(path, "rb") as file:
        file.seek(start)
        while start < end:
            block = file.read(min(_BLOCK, end - start))
            if not block:
                return
            start += len(block)
            yield block
