"""The lean update is RLlib's: same losses, same weights, same optimizer state, same metrics.

RLlib's own learner and raytrain's get the same weights, the same episodes and the same minibatch
order. What they compute must agree to float32 rounding; what an update is repeated with must be
equal without tolerance.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.evaluation.postprocessing import Postprocessing
from support.learner_pairs import (
    BOX,
    DISCRETE,
    LENGTHS,
    MULTI,
    NESTED,
    Settings,
    build,
    episodes,
    moments,
    pair,
    update,
    weights,
)
from torch import nn

from raytrain.errors import RaytrainError
from raytrain.ppo.fast_update.minibatches import minibatch_rows
from raytrain.ppo.fast_update.train_batch import train_batch
from raytrain.ppo.fast_update.update import FastUpdate
from raytrain.ppo.learner import MODULE_ID, ExactPPOTorchLearner

WALL_CLOCK = ("timer", "throughput")
ONE_MINIBATCH = Settings(minibatch_size=sum(LENGTHS) + len(LENGTHS), num_epochs=1)


class NotRllibsOwn(DefaultPPOTorchRLModule):
    """The default module, of a class of its own: what the hand-written pass does not touch."""


OWN = {"rl_module_spec": RLModuleSpec(module_class=NotRllibsOwn)}
ALL_TERMS = {"entropy_coeff": 0.1, "kl_coeff": 1.5, "vf_clip_param": 0.5, "vf_loss_coeff": 0.7}
HAND_WRITTEN: dict[str, dict[str, Any]] = {
    "discrete": {"actions": DISCRETE},
    "discrete-all-terms": {"actions": DISCRETE, "training": ALL_TERMS},
    "box": {"actions": BOX},
    "box-all-terms": {"actions": BOX, "training": ALL_TERMS},
    "box-clipped-log-std": {"actions": BOX, "model": {"log_std_clip_param": 0.05}},
    "box-free-log-std": {
        "actions": BOX,
        "model": {"free_log_std": True, "log_std_clip_param": 0.1},
        "training": ALL_TERMS,
    },
    "shared": {"actions": DISCRETE, "model": {"vf_share_layers": True}, "training": ALL_TERMS},
    "relu": {"actions": BOX, "model": {"fcnet_activation": "relu"}},
    "linear-one-layer": {
        "actions": DISCRETE,
        "model": {"fcnet_activation": "linear", "fcnet_hiddens": [7]},
    },
    "no-kl": {"actions": DISCRETE, "training": {"use_kl_loss": False}},
    "no-value-clip": {"actions": BOX, "training": {"vf_clip_param": float("inf")}},
    "tight-ratio-clip": {"actions": DISCRETE, "training": {"clip_param": 0.02}},
    "clip-global-norm": {"actions": BOX, "training": {"grad_clip": 0.3}},
    "clip-norm": {"actions": BOX, "training": {"grad_clip": 0.05, "grad_clip_by": "norm"}},
    "clip-value": {"actions": BOX, "training": {"grad_clip": 0.01, "grad_clip_by": "value"}},
    "schedules": {
        "actions": DISCRETE,
        "training": {"lr": [[0, 1e-2], [200, 1e-4]], "entropy_coeff": [[0, 0.1], [200, 0.0]]},
    },
}
AUTOGRAD: dict[str, dict[str, Any]] = {
    "multi-discrete": {"actions": MULTI, "training": ALL_TERMS},
    "nested": {"actions": NESTED, "training": ALL_TERMS},
    "own-nested": {"actions": NESTED, "training": ALL_TERMS, **OWN},
    "own-discrete": {"actions": DISCRETE, "training": ALL_TERMS, **OWN},
    "own-box": {"actions": BOX, "training": ALL_TERMS, **OWN},
    "own-clip": {"actions": BOX, "training": {"grad_clip": 0.3}, **OWN},
    "layernorm": {"actions": DISCRETE, "model": {"fcnet_use_layernorm": True}},
    "silu": {"actions": BOX, "model": {"fcnet_activation": "silu"}},
    "head-layers": {"actions": DISCRETE, "model": {"head_fcnet_hiddens": [6]}},
    "discrete-observations-image": {
        "actions": DISCRETE,
        "observations": gym.spaces.Box(-1, 1, (12, 12, 1), np.float32),
        "model": {"conv_filters": [[4, 4, 4], [6, 3, 3]]},
    },
}


def agree(one: Any, other: Any) -> None:
    """Equal to float32 rounding, which a few dozen optimizer steps have passed on."""
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6)


def same_update(arguments: dict[str, Any], gradients: str) -> None:
    """A single step along the whole batch's gradient, and then an update of many."""
    stock, lean = pair(**arguments)
    assert lean.fast.gradients == gradients, lean.fast.reason
    for settings in (ONE_MINIBATCH, Settings()):
        before, chunks = weights(lean), episodes(lean)
        theirs, ours = update(stock, chunks, settings), update(lean, chunks, settings)
        agree_on_metrics(theirs, ours)
        agree_on_state(stock, lean, before)


