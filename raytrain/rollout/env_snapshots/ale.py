"""The part of an ALE game's state that its system state leaves out.

With sticky actions (`repeat_action_probability`, 0.25 in every v5 game) the emulator repeats the
action that it applied last. That action is not in `cloneSystemState()` and cannot be read: the
emulator's generator decides which actions are applied. (ale-py 0.12.1.) So the calls of `act` are
recorded, from the game's reset or from an earlier system state on, and repeated before the system
state is restored: the same generator applies the same actions. A recording that does not begin at a
reset is long enough that one of its actions was applied (but for a chance of 1e-19).
"""

from __future__ import annotations

import math
from typing import Any

from raytrain.rollout.env_snapshots.base import SnapshotError


class RecordedEmulator:
    """Replaces `env.unwrapped.ale` and passes everything on to it."""

    def __init__(self, ale: Any) -> None:
        self._ale = ale
        repeats = min(ale.getFloat("repeat_action_probability"), 0.99)
        self._enough = max(64, math.ceil(-44 / math.log(repeats))) if repeats > 0 else 1
        self._anchor: Any = None
        self._acts: list[Any] = []
        self._before: tuple[Any, list[Any]] | None = None
        self._begin()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ale, name)

    def act(self, *arguments: Any) -> Any:
        if len(self._acts) >= self._enough:
            self._before = (self._anchor, self._acts)
            self._anchor, self._acts = self._ale.cloneSystemState(), []
        self._acts.append(arguments)
        return self._ale.act(*arguments)

    def reset_game(self) -> None:
        self._ale.reset_game()
        self._begin()

    def loadROM(self, *arguments: Any) -> None:
        self._ale.loadROM(*arguments)
        self._begin()

    def get_state(self) -> tuple[Any, list[Any], Any]:
        """The system state at which the recording begins, the recorded acts, and the state now."""
        anchor, acts = self._anchor, self._acts
        if self._before is not None:
            anchor, acts = self._before[0], self._before[1] + acts
        return anchor, list(acts), self._ale.cloneSystemState()

    def set_state(self, state: tuple[Any, list[Any], Any]) -> None:
        anchor, acts, present = state
        self._ale.restoreSystemState(present)
        frame, over = self._ale.getFrameNumber(), self._ale.game_over()
        # The action before a recording that begins in mid-game is unknown. It changes nothing but a
        # few frames, unless the game ends in them and the repetition stops short: then try others.
        for earlier in [None, *dict.fromkeys(acts)]:
            self._act_again(anchor, acts, earlier)
            if over or self._ale.getFrameNumber() == frame:
                break
        else:
            raise SnapshotError(
                f"the emulator did not come back to frame {frame} when its last {len(acts)} "
                "actions were repeated: continue from an older checkpoint"
            )
        self._ale.restoreSystemState(present)
        self._before = None
        self._anchor, self._acts = anchor, list(acts)

    def _act_again(self, anchor: Any, acts: list[Any], earlier: Any) -> None:
        self._ale.reset_game()  # the last action is now "none", as it is after every reset
        if earlier is not None:
            for _ in range(self._enough):
                self._ale.act(*earlier)
        self._ale.restoreSystemState(anchor)
        for arguments in acts:
            self._ale.act(*arguments)

    def _begin(self) -> None:
        self._before = None
        self._anchor, self._acts = self._ale.cloneSystemState(), []
