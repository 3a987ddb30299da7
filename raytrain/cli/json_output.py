"""`--json`: stdout holds the document, and nothing else.

A user's environment may write on stdout when it is imported, made, reset, stepped, closed, or when
the program ends: from Python, from C, or from a process of its own. So while a command with
`--json` runs, file descriptor 1 and `sys.stdout` are stderr, and the document goes to the original
stdout. They stay so until the program ends.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from raytrain.storage.json import json_ready

_STDOUT, _STDERR = 1, 2
_document: TextIO | None = None
_used = False


@contextmanager
def stdout_for_the_document() -> Iterator[None]:
    """In the body, all output on stdout goes to stderr, except that of `write_document`."""
    global _document, _used  # noqa: PLW0603 - a process has one stdout
    before = sys.stdout
    before.flush()
    aside = os.dup(_STDOUT)
    # If `sys.stdout` is something else (in a test), the document goes there.
    is_file = _descriptor(before) == _STDOUT
    document = os.fdopen(os.dup(aside), "w", encoding=before.encoding) if is_file else before
    _document, _used = document, True
    os.dup2(_STDERR, _STDOUT)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        before.flush()  # Some code may have kept it, and written on it.
        sys.stdout = before
        os.dup2(aside, _STDOUT)
        os.close(aside)
        _document = None
        if is_file:
            with suppress(OSError):  # `write_document` raised it before.
                document.close()


def write_document(document: Any) -> None:
    """Write a document on the original stdout."""
    stream = sys.stdout if _document is None else _document
    stream.write(json.dumps(json_ready(document), indent=1, allow_nan=False) + "\n")
    stream.flush()


def close_stdout() -> None:
    """At the end of the program: if there was a document, later output (by exit handlers, from C's
    buffers) goes to stderr."""
    if _used:
        sys.stdout.flush()
        os.dup2(_STDERR, _STDOUT)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, AttributeError):  # io.UnsupportedOperation is an OSError
        return None
