"""Iterations that are trained again after a failure: whether they come out as before.

    attempt 1   checkpoint 6    row 7    row 8 |  killed; each row has the digest of the weights
    attempt 2   checkpoint 6    row 7    row 8    the same digests, or the run is not exact

This costs nothing, and also finds what nobody has thought of: a state that is not in the snapshots
and matters only after thousands of steps, or a setting of the machine that changes the arithmetic.
Only rows of an exact run count. Those of a run that had lost its exactness may differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

WEIGHTS, EXACT = "weights_sha256", "exact"
_MOST = 1000
_SHOWN = 12


class RepeatedIterations:
    """What was recorded of the iterations after the checkpoint, `rows`: the newest first."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._digests: dict[int, str] = {}
        for row in rows:
            if len(self._digests) == _MOST:
                break
            if row.get(EXACT) is True and isinstance(row.get(WEIGHTS), str):
                self._digests[int(row["training_iteration"])] = row[WEIGHTS]

    def difference(self, iteration: int, weights_sha256: str) -> str | None:
        """How the weights after `iteration` differ from those recorded before; None if they are
        the same, or nothing was recorded."""
        before = self._digests.pop(iteration, weights_sha256)
        if before == weights_sha256:
            return None
        return (
            f"iteration {iteration} had been trained before, and now came out differently (weights "
            f"{weights_sha256[:_SHOWN]}, before {before[:_SHOWN]}), so something that it depends "
            "on has changed or is not saved"
        )
