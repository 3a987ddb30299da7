"""An action that the environment's mask forbids is never taken, and has no part in the loss: in the
array sampler and RLlib's own sampling, the hand-written update, autograd and RLlib's, in
`load_policy`, an export without RLlib, TorchScript and ONNX.

The environments raise an error for an action that is not allowed.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import masked_envs
import numpy as np
import pytest
import torch
import yaml
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from support.commands import here
from support.learner_pairs import (
    BOX,
    DISCRETE,
    MULTI,
    NESTED,
    Settings,
    build,
    episodes,
    update,
    weights,
)
from support.paths import ROOT
from support.running import train_here, trial_of, write_config
from support.samplers import config, pair, runner, unlike

from raytrain.commands.evaluate import evaluate_path
from raytrain.config import config_digest, config_from_dict
from raytrain.errors import BadInput
from raytrain.policy.action_masks import COLUMN, MASKED, MaskBroken, MaskLayout
from raytrain.policy.env_actions import policy_space
from raytrain.policy.evaluate import evaluate
from raytrain.policy.format import PolicyParts, read_policy, write_policy
from raytrain.policy.from_algorithm import policy_parts
from raytrain.policy.onnx import ActingModule, observations, write_onnx, write_torchscript
from raytrain.policy.policy import Policy
from raytrain.policy.rllib_module import build_module
from raytrain.policy.rllib_network import describe_network
from raytrain.ppo.fast_update.loss import masked_outputs
from raytrain.ppo.learner import MODULE_ID, ExactPPOTorchLearner
from raytrain.rollout.env_group import EnvGroup

LSTM = {"model_config": {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 16}}


def settings(action_mask: str = "info", name: str = "Masked", **env_config: Any) -> dict[str, Any]:
    return {
        "environment": {
            "env": f"masked_envs:{name}",
            "env_config": {"where": action_mask, **env_config},
            "action_mask": action_mask,
        }
    }


WAYS: dict[str, dict[str, Any]] = {
    **{space: {"space": space} for space in masked_envs.SPACES},
    **{form: {"space": "multi-discrete", "form": form} for form in ("tuple", "list", "float")},
    "named": {"action_mask": "info.legal"},
    "observed": {"action_mask": "legal", "space": "table"},
}


# -- sampling ------------------------------------------------------------------------------------


def test_a_networks_own_column_is_no_mask_of_raytrains() -> None:
    output = {"action_dist_inputs": torch.zeros(2, 3)}
    assert masked_outputs(output, {"action_mask": torch.ones(2, 3)}) is output


@pytest.mark.parametrize("way", WAYS)
def test_sampled_as_by_rllib_and_always_allowed(way: str) -> None:
    for explore in (True, False):
        ours, theirs = pair(config(**settings(**WAYS[way])))
        one = ours.sample(num_timesteps=90, explore=explore)
        other = theirs.sample(num_timesteps=90, explore=explore)
        # RLlib's infos are copies that its vector environment has packed and unpacked.
        known = ("infos", "spaces")
        assert [each for each in unlike(one, other) if each[1] not in known] == []
    reader = ours._sampler.masks
    for episode in one:
        masks = episode.get_extra_model_outputs(COLUMN)
        inputs = episode.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS)
        assert masks.dtype == np.bool_
        assert ((inputs == np.float32(MASKED)) == ~masks).all()
        infos = episode.get_infos()[: len(masks)]
        assert all(
            (reader.of_info(info) == mask).all() for info, mask in zip(infos, masks, strict=True)
        )


def test_a_recurrent_policy_is_masked_in_rllibs_way() -> None:
    given = config(**settings(), rl_module=LSTM)
    made = runner(EnvGroup, given)
    assert made._sampler is None
    for episode in made.sample(num_timesteps=60):
        masks = episode.get_extra_model_outputs(COLUMN)
        assert masks.shape == (len(episode), 5)
        inputs = episode.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS)
        assert ((inputs == np.float32(MASKED)) == ~masks).all()


@pytest.mark.parametrize("kind", [EnvGroup, "rllib"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forbid_at": 2}, "forbids every action: [0 0 0 0 0]"),
        ({"name": "Forgetful"}, "gave no action mask: info['action_mask'] is missing"),
        ({"where": "info.other"}, "info['action_mask'] is missing"),
    ],
)
def test_a_mask_that_leaves_nothing_is_an_error(kind: Any, arguments: Any, message: str) -> None:
    given = config(**settings(**arguments), env_runners={"num_envs_per_env_runner": 1})
    made = pair(given)[kind == "rllib"]
    with pytest.raises(MaskBroken) as raised:
        made.sample(num_timesteps=60)
    assert message in str(raised.value)


# -- the loss ------------------------------------------------------------------------------------


class MaskedStock(PPOTorchLearner):
    """As in RLlib's example of action masking."""

    def compute_loss_for_module(self, *, batch: Any, fwd_out: Any, **kwargs: Any) -> Any:
        name = Columns.ACTION_DIST_INPUTS
        least = torch.finfo(torch.float32).min
        logits = fwd_out[name] + torch.clamp(torch.log(batch[COLUMN].float()), min=least)
        fwd_out = {**fwd_out, name: logits}
        return super().compute_loss_for_module(batch=batch, fwd_out=fwd_out, **kwargs)


