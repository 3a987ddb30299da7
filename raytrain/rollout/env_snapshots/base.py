"""What every snapshot strategy is, and the errors that they share.

A snapshot is a plain dict of bytes, strings, numbers and arrays: it pickles without raytrain and
shares nothing with the environment that it was taken from.

    {"strategy": "native" | "pickle" | "replay" | "reset", ...what the strategy keeps}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, TypeAlias

from raytrain.config.user_code import EnvironmentFailed, converted_errors, failed_while
from raytrain.errors import RaytrainError
from raytrain.rng import preserved

Strategy: TypeAlias = Literal["native", "pickle", "replay", "reset"]

TRIED_IN_ORDER: tuple[Strategy, ...] = ("native", "pickle", "replay")
"""The exact strategies. "reset" is used when none of them proves itself."""


class SnapshotError(RaytrainError):
    """An environment could not be snapshotted, or a restored one does not reproduce."""


class UserCodeFailed(SnapshotError, EnvironmentFailed):
    """The environment, or its pickling, raised: the message says during what, and where."""


class Snapshotter(ABC):
    """Takes and restores snapshots of one kind."""

    strategy: ClassVar[Strategy]

    def wrap(self, env: Any) -> Any:
        """The environment as the run must step it; to be called before its first reset."""
        return env

    def take(self, env: Any) -> dict[str, Any]:
        """The state of a wrapped environment, between any two of its steps."""
        return {"strategy": self.strategy, **self._take(env)}

    def restore(self, env: Any, snapshot: dict[str, Any]) -> Any:
        """Bring a freshly made and wrapped environment to that state; may return another object.
        The process's global generators do not change.

        Raises:
            SnapshotError: the snapshot is of another strategy or of other wrappers, or the
                environment does not come out as it was.
        """
        strategy = snapshot.get("strategy")
        if strategy != self.strategy:
            raise SnapshotError(
                f"the environment's snapshot was taken by the strategy {strategy!r}, this run uses "
                f"{self.strategy!r}: continue with the libraries and the environment that the run "
                "was started with"
            )
        with preserved():
            return self._restore(env, snapshot)

    @abstractmethod
    def _take(self, env: Any) -> dict[str, Any]: ...

    @abstractmethod
    def _restore(self, env: Any, snapshot: dict[str, Any]) -> Any: ...


def user_code(doing: str) -> AbstractContextManager[None]:
    """Turn whatever the environment raises in the body into `UserCodeFailed`. Its objects may raise
    anything when they are stepped, pickled or rebuilt."""

    def converted(error: BaseException) -> UserCodeFailed:
        cause = error if isinstance(error, EnvironmentFailed) else failed_while(doing, error)
        failure = UserCodeFailed(str(cause))
        failure.trace = cause.trace
        return failure

    return converted_errors(converted, SnapshotError)
