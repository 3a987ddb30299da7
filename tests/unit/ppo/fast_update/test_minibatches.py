"""A minibatch that holds bootstrap rows alone has no loss: every way of updating goes on, and
reports the losses of the last minibatch that has one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.evaluation.postprocessing import Postprocessing
from support.learner_pairs import BOX, DISCRETE, OBSERVATIONS, Settings, build, update, weights

from raytrain.ppo.fast_update.loss import ppo_loss
from raytrain.ppo.fast_update.loss_gradients import LossSettings
from raytrain.ppo.fast_update.minibatches import last_with_a_step
from raytrain.ppo.learner import MODULE_ID, ExactPPOTorchLearner

LOSSES = ("total_loss", "policy_loss", "vf_loss", "entropy", "mean_kl_loss", "vf_loss_unclipped")
ROW_BY_ROW = Settings(minibatch_size=1, num_epochs=2, shuffle=False)


class NotRllibsOwn(DefaultPPOTorchRLModule):
    """What the hand-written pass does not touch."""


class InRllibsWay(ExactPPOTorchLearner):
    def build(self) -> None:
        super().build()
        self.fast = None


OWN = {"rl_module_spec": RLModuleSpec(module_class=NotRllibsOwn)}
WAYS: dict[str, dict[str, Any]] = {
    "hand-written": {"cls": ExactPPOTorchLearner},
    "autograd": {"cls": ExactPPOTorchLearner, **OWN},
    "rllib": {"cls": InRllibsWay},
}


def one_step_episodes(module: Any, count: int) -> list[Any]:
    """Each is one step and, in a batch, one bootstrap row behind it."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        obs = random.normal(size=(2, *OBSERVATIONS.shape)).astype(np.float32)
        with torch.no_grad():
            inputs = module.forward_train({Columns.OBS: torch.from_numpy(obs[:1])})
        inputs = inputs[Columns.ACTION_DIST_INPUTS].numpy() + np.float32(0.1)
        old = module.get_exploration_action_dist_cls().from_logits(torch.from_numpy(inputs))
        torch.manual_seed(int(random.integers(2**31)))
        actions = old.sample()
        found.append(
            SingleAgentEpisode(
                observation_space=OBSERVATIONS,
                action_space=module.action_space,
                observations=list(obs),
                actions=list(actions.numpy()),
                rewards=[float(random.normal())],
                infos=[{}, {}],
                extra_model_outputs={
                    Columns.ACTION_DIST_INPUTS: list(inputs),
                    Columns.ACTION_LOGP: list(old.logp(actions).numpy()),
                },
                terminated=True,
                len_lookback_buffer=0,
            ).to_numpy()
        )
    return found


@pytest.mark.parametrize("actions", [DISCRETE, BOX], ids=["discrete", "box"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_every_way_goes_on_and_tells_the_losses_of_the_last_step(
    actions: Any, clip: float | None
) -> None:
    told, moved = {}, {}
    for way, arguments in WAYS.items():
        learner = build(
            actions=actions, training={"grad_clip": clip}, minibatch_size=1, **arguments
        )
        assert (learner.fast.gradients if learner.fast else "rllib") == way
        chunks = one_step_episodes(learner.module[MODULE_ID].unwrapped(), 5)
        results = update(learner, chunks, ROW_BY_ROW)
        told[way] = {name: float(results[f"{MODULE_ID}/{name}"]) for name in LOSSES}
        moved[way] = weights(learner)
        assert all(np.isfinite(value).all() for value in moved[way].values())
        assert learner.weights_check()[1] == []
    for way in ("autograd", "rllib"):
        assert told[way] == pytest.approx(told["hand-written"], rel=1e-4, abs=1e-5)
        assert told[way]["total_loss"] != 0.0
        for name, value in moved[way].items():
            np.testing.assert_allclose(value, moved["hand-written"][name], rtol=0, atol=2e-5)
    assert all(math.isfinite(value) for value in told["rllib"].values())


@pytest.mark.parametrize("shared", [False, True])
def test_a_recurrent_module_goes_on_too(shared: bool) -> None:
    """Sequences of 4: a chunk of 4 steps leaves its bootstrap row in a sequence of its own."""
    from support.samplers import config, runner

    from raytrain.rollout.env_group import EnvGroup

    model = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 4, "vf_share_layers": shared}
    given = config(
        rl_module={"model_config": model},
        env_runners={"num_envs_per_env_runner": 1, "rollout_fragment_length": 4},
        training={"train_batch_size_per_learner": 4, "minibatch_size": 4},
    )
    sampler = runner(EnvGroup, given)
    spaces = sampler.env.single_observation_space, sampler.env.single_action_space
    learner = given.build_learner(spaces={MODULE_ID: spaces})
    chunks = sampler.sample(num_timesteps=4)
    assert [len(chunk) for chunk in chunks] == [4]
    results = learner.update(
        episodes=chunks, timesteps={}, num_epochs=1, minibatch_size=4, shuffle_batch_per_epoch=False
    )
    for name in LOSSES:
        assert math.isfinite(float(results[MODULE_ID][name].peek())), name
    assert float(results[MODULE_ID]["total_loss"].peek()) != 0.0
    assert learner.weights_check()[1] == []


def test_its_loss_for_autograd_is_zero_with_a_gradient_of_zeros() -> None:
    """Where several learners reduce their gradients, one NaN would take the others' with it."""
    learner = build(ExactPPOTorchLearner, DISCRETE, **OWN)
    module = learner.module[MODULE_ID].unwrapped()
    rows = {
        Columns.OBS: torch.randn(3, 5),
        Columns.ACTIONS: torch.zeros(3, dtype=torch.int32),
        Columns.ACTION_LOGP: torch.zeros(3),
        Columns.ACTION_DIST_INPUTS: torch.zeros(3, 3),
        Columns.LOSS_MASK: torch.zeros(3, dtype=torch.bool),
        Postprocessing.ADVANTAGES: torch.ones(3),
        Postprocessing.VALUE_TARGETS: torch.ones(3),
    }
    settings = LossSettings(0.3, 10.0, 1.0, 0.1, 0.2)
    loss = ppo_loss(module, rows, settings, use_critic=True).mean
    logged = learner.compute_loss_for_module(
        module_id=MODULE_ID,
        config=learner.config.get_config_for_module(MODULE_ID),
        batch=rows,
        fwd_out=module.forward_train(rows),
    )
    for each in (loss, logged):
        assert each.item() == 0.0
        gradients = torch.autograd.grad(each, list(module.parameters()))
        assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_which_minibatch_is_the_last_with_a_step() -> None:
    rows = np.arange(6).reshape(3, 2)
    mask = np.array([True, False, True, False, False, False])
    assert last_with_a_step(rows, mask) == 1
    assert last_with_a_step(rows[2:], mask) is None
    assert last_with_a_step(rows, np.ones(6, bool)) == 2
