"""The errors that a user sees: a message for a person, and the exit code of the command line.

Every message says what was found, where, and what to do. The command line prints the message of a
`RaytrainError` without a traceback and exits with its `exit_code`; anything else is a defect.
`may_retry` says whether starting a trial again could help.
"""

from __future__ import annotations

from typing import Any


class RaytrainError(Exception):
    """The run failed or cannot go on: exit code 1."""

    exit_code = 1
    may_retry = True

    def __reduce__(self) -> Any:
        # An error crosses processes whatever arguments its class takes: as its message and attributes.
        return _revive, (type(self), str(self), dict(self.__dict__))


def _revive(kind: type[RaytrainError], message: str, attributes: dict[str, Any]) -> RaytrainError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(attributes)
    return error


class BadInput(RaytrainError):
    """What the user gave cannot be used (config, path, argument): exit code 2."""

    exit_code = 2
    may_retry = False
