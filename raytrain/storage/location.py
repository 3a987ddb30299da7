"""A place on storage: a pyarrow file system and a path in it.

Everything in this package reads and writes through `Location`, so that a checkpoint directory on a
laptop's disk, on S3 or behind any fsspec file system is the same thing to the code above. They
differ in two ways:

- On a local disk a rename is atomic, and a file is safe only once it and its directory are synced.
  So files are written step by step (temporary file, fsync, `os.replace`, fsync of the directory).
- On an object store one put is atomic, a directory is only a common prefix, and there is no rename.

A symbolic link on a local disk counts as its target, so that a checkpoint may be moved to another
disk and linked. Deleting the link deletes nothing in its target. A link that is broken, or leads to
a directory around it, counts as an empty directory, and links inside a linked directory are not
followed: a listing ends, whatever links there are.

Inside this package and `checkpoint`, file system errors are `OSError`. `storage_errors` turns them
into a `StorageError`, with the place and the remedy, in the functions that other packages call.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import posixpath
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from raytrain.errors import BadInput, RaytrainError
from raytrain.storage.escapes import printable
from raytrain.storage.fsspec import LeanFSSpecHandler
from raytrain.storage.retry import STORE, patient

_CHUNK = 1 << 20  # bytes per read while copying and hashing

# They have no real directories: making one would cost a request and leave an empty object behind.
_OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})

# The errors for a path, or a link's target, that does not exist.
_NOTHING_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

_CREDENTIALS = re.compile(
    r"^[^/]*://[^/@]*:[^/@]*@|[?&][^=]*(secret|password|token|key)[^=]*=", re.I
)

_FREE_SPACE = "Free some space, or lower checkpoint.num_to_keep; older checkpoints are untouched."
_GIVE_PERMISSION = "Give this user the permission, or set another storage_path."
_REMEDIES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EROFS: "Mount the file system writable, or set another storage_path.",
    errno.EACCES: _GIVE_PERMISSION,
    errno.EPERM: _GIVE_PERMISSION,
    errno.ENOENT: "Check the path, and that the storage is mounted.",
    errno.EILSEQ: "Rename or delete the file.",
}
_REMEDIES_OF_A_STORE = {
    "NO_SUCH_BUCKET|Bucket .* not found": "Create the bucket, or check its name and the endpoint.",
    "ACCESS_DENIED|ACCESS_KEY|SIGNATURE|TOKEN": "Check the credentials and their permissions. They "
    "come from the environment (AWS_ACCESS_KEY_ID, ...) or from the machine's role.",
}


class StorageError(RaytrainError):
    """The storage refused an operation. `errno` is the system's number, or None."""

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


