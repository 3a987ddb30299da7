"""What an iteration says of itself: where its time went, and whether a slower way was taken."""

from __future__ import annotations

import itertools

import pytest
from tiny_ppo import built

from raytrain.trainable.stopwatch import PARTS, Stopwatch

pytestmark = pytest.mark.usefixtures("local_ray")

SHOWN = {f"{part}_s" for part in (*PARTS, "other", "total")}


def test_parts_and_rest():
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


def test_sampling_that_is_not_told_apart():
    watch = Stopwatch(clock=lambda: 0.0)
    watch.split_sampling(5.0, {"rollout": 4.0})
    row = watch.row()
    assert (row["sampling_s"], row["waiting_s"], row["env_step_s"]) == (4.0, 1.0, 0.0)


def test_an_iteration_shows_where_its_time_went():
    with built() as algorithm:
        algorithm.train()
        row = algorithm.train()["timers"]["iteration"]
    assert set(row) == SHOWN
    assert sum(row.values()) == pytest.approx(2 * row["total_s"])
    assert min(row[f"{part}_s"] for part in ("env_step", "inference", "update", "weights")) > 0


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_slower_way_is_told_with_its_reason(recurrent: bool):
    model = {"use_lstm": recurrent, "max_seq_len": 8}
    with built(rl_module={"model_config": model}) as algorithm:
        said = algorithm.told
    assert [line.split(" in RLlib's own way")[0] for line in said] == (
        ["Environments are sampled", "The learner updates"] if recurrent else []
    )
    assert all("stateful" in line or "recurrent" in line for line in said)
