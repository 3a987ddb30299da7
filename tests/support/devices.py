"""The device that a test's learner computes on: `@pytest.mark.parametrize("device", DEVICES)`.

What is tested on a GPU is tested on the CPU as well, so that a card finds no slips of the pen.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)
DEVICES = ["cpu", GPU]
LONG_ON_THE_CPU = [pytest.param("cpu", marks=pytest.mark.slow), GPU]


def learners(device: str, share: float = 1, **values: Any) -> dict[str, Any]:
    """The section of the config, where each learner has such a share of a card."""
    return {**values, "num_gpus_per_learner": share} if device == "cuda" else values
