"""Follow a job's log until the job ends.

Ray sends the log over a connection that begins at the log's start each time. When it breaks (the
dashboard was restarted, the network was away) it is opened again and what was shown is skipped; when
the cluster does not answer for a minute, it counts as lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from raytrain.commands.jobs import ClusterLost, JobRefused, JobServer

_PATIENCE_S = 60.0
_AGAIN_S = 2.0
_QUIET_S = 120.0  # A cut link ends no connection. After this without a line, the job is asked for.


def follow(
    server: JobServer,
    submission_id: str,
    write: Callable[[str], Any],
    *,
    patience_s: float = _PATIENCE_S,
) -> Any:
    """Write the job's log as it grows. Returns the job's `JobDetails` once it has ended.

    Raises:
        ClusterLost: nobody has answered for `patience_s` seconds.
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
                    f"The cluster at {server.address} has not answered for {patience_s:.0f} s. If its head is "
                    "gone, start a new one and submit again there: the run continues from its storage."
                ) from None
            time.sleep(_AGAIN_S)
        else:
            failing = None
            if job.status.is_terminal():
                return job


class _Broken(Exception):
    """The connection ended before the job did; `shown` characters had been written."""

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
