"""The whole traceback of a trial's last failure, in `<trial>/error.txt`.

The console shows one sentence of it. A later failure replaces an earlier one. Tune (2.60) has a
file of this name too, and may copy it here when it syncs: the tracebacks of this start as Ray
reports them. Without a sync, and for an error that Ray cannot deliver, Tune writes none.
"""

from __future__ import annotations

import traceback
from datetime import UTC, datetime

from raytrain.storage import Location

TRACEBACK_FILE = "error.txt"


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
