"""What every snapshot strategy offers, and the error they share.

A snapshot is a plain dict of bytes, strings, numbers and arrays: it pickles without raytrain and
shares nothing with the environment that it was taken from.

    {"strategy": "native" | "pickle" | "replay" | "reset", ...what the strategy keeps}
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias

from raytrain.errors import RaytrainError

Strategy: TypeAlias = Literal["native", "pickle", "replay", "reset"]

TRIED_IN_ORDER: tuple[Strategy, ...] = ("native", "pickle", "replay")
"""The exact strategies. "reset" is what remains when none of them proves itself."""


class SnapshotError(RaytrainError):
    """An environment could not be snapshotted, or a restored one does not reproduce."""


class Snapshotter(Protocol):
    """Takes and restores snapshots of one kind."""

    strategy: Strategy

    def wrap(self, env: Any) -> Any:
        """The environment as the run must step it; to be called before its first reset."""

    def take(self, env: Any) -> dict[str, Any]:
        """The state of a wrapped environment, between any two of its steps."""

    def restore(self, env: Any, snapshot: dict[str, Any]) -> Any:
        """Bring a freshly made and wrapped environment to that state; may return another object.

        The process's global generators stand as before afterwards.

        Raises:
            SnapshotError: the snapshot is of another strategy or of other wrappers, or the
                environment does not come out as it was.
        """


def check_strategy(snapshot: dict[str, Any], expected: Strategy) -> None:
    found = snapshot.get("strategy")
    if found != expected:
        raise SnapshotError(
            f"the environment's snapshot was taken by the strategy {found!r}, this run uses "
            f"{expected!r}: continue with the libraries and the environment the run started with"
        )
