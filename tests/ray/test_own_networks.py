"""Networks of the user's own: how they are sampled and updated, and what a restored one does."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from support.tiny_ppo import build, built, iterate, unlike_once_restored

pytestmark = pytest.mark.usefixtures("local_ray")

DENSE = {"module_class": "own_nets:Dense", "model_config": {"width": 8}}
RECURRENT = {"module_class": "own_nets:Recurrent", "model_config": {"width": 8, "max_seq_len": 8}}
# `vf_share_layers` and the like are RLlib's; `fill` is the catalog's own key.
CATALOG = {
    "catalog_class": "own_nets:Catalog",
    "model_config": {"fill": 0.25, "fcnet_hiddens": [8]},
}


@pytest.mark.parametrize(
    ("rl_module", "runners"),
    [
        pytest.param(DENSE, 0, id="dense-0"),
        pytest.param(RECURRENT, 0, id="gru-0"),
        pytest.param(CATALOG, 0, id="catalog-0"),
        pytest.param(RECURRENT, 2, id="gru-2", marks=pytest.mark.slow),
        pytest.param(DENSE, 2, id="dense-2", marks=pytest.mark.slow),
        pytest.param(CATALOG, 2, id="catalog-2", marks=pytest.mark.slow),
    ],
)
def test_a_network_of_ones_own_continues_exactly(
    tmp_path: Path, rl_module: Any, runners: int
) -> None:
    sections = {"rl_module": rl_module, "env_runners": {"num_env_runners": runners}}
    assert unlike_once_restored(tmp_path / "saved", **sections) == []


@pytest.mark.slow
def test_remote_learners_have_the_class_that_the_config_names() -> None:
    with built(rl_module=DENSE, learners={"num_learners": 1}) as algorithm:
        (name,) = algorithm.learners._each(lambda learner: type(learner.policy_module()).__name__)
        assert name == "Dense"
        iterate(algorithm, 1)


def test_a_dense_one_is_sampled_into_arrays_and_updated_fast_and_a_recurrent_one_says_why() -> None:
    with built(rl_module=DENSE) as algorithm:
        assert algorithm.told == []
        fast = algorithm.learners._each(attrgetter("fast.gradients"))
        assert fast == ["autograd"]
    with built(rl_module=RECURRENT) as algorithm:
        assert [line.split(" is used")[0] for line in algorithm.told] == [
            "RLlib's own sampling",
            "RLlib's own update",
        ]


def test_rllib_loads_the_checkpoint_with_the_users_class(tmp_path: Path) -> None:
    algorithm = build(rl_module=DENSE)
    iterate(algorithm, 1)
    algorithm.save_exact(tmp_path / "saved")
    algorithm.stop()
    stock = PPO.from_checkpoint(str(tmp_path / "saved"))
    assert type(stock.get_module()).__name__ == "Dense"
    assert type(stock.config).__module__.startswith("ray.")
    stock.stop()


def test_settings_without_a_plain_form_keep_no_checkpoint_from_being_written(
    tmp_path: Path,
) -> None:
    with built() as algorithm:
        module = algorithm.env_runner.module.unwrapped()
        module.model_config = {"old_config": PPOConfig()}
        algorithm.save_exact(tmp_path / "saved")
        told = algorithm.told[-1]
    assert told.startswith("The policy cannot be loaded outside of training: model_config.old_con")
    assert (tmp_path / "saved" / "resume" / "state.json").exists()
    assert not (tmp_path / "saved" / "policy").exists()
