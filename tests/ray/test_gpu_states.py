"""A learner on a GPU: the same twice, the same after its state was loaded, the same with CUDA
graphs and without; and to rounding what the CPU computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from support.devices import DEVICES, GPU, LONG_ON_THE_CPU, learners
from support.learner_pairs import BOX, DISCRETE, Settings, build, episodes, update, weights
from support.tiny_ppo import built, disturb, iterate, unlike

from raytrain.ppo.learner import ExactPPOTorchLearner
from raytrain.ppo.state import Restored

pytestmark = pytest.mark.usefixtures("local_ray")

PENDULUM = {"env": "Pendulum-v1", "env_config": {"max_episode_steps": 30}}
PICTURES = {
    "environment": {"env": "chase:Chase"},
    "training": {"train_batch_size_per_learner": 64, "minibatch_size": 32},
    "rl_module": {"model_config": {"head_fcnet_hiddens": [32]}},
}
MOVING = {
    "lr": [[0, 1e-2], [1000, 1e-4]],
    "entropy_coeff": [[0, 0.1], [300, 0.0]],
    "use_kl_loss": True,
    "kl_coeff": 0.4,
    "kl_target": 1e-4,
}
CASES: dict[str, dict[str, Any]] = {
    "dense": {},
    "gaussian": {"environment": PENDULUM},
    "pictures": PICTURES,
    "recurrent": {
        "rl_module": {"model_config": {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 16}},
        "training": {"train_batch_size_per_learner": 64, "num_epochs": 1},
    },
    "filter, two runners": {
        "environment": PENDULUM,
        "env_runners": {"num_env_runners": 2, "observation_filter": "MeanStdFilter"},
    },
    "schedules and KL": {"training": MOVING},
    "clipped by norm": {"training": {"grad_clip": 0.05}},
    "clipped by norm of each": {"training": {"grad_clip": 0.05, "grad_clip_by": "norm"}},
    "clipped by value": {"training": {"grad_clip": 0.01, "grad_clip_by": "value"}},
    "a learner's process": {"learners": {"num_learners": 1}},
}


def on(device: str, case: str, **values: Any) -> dict[str, Any]:
    sections = CASES[case]
    return {**sections, "learners": learners(device, **sections.get("learners", {}), **values)}


@pytest.mark.parametrize("device", LONG_ON_THE_CPU)
@pytest.mark.parametrize("case", CASES)
def test_what_follows_a_loaded_state_is_what_followed_the_saved_one(
    case: str, device: str, tmp_path: Path
) -> None:
    sections = on(device, case)
    with built(**sections) as original:
        began = iterate(original, 2)
        original.save_exact(tmp_path / "state")
        expected = iterate(original, 2)
    digests = [each.weights_sha256 for each in began + expected]
    assert len(set(digests)) == len(digests)
    disturb()
    with built(**sections) as again:
        assert unlike(began, iterate(again, 2)) == []
    with built(**sections) as again:
        assert again.load_exact(tmp_path / "state") == Restored(iteration=2, exact_lost=None)
        assert unlike(expected, iterate(again, 2)) == []


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize("case", [case for case in CASES if case != "recurrent"])
def test_a_graph_computes_the_same_bits(case: str, device: str) -> None:
    trails = []
    for wanted in (False, True):
        with built(**on(device, case, cuda_graphs=wanted)) as algorithm:
            trails.append(iterate(algorithm, 4))
            if algorithm.learner_group._learner is not None:
                steps = algorithm.learner_group._learner.fast._steps
                assert (getattr(steps, "_graph", None) is not None) == wanted
    assert unlike(*trails) == []


UPDATES: dict[str, dict[str, Any]] = {
    "discrete": {"actions": DISCRETE},
    "box": {"actions": BOX, "training": {"grad_clip": 0.3, "entropy_coeff": 0.01}},
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("case", UPDATES)
def test_an_update_is_rllibs_to_rounding(case: str, graphs: bool, device: str) -> None:
    own = {**learners(device), "learner_config_dict": {"cuda_graphs": graphs}}
    stock = build(PPOTorchLearner, **UPDATES[case])
    lean = build(ExactPPOTorchLearner, **UPDATES[case], learner=own)
    lean.load_weights(weights(stock))
    for seed in (11, 12):
        chunks = episodes(stock, seed=seed)
        for learner in (stock, lean):
            update(learner, chunks, Settings(), seed=seed)
        for name, weight in weights(stock).items():
            np.testing.assert_allclose(weight, weights(lean)[name], rtol=2e-4, atol=2e-5)
