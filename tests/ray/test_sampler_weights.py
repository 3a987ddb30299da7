"""After an update the sampler holds the learner's weights: every tensor, every bit, for every kind
of module. RLlib hands a part of them over, without a word, to a module that keeps more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from support.samplers import CONV, FILTER, config, env, runner

from raytrain.checkpoint import weights_sha256
from raytrain.errors import RaytrainError
from raytrain.ppo.learner import MODULE_ID
from raytrain.rollout.env_group import EnvGroup

LSTM = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 8, "fcnet_hiddens": [16]}


class WithBuffers(DefaultPPOTorchRLModule):
    """Keeps a count, a precise mean and a narrow scale beside its parameters, and
    a critic's extra."""

    def setup(self) -> None:
        super().setup()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(2, dtype=torch.bfloat16))
        self.precise = torch.nn.Parameter(torch.full((2,), 0.1, dtype=torch.float64))
        self.extra = torch.nn.Linear(2, 2)

    def get_non_inference_attributes(self) -> list[str]:
        return [*super().get_non_inference_attributes(), "extra"]


class MoreOnRunners(DefaultPPOTorchRLModule):
    """Has a tensor on env runners alone."""

    def setup(self) -> None:
        super().setup()
        if self.inference_only:
            self.own = torch.nn.Parameter(torch.zeros(1))


def own(kind: type) -> dict[str, Any]:
    spec = RLModuleSpec(module_class=kind, model_config=DefaultModelConfig(fcnet_hiddens=[16]))
    return {"change": lambda given: given.rl_module(rl_module_spec=spec)}


def model(**values: Any) -> dict[str, Any]:
    return {"rl_module": {"model_config": values}}


# name: (sections of the config, whether runners hold the value function as well)
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "mlp": ({}, False),
    "mlp-shared": (model(vf_share_layers=True, fcnet_hiddens=[16]), False),
    "mlp-layernorm-heads": (model(fcnet_use_layernorm=True, head_fcnet_hiddens=[8]), False),
    "box-free-log-std": ({**env("forces"), **model(free_log_std=True)}, False),
    "filter": ({**env("forces"), "env_runners": FILTER}, False),
    "conv": ({**env("Pictures"), "rl_module": CONV}, False),
    "lstm": (model(**LSTM), True),
    "lstm-shared": (model(**LSTM, vf_share_layers=True), True),
    "lstm-filter-box": ({**env("forces"), "env_runners": FILTER, **model(**LSTM)}, True),
    "lstm-conv": ({**env("Pictures"), **model(**CONV["model_config"], **LSTM)}, True),
    "own-buffers": (own(WithBuffers), False),
}  # fmt: skip


def made(sections: dict[str, Any]) -> tuple[Any, Any]:
    """A runner and the learner of one config."""
    # A value loss that is clipped has no gradient.
    given = config(training={"vf_clip_param": 1e6}, **sections)
    sampler = runner(EnvGroup, given)
    spaces = sampler.env.single_observation_space, sampler.env.single_action_space
    torch.manual_seed(4)
    return sampler, given.build_learner(spaces={MODULE_ID: spaces})


def sync_of(learner: Any, sampler: Any) -> dict[str, Any]:
    names = tuple(sampler.module.state_dict())
    weights, version = learner.weights_for_sampling(names)
    return {"rl_module": weights, "weights_seq_no": version}


def different(learner: Any, sampler: Any) -> list[str]:
    theirs = learner.module[MODULE_ID].unwrapped().state_dict()
    found = sampler.module.state_dict()
    return [
        name for name, value in found.items()
        if value.dtype != theirs[name].dtype or not torch.equal(value, theirs[name])
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in ("lstm-conv", "filter"))) for n in KINDS],
)
def test_the_sampler_holds_the_learners_weights_after_an_update(name: str) -> None:
    sections, with_critic = KINDS[name]
    sampler, learner = made(sections)
    sampler.take_over(sync_of(learner, sampler))
    before = {key: value.clone() for key, value in sampler.module.state_dict().items()}
    learner.update(
        episodes=sampler.sample(num_timesteps=48), timesteps={}, num_epochs=2, minibatch_size=16
    )
    with torch.no_grad():  # what no update changes
        for key, buffer in learner.module[MODULE_ID].unwrapped().named_buffers():
            if "log_std_clip" not in key:
                buffer.add_(torch.full_like(buffer, 2**-40 if buffer.dtype == torch.float64 else 3))
    assert different(learner, sampler)
    sampler.take_over(sync_of(learner, sampler))
    assert different(learner, sampler) == []
    names = set(before)
    assert any(key.startswith("vf.") for key in names) == with_critic
    assert "extra.weight" not in names
    unmoved = [
        key for key, value in sampler.module.state_dict().items() if torch.equal(value, before[key])
    ]
    assert unmoved == [
        key for key in unmoved if key.endswith(("log_std_clip_param_const", "precise"))
    ]


def test_every_runner_answers_with_the_same_digest_which_is_the_first_ones() -> None:
    sampler, learner = made(KINDS["lstm"][0])
    other = runner(EnvGroup, config(**KINDS["lstm"][0]), 1)
    sync = sync_of(learner, sampler)
    loaded = [each.load("pickle", sync, None, iteration=0) for each in (sampler, other)]
    digests = {each.weights_sha256 for each in loaded}
    state = learner.module[MODULE_ID].unwrapped().state_dict()
    assert digests == {weights_sha256(state)}


class Precise(DefaultPPOTorchRLModule):
    """Keeps a mean and a count that float32 and int32 do not hold."""

    def setup(self) -> None:
        super().setup()
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


def test_a_learner_is_restored_to_the_bit_whatever_the_dtype() -> None:
    _, learner = made(own(Precise))
    module = learner.module[MODULE_ID].unwrapped()
    module.mean.fill_(1 + 2**-40)
    module.seen.fill_(2**40)
    _, again = made(own(Precise))
    again.set_state(learner.get_state())
    again.load_exact_state(learner.exact_state())
    assert again.weights_check() == learner.weights_check()


def test_a_part_of_the_weights_is_refused() -> None:
    sampler, learner = made(KINDS["lstm"][0])
    sync = sync_of(learner, sampler)
    sync["rl_module"] = {
        name: value for name, value in sync["rl_module"].items() if not name.startswith("vf.")
    }
    with pytest.raises(RaytrainError, match=r"(?s)cannot load the learner's weights: .*vf\.net"):
        sampler.take_over(sync)


def test_a_module_with_more_on_runners_than_on_the_learner_is_refused() -> None:
    sampler, learner = made(own(MoreOnRunners))
    with pytest.raises(RaytrainError, match="has own, which the learner's module lacks"):
        sync_of(learner, sampler)


def test_read_only_arrays_are_copied_and_others_are_not_kept() -> None:
    sampler, learner = made({})
    sync = sync_of(learner, sampler)
    frozen = {name: value.copy() for name, value in sync["rl_module"].items()}
    for value in frozen.values():
        value.setflags(write=False)
    sampler.take_over({**sync, "rl_module": frozen})
    with torch.no_grad():
        for parameter in sampler.module.parameters():
            parameter.add_(1.0)
    assert all(np.array_equal(value, sync["rl_module"][name]) for name, value in frozen.items())
