"""Snapshots of env groups that an earlier version has written."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

from raytrain.rollout.env_group import without_episodes
from raytrain.rollout.fast_sampling import episode_rows


@dataclass(frozen=True)
class ChunkTotals:
    """The class as raytrain 0.1.0 had it."""

    length: int
    episode_return: float
    duration_s: float


def test_totals_that_are_pickled_by_their_former_module_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    former = "raytrain.trainable.sampling.finished"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, former, ModuleType(former))
        patch.setattr(sys.modules[former], "ChunkTotals", ChunkTotals, raising=False)
        patch.setattr(ChunkTotals, "__module__", former)
        snapshot = pickle.dumps({"envs": 1, "rng": 2, "chunks": ChunkTotals(3, 4.0, 5.0)})
    assert former.encode() in snapshot
    read = pickle.loads(without_episodes(snapshot, reseed=False))
    assert read == {"envs": None, "rng": 2, "chunks": (3, 4.0, 5.0)}
    assert len(episode_rows.ChunkTotals(*read["chunks"])) == 3