ALL_TERMS = {"entropy_coeff": 0.1, "kl_coeff": 1.5, "vf_clip_param": 0.5, "grad_clip": 0.4}


@pytest.mark.parametrize(
    ("actions", "model", "gradients"),
    [
        (DISCRETE, {}, "hand-written"),
        (DISCRETE, {"vf_share_layers": True}, "hand-written"),
        (DISCRETE, {"fcnet_activation": "silu"}, "autograd"),
        (MULTI, {}, "autograd"),
    ],
)
def test_forbidden_choices_have_no_part_in_the_update(
    actions: Any, model: Any, gradients: str
) -> None:
    stock = build(MaskedStock, actions, model=model, training=ALL_TERMS)
    lean = build(ExactPPOTorchLearner, actions, model=model, training=ALL_TERMS)
    lean.module[MODULE_ID].load_state_dict(stock.module[MODULE_ID].state_dict())
    assert lean.fast.gradients == gradients
    layout = MaskLayout(actions)
    for chosen in (Settings(minibatch_size=105, num_epochs=1), Settings()):
        chunks = episodes(lean, mask=layout)
        theirs, ours = update(stock, chunks, chosen), update(lean, chunks, chosen)
        for name, weight in weights(stock).items():
            np.testing.assert_allclose(weight, weights(lean)[name], rtol=2e-4, atol=2e-6)
        for name in ("policy_loss", "entropy", "mean_kl_loss", "total_loss", "curr_kl_coeff"):
            key = f"{MODULE_ID}/{name}"
            np.testing.assert_allclose(float(theirs[key]), float(ours[key]), rtol=2e-4, atol=2e-6)


def test_the_gradient_of_a_forbidden_logit_is_zero() -> None:
    lean = build(ExactPPOTorchLearner, DISCRETE, training=ALL_TERMS)
    chunks = episodes(lean, mask=MaskLayout(DISCRETE), always=[True, False, True])
    head = next(name for name in weights(lean) if name.startswith("pi.") and "bias" in name)
    before = weights(lean)[head].copy()
    update(lean, chunks, Settings())
    after = weights(lean)[head]
    assert (before != after).tolist() == [True, False, True]


# -- policies ------------------------------------------------------------------------------------


def parts_of(way: str, **rl_module: Any) -> PolicyParts:
    given = config(**settings(**WAYS[way]), rl_module=rl_module)
    made = runner(EnvGroup, given)
    spaces = made.get_spaces()[MODULE_ID]
    learner = given.build_learner(spaces={MODULE_ID: spaces})
    parts = policy_parts(
        SimpleNamespace(config=given),
        env_runner=made,
        module_state=learner.module[MODULE_ID].state_dict(),
    )
    return replace(parts, network=describe_network(build_module(parts)))


def make(way: str) -> Any:
    arguments = {"where": "info", **WAYS[way]}
    arguments["where"] = arguments.pop("action_mask", arguments["where"])
    return masked_envs.Masked(**arguments)


@pytest.mark.parametrize("way", ["discrete", "table", "named", "observed", "integers"])
def test_every_form_of_the_policy_obeys_its_masks(way: str, tmp_path: Path) -> None:
    parts = parts_of(way)
    write_policy(tmp_path, parts, metadata={})
    loaded, _ = read_policy(tmp_path)
    assert loaded.action_mask == parts.action_mask
    with_rllib = replace(loaded, network=None)
    policies = Policy(loaded, metadata={}), Policy(with_rllib, metadata={})
    for deterministic in (True, False):
        played = [
            evaluate(policy, lambda: make(way), episodes=4, seed=3, deterministic=deterministic)
            for policy in policies
        ]
        assert played[0].returns == played[1].returns

    write_torchscript(loaded, tmp_path / "policy.pt")
    batches = observations(loaded, 64)
    with torch.no_grad():
        expected = ActingModule(loaded)(*batches)
        (scripted,) = torch.jit.load(str(tmp_path / "policy.pt"))(*batches)
    assert torch.equal(scripted, expected[0])
    layout = MaskLayout(loaded.action_space)
    masks = batches[[leaf.shape[-1] == layout.entries for leaf in batches].index(True)]
    for mask, action in zip(masks.numpy(), expected[0].numpy(), strict=True):
        first = 0
        for n, index in zip(
            layout.sizes, masked_envs.indices(loaded.action_space, action), strict=True
        ):
            assert mask[first + index]
            first += n


