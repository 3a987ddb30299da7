"""raytrain's own keys of `training` compute what Stable-Baselines3's PPO computes.

The same weights, episodes and minibatches go through the transcription of its update in
`support.sb3_update`, and through each of raytrain's ways of updating.
"""

from __future__ import annotations

import copy
import itertools
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from support.learner_pairs import (
    BOX,
    DISCRETE,
    MULTI,
    OBSERVATIONS,
    Settings,
    build,
    episodes,
    update,
    weights,
)
from support.sb3_update import Rollout, Sb3, train

from raytrain.policy.action_masks import MaskLayout
from raytrain.ppo.fast_update.advantages import advantages_and_targets
from raytrain.ppo.fast_update.minibatches import minibatch_rows
from raytrain.ppo.fast_update.train_batch import train_batch
from raytrain.ppo.learner import MODULE_ID, ExactPPOTorchLearner

MANY = Settings(minibatch_size=24, num_epochs=4)


class NotRllibsOwn(DefaultPPOTorchRLModule):
    """The default module, of a class of its own: what the hand-written pass does not touch."""


OWN = {"rl_module_spec": RLModuleSpec(module_class=NotRllibsOwn)}
WAYS: dict[str, dict[str, Any]] = {
    "hand-written": {},
    "autograd": OWN,
    "rllib": {"slow": True},
}
SPACES: dict[str, dict[str, Any]] = {
    "discrete": {"actions": DISCRETE},
    "box": {"actions": BOX},
    "free-log-std": {"actions": BOX, "model": {"free_log_std": True}},
    "shared": {"actions": DISCRETE, "model": {"vf_share_layers": True}},
}
QUICK_SPACES = [
    "discrete",
    "box",
    *(pytest.param(each, marks=pytest.mark.slow) for each in ("free-log-std", "shared")),
]
KEYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip_range_vf": {"clip_range_vf": 0.05},
    "adam": {"adam_epsilon": 1e-3, "weight_decay": 0.03},
    "target_kl": {},
    "all": {"clip_range_vf": 0.1, "weight_decay": 0.01, "ent_coef": 0.05, "clip_range": 0.1},
}
ENDS_EARLY = ("target_kl", "all")


def learner_of(given: Sb3, *, slow: bool = False, **arguments: Any) -> Any:
    """A learner with the keys that are those arguments."""
    own = {
        "adam_epsilon": given.adam_epsilon,
        "weight_decay": given.weight_decay,
        "target_kl": given.target_kl,
        "normalize_advantages": "minibatch" if given.normalize_advantage else "batch",
        "clip_range_vf": given.clip_range_vf,
    }
    training = {
        "lr": given.learning_rate,
        "clip_param": given.clip_range,
        "vf_clip_param": float("inf"),
        "vf_loss_coeff": given.vf_coef,
        "entropy_coeff": given.ent_coef,
        "grad_clip": given.max_grad_norm,
        "use_kl_loss": False,
    }
    learner = {"learner_config_dict": {"training": own}, **arguments.pop("learner", {})}
    cls = _Slow if slow else ExactPPOTorchLearner
    return build(cls, training=training, learner=learner, **arguments)


class _Slow(ExactPPOTorchLearner):
    """Updates by RLlib's own loop."""

    def build(self) -> None:
        super().build()
        self.fast, self.why_not_fast = None, "the test says so"
        self._add_old_values()


def rollout_of(learner: Any, chunks: list[Any]) -> tuple[Rollout, np.ndarray]:
    """What Stable-Baselines3 would hold for these chunks, bootstrap rows included; and the mask
    without them."""
    batch = train_batch(copy.deepcopy(chunks))
    columns = {name: torch.from_numpy(column) for name, column in batch.columns.items()}
    module = learner.module[MODULE_ID].unwrapped()
    with torch.no_grad():
        values = module.compute_values(columns)
    config = learner.config
    advantages, targets = advantages_and_targets(
        batch, values.numpy(), gamma=config.gamma, lambda_=config.lambda_, standardize=False
    )
    rollout = Rollout(
        observations=columns[Columns.OBS],
        actions=columns[Columns.ACTIONS],
        old_values=values,
        old_log_prob=columns[Columns.ACTION_LOGP],
        advantages=torch.from_numpy(advantages),
        returns=torch.from_numpy(targets),
    )
    return rollout, batch.columns[Columns.LOSS_MASK]


