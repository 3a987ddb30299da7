"""The errors that a user sees: a message, and the exit code of the command line.

Every message says what is wrong, where, and what to do. The command line prints the message of a
`RaytrainError` without a traceback and exits with its `exit_code`; any other exception is a defect.
`may_retry` says whether restarting the trial could help.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any


class RaytrainError(Exception):
    """The run failed or cannot continue: exit code 1."""

    exit_code = 1
    may_retry = True

    def __reduce__(self) -> Any:
        # Pickled as message and attributes, whatever arguments the class's constructor takes.
        return _revive, (type(self), str(self), dict(self.__dict__))


def _revive(kind: type[RaytrainError], message: str, attributes: dict[str, Any]) -> RaytrainError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(attributes)
    return error


class BadInput(RaytrainError):
    """A config, path or argument cannot be used: exit code 2."""

    exit_code = 2
    may_retry = False


class MissingExtra(BadInput):
    """A command needs packages that are not installed."""


def require(extra: str, *modules: str, what: str) -> None:
    """Raise `MissingExtra` unless all `modules` can be imported. `what` begins the message."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtra(
            f"{what} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f'installed. Install with: pip install "raytrain[{extra}]"'
        )
