"""The numbers of an environment's last info, in an episode's row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raytrain.rollout.fast_sampling.episode_rows import finished_row, numbers_in


def own(info: Any) -> Any:
    row = finished_row(0, 0, 1.5, 10, numbers_in(info))
    return {key.removeprefix("custom/"): value for key, value in row.items() if "custom/" in key}


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"profit": 2}, {"profit": 2.0}),
        ({"profit": np.float32(0.5)}, {"profit": 0.5}),
        ({"profit": np.array([3.0])}, {"profit": 3.0}),
        ({"profit": np.array(4)}, {"profit": 4.0}),
        ({"drift": {"peak": 0.1, "name": "third storey"}}, {"drift/peak": 0.1}),
        ({"episode": {"r": 1.0, "l": 5, "t": 0.1}}, {}),
        ({"word": "x", "flag": True, "other": np.bool_(1), "nothing": None, "list": [1, 2]}, {}),
        ({"_profit": 1.0, 3: 1.0, "path": np.zeros(3)}, {}),
        ({"huge": 10**400}, {"huge": math.inf}),
        ({"half \ud800": 1.0}, {"half \\ud800": 1.0}),
        (None, {}),
    ],
    ids=str,
)
def test_what_is_recorded_of_an_info(info: Any, expected: Any) -> None:
    assert own(info) == expected
