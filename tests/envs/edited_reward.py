"""See `edited_env`."""

from __future__ import annotations

from typing import Any


def reward(observation: Any) -> float:
    return 1.0 - abs(float(observation[0]))
