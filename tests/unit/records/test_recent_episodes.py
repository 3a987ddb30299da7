"""The last episodes, of which means are taken."""

from __future__ import annotations

import math
from typing import Any

from raytrain.records.recent_episodes import RecentEpisodes
from raytrain.rollout.fast_sampling.episode_rows import finished_row, numbers_in


def recent(*values: Any, size: Any = 100) -> Any:
    episodes = RecentEpisodes(size)
    episodes.extend(
        finished_row(0, 0, value, 7, numbers_in({"profit": -value})) for value in values
    )
    return episodes


def test_recent_episodes_come_back_from_their_state() -> None:
    before = recent(1.0, math.nan, 3.0, size=3)
    after = RecentEpisodes(3)
    after.load(before.to_state())
    assert str(after.to_state()) == str(before.to_state())
    assert after.means(100) == before.means(100)
    assert before.means(100)["custom"] == {"profit": -2.0}
