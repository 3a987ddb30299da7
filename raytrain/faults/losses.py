"""What a trial has survived so far, in `<trial>/losses.json`:

    {"failure": 1, "lost_node": 2, "preemption": 1}

Counted over the life of the run by the driver; each is also a line of `events.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from raytrain.checkpoint import Location

Loss = Literal["failure", "lost_node", "preemption"]

LOSSES = "losses.json"
_WORDS: Mapping[Loss, tuple[str, str]] = {
    "failure": ("failure", "failures"),
    "lost_node": ("lost node", "lost nodes"),
    "preemption": ("preemption", "preemptions"),
}


class Losses:
    """The counts of one trial."""

    def __init__(self, trial: Location) -> None:
        self._trial = trial
        self.counts: dict[Loss, int] = dict.fromkeys(_WORDS, 0)
        try:
            found = json.loads((trial / LOSSES).read_bytes())
            self.counts.update({kind: int(found[kind]) for kind in _WORDS if kind in found})
        except (OSError, ValueError, TypeError):
            return  # None yet; or damaged, and then only the count of the past is lost.

    def add(self, kind: Loss) -> None:
        """Count one. A storage that refuses the file does not stop the run."""
        self.counts[kind] += 1
        try:
            self._trial.write_atomic(LOSSES, json.dumps(self.counts).encode())
        except OSError:
            return

    def text(self) -> str:
        """`1 failure, 2 lost nodes`; empty if there were none."""
        return ", ".join(
            f"{count} {_WORDS[kind][count > 1]}" for kind, count in self.counts.items() if count
        )