def agree_on_state(stock: Any, lean: Any, before: dict[str, np.ndarray]) -> None:
    for name, weight in weights(stock).items():
        agree(weight, weights(lean)[name])
        assert not np.array_equal(before[name], weight) or "log_std_clip" in name
    for name, of_stock in moments(stock).items():
        of_lean = moments(lean)[name]
        assert float(of_stock["step"]) == float(of_lean["step"])
        agree(of_stock["exp_avg"], of_lean["exp_avg"])
        agree(of_stock["exp_avg_sq"], of_lean["exp_avg_sq"])


def agree_on_metrics(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    # No connector runs, so none has a time; the pipeline's time is that of building the batch.
    assert {name for name in theirs if "/timers/connectors/" not in name} == set(ours)
    for name, value in ours.items():
        if not any(word in name for word in WALL_CLOCK):
            agree(float(theirs[name]), float(value))


@pytest.mark.parametrize("case", HAND_WRITTEN)
def test_the_hand_written_update_is_rllibs(case: Any) -> None:
    same_update(HAND_WRITTEN[case], "hand-written")


@pytest.mark.parametrize("case", AUTOGRAD)
def test_the_autograd_update_is_rllibs(case: Any) -> None:
    same_update(AUTOGRAD[case], "autograd")


def test_a_second_update_goes_on_from_the_first() -> None:
    training = {"lr": [[0, 1e-2], [200, 1e-4]], "entropy_coeff": [[0, 0.1], [200, 0.0]]}
    stock, lean = pair(DISCRETE, training={**training, "kl_target": 1e-4})
    for seed in range(3):
        chunks = episodes(lean, seed=seed)
        theirs, ours = update(stock, chunks, Settings()), update(lean, chunks, Settings())
        agree_on_metrics(theirs, ours)
    assert ours["default_policy/curr_kl_coeff"] > 0.5


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_advantages_are_those_of_rllibs_connector(scale: float) -> None:
    stock, lean = pair(DISCRETE, training={"gamma": 0.97, "lambda_": 0.9})
    chunks = episodes(lean, scale=scale)
    theirs = stock._learner_connector(
        rl_module=stock.module, batch={}, episodes=copy.deepcopy(chunks), shared_data={}
    )[MODULE_ID]
    columns = train_batch(chunks)
    ours = lean.fast._columns(columns)
    assert set(ours) <= set(theirs)
    for name, column in ours.items():
        # Without tolerance: the same sums in the same order.
        assert torch.equal(column, theirs[name].to(column.dtype)), name
    assert Postprocessing.ADVANTAGES in ours
    assert len(columns) == sum(LENGTHS) + len(LENGTHS)


def test_episodes_are_left_as_they_were() -> None:
    lean = build(ExactPPOTorchLearner, DISCRETE)
    chunks = episodes(lean)
    before = [(chunk.id_, len(chunk), chunk.is_truncated) for chunk in chunks]
    lean.update(episodes=chunks, minibatch_size=32, num_epochs=1)
    assert before == [(chunk.id_, len(chunk), chunk.is_truncated) for chunk in chunks]


@pytest.mark.parametrize(("rows", "size", "epochs"), [(105, 24, 3), (96, 32, 2), (10, 64, 5)])
def test_minibatches_are_those_of_rllibs_iterator(rows: int, size: int, epochs: int) -> None:
    from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
    from ray.rllib.utils.minibatch_utils import MiniBatchCyclicIterator

    for wanted in (0, 7):
        np.random.seed(4)
        batch = MultiAgentBatch({"m": SampleBatch({"obs": np.arange(rows)})}, rows)
        iterator = MiniBatchCyclicIterator(
            batch,
            num_epochs=epochs,
            minibatch_size=size,
            shuffle_batch_per_epoch=True,
            num_total_minibatches=wanted,
        )
        theirs = [minibatch["m"]["obs"] for minibatch in iterator]
        ours = minibatch_rows(
            rows,
            size,
            epochs=epochs,
            shuffle=True,
            generator=np.random.RandomState(4),
            minibatches=wanted,
        )
        np.testing.assert_array_equal(theirs, ours)


# -- what is not finite --------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"grad_clip": 0.5}], ids=["plain", "clipped"])
@pytest.mark.parametrize("own", [{}, OWN], ids=["hand-written", "autograd"])
def test_a_reward_that_is_nan_shows_in_the_losses_as_with_rllib(arguments: Any, own: Any) -> None:
    stock, lean = pair(BOX, training=arguments, **own)
    chunks = episodes(lean)
    chunks[2].rewards.data[5] = float("nan")
    theirs, ours = update(stock, chunks, Settings()), update(lean, chunks, Settings())
    for name in ("total_loss", "policy_loss", "vf_loss"):
        assert np.isnan(float(theirs[f"default_policy/{name}"]))
        assert np.isnan(float(ours[f"default_policy/{name}"]))
    # RLlib makes such a gradient 0, and so the weights stay finite.
    for name, weight in weights(stock).items():
        agree(weight, weights(lean)[name])
    assert lean.weights_check()[1] == []


@pytest.mark.parametrize("own", [{}, OWN], ids=["hand-written", "autograd"])
def test_a_ratio_that_overflows_on_a_bootstrap_row_does_not_spoil_the_others(own: Any) -> None:
    lean = build(ExactPPOTorchLearner, BOX, **own)
    batch = train_batch(episodes(lean))
    batch.columns["action_logp"][~batch.columns["loss_mask"]] = -1e3
    tensors = lean.fast._columns(batch)
    before = weights(lean)
    # Two minibatches: autograd's last one goes through RLlib's own loss, which is spoilt.
    lean.fast._run(tensors, np.tile(np.arange(len(batch)), (2, 1)))
    after = weights(lean)
    assert all(np.isfinite(weight).all() for weight in after.values())
    # A gradient that is not finite would have been taken for 0, and moved nothing.
    assert not np.array_equal(before["pi.net.mlp.0.weight"], after["pi.net.mlp.0.weight"])


# -- state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"actions": DISCRETE},
        {"actions": BOX, "training": {"kl_target": 1e-4}},
        {"actions": MULTI},
    ],
    ids=["discrete", "box", "multi"],
)
def test_a_restored_learner_goes_on_as_the_saved_one(arguments: Any) -> None:
    lean = build(ExactPPOTorchLearner, **arguments)
    batches = [episodes(lean, seed=seed) for seed in range(4)]
    for chunks in batches[:2]:
        lean_update(lean, chunks)
    saved = pickle.dumps((lean.get_state(), lean.exact_state()))
    expected = [lean_update(lean, chunks) for chunks in batches[2:]]

    again = build(ExactPPOTorchLearner, **arguments)
    lean_update(again, batches[3])  # It has been somewhere else.
    state, exact = pickle.loads(saved)
    again.set_state({**state, "weights_seq_no": 0})
    again.load_exact_state(exact)
    assert [lean_update(again, chunks) for chunks in batches[2:]] == expected


