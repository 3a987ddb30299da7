"""Where an iteration's time went."""

from __future__ import annotations

import itertools

from raytrain.ppo.stopwatch import PARTS, Stopwatch

SHOWN = {f"{part}_s" for part in (*PARTS, "other", "total")}


def test_the_parts_of_an_iteration_add_up_to_its_total() -> None:
    ticks = itertools.count(0.0, 1.0)
    watch = Stopwatch(clock=lambda: next(ticks))
    with watch.measure("update"):
        pass
    watch.add("update", 2.0)
    watch.split_sampling(10.0, {"env_step": 3.0, "inference": 2.0, "rollout": 8.0})
    row = watch.row()  # at 3.0: more was added than went by
    assert row["update_s"] == 3.0
    assert (row["env_step_s"], row["inference_s"], row["sampling_s"]) == (3.0, 2.0, 3.0)
    assert (row["waiting_s"], row["other_s"], row["total_s"]) == (2.0, 0.0, 3.0)
    assert watch.row() == {**dict.fromkeys(SHOWN, 0.0), "other_s": 1.0, "total_s": 1.0}


def test_sampling_that_is_not_told_apart() -> None:
    watch = Stopwatch(clock=lambda: 0.0)
    watch.split_sampling(5.0, {"rollout": 4.0})
    row = watch.row()
    assert (row["sampling_s"], row["waiting_s"], row["env_step_s"]) == (4.0, 1.0, 0.0)
