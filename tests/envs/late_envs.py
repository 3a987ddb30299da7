"""An environment whose proof passes and which is not exact: a module counts its steps, and that
matters only after more steps than the proof makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym

STEPS = 0
FROM_STEP = 2500


class Late(gym.Wrapper[Any, Any, Any, Any]):
    """Raises once, at a process's step `fails_at`, unless the file `marker` is there. Without
    `counts` the module's count does not matter."""

    def __init__(self, marker: str, fails_at: int, counts: bool = True) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self._marker, self._fails_at, self._counts = Path(marker), fails_at, counts

    def step(self, action: Any) -> Any:
        global STEPS  # noqa: PLW0603
        STEPS += 1
        if self._fails_at <= STEPS and not self._marker.exists():
            self._marker.touch()
            raise RuntimeError("stumbled")
        observation, reward, *rest = super().step(action)
        more = STEPS % 7 if self._counts and STEPS > FROM_STEP else 0
        return (observation, float(reward) + more, *rest)
