"""A writer that is stopped at one of its lines, while others go on, and goes on itself
later or never."""

from __future__ import annotations

import io
import itertools
import linecache
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from raytrain.storage import Location, lock

_FILES = tuple(
    f"raytrain/{name}.py"
    for name in (
        "checkpoint/commit",
        "checkpoint/background_commit",
        "storage/location",
        "checkpoint/replacement",
        "records/episodes",
        "records/remote_copy",
        "records/writer",
        "records/row_files",
        "trial/fencing",
        "trial/directory",
    )
)


class _Killed(BaseException):
    """Ends a thread that was stopped for ever, when nobody looks any more."""


class Writer:
    """`work` in a thread of its own, up to its `step`-th line in the files above; or, of those of
    the function `within`, up to its `step`-th that contains `text`."""

    def __init__(
        self, work: Callable[[], object], step: int = 1, within: str = "", text: str = ""
    ) -> None:
        self.lines = 0
        self._work = work
        self._step = step
        self._within, self._text = within, text
        self._stopped, self._go = threading.Event(), threading.Event()
        self._dies = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        while self._thread.is_alive() and not self._stopped.wait(0.001):
            pass

    @property
    def has_ended(self) -> bool:
        """Whether it took fewer lines."""
        return not self._stopped.is_set()

    def go_on(self) -> None:
        self._go.set()
        self._thread.join()

    def go_on_to(self, within: str, text: str) -> None:
        """On to the next such line."""
        self.lines, self._step = 0, 1
        self._within, self._text = within, text
        self._stopped.clear()
        go, self._go = self._go, threading.Event()
        go.set()
        while self._thread.is_alive() and not self._stopped.wait(0.001):
            pass

    def die(self) -> None:
        """After this it has changed nothing since it was stopped, if nobody looks any more."""
        self._dies = True
        self.go_on()

    def _run(self) -> None:
        sys.settrace(self._enter)
        try:
            self._work()
        except (Exception, _Killed) as error:
            self.error = error
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.endswith(_FILES) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.lines += self._counts(frame)
            if self.lines == self._step and not self._stopped.is_set():
                self._stopped.set()
                self._go.wait()
            if self._dies:
                raise _Killed
        return self._line

    def _counts(self, frame: FrameType) -> bool:
        if not self._within:
            return True
        code = frame.f_code
        line = linecache.getline(code.co_filename, frame.f_lineno)
        return code.co_name == self._within and self._text in line


class _AtOnce:
    """An executor that has done what it was given: one line comes after another."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> _AtOnce:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments))
        except BaseException as error:
            done.set_exception(error)
        return done

    def shutdown(self, **_: Any) -> None:
        pass


class _Put(io.BytesIO):
    def __init__(self, objects: dict[str, bytes], path: str) -> None:
        super().__init__()
        self._objects, self._path = objects, path

    def close(self) -> None:
        if not self.closed:
            self._objects[self._path] = self.getvalue()
        super().close()


class _Store(pafs.FileSystemHandler):
    """An object store: a put is atomic, and a directory is a common beginning of names."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def get_type_name(self) -> str:
        return "store"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pafs.FileInfo:
        if path in self.objects:
            return pafs.FileInfo(path, pafs.FileType.File, size=len(self.objects[path]))
        is_directory = any(name.startswith(path + "/") for name in self.objects)
        return pafs.FileInfo(
            path, pafs.FileType.Directory if is_directory else pafs.FileType.NotFound
        )

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        start = selector.base_dir + "/"
        found: dict[str, None] = {}
        for name in self.objects:
            if name.startswith(start):
                parts = name[len(start) :].split("/")
                depths = range(1, len(parts) + 1) if selector.recursive else (1,)
                found |= {start + "/".join(parts[:depth]): None for depth in depths}
        return [self._info(path) for path in found]

    def create_dir(self, path: str, recursive: bool) -> None:
        pass

    def delete_dir(self, path: str) -> None:
        for name in [name for name in self.objects if name.startswith(path + "/")]:
            del self.objects[name]

    def delete_file(self, path: str) -> None:
        self.objects.pop(path, None)

    def copy_file(self, source: str, target: str) -> None:
        if source not in self.objects:
            raise FileNotFoundError(source)
        self.objects[target] = self.objects[source]

    def open_input_stream(self, path: str) -> Any:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return pa.BufferReader(self.objects[path])

    open_input_file = open_input_stream

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(_Put(self.objects, path), mode="w")

    def _refused(self, *_: Any) -> Any:
        raise NotImplementedError

    delete_dir_contents = delete_root_dir_contents = move = open_append_stream = _refused


def an_empty_store() -> Location:
    return Location(pafs.PyFileSystem(_Store()), "bucket")


@pytest.fixture
def one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = itertools.count()
    monkeypatch.setattr(lock, "_identity", lambda: {"host": f"m{next(machines)}", "boot": None})
    monkeypatch.setattr("raytrain.storage.location.ThreadPoolExecutor", _AtOnce)
    monkeypatch.setattr("raytrain.checkpoint.background_commit.ThreadPoolExecutor", _AtOnce)
    monkeypatch.setattr("raytrain.storage.lock.SETTLE_SECONDS", 0.0)
    # What matters is the order; a thousand runs need not wait for the disk.
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