@contextmanager
def storage_errors(doing: str, where: Location) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` that says what failed, where, why, and what helps."""
    try:
        yield
    except OSError as error:
        path = os.fspath(error.filename) if error.filename else str(where)
        reason = error.strerror or str(error)
        message = printable(f"{doing} failed at {path}: {reason.rstrip('.')}. {_remedy(error)}")
        missing = isinstance(error, FileNotFoundError)  # Some file systems leave the number out.
        number = errno.ENOENT if missing else error.errno
        raise StorageError(message, errno=number) from error


def _remedy(error: OSError) -> str:
    if error.errno in _REMEDIES:
        return _REMEDIES[error.errno]
    for words, remedy in _REMEDIES_OF_A_STORE.items():
        if re.search(words, str(error)):
            return remedy
    return "Check the storage, then try again."


@dataclass(frozen=True)
class Listed:
    """A file or directory in a listing: its size in bytes (0 for a directory), and its last change
    in nanoseconds since 1970, if the store tells."""

    is_dir: bool
    size: int
    mtime_ns: int | None


@dataclass(frozen=True)
class Location:
    """A directory or file on storage. `path` is the path inside `fs`, with forward slashes."""

    fs: Any = field(hash=False)
    path: str

    @classmethod
    def of(cls, place: str | os.PathLike[str] | Location) -> Location:
        """A local path, or a URI: file://, s3://, gs://, or any scheme that fsspec knows.

        Raises `BadInput` for a scheme that neither pyarrow nor fsspec can open.
        """
        if isinstance(place, Location):
            return place
        text = os.fspath(place)
        if "\0" in text:
            raise BadInput(f"'{printable(text)}' is not a path: it holds a NUL character.")
        if "://" not in text:
            return cls(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))
        _refuse_credentials(text)
        uri = text
        if text.startswith("s3://") and "allow_delayed_open" not in text:
            # With this, pyarrow writes a small file with one request instead of three.
            uri = f"{text}{'&' if '?' in text else '?'}allow_delayed_open=true"
        try:
            fs, path = pafs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as refusal:
            return cls._through_fsspec(text, refusal)
        except OSError as error:  # S3 is asked for the region of a bucket.
            message = printable(f"Opening the storage {text} failed: {error}. {_remedy(error)}")
            raise StorageError(message, errno=error.errno) from error
        if not path.strip("/") and not isinstance(fs, pafs.LocalFileSystem):
            raise BadInput(
                f"{text!r} names no bucket. Write {text.partition('://')[0]}://BUCKET/DIRECTORY."
            )
        return cls(fs, path.rstrip("/") or "/")

    @classmethod
    def _through_fsspec(cls, uri: str, refusal: Exception) -> Location:
        try:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            # A cached listing would hide what another process wrote or deleted.
            fs, path = url_to_fs(uri, use_listings_cache=False)
        except (ImportError, ValueError) as problem:
            raise BadInput(
                f"Cannot open the storage {uri.partition('?')[0]!r}: pyarrow says '{refusal}', "
                f"fsspec says '{problem}'. Use a local path, s3://..., gs://..., or install the "
                "fsspec package for this scheme."
            ) from None
        return cls(pafs.PyFileSystem(LeanFSSpecHandler(fs)), str(path).rstrip("/") or "/")

    def __str__(self) -> str:
        if self.is_local:
            return self.path
        scheme = str(self.fs.type_name).rpartition("+")[2].rpartition("::")[2]
        return f"{scheme}://{self.path.lstrip('/')}"

    def __format__(self, spec: str) -> str:
        """In an f-string: its text with control characters escaped."""
        return format(printable(str(self)), spec)

    def __truediv__(self, name: str) -> Location:
        """A place below this one; never above it or beside it."""
        normal = posixpath.normpath(name)
        if not name or name.startswith("/") or normal.split("/")[0] == "..":
            raise ValueError(f"{name!r} does not lie below {self}")
        return self if normal == "." else Location(self.fs, posixpath.join(self.path, normal))

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def parent(self) -> Location:
        return Location(self.fs, posixpath.dirname(self.path) or "/")

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    @property
    def local_path(self) -> Path:
        if not self.is_local:
            raise ValueError(f"{self} is not on a local file system")
        return Path(self.path)

    # -- looking ---------------------------------------------------------------------------------

    def first_free(self, names: Iterable[str]) -> Location:
        """The place below here with the first of these names that is not taken."""
        return next(place for name in names if not (place := self / name).exists())

    def exists(self) -> bool:
        return self._leads_to_directory() is not None

    def is_dir(self) -> bool:
        return bool(self._leads_to_directory())

    @patient
    def _leads_to_directory(self) -> bool | None:
        """None if there is nothing here."""
        if not self.is_local:
            kind = self.fs.get_file_info(self.path).type
            return None if kind == pafs.FileType.NotFound else bool(kind == pafs.FileType.Directory)
        try:
            return stat.S_ISDIR(os.stat(self.path).st_mode)
        except OSError as error:
            if error.errno not in _NOTHING_THERE:
                raise
            return True if os.path.islink(self.path) else None

    def subdirectories(self) -> list[str]:
        """The names of the directories directly in here; none if this does not exist."""
        return [name for name, entry in self.listed().items() if entry.is_dir]

    def tree(self) -> dict[str, Listed]:
        """Every file and directory below here, by its relative path; empty if this does not exist.
        One request on an object store."""
        return self.listed(recursive=True)

    @patient
    def listed(self, *, recursive: bool = False) -> dict[str, Listed]:
        """The files and directories directly in here, by name; empty if this does not exist."""
        if self.is_local:
            return dict(sorted(_listed_on_disk(self.path, recursive=recursive)))
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        start = self.path.rstrip("/") + "/"
        entries = {}
        try:
            for info in self.fs.get_file_info(selector):
                name = info.path.removeprefix(start)
                if name == info.path:
                    name = posixpath.relpath(info.path, self.path)
                is_dir = info.type == pafs.FileType.Directory
                entries[name.rstrip("/")] = Listed(is_dir, int(info.size or 0), info.mtime_ns)
        except UnicodeError as error:
            problem = f"a file there has a name that is not UTF-8 ({error})"
            raise OSError(errno.EILSEQ, problem, str(self)) from None
        return dict(sorted(entries.items()))

    def files(self) -> dict[str, int]:
        """The size in bytes of every file below here, by its relative path."""
        return {name: entry.size for name, entry in self.tree().items() if not entry.is_dir}

    # -- reading and writing ---------------------------------------------------------------------

    @contextmanager
    def reader(self) -> Iterator[Any]:
        """Raises `FileNotFoundError` for a pipe or a device on a local disk: it might never end."""
        if self.is_local:
            with open(self.path, "rb", buffering=0, opener=_open_at_once) as stream:
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    raise FileNotFoundError(errno.ENOENT, "it is not a regular file", self.path)
                yield stream
        else:
            with self.fs.open_input_file(self.path) as stream:
                yield stream

    @contextmanager
    def writer(self) -> Iterator[Any]:
        """Writes a file whose directory exists; on a local disk it is synced at the end."""
        if self.is_local:
            with open(self.path, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
        else:
            with self.fs.open_output_stream(self.path, compression=None) as stream:
                yield stream

    @patient
    def read_bytes(self, most: int = -1) -> bytes:
        """The file's bytes, the first `most` of them if that is not negative."""
        with self.reader() as stream:
            data = bytes(stream.read() if most < 0 else stream.read(most))
            if not self.is_local and len(data) != most:
                self._must_be_whole(len(data), stream.size())
        return data

    def _must_be_whole(self, size: int, expected: int) -> None:
        """Ask the store for the size: a connection that is cut off may look like the end of the
        file, even of an empty one, and that is no damage."""
        if size == expected and size:
            return
        actual = self.fs.get_file_info(self.path).size
        if size != actual:
            raise ConnectionError(f"{self}: the answer ended after {size} of {actual} bytes")

    @patient
    def write_bytes(self, data: bytes) -> None:
        self.write_now(data)

    def write_now(self, data: bytes) -> None:
        """`write_bytes` without a retry, for what must not be written late."""
        with self.writer() as stream:
            stream.write(data)

    def write_atomic(self, name: str, data: bytes) -> None:
        """Write the file `name` in this directory; a reader sees the old bytes or the new ones."""
        if not self.is_local:
            (self / name).write_bytes(data)
            return
        # A fixed temporary name: the next attempt overwrites what a crash left.
        temporary = self / f".{name}.tmp"
        try:
            temporary.write_bytes(data)
            os.replace(temporary.path, (self / name).path)
        except OSError:
            temporary.local_path.unlink(missing_ok=True)
            raise
        self.sync()

    @patient
    def make(self) -> None:
        """Make this directory and its parents, where the file system has directories."""
        if self.is_local:
            os.makedirs(self.path, exist_ok=True)
        elif self.fs.type_name not in _OBJECT_STORES:
            self.fs.create_dir(self.path, recursive=True)

    def sync(self) -> None:
        """Make the entries of this directory survive a power cut (local disks only)."""
        if self.is_local:
            fsync(self.path)

    @patient
    def delete_file(self) -> None:
        """Delete this file, if it exists."""
        try:
            if self.is_local:
                os.unlink(self.path)
            else:
                self.fs.delete_file(self.path)
        except FileNotFoundError:
            pass

    @patient
    def delete_tree(self) -> None:
        """Delete this directory with all in it, or the link to it, if it exists."""
        try:
            if self.is_local and os.path.islink(self.path):
                os.unlink(self.path)
            elif self.is_local:
                shutil.rmtree(self.path)
            else:
                self.fs.delete_dir(self.path)
        except FileNotFoundError:
            if self.exists():
                raise  # A file in it was deleted at the same time.

    def copy_tree(self, target: Location, *, last: str | None = None) -> None:
        """Copy all files below here to `target`, the file `last` after all others."""
        names = [n for n in self.files() if n != last]
        make_directories(target, names)
        in_parallel(lambda n: (self / n).copy_file(target / n), names, serial=target.is_local)
        sync_directories(target, names)
        if last is not None and (self / last).exists():
            (self / last).copy_file(target / last)
            target.sync()

    def copy_file(self, target: Location) -> tuple[int, str]:
        """Copy this file, reading it once; its size and SHA-256 as they were read."""

        def copy() -> tuple[int, str]:
            with target.writer() as sink:
                return self._read_into(sink.write)

        if self.is_local and target.is_local:
            return copy()
        return STORE.call(copy, self if target.is_local else target)

    @patient
    def download(self, path: Path) -> tuple[int, str]:
        """Copy this file to a local path, unsynced; its size and SHA-256."""
        with open(path, "wb") as sink:
            return self._read_into(sink.write)

    @patient
    def duplicate(self, target: Location) -> None:
        """Copy this file within its file system, by the store itself where it can."""
        if self.is_local:
            self.copy_file(target)
            return
        try:
            self.fs.copy_file(self.path, target.path)
        except NotImplementedError:  # HDFS
            self.copy_file(target)

    @patient
    def digest(self) -> tuple[int, str]:
        """Size and SHA-256 of the file's bytes."""
        return self._read_into(None)

    def _read_into(self, write: Callable[[bytes], Any] | None) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with self.reader() as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                if write is not None:
                    write(chunk)
            if not self.is_local:
                self._must_be_whole(size, stream.size())
        return size, digest.hexdigest()

    def move_tree(self, target: Location) -> None:
        """A rename on a local disk; elsewhere copy, then delete. `target` must not exist."""
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target.path)
        target.parent.make()
        if self.is_local and target.is_local:
            os.rename(self.path, target.path)
            target.parent.sync()
            self.parent.sync()
        else:
            self.copy_tree(target)
            self.delete_tree()


def with_numbers(name: str) -> Iterator[str]:
    """`name`, `name.1`, `name.2`, ..., without end."""
    yield name
    yield from (f"{name}.{number}" for number in itertools.count(1))


def fsync(path: str | os.PathLike[str]) -> None:
    """Write a file or directory of a local disk through to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_at_once(path: str, flags: int) -> int:
    """As `os.open`, without waiting for the writer of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _listed_on_disk(root: str, *, recursive: bool) -> Iterator[tuple[str, Listed]]:
    """The entries below `root`, by relative path; for links see the module's docstring. Bytes of a
    name that are not UTF-8 are surrogates, as everywhere in Python."""
    waiting = [("", False)]
    while waiting:
        inside, linked = waiting.pop()
        try:
            with os.scandir(os.path.join(root, inside)) as scan:
                entries = list(scan)
        except OSError as error:
            if error.errno not in _NOTHING_THERE:
                raise
            continue  # It was deleted, or is a file.
        for entry in entries:
            listed = _listed_entry(entry)
            if listed is None:
                continue
            path = posixpath.join(inside, entry.name)
            yield path, listed
            is_link = entry.is_symlink()
            if recursive and listed.is_dir and not (is_link and (linked or _leads_up(entry))):
                waiting.append((path, linked or is_link))


def _listed_entry(entry: os.DirEntry[str]) -> Listed | None:
    """None if it was deleted since the directory was read."""
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno not in _NOTHING_THERE:
            raise
        return Listed(True, 0, None) if entry.is_symlink() else None
    is_dir = stat.S_ISDIR(status.st_mode)
    return Listed(is_dir, 0 if is_dir else status.st_size, status.st_mtime_ns)


def _leads_up(link: os.DirEntry[str]) -> bool:
    target, holder = os.path.realpath(link.path), os.path.realpath(os.path.dirname(link.path))
    return os.path.commonpath([target, holder]) == target


def _refuse_credentials(uri: str) -> None:
    """Raise `BadInput` for a URI with a password: the path of the storage is written into the
    experiment's files, and printed."""
    if _CREDENTIALS.search(uri):
        scheme = uri.partition("://")[0]
        raise BadInput(
            f"The storage path {scheme}://... holds credentials. It is written to storage and "
            "logs, so pass them by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS, ...) or the machine's role; see "
            "docs/concepts/security.md."
        )


def make_directories(root: Location, names: Iterable[str]) -> None:
    """Make `root` and every directory that the relative file `names` need."""
    needed = {"."} | {posixpath.dirname(name) or "." for name in names}
    # A directory is made with its parents, so the innermost are enough.
    inner = [
        d for d in needed if not any(o != d and (d == "." or o.startswith(d + "/")) for o in needed)
    ]
    in_parallel(lambda directory: (root / directory).make(), inner, serial=root.is_local)


def sync_directories(root: Location, names: Iterable[str]) -> None:
    """Sync the directories between `root` and the files, the deepest first, and `root`'s parent."""
    if not root.is_local:
        return
    directories = {parent for name in names for parent in PurePosixPath(name).parents}
    for directory in sorted(directories, key=lambda path: -len(path.parts)):
        (root / str(directory)).sync()
    root.parent.sync()


# Concurrent requests: a checkpoint of the usual 26 files is one wait, not two.
REQUESTS = 32
_T = TypeVar("_T")
_R = TypeVar("_R")


def in_parallel(work: Callable[[_T], _R], items: Iterable[_T], *, serial: bool = False) -> list[_R]:
    """`work` on each item; the results in order. All are run, then the first failure is raised."""
    listed = list(items)
    if serial or len(listed) < 2:
        return [work(item) for item in listed]
    with ThreadPoolExecutor(min(REQUESTS, len(listed))) as pool:
        return [future.result() for future in [pool.submit(work, item) for item in listed]]


def together(*calls: Callable[[], object], serial: bool = False) -> None:
    """Make all calls at once and wait for all; raise the first failure, in the order given."""
    in_parallel(lambda call: call(), calls, serial=serial)