def its_minibatches(mask: np.ndarray, settings: Settings, *, seed: int = 11) -> list[torch.Tensor]:
    """The rows of each minibatch that the learners of `support.learner_pairs` step along."""
    rows = minibatch_rows(
        len(mask),
        settings.minibatch_size,
        epochs=settings.num_epochs,
        shuffle=settings.shuffle,
        generator=np.random.RandomState(seed),
    )
    return [torch.from_numpy(each[mask[each]]) for each in rows]


def agree(one: Any, other: Any) -> None:
    """Equal to float32 rounding, which a few dozen optimizer steps have passed on."""
    np.testing.assert_allclose(one, other, rtol=5e-4, atol=5e-6)


def reached_halfway(module: Any, rollout: Rollout, rows: list[torch.Tensor], given: Sb3) -> float:
    """A `target_kl` that an update reaches after some steps, and not by a hair."""
    found = train(copy.deepcopy(module), rollout, rows, given)
    for index in range(2, len(found)):
        before, now = max(found[:index]), found[index]
        if now > 1.02 * before:
            return (before + now) / 2 / 1.5
    raise AssertionError(f"no divergence stands out: {found}")


def compared(given: Sb3, *, ends_early: bool = False, **arguments: Any) -> tuple[Any, Any]:
    """The module of the transcription, and a learner, each after an update; and its results."""
    learner = learner_of(given, **arguments)
    chunks = episodes(learner)
    rollout, mask = rollout_of(learner, chunks)
    theirs, rows = learner.module[MODULE_ID].unwrapped(), its_minibatches(mask, MANY)
    if ends_early:
        given = replace(given, target_kl=reached_halfway(theirs, rollout, rows, given))
        learner = learner_of(given, **arguments)
    theirs = copy.deepcopy(learner.module[MODULE_ID].unwrapped())
    steps = len(train(theirs, rollout, rows, given))
    assert (steps < len(rows)) is ends_early
    results = update(learner, chunks, MANY)
    (optimizer,) = learner._named_optimizers.values()
    assert {float(state["step"]) for state in optimizer.state.values()} == {float(steps)}
    assert float(results[f"{MODULE_ID}/num_module_steps_trained"]) == steps * MANY.minibatch_size
    for name, weight in weights(learner).items():
        agree(weight, theirs.state_dict()[name].numpy())
    return learner, results


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("space", QUICK_SPACES)
@pytest.mark.parametrize("keys", KEYS)
def test_an_update_is_that_of_stable_baselines3(way: str, space: str, keys: str) -> None:
    arguments = {**SPACES[space], **WAYS[way], "ends_early": keys in ENDS_EARLY}
    learner, _ = compared(Sb3(learning_rate=3e-3, **KEYS[keys]), **arguments)
    assert (learner.fast.gradients if learner.fast else "rllib") == way


@pytest.mark.parametrize("keys", ["clip_range_vf", "all"])
def test_a_multi_discrete_update_is_that_of_stable_baselines3(keys: str) -> None:
    given = Sb3(learning_rate=3e-3, **KEYS[keys])
    compared(given, actions=MULTI, ends_early=keys in ENDS_EARLY)


@pytest.mark.parametrize("space", QUICK_SPACES)
def test_all_ways_tell_the_same(space: str) -> None:
    """The losses of the minibatch that ended the update, and its divergence."""
    told = {}
    for way, arguments in WAYS.items():
        given = Sb3(learning_rate=3e-3, **KEYS["all"])
        learner, results = compared(given, ends_early=True, **{**SPACES[space], **arguments})
        told[way] = {
            name: float(value)
            for name, value in results.items()
            if name.startswith(MODULE_ID) and "throughput" not in name
        }
        assert told[way][f"{MODULE_ID}/approx_kl"] > learner.own_training.kl_limit
    for way in ("autograd", "rllib"):
        assert told[way].keys() == told["hand-written"].keys()
        for name, value in told[way].items():
            assert value == pytest.approx(told["hand-written"][name], rel=2e-3, abs=2e-5), name


