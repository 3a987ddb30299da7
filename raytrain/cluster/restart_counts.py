"""What a trial has survived so far, in `<trial>/losses.json`:

    {"failure": 1, "lost_node": 2, "preemption": 1, "ended_with": null}

Counted over the life of the run by the driver; on a local disk each is also a line of `events.jsonl`.
`ended_with`: the error that ended the trial for good, until it is started again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from raytrain.storage import Location
from raytrain.storage.json import is_amount, read_json

Loss = Literal["failure", "lost_node", "preemption"]

LOSSES = "losses.json"
_WORDS: Mapping[Loss, tuple[str, str]] = {
    "failure": ("failure", "failures"),
    "lost_node": ("lost node", "lost nodes"),
    "preemption": ("preemption", "preemptions"),
}


class RestartCounts:
    """The counts of one trial."""

    def __init__(self, trial: Location) -> None:
        self._trial = trial
        self.counts: dict[Loss, int] = dict.fromkeys(_WORDS, 0)
        self.ended_with: str | None = None
        try:
            found = read_json(trial / LOSSES)
        except (OSError, ValueError):
            return  # None yet; or damaged, and then only the count of the past is lost.
        if isinstance(found, dict):
            self.counts.update(
                {kind: int(found[kind]) for kind in _WORDS if is_amount(found.get(kind))}
            )
            said = found.get("ended_with")
            self.ended_with = said if isinstance(said, str) else None

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
            f"{count} {_WORDS[kind][count > 1]}" for kind, count in self.counts.items() if count
        )

    def _write(self) -> None:
        """A storage that refuses the file does not stop the run."""
        written: dict[str, Any] = {str(kind): count for kind, count in self.counts.items()}
        written["ended_with"] = self.ended_with
        try:
            self._trial.write_atomic(LOSSES, json.dumps(written).encode())
        except OSError:
            return
