"""A checkpoint is RLlib's too: a program that has never heard of raytrain loads it
and trains on."""

from __future__ import annotations

import json
import pickletools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from support.paths import TESTS
from support.tiny_ppo import Told, build

from raytrain.config import name_for_others
from raytrain.ppo.learner import MODULE_ID

pytestmark = pytest.mark.usefixtures("local_ray")

PLAIN: dict[str, Any] = {"training": {"lr": [[0, 3e-3], [512, 1e-3]]}}
FILTERED: dict[str, Any] = {
    "environment": {"env": "Pendulum-v1", "env_config": {"g": 9.0}},
    "env_runners": {"observation_filter": "MeanStdFilter"},
    "evaluation": {"evaluation_interval": 2, "evaluation_duration": 1},
}
LSTM: dict[str, Any] = {
    "rl_module": {
        "model_config": {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 8},
    }
}
TWO_LEARNERS: dict[str, Any] = {"learners": {"num_learners": 2}}
REMOTE: dict[str, Any] = {
    **FILTERED,
    "env_runners": {"num_env_runners": 2, "observation_filter": "MeanStdFilter"},
    **TWO_LEARNERS,
}
ITERATIONS = 3


def saved(place: Path, **sections: Any) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of the third iteration, read-only, and what it was made of."""
    algorithm = build(**sections)
    try:
        for _ in range(ITERATIONS):
            algorithm.train()
        algorithm.save_exact(place)
        return place, facts(algorithm)
    finally:
        algorithm.stop()


def facts(algorithm: Told) -> dict[str, Any]:
    def of_learner(learner: Any) -> dict[str, Any]:
        ((_, optimizer),) = learner.get_optimizers_for_module(MODULE_ID)
        state = learner.module[MODULE_ID].unwrapped().state_dict()
        return {
            "weights": {name: value.cpu().numpy().copy() for name, value in state.items()},
            "kl_coeff": float(learner.curr_kl_coeffs_per_module[MODULE_ID]),
            "lr": float(optimizer.param_groups[0]["lr"]),
            "adam_steps": sorted({int(state["step"]) for state in optimizer.state.values()}),
        }

    learner, *_ = [each.get() for each in algorithm.learner_group.foreach_learner(of_learner)]
    connectors = algorithm.env_groups.connector_state()
    return {
        **learner,
        "steps": algorithm.env_steps_sampled,
        "filters": [
            [stats["num_pushes"], np.asarray(stats["mean_array"]).tolist()]
            for piece in connectors["env_to_module_connector"].values()
            if None in piece
            for stats in piece[None]["running_stats"]
        ],
    }


def loaded_by_stock_rllib(*directories: Path) -> dict[str, Any]:
    program = TESTS / "support" / "stock_program.py"
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, str(program), address, *map(str, directories)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def files(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(directory).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


def assert_trains_on(loaded: dict[str, Any], was: dict[str, Any], *, learners: int = 1) -> None:
    assert loaded["class"] == "ray.rllib.algorithms.ppo.ppo.PPO"
    weights = {
        name: [str(value.dtype), list(value.shape), value.tobytes().hex()]
        for name, value in was["weights"].items()
    }
    assert loaded["tensors"] == weights
    assert len(loaded["learners"]) == learners
    for learner in loaded["learners"]:
        assert (
            learner["class"] == "ray.rllib.algorithms.ppo.torch.ppo_torch_learner.PPOTorchLearner"
        )
        assert {name: learner[name] for name in ("kl_coeff", "lr", "adam_steps")} == {
            name: was[name] for name in ("kl_coeff", "lr", "adam_steps")
        }
    assert loaded["filters"] and all(held == was["filters"] for held in loaded["filters"])
    assert (loaded["iteration"], loaded["steps"]) == (ITERATIONS, was["steps"])
    assert loaded["next"]["iteration"] == ITERATIONS + 1
    assert loaded["next"]["steps"] > was["steps"]
    assert min(loaded["next"]["adam_steps"]) > max(was["adam_steps"])
    assert loaded["saved"]


def test_stock_ppo_becomes_the_checkpoint_and_trains_on(tmp_path: Path) -> None:
    made = {}
    for name, sections in (("plain", PLAIN), ("filtered", FILTERED), ("lstm", LSTM)):
        place, was = saved(tmp_path / name, **sections)
        made[place] = was
    before = {place: files(place) for place in made}
    found = loaded_by_stock_rllib(*made)
    for place, was in made.items():
        assert_trains_on(found[str(place)], was)
        assert files(place) == before[place]  # Loading writes nothing.
    assert found[str(tmp_path / "plain")]["env"] == "CartPole-v1"
    assert made[tmp_path / "plain"]["kl_coeff"] != 0.2  # It has adapted,
    assert made[tmp_path / "plain"]["lr"] < 3e-3  # and the schedule has moved.
    assert made[tmp_path / "filtered"]["filters"][0][0] > 0
    assert found[str(tmp_path / "filtered")]["next"]["evaluated"] == 1


@pytest.mark.slow
def test_with_remote_runners_and_learners(tmp_path: Path) -> None:
    place, was = saved(tmp_path / "remote", **REMOTE)
    found = loaded_by_stock_rllib(place)[str(place)]
    assert_trains_on(found, was, learners=2)
    assert found["next"]["evaluated"] == 1


@pytest.mark.parametrize(
    "sections",
    [FILTERED, *(pytest.param(each, marks=pytest.mark.slow) for each in (TWO_LEARNERS, LSTM))],
)
def test_no_pickle_names_a_module_of_raytrain(tmp_path: Path, sections: dict[str, Any]) -> None:
    place, _ = saved(tmp_path / "saved", **sections)
    for path in place.rglob("*.pkl"):
        named = [
            text
            for _, text, _ in pickletools.genops(path.read_bytes())
            if isinstance(text, str) and "raytrain" in text
        ]
        assert not named, (path, named)


@pytest.mark.parametrize(
    ("registered", "told"),
    [
        ("CartPole-v1", "CartPole-v1"),
        ("my_envs:Maze-v0", "my_envs:Maze-v0"),
        ("my_envs:make_corridor@0123abcd", "my_envs:make_corridor"),
        ("ALE/Pong-v5", "ale_py:ALE/Pong-v5"),
        ("PongNoFrameskip-v4", "ale_py:PongNoFrameskip-v4"),
        ("ale_py:ALE/Pong-v5", "ale_py:ALE/Pong-v5"),
    ],
)
def test_the_environment_has_a_name_that_others_can_find(registered: str, told: str) -> None:
    assert name_for_others(registered) == told