@pytest.mark.parametrize("way", WAYS)
def test_an_update_may_end_before_its_first_step(way: str) -> None:
    learner = learner_of(Sb3(target_kl=1e-6), actions=BOX, **WAYS[way])
    before = learner.weights_check()[0]
    update(learner, episodes(learner), MANY)
    assert learner.weights_check()[0] == before
    learner.own_training = replace(learner.own_training, target_kl=None)
    update(learner, episodes(learner), MANY)
    assert learner.weights_check()[0] != before


@pytest.mark.parametrize("way", ["hand-written", "rllib"])
def test_a_target_that_is_not_reached_changes_no_bit(way: str) -> None:
    found = []
    for target in (None, 1e6):
        learner = learner_of(Sb3(target_kl=target), actions=BOX, **WAYS[way])
        update(learner, episodes(learner), MANY)
        found.append(learner.weights_check()[0])
    assert found[0] == found[1]


@pytest.mark.parametrize("actions", [DISCRETE, MULTI], ids=["discrete", "multi"])
def test_action_masks_have_their_part_in_the_divergence(actions: Any) -> None:
    ways = {way: each for way, each in WAYS.items() if actions is DISCRETE or way != "hand-written"}
    given = Sb3(learning_rate=1e-2, target_kl=1e6, **KEYS["all"])
    found: dict[str, Any] = {}
    for way, arguments in ways.items():
        learner = learner_of(given, actions=actions, **arguments)
        chunks = episodes(learner, mask=MaskLayout(actions))
        results = update(learner, chunks, MANY)
        (optimizer,) = learner._named_optimizers.values()
        steps = {float(state["step"]) for state in optimizer.state.values()}
        found[way] = weights(learner), float(results[f"{MODULE_ID}/approx_kl"]), steps
    (expected, kl, steps), *others = found.values()
    for each, other_kl, other_steps in others:
        assert other_kl == pytest.approx(kl, rel=1e-3) and other_steps == steps
        for name, weight in expected.items():
            agree(weight, each[name])


# -- clip ranges that follow a schedule ----------------------------------------------------------

SCHEDULES = {
    "clip_param": [[0, 0.3], [400, 0.1]],
    "clip_range_vf": [[0, 0.02], [400, 0.004]],
    "normalize_advantages": "minibatch",
    "target_kl": 5.0,
    "weight_decay": 0.01,
}


def scheduled(way: str) -> Any:
    arguments = dict(WAYS[way])
    cls = _Slow if arguments.pop("slow", False) else ExactPPOTorchLearner
    return build(cls, BOX, learner={"learner_config_dict": {"training": SCHEDULES}}, **arguments)