@pytest.mark.parametrize("way", ["multi-discrete", "observed"])
def test_onnx_has_an_input_for_the_mask(way: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    parts = parts_of(way)
    assert write_onnx(parts, tmp_path / "policy.onnx") == 0.0
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"))
    names = [entry.name for entry in session.get_inputs()]
    if way == "observed":
        assert names == ["observation.legal", "observation.seen"]
    else:
        assert names == ["observation", "action_mask"]


def test_a_policy_says_what_it_needs() -> None:
    policy = Policy(parts_of("discrete"), metadata={})
    seen = np.zeros(3, np.float32)
    with pytest.raises(BadInput, match="action_mask="):
        policy.act(seen)
    with pytest.raises(BadInput, match="forbids every action"):
        policy.act(seen, action_mask=np.zeros(5))
    with pytest.raises(BadInput, match="4 entries"):
        policy.act(seen, action_mask=np.ones(4))
    only = np.eye(5, dtype=np.int8)
    assert policy.act(seen, action_mask=only[2]) == 5
    batch = policy.act(np.zeros((5, 3), np.float32), deterministic=False, action_mask=only)
    assert batch.tolist() == [3, 4, 5, 6, 7]
    with pytest.raises(BadInput, match="2 observations and 5 action masks"):
        policy.act(np.zeros((2, 3), np.float32), action_mask=only)


# -- before training -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_mask": "info", "forbid_at": 2}, "forbids every action"),
        ({"action_mask": "info.legl", "where": "info.legal"}, "info['legl'] is missing"),
        ({"action_mask": "legl", "where": "legal"}, "did you mean 'legal'"),
        ({"action_mask": "legal", "where": "info"}, "only a Dict has keys"),
    ],
)
def test_masks_that_cannot_be_found_are_refused_before_ray_starts(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    mask = changes.pop("action_mask")
    file = tmp_path / "run.yaml"
    file.write_text(
        f"environment: {{env: 'masked_envs:Masked', env_config: {changes}, action_mask: {mask}}}\n"
        "env_runners: {num_env_runners: 0}\nstop: {iterations: 1}\n"
    )
    done = here("train", file, "--storage-path", tmp_path / "results")
    assert done.code == 2, done.err
    assert message in " ".join(done.err.split())


def test_actions_without_choices_cannot_be_masked() -> None:
    with pytest.raises(BadInput, match="masks are for Discrete"):
        MaskLayout(BOX)


def test_runs_without_masks_have_the_digest_that_they_had() -> None:
    plain = {"name": "x", "stop": {"iterations": 1}, "environment": {"env": "CartPole-v1"}}
    given = config_from_dict(plain)
    masked = config_from_dict({**plain, "environment": {"env": "CartPole-v1", "action_mask": "k"}})
    known = "5c91b6defca2cb08f9d704a9560d02fa59a60f280d979988fefd5e3666e0fd28"
    assert config_digest(given) == known != config_digest(masked)


def test_policy_spaces_stay_what_they_were() -> None:
    for space in (DISCRETE, MULTI, BOX, NESTED):
        assert policy_space(space) is space


@pytest.mark.usefixtures("local_ray")
def test_the_example_of_the_docs_trains_and_plays(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guide" / "action_masks.md").read_text()
    settings_, code, *_ = re.findall(r"```(?:yaml|python)\n(.*?)```", text, re.S)
    (tmp_path / "lights.py").write_text(code)
    file = write_config(
        tmp_path / "run.yaml",
        **yaml.safe_load(settings_),
        env_runners={"num_env_runners": 0},
        training={"train_batch_size_per_learner": 256},
        stop={"iterations": 2},
    )
    train_here(file)
    played = evaluate_path(
        str(trial_of(file) / "final"), episodes=3, seed=0, deterministic=False, max_steps=100
    )
    # Every light is switched on once: 0 + 1 + 2 + 3 + 4 + 5.
    assert played.returns == (15.0,) * 3
