"""Follow a job's log until the job ends.

Ray sends the log over a connection that always begins at the start of the log. When the connection
breaks (the dashboard restarts, the network fails), it is opened again and the part that was shown
is skipped. A cluster that does not answer for a minute counts as lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from raytrain.commands.jobs import ClusterLost, JobRefused, JobServer

_PATIENCE_S = 60.0
_AGAIN_S = 2.0
_QUIET_S = 120.0  # A lost link does not end a connection: after so long, ask for the job.


def follow(
    server: JobServer,
    submission_id: str,
    write: Callable[[str], Any],
    *,
    patience_s: float = _PATIENCE_S,
) -> Any:
    """Write the job's log as it grows. Returns the `JobDetails` of the ended job.

    Raises:
        ClusterLost: the cluster has not answered for `patience_s` seconds.
    """
    shown = 0
    failing: float | None = None
    while True:
        try:
            shown = asyncio.run(_tail(server, submission_id, write, shown))
            job = server.job(submission_id)
        except (ClusterLost, JobRefused, _Broken) as error:
            if isinstance(error, _Broken) and error.shown > shown:
                shown, failing = error.shown, None
            failing = failing or time.monotonic()
            if time.monotonic() - failing > patience_s:
                raise ClusterLost(
                    f"The cluster at {server.address} has not answered for {patience_s:.0f} s. If "
                    "its head is gone, start a new one and submit again there: the run continues "
                    "from its storage."
                ) from None
            time.sleep(_AGAIN_S)
        else:
            failing = None
            if job.status.is_terminal():
                return job


class _Broken(Exception):
    """The connection ended before the job; `shown` characters were written until then."""

    def __init__(self, shown: int) -> None:
        super().__init__(shown)
        self.shown = shown


async def _tail(
    server: JobServer, submission_id: str, write: Callable[[str], Any], shown: int
) -> int:
    import aiohttp

    seen = 0
    lines = server.client.tail_job_logs(submission_id)
    try:
        while True:
            text = await asyncio.wait_for(anext(lines), _QUIET_S)
            fresh = text[max(0, shown - seen) :]
            seen += len(text)
            if fresh:
                write(fresh)
    except (TimeoutError, StopAsyncIteration):
        return max(shown, seen)
    except (RuntimeError, aiohttp.ClientError, OSError):
        raise _Broken(max(shown, seen)) from None
    finally:
        await lines.aclose()