@pytest.mark.parametrize("way", WAYS)
def test_a_clip_range_is_that_of_the_timesteps_before_the_update(way: str) -> None:
    learner = scheduled(way)
    chunks = episodes(learner)
    assert (learner.clip("clip_param"), learner.clip("clip_range_vf")) == pytest.approx((0.3, 0.02))
    update(learner, chunks, MANY)  # It tells of 100 timesteps.
    assert (learner.clip("clip_param"), learner.clip("clip_range_vf")) == pytest.approx(
        (0.25, 0.016)
    )
    fixed = {**SCHEDULES, "clip_param": 0.25, "clip_range_vf": 0.016}
    config = learner.config.copy(copy_frozen=False)
    config.learners(learner_config_dict={"training": fixed})
    other = scheduled(way)
    update(other, chunks, MANY)
    other.use_settings(config, timesteps=100, kl_coeff=None)
    update(learner, chunks, MANY)
    update(other, chunks, MANY)
    # The scheduler's value is a float32.
    for name, weight in weights(learner).items():
        np.testing.assert_allclose(weight, weights(other)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_restored_learner_goes_on_as_the_saved_one(way: str) -> None:
    learner, again = scheduled(way), scheduled(way)
    chunks = episodes(learner)
    trained(learner, chunks)
    saved = pickle.dumps((learner.get_state(), learner.exact_state()))
    expected = trained(learner, chunks)

    def goes_on(without: str = "") -> str:
        state, exact = pickle.loads(saved)
        exact["schedules"].pop(without, None)
        again._use_own_training(timesteps=0)
        again.set_state({**state, "weights_seq_no": 0})
        again.load_exact_state(exact)
        return trained(again, chunks)

    assert goes_on() == expected
    # The present clip ranges are a part of that.
    assert goes_on(without="clip_param") != expected
    assert goes_on(without="clip_range_vf") != expected


def trained(learner: Any, chunks: list[Any]) -> str:
    learner.update(
        episodes=copy.deepcopy(chunks),
        timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 100},
        num_epochs=4,
        minibatch_size=24,
        shuffle_batch_per_epoch=True,
    )
    digest: str = learner.weights_check()[0]
    return digest


def test_a_stage_or_a_fork_sets_epsilon_and_weight_decay() -> None:
    learner = scheduled("hand-written")
    config = learner.config.copy(copy_frozen=False)
    given = {"adam_epsilon": 1e-3, "weight_decay": 0.5}
    config.learners(learner_config_dict={"training": given})
    learner.use_settings(config, timesteps=0, kl_coeff=None)
    (optimizer,) = learner._named_optimizers.values()
    (group,) = optimizer.param_groups
    assert (group["eps"], group["weight_decay"]) == (1e-3, 0.5)
    assert learner.clip("clip_range_vf") is None and learner.own_training.kl_limit is None


# -- initial weights -----------------------------------------------------------------------------

GAINS = {"hidden": 2**0.5, "policy_head": 0.01, "value_head": 1.0}


def test_initial_weights_are_orthogonal_with_gains() -> None:
    model = {"free_log_std": True, "head_fcnet_hiddens": [6]}
    learner = build(
        ExactPPOTorchLearner,
        BOX,
        model=model,
        learner={"learner_config_dict": {"orthogonal_init": GAINS, "log_std_init": -1.0}},
    )
    found = {}
    for name, value in learner.policy_module().named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name
        elif name.endswith("weight"):
            small = value if value.shape[0] <= value.shape[1] else value.T
            product = (small @ small.T).detach().numpy()
            gain = float(product[0, 0]) ** 0.5
            np.testing.assert_allclose(product, gain**2 * np.eye(len(product)), atol=1e-5)
            found[name] = gain
    heads = {"pi.net.mlp.2.weight": 0.01, "vf.net.mlp.2.weight": 1.0}
    assert heads.keys() < found.keys()
    assert found == pytest.approx({name: heads.get(name, 2**0.5) for name in found}, rel=1e-4)
    assert learner.policy_module().pi.log_std.tolist() == [-1.0, -1.0]


def test_initial_weights_are_drawn_from_the_seed_alone() -> None:
    digests = []
    for seed, disturbance in ((3, 1), (3, 2), (4, 1)):
        config = build(ExactPPOTorchLearner, DISCRETE).config.copy(copy_frozen=False)
        config.debugging(seed=seed)
        config.learners(learner_config_dict={"orthogonal_init": GAINS})
        torch.manual_seed(disturbance)
        spaces = {MODULE_ID: (OBSERVATIONS, DISCRETE)}
        digests.append(config.build_learner(spaces=spaces).weights_check()[0])
    assert digests[0] == digests[1] != digests[2]


# -- several learners ----------------------------------------------------------------------------


TOGETHER = 0.36