def lean_update(learner: Any, chunks: list[Any]) -> str:
    learner.update(
        episodes=copy.deepcopy(chunks),
        timesteps={},
        num_epochs=2,
        minibatch_size=24,
        shuffle_batch_per_epoch=True,
    )
    digest: str = learner.weights_check()[0]
    return digest


def test_the_minibatch_order_is_part_of_the_state() -> None:
    lean = build(ExactPPOTorchLearner, DISCRETE)
    chunks = episodes(lean)
    lean_update(lean, chunks)
    state = lean.exact_state()
    saved = pickle.dumps((lean.get_state(), state))
    expected = lean_update(lean, chunks)
    state, exact = pickle.loads(saved)
    exact["minibatch_order"] = build(ExactPPOTorchLearner, DISCRETE).exact_state()[
        "minibatch_order"
    ]
    lean.set_state({**state, "weights_seq_no": 0})
    lean.load_exact_state(exact)
    assert lean_update(lean, chunks) != expected


@pytest.mark.parametrize(
    "damage", [lambda s: s.pop("minibatch_order"), lambda s: s.update(minibatch_order={"a": 1})]
)
def test_a_state_without_its_minibatch_order_is_refused(damage: Any) -> None:
    lean = build(ExactPPOTorchLearner, DISCRETE)
    state = lean.exact_state()
    damage(state)
    with pytest.raises(RaytrainError, match="minibatch order"):
        lean.load_exact_state(state)


