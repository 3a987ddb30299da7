"""Errors and deaths of processes, as Ray delivers them."""

from __future__ import annotations

import pickle

from raytrain.arithmetic.machine import OtherNodeNeeded
from raytrain.errors import RaytrainError

_IN_CREATION = "error raised in its creation task"
_CRASHED = "it was killed or crashed"
_OUT_OF_MEMORY = "it was killed for lack of memory"
_DEATHS = {
    "OutOfMemory": _OUT_OF_MEMORY,
    "memory monitor": _OUT_OF_MEMORY,
    "node was terminated": "its node was terminated",
    "node has died": "its node died",
    "connection error code": _CRASHED,
    "RpcError": _CRASHED,
    "SIGKILL": "it was killed",
    "SYSTEM_ERROR": _CRASHED,
    "INTENDED_SYSTEM_EXIT": "it ended",
    "actor was restarted": _CRASHED,
    "actor is restarting": _CRASHED,
}


def may_retry(error: BaseException | None) -> bool:
    """Whether Tune should start a trial again after `error` (as Ray delivers it)."""
    cause = getattr(error, "cause", None) or error
    return bool(getattr(cause, "may_retry", True))


def nodes_to_leave(error: BaseException | None) -> tuple[str, ...]:
    """The nodes on which a trial that failed with `error` must not be started again."""
    cause = getattr(error, "cause", None) or error
    return cause.nodes if isinstance(cause, OtherNodeNeeded) else ()


def able_to_travel(error: Exception) -> Exception:
    """`error`, or its text if it cannot be pickled: an environment may raise a class of its own,
    and Ray would then report the pickling instead."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # Whatever the class's own pickling raises.
        return RaytrainError(f"{type(error).__name__}: {error}")
    return error


def why_it_died(error: BaseException) -> str:
    """Why a Ray process died, in a few words. Ray's own message is a paragraph."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    if _IN_CREATION in text:
        return f"it could not start: {lines[-1]}"
    for sign, reason in _DEATHS.items():
        if sign in text:
            return reason
    return text[:200] or type(error).__name__