def _rank(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2
    )
    found: dict[str, Any] = {}
    for way, arguments in WAYS.items():
        given = Sb3(learning_rate=1e-2, target_kl=TOGETHER, clip_range_vf=0.1)
        learner = learner_of(given, actions=BOX, learner={"num_learners": 2}, **arguments)
        for seed in (0, 1):
            # The first has chunks that diverge less.
            chunks = episodes(learner, seed=2 * seed + rank)[rank:]
            results = update(learner, chunks, Settings(minibatches=12), seed=seed)
        (optimizer,) = learner._named_optimizers.values()
        found[way] = (
            weights(learner),
            {float(state["step"]) for state in optimizer.state.values()},
            float(results[f"{MODULE_ID}/approx_kl"]),
        )
    Path(directory, f"{rank}.pkl").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_learners_end_an_update_together(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (tmp_path.as_posix(),), nprocs=2)
    one, other = (pickle.loads((tmp_path / f"{rank}.pkl").read_bytes()) for rank in (0, 1))
    for way in WAYS:
        (weights_one, steps, kl), (weights_other, *told) = one[way], other[way]
        assert told == [steps, kl] and kl > 1.5 * TOGETHER and 0 < max(steps) < 24, (steps, kl)
        assert steps == one["hand-written"][1]
        for name, weight in weights_one.items():
            np.testing.assert_array_equal(weight, weights_other[name])
            agree(weight, one["hand-written"][0][name])


# -- Stable-Baselines3 itself --------------------------------------------------------------------


def test_it_is_the_update_of_stable_baselines3_itself() -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason="needs the extra bench")
    given = Sb3(learning_rate=3e-3, clip_range_vf=0.1, ent_coef=0.02, weight_decay=0.01)
    learner = learner_of(given, actions=DISCRETE)
    chunks = episodes(learner)
    rollout, mask = rollout_of(learner, chunks)
    rows, epochs = int(mask.sum()), 6

    class Env(gym.Env[Any, Any]):
        observation_space, action_space = chunks[0].observation_space, DISCRETE

    model = sb3.PPO(
        "MlpPolicy",
        Env(),
        n_steps=rows,
        batch_size=rows,
        n_epochs=epochs,
        learning_rate=given.learning_rate,
        clip_range=given.clip_range,
        clip_range_vf=given.clip_range_vf,
        ent_coef=given.ent_coef,
        policy_kwargs={
            "net_arch": [16, 8],
            "optimizer_kwargs": {"eps": given.adam_epsilon, "weight_decay": given.weight_decay},
        },
    )
    model.set_logger(sb3.common.logger.Logger(None, []))
    ours = learner.module[MODULE_ID].unwrapped().state_dict()
    model.policy.load_state_dict(
        {theirs: ours[f"{mine}.{kind}"] for theirs, mine, kind in _same_parameters()}
    )
    buffer = model.rollout_buffer
    for name, value in vars(rollout).items():
        held = "log_probs" if name == "old_log_prob" else name.removeprefix("old_")
        array = getattr(buffer, held)
        array[:] = value[torch.from_numpy(mask)].numpy().reshape(array.shape)
    buffer.full = True
    model.train()

    whole = Settings(minibatch_size=len(mask), num_epochs=epochs, shuffle=False)
    update(learner, chunks, whole)
    for theirs, mine, kind in _same_parameters():
        agree(weights(learner)[f"{mine}.{kind}"], model.policy.state_dict()[theirs].numpy())


def _same_parameters() -> list[tuple[str, str, str]]:
    """Names in Stable-Baselines3's policy and in RLlib's module."""
    layers = {"action_net": "pi.net.mlp.0", "value_net": "vf.net.mlp.0"}
    for index in (0, 2):
        layers[f"mlp_extractor.policy_net.{index}"] = f"encoder.actor_encoder.net.mlp.{index}"
        layers[f"mlp_extractor.value_net.{index}"] = f"encoder.critic_encoder.net.mlp.{index}"
    return [
        (f"{theirs}.{kind}", mine, kind)
        for (theirs, mine), kind in itertools.product(layers.items(), ("weight", "bias"))
    ]