def test_the_optimizers_state_loads_into_rllibs_learner() -> None:
    # RLlib's state has no KL coefficient.
    stock, lean = pair(BOX, training={"use_kl_loss": False})
    chunks = episodes(lean)
    update(lean, chunks, Settings())
    state = pickle.loads(pickle.dumps(lean.get_state()))
    stock.set_state({**state, "weights_seq_no": 0})
    theirs, ours = update(stock, chunks, Settings()), update(lean, chunks, Settings())
    agree(float(theirs["default_policy/total_loss"]), float(ours["default_policy/total_loss"]))
    for name, weight in weights(stock).items():
        agree(weight, weights(lean)[name])


def test_equal_updates_are_equal_without_tolerance() -> None:
    chunks = episodes(build(ExactPPOTorchLearner, BOX))
    digests = {lean_update(build(ExactPPOTorchLearner, BOX), chunks) for _ in range(3)}
    assert len(digests) == 1


# -- which way ------------------------------------------------------------------------------------


class Passing(ConnectorV2):
    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        return batch


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"model": {"use_lstm": True}}, "recurrent"),
        ({"learner": {"learner_connector": lambda *a, **k: Passing()}}, "connectors"),
        ({"observations": gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (2,)))}, "observation space"),
    ],
)
def test_what_the_lean_update_does_not_know_is_left_to_rllib(arguments: Any, reason: str) -> None:
    if "observations" in arguments:
        arguments = {**arguments, "rl_module_spec": RLModuleSpec(module_class=_DictModule)}
    learner = build(ExactPPOTorchLearner, DISCRETE, **arguments)
    assert learner.fast is None
    assert reason in learner.why_not_fast


def test_a_hook_is_seen() -> None:
    learner = build(ExactPPOTorchLearner, DISCRETE)
    learner.policy_module().vf.register_forward_hook(lambda *arguments: None)
    fast = FastUpdate.of(learner)
    assert isinstance(fast, FastUpdate)
    assert (fast.gradients, fast.reason) == ("autograd", "the module has hooks")


class _DictModule(DefaultPPOTorchRLModule):
    def setup(self) -> None:
        self.encoder = self.pi = self.vf = nn.Linear(2, 3)


# -- several learners -----------------------------------------------------------------------------


SEVERAL = {
    "hand-written": {"actions": BOX, "training": {"grad_clip": 0.3}},
    "autograd": {"actions": MULTI},
}


def _rank(rank: int, directory: str) -> None:
    """Two updates of one learner of two, as RLlib's learner group calls for them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2
    )
    found: dict[str, Any] = {}
    for gradients, arguments in SEVERAL.items():
        for cls in (PPOTorchLearner, ExactPPOTorchLearner):
            learner = build(cls, learner={"num_learners": 2}, **arguments)
            for seed in (0, 1):
                chunks = episodes(learner, seed=2 * seed + rank)[rank:]
                update(learner, chunks, Settings(minibatches=6), seed=seed)
            found[f"{gradients} {cls.__name__}"] = weights(learner)
        assert learner.fast.gradients == gradients
        again = build(ExactPPOTorchLearner, learner={"num_learners": 2}, **arguments)
        found[f"{gradients} order"] = again.exact_state()["minibatch_order"]
    Path(directory, f"{rank}.pkl").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_learners_hold_the_same_weights_and_rllibs(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (tmp_path.as_posix(),), nprocs=2)
    one, other = (pickle.loads((tmp_path / f"{rank}.pkl").read_bytes()) for rank in (0, 1))
    for gradients in SEVERAL:
        assert one[f"{gradients} order"] != other[f"{gradients} order"]
        for name, weight in one[f"{gradients} ExactPPOTorchLearner"].items():
            np.testing.assert_array_equal(weight, other[f"{gradients} ExactPPOTorchLearner"][name])
            agree(weight, one[f"{gradients} PPOTorchLearner"][name])


def test_the_columns_that_torch_computes_with_are_aligned() -> None:
    """MKL promises the same sums only for arrays that are aligned to 64 bytes."""
    _, lean = pair(BOX)
    columns = [lean.fast._on_device(np.ones(size, np.float32)) for size in range(1, 40)]
    assert {column.data_ptr() % 64 for column in columns} == {0}


def test_deterministic_kernels_do_not_depend_on_a_visible_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.4")  # A build for CUDA; here is no GPU.
    torch.use_deterministic_algorithms(False)
    try:
        pair(BOX)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(True)
