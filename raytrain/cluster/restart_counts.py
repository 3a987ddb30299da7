"""The failures that a trial has survived so far, in `<trial>/losses.json`:

    {"failure": 1, "lost_node": 2, "preemption": 1, "relocation": 0, "ended_with": null}

A relocation leaves a node that computes differently.

The driver counts over the life of the run; on a local disk each is also a line of `events.jsonl`.
`ended_with`: the error that ended the trial for good, until it is started again.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Literal, get_args

from raytrain.storage import Location
from raytrain.storage.json import is_amount, read_object

Loss = Literal["failure", "lost_node", "preemption", "relocation"]

LOSSES = "losses.json"
_KINDS: tuple[Loss, ...] = get_args(Loss)


class RestartCounts:
    """The counts of one trial."""

    def __init__(self, trial: Location) -> None:
        self._trial = trial
        self.counts: dict[Loss, int] = dict.fromkeys(_KINDS, 0)
        self.ended_with: str | None = None
        with suppress(OSError):  # Then, and if it is damaged, only the count of the past is lost.
            stored = read_object(trial / LOSSES)
            self.counts |= {
                kind: int(stored[kind]) for kind in _KINDS if is_amount(stored.get(kind))
            }
            error = stored.get("ended_with")
            self.ended_with = error if isinstance(error, str) else None

    def add(self, kind: Loss) -> None:
        """Count one."""
        self.counts[kind] += 1
        self._write()

    def ended(self, error: str) -> None:
        """The trial is not tried again."""
        self.ended_with = error
        self._write()

    def started(self) -> None:
        """The trial is tried again, whatever ended it before."""
        if self.ended_with is not None:
            self.ended_with = None
            self._write()

    def text(self) -> str:
        """`1 failure, 2 lost nodes`; empty if there were none."""
        return ", ".join(
            f"{count} {kind.replace('_', ' ')}{'s' * (count > 1)}"
            for kind, count in self.counts.items()
            if count
        )

    def _write(self) -> None:
        """A storage that refuses the file does not stop the run."""
        record: dict[str, Any] = {str(kind): count for kind, count in self.counts.items()}
        record["ended_with"] = self.ended_with
        with suppress(OSError):
            self._trial.write_atomic(LOSSES, json.dumps(record).encode())
