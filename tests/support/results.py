"""A result of an iteration, as far as metrics are looked up in it."""

from __future__ import annotations

import math
from typing import Any

RESULT: dict[str, Any] = {
    "env_runners": {"episode_return_mean": 9.0, "num_episodes": 4},
    "custom": {"profit": {"mean": 8.0, "min": 1.0, "max": 9.0}, "drift/peak": {"mean": 0.3}},
    "evaluation": {
        "env_runners": {"episode_return_mean": 11.0},
        "custom": {"profit": {"mean": 12.0}},
    },
    "learners": {"default_policy": {"entropy": 0.4}},
    "top": math.nan,
}
