"""What a user's code raises, told with its file and line.

    KeyError: 3, in Bug.step (f09_envs.py, line 44)
    ConnectionError: refused, in Simulator.step (my_envs.py, line 42), there in connect (socket.py, line 706)

Code ends a process with `sys.exit()` as easily as it raises, so `SystemExit` and a `KeyboardInterrupt`
that the code raises by itself are errors too. What a signal raises passes: Ctrl-C, and Ray's answer to
SIGTERM.
"""

from __future__ import annotations

import dis
import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

from raytrain.errors import RaytrainError

_LONGEST_TEXT = 300
_FRAMEWORKS = ("gymnasium", "ray", "numpy", "torch")
_RAYTRAIN = str(Path(__file__).parents[1]) + os.sep
_STDLIB = sysconfig.get_path("stdlib") + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


class EnvironmentFailed(RaytrainError):
    """The environment's code raised, or broke Gymnasium's contract. `trace` is the whole traceback, as
    text: it was made in the process where the code ran."""

    exit_code = 2
    trace: str = ""


class Place(NamedTuple):
    """A line of code. `name` is that of the function, as `Simulator.step`; empty outside of one."""

    path: str
    line: int
    name: str = ""

    def __str__(self) -> str:
        where = f"{os.path.basename(self.path)}, line {self.line}"
        return f"{self.name} ({where})" if self.name else where


@contextmanager
def users_code(doing: str) -> Iterator[None]:
    """Turn whatever a user's code raises in the body into `EnvironmentFailed`: "`doing` raised ..."."""
    try:
        with no_exit():
            yield
    except RaytrainError:
        raise
    except BaseException as error:
        if not by_the_code_itself(error):
            raise
        raise failed(f"{doing} raised {told(error)}", error) from error


@contextmanager
def no_exit() -> Iterator[None]:
    """In the body `os._exit` raises: it would end the program without a word. A process that is forked there
    may end."""
    exit_now, own = os._exit, os.getpid()

    def refused(status: int) -> None:
        if os.getpid() != own:
            exit_now(status)
        raise RuntimeError(f"os._exit({status}) ends the whole program")

    os._exit = refused  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = exit_now


@contextmanager
def of_environment(name: str) -> Iterator[None]:
    """Put the environment's name in front of an `EnvironmentFailed` of the body."""
    try:
        yield
    except EnvironmentFailed as error:
        found = EnvironmentFailed(f"The environment {name} cannot be trained on: {error}")
        found.trace = error.trace
        raise found from error


def failed(said: str, error: BaseException) -> EnvironmentFailed:
    """An `EnvironmentFailed` that keeps the traceback of `error`."""
    found = EnvironmentFailed(_encodable(said))
    found.trace = _encodable("".join(traceback.format_exception(error)))
    return found


def _encodable(text: str) -> str:
    """A name of a file that is not UTF-8 has halves of characters in it, which no file and no message of Ray's
    can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def by_the_code_itself(error: BaseException) -> bool:
    """Whether code raised this, and no signal."""
    if isinstance(error, Exception):
        return True
    innermost = _innermost(error.__traceback__)
    if innermost is None:
        return False
    name = innermost.tb_frame.f_code.co_filename
    if name.startswith(_RAYTRAIN) or _package(innermost.tb_frame) == "ray":
        return False  # a handler of a signal
    # Others raise within a call, as `sys.exit` and extension modules do; Python's own Ctrl-C comes between two
    # instructions of any kind.
    return not isinstance(error, KeyboardInterrupt) or _raises(innermost)


def _raises(trace: TracebackType) -> bool:
    """Whether the instruction that the traceback points at is a `raise`."""
    return any(
        each.offset == trace.tb_lasti and each.opname == "RAISE_VARARGS"
        for each in dis.get_instructions(trace.tb_frame.f_code)
    )


def told(error: BaseException) -> str:
    """The error in one sentence: its kind, its text, its place in the user's code."""
    place, inner = places(error)
    said = text_of(error)
    if place is not None:
        said += f", in {place}"
    if inner is not None:
        said += f", there in {inner}"
    return said


def text_of(error: BaseException) -> str:
    """Kind and text of an error in one line."""
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    said = said[:_LONGEST_TEXT]
    name = getattr(error, "filename", None)
    if isinstance(error, FileNotFoundError) and isinstance(name, str) and not os.path.isabs(name):
        said += f" (looked for in the working directory, {os.getcwd()})"
    return said


def places(error: BaseException) -> tuple[Place | None, Place | None]:
    """The innermost line of the user's own code that the error went through, and the line where it was
    raised if that is another one. An installed package counts as the user's where nothing else does."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return Place(error.filename, error.lineno or 1), None
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    theirs = [each for each in frames if _may_be_the_users(each[0])]
    own = [each for each in theirs if not _is_installed(each[0])]
    chosen = own[-1] if own else next(iter(theirs), None)
    if chosen is None:
        return None, None
    last = frames[-1]
    ours = last[0].f_code.co_filename.startswith(_RAYTRAIN)
    return _place(*chosen), None if last is chosen or ours else _place(*last)


def _place(frame: FrameType, line: int) -> Place:
    code = frame.f_code
    name = getattr(code, "co_qualname", code.co_name).replace("<locals>.", "")
    return Place(code.co_filename, line, "" if name == "<module>" else name)


def _innermost(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _may_be_the_users(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    if name.startswith(("<frozen", _RAYTRAIN)) or _package(frame) in _FRAMEWORKS:
        return False
    return _is_installed(frame) or not name.startswith(_STDLIB)


def _is_installed(frame: FrameType) -> bool:
    return any(part in frame.f_code.co_filename for part in _INSTALLED)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
