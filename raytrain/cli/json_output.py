"""`--json`: stdout holds the document, and nothing else.

A user's environment may write on stdout when it is imported, made, reset, stepped, closed, or when the
program ends: from Python, from C, or from a process of its own. So while a command with `--json` runs,
file descriptor 1 and `sys.stdout` are stderr, and the document goes to what stdout was before. A program
that has written one leaves them so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

_STDOUT, _STDERR = 1, 2
_document: TextIO | None = None
_used = False


@contextmanager
def stdout_for_the_document() -> Iterator[None]:
    """Everything that is written on stdout goes to stderr, but for `write_document`."""
    global _document, _used  # noqa: PLW0603 - a process has one stdout
    before = sys.stdout
    before.flush()
    aside = os.dup(_STDOUT)
    # Where `sys.stdout` is something else (in a test), that takes the document.
    is_file = _descriptor(before) == _STDOUT
    document = os.fdopen(os.dup(aside), "w", encoding=before.encoding) if is_file else before
    _document, _used = document, True
    os.dup2(_STDERR, _STDOUT)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        before.flush()  # Somebody may have kept it, and written on it.
        sys.stdout = before
        os.dup2(aside, _STDOUT)
        os.close(aside)
        _document = None
        if is_file:
            with suppress(OSError):  # `write_document` has raised it.
                document.close()


def write_document(text: str) -> None:
    """Write on what was stdout."""
    stream = sys.stdout if _document is None else _document
    stream.write(text)
    stream.flush()


def close_stdout() -> None:
    """At the end of the program: what is written from now on (by exit handlers, from C's buffers) goes
    to stderr if there was a document."""
    if _used:
        sys.stdout.flush()
        os.dup2(_STDERR, _STDOUT)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, AttributeError):  # io.UnsupportedOperation is an OSError
        return None
