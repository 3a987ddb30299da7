"""Errors of a user's code, described with file and line.

    KeyError: 3, in Bug.step (f09_envs.py, line 44)
    ConnectionError: refused, in Simulator.step (my_envs.py, line 42), there in dial (s.py, line 7)

`SystemExit` (of `sys.exit()`) and `KeyboardInterrupt` are errors too if the code itself raises
them. If a signal raises them (Ctrl-C, or SIGTERM in Ray's handler), they pass.
"""

from __future__ import annotations

import dis
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, NamedTuple, TypeAlias

from raytrain.errors import RaytrainError

_LONGEST_TEXT = 300
_FRAMEWORKS = ("gymnasium", "ray", "numpy", "torch")
_RAYTRAIN = str(Path(__file__).parents[1]) + os.sep
_STDLIB = sysconfig.get_path("stdlib") + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


Origin: TypeAlias = Literal["user", "installed", "python", "raytrain"]


def origin_of(path: str) -> Origin:
    """Whose the file of a module is: a user's own, an installed package's, Python's, raytrain's."""
    if path.startswith(_RAYTRAIN):
        return "raytrain"
    if any(part in path for part in _INSTALLED):
        return "installed"
    return "python" if path.startswith(_STDLIB) else "user"


class EnvironmentFailed(RaytrainError):
    """The environment's code raised, or broke Gymnasium's contract. `trace` is the whole traceback
    as text, from the process in which the code ran."""

    exit_code = 2
    trace: str = ""


class Place(NamedTuple):
    """A line of code. `name` is its function, such as `Simulator.step`, or empty."""

    path: str
    line: int
    name: str = ""

    def __str__(self) -> str:
        where = f"{os.path.basename(self.path)}, line {self.line}"
        return f"{self.name} ({where})" if self.name else where


@contextmanager
def converted_errors(
    convert: Callable[[BaseException], Exception], passing: type[Exception]
) -> Iterator[None]:
    """Raise `convert(error)` for what a user's code raises in the body, `passing` errors apart."""
    try:
        with no_exit():
            yield
    except passing:
        raise
    except BaseException as error:
        if not by_the_code_itself(error):
            raise
        raise convert(error) from error


def users_code(doing: str) -> AbstractContextManager[None]:
    """Turn what a user's code raises in the body into `EnvironmentFailed`: "`doing` raised ..."."""
    return converted_errors(partial(failed_while, doing), RaytrainError)


@contextmanager
def no_exit() -> Iterator[None]:
    """In the body `os._exit` raises, as it would end the program without a message. A process that
    is forked in the body may end."""
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
        named = EnvironmentFailed(f"The environment {name} cannot be trained on: {error}")
        named.trace = error.trace
        raise named from error


def failed_while(doing: str, error: BaseException) -> EnvironmentFailed:
    """The failure "`doing` raised ..."."""
    return failed(f"{doing} raised {describe(error)}", error)


def failed(message: str, error: BaseException) -> EnvironmentFailed:
    """An `EnvironmentFailed` that keeps the traceback of `error`."""
    failure = EnvironmentFailed(_encodable(message))
    failure.trace = _encodable("".join(traceback.format_exception(error)))
    return failure


def _encodable(text: str) -> str:
    """A file name that is not UTF-8 has lone surrogates, which no file or Ray message can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def by_the_code_itself(error: BaseException) -> bool:
    """Whether code raised the error, and not a signal."""
    if isinstance(error, Exception):
        return True
    innermost = error.__traceback__
    if innermost is None:
        return False
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    name = innermost.tb_frame.f_code.co_filename
    if name.startswith(_RAYTRAIN) or _package(innermost.tb_frame) == "ray":
        return False  # a handler of a signal
    # `sys.exit` and extension modules raise within a call; Python's own Ctrl-C comes between any
    # two instructions.
    return not isinstance(error, KeyboardInterrupt) or _raises(innermost)


def _raises(trace: TracebackType) -> bool:
    """Whether the instruction that the traceback points at is a `raise`."""
    return any(
        instruction.offset == trace.tb_lasti and instruction.opname == "RAISE_VARARGS"
        for instruction in dis.get_instructions(trace.tb_frame.f_code)
    )


def describe(error: BaseException, *, whole_path: bool = False) -> str:
    """The error in one sentence: its kind, its text, its place in the user's code."""
    place, inner = _places(error)
    text = text_of(error)
    if place is not None:
        text += f" ({place.path}, line {place.line})" if whole_path else f", in {place}"
    if inner is not None:
        text += f", there in {inner}"
    return text


def text_of(error: BaseException) -> str:
    """Kind and text of an error in one line."""
    message = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    kind = type(error).__name__
    text = (f"{kind}: {message}" if message else kind)[:_LONGEST_TEXT]
    name = getattr(error, "filename", None)
    if isinstance(error, FileNotFoundError) and isinstance(name, str) and not os.path.isabs(name):
        text += f" (looked for in the working directory, {os.getcwd()})"
    return text


def _places(error: BaseException) -> tuple[Place | None, Place | None]:
    """The innermost line of the user's own code that the error passed, and the line that raised it
    if that is another one. Without such code, an installed package counts as the user's."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return Place(error.filename, error.lineno or 1), None
    frames = list(traceback.walk_tb(error.__traceback__))
    theirs = [(frame, line) for frame, line in frames if _may_be_the_users(frame)]
    own = [(frame, line) for frame, line in theirs if not _is_installed(frame)]
    chosen = own[-1] if own else next(iter(theirs), None)
    if chosen is None:
        return None, None
    last = frames[-1]
    ours = last[0].f_code.co_filename.startswith(_RAYTRAIN)
    return _place(*chosen), None if last == chosen or ours else _place(*last)


def _place(frame: FrameType, line: int) -> Place:
    code = frame.f_code
    name = getattr(code, "co_qualname", code.co_name).replace("<locals>.", "")
    return Place(code.co_filename, line, "" if name == "<module>" else name)


def _may_be_the_users(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    if name.startswith("<frozen") or _package(frame) in _FRAMEWORKS:
        return False
    return origin_of(name) in ("user", "installed")


def _is_installed(frame: FrameType) -> bool:
    return origin_of(frame.f_code.co_filename) == "installed"


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
