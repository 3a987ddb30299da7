"""What a trial remembers of its last failure: whether it is worth a retry, and its traceback.

An exact run that fails in iteration k and starts again from a checkpoint computes iteration k from
the same state. An error that comes back at the same iteration will come back every time, so a trial
remembers its last failure in `<trial>/last_failure.json`:

    {"iteration": 17, "error": "ValueError: negative speed", "time": "2026-01-01T00:00:00+00:00"}

A process that was killed raises nothing and is not remembered: a kill has causes outside the run.

The whole traceback is in `<trial>/error.txt`; the console shows one sentence of it. Tune (2.60) has
a file of this name too, and may copy it here when it syncs: the tracebacks of this start as Ray
reports them. Without a sync, and for an error that Ray cannot deliver, Tune writes none.
"""

from __future__ import annotations

import json
import re
import traceback
from contextlib import suppress
from datetime import UTC, datetime

from raytrain.errors import RaytrainError
from raytrain.storage import Location
from raytrain.storage.json import read_object

LAST_FAILURE = "last_failure.json"
TRACEBACK_FILE = "error.txt"
# What differs between two occurrences of one error: addresses, ids, process numbers.
_VARYING = re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-f]{16,}\b|\bpid[= ]\d+")


class RepeatedFailure(RaytrainError):
    """The same error at the same iteration, twice in a row."""

    may_retry = False


def repeated_failure(
    trial: Location, iteration: int, error: BaseException
) -> RepeatedFailure | None:
    """Remember that `iteration` failed with `error`.

    A `RepeatedFailure` to be raised in its place if the last failure was the same.
    """
    text = _VARYING.sub("?", f"{type(error).__name__}: {error}")
    before: dict[str, object] = {}
    with suppress(OSError):
        before = read_object(trial / LAST_FAILURE)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"iteration": iteration, "error": text, "time": now}
    try:
        trial.write_atomic(LAST_FAILURE, json.dumps(record).encode())
    except OSError:
        return None  # A full or read-only disk: the failure itself is more important.
    if (before.get("iteration"), before.get("error")) != (iteration, text):
        return None
    return RepeatedFailure(
        f"Iteration {iteration} failed again with the same error, so retrying cannot help: "
        f"{type(error).__name__}: {str(error).rstrip('.')}.\nFix the cause and start the same "
        "command again; it continues from the newest good checkpoint."
    )


def write_traceback(trial: Location, iteration: int, error: BaseException) -> bool:
    """Write the traceback of `error`, or of its cause in another process (its `trace`).

    Whether the file was written.
    """
    text = getattr(error, "trace", "") or "".join(traceback.format_exception(error))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        trial.write_atomic(TRACEBACK_FILE, f"{now}, iteration {iteration}\n\n{text}".encode())
    except OSError:
        return False  # A full or read-only disk: the failure itself is more important.
    return True


def where_the_traceback_is(trial: Location, error: BaseException | None) -> str | None:
    """The file that the trial wrote for `error`, an error as Ray delivers it; None without one."""
    cause = getattr(error, "cause", None) or error
    name = getattr(cause, "traceback_in", None)
    return None if name is None else str(trial / name)
