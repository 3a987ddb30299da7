"""Learners and connectors of the user's own: how they update, and what a restored one does."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.algorithms.ppo import PPO
from support.tiny_ppo import Told, build, built, iterate, unlike_once_restored

pytestmark = pytest.mark.usefixtures("local_ray")

FACTOR = {"learner_config_dict": {"factor": 0.5}}
SCHEDULERS = [
    {"class": "torch.optim.lr_scheduler:ConstantLR", "factor": 0.5, "total_iters": 2},
    {"class": "torch.optim.lr_scheduler:ExponentialLR", "gamma": 0.5},
]
CASES: dict[str, dict[str, Any]] = {
    "loss": {"training": {"learner_class": "own_learners:Regularized", **FACTOR}},
    "optimizers": {"training": {"learner_class": "own_learners:TwoOptimizers"}},
    "state": {"training": {"learner_class": "own_learners:Counting"}},
    "schedulers": {"training": {"torch_lr_schedulers": SCHEDULERS}},
    "learner connector": {"training": {"learner_connector": "own_connectors:for_learner"}},
    "connectors": {
        "env_runners": {
            "env_to_module_connector": "own_connectors:to_module",
            "module_to_env_connector": "own_connectors:to_env",
        }
    },
}


def gradients(algorithm: Told) -> Any:
    if algorithm.learners.why_not_fast() is not None:
        return None
    return algorithm.learners._each(attrgetter("fast.gradients"))[0]


@pytest.mark.parametrize("sections", CASES.values(), ids=CASES)
def test_a_restored_one_continues_exactly(tmp_path: Path, sections: dict[str, Any]) -> None:
    assert unlike_once_restored(tmp_path / "saved", **sections) == []


@pytest.mark.parametrize(
    ("name", "learns", "said"),
    [
        ("loss", "autograd", []),
        ("state", "autograd", []),
        ("schedulers", "hand-written", []),
        ("optimizers", None, ["update is used, which is several times slower: there are 2 opt"]),
        (
            "learner connector",
            None,
            ["update is used, which is several times slower: the learner's"],
        ),
        (
            "connectors",
            "hand-written",
            ["sampling is used, which is several times slower: its env"],
        ),
    ],
)
def test_how_it_is_updated_and_sampled(name: str, learns: str | None, said: list[str]) -> None:
    with built(**CASES[name]) as algorithm:
        assert gradients(algorithm) == learns
        assert [
            line.startswith(f"RLlib's own {s}")
            for line, s in zip(algorithm.told, said, strict=True)
        ] == [True] * len(said)


def test_a_filter_of_rllibs_among_ones_own_connectors_is_sampled_into_arrays() -> None:
    own = {"env_to_module_connector": "own_connectors:filtered"}
    with built(env_runners=own) as algorithm:
        assert algorithm.told == []


def test_a_loss_of_ones_own_is_that_of_rllibs_update() -> None:
    """To float32 rounding; one epoch, so that the minibatches are the same."""
    rows, weights = [], []
    for name in ("Regularized", "Plain"):
        training = {"learner_class": f"own_learners:{name}", **FACTOR, "num_epochs": 1}
        with built(training=training) as algorithm:
            assert (gradients(algorithm) is None) == (name == "Plain")
            rows.append(algorithm.train()["learners"]["default_policy"])
            weights.append(algorithm.get_module().state_dict())
    for metric in ("mean_weight", "rewards", "total_loss", "policy_loss"):
        assert np.isclose(float(rows[0][metric]), float(rows[1][metric]), rtol=1e-4, atol=1e-6)
    for key, value in weights[0].items():
        assert np.allclose(value, weights[1][key], rtol=1e-4, atol=1e-5), key


@pytest.mark.slow
def test_a_remote_learner_has_the_class_and_its_schedulers() -> None:
    with built(**CASES["loss"], learners={"num_learners": 1}) as algorithm:
        assert algorithm.learners._each(attrgetter("__class__.__name__")) == ["Regularized"]
        assert gradients(algorithm) == "autograd"
        iterate(algorithm, 1)


def test_schedulers_of_torch_set_the_rate() -> None:
    with built(**CASES["schedulers"]) as algorithm:
        rows = [algorithm.train()["learners"]["default_policy"] for _ in range(3)]
    rates = [float(row["default_optimizer_learning_rate"]) for row in rows]
    assert np.allclose(rates, [3e-3 / 4, 3e-3 / 4, 3e-3 / 8])


def test_rllib_loads_the_checkpoint_with_the_users_classes(tmp_path: Path) -> None:
    sections = {
        "training": {"learner_class": "own_learners:Regularized", **FACTOR},
        "env_runners": CASES["connectors"]["env_runners"],
        "callbacks": {"callbacks_class": "own_callbacks:Ends"},
    }
    algorithm = build(**sections)
    iterate(algorithm, 1)
    algorithm.save_exact(tmp_path / "saved")
    algorithm.stop()
    stock = PPO.from_checkpoint(str(tmp_path / "saved"))
    assert type(stock.learner_group._learner).__name__ == "Regularized"
    assert stock.config.learner_config_dict == {"factor": 0.5}
    assert [type(each).__name__ for each in stock.callbacks] == ["Ends"]
    assert type(stock.env_runner).__module__.startswith("ray.")
    stock.train()
    stock.stop()
