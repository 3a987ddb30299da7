"""A policy read from its files acts as RLlib's own env runner did: the same bits.

Small PPO algorithms are trained for one iteration; their env runner then plays, and what reaches
the environments is recorded. A fresh process, in which nothing can be unpickled and Ray is not
running, loads each policy and has to give the recorded actions for the recorded observations.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import safetensors.torch
import torch
import tree
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter
from support import own_ray

from raytrain.checkpoint.digest import weights_sha256
from raytrain.checkpoint.manifest import FileEntry, Manifest, ManifestError
from raytrain.errors import BadInput
from raytrain.policy.evaluate import evaluate
from raytrain.policy.export import export_policy
from raytrain.policy.format import (
    MeanStdStep,
    PolicyNotFound,
    PolicyParts,
    read_policy,
    write_policy,
)
from raytrain.policy.from_algorithm import policy_parts
from raytrain.policy.onnx import input_names, write_onnx
from raytrain.policy.policy import ObservationError, load_policy
from raytrain.policy.spaces import (
    PolicyFormatError,
    decode_array,
    decode_settings,
    decode_space,
    encode_array,
    encode_settings,
    encode_space,
)

STEPS = 48


class Noise(gym.Env):
    """Random observations of any space; episodes of 3 to 12 steps."""

    def __init__(self, config: Any) -> None:
        self.observation_space = config["observation_space"]
        self.action_space = config["action_space"]

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._left = int(self.np_random.integers(3, 13))
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self._left -= 1
        reward = float(self.np_random.normal())
        return self.observation_space.sample(), reward, self._left == 0, False, {}


class Recorder(gym.Wrapper):
    """Writes down what the environment was sent and what it answered."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.events: list[Any] = []

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        self.events.append((None, observation))
        return observation, info

    def step(self, action: Any) -> Any:
        observation, *rest = self.env.step(action)
        self.events.append((action, observation))
        return observation, *rest


def noise(observation_space: Any, action_space: Any) -> Any:
    return Noise({"observation_space": observation_space, "action_space": action_space})


UNIT = Box(-1.0, 1.0, (3,), np.float32)
MIXED_OBSERVATION = Dict(
    {
        "position": Box(-2.0, 5.0, (2, 2), np.float64),
        "colour": Discrete(3),
        "flags": MultiBinary(2),
        "pair": Tuple((MultiDiscrete([2, 3]), Box(0.0, 1.0, (), np.float32))),
    }
)
PLAIN = {"fcnet_hiddens": [8]}
UNEVEN = Box(np.array([-3.0, 0.5], np.float32), np.array([-1.0, 9.0], np.float32))

# name: (environment, number of environments, model_config, connectors, other env runner settings)
CASES = {
    "discrete": (partial(gym.make, "CartPole-v1"), 3, PLAIN, None, {}),
    "unsquash": (partial(noise, UNIT, UNEVEN), 3, {**PLAIN, "vf_share_layers": False}, None, {}),
    "clip": (
        partial(gym.make, "Pendulum-v1"),
        2,
        {**PLAIN, "free_log_std": True},
        None,
        {"normalize_actions": False, "clip_actions": True},
    ),
    "filter": (partial(gym.make, "Pendulum-v1"), 1, PLAIN, lambda *_, **__: MeanStdFilter(), {}),
    "lstm": (
        partial(noise, UNIT, UNEVEN),
        3,
        {**PLAIN, "use_lstm": True, "lstm_cell_size": 6, "max_seq_len": 5},
        None,
        {},
    ),
    "one_hot": (
        partial(gym.make, "FrozenLake-v1"),
        1,
        PLAIN,
        lambda *_, **__: FlattenObservations(),
        {},
    ),
    "mixed": (
        partial(noise, MIXED_OBSERVATION, MultiDiscrete([2, 5, 3])),
        2,
        PLAIN,
        lambda *_, **__: [FlattenObservations(), MeanStdFilter(clip_by_value=1.5)],
        {},
    ),
    "composite": (
        partial(noise, MultiDiscrete([2, 4]), Dict({"go": Discrete(2), "how": UNEVEN})),
        2,
        PLAIN,
        lambda *_, **__: FlattenObservations(),
        {},
    ),
    "image": (
        partial(noise, Box(0.0, 1.0, (8, 8, 3), np.float32), UNEVEN),
        1,
        {"conv_filters": [(4, 4, 2), (8, 4, 2)], "head_fcnet_hiddens": [8]},
        None,
        {},
    ),
}


def build(name: Any, **overrides: Any) -> Any:
    make_env, num_envs, model_config, connectors, actions = CASES[name]
    tune.register_env(f"policy-{name}", lambda _: Recorder(make_env()))
    settings = {
        "num_env_runners": 0,
        "num_envs_per_env_runner": num_envs,
        "env_to_module_connector": connectors,
        **overrides,
    }
    return (
        PPOConfig()
        .environment(f"policy-{name}", **actions)
        .env_runners(**settings)
        .training(train_batch_size=64, minibatch_size=32, num_epochs=1, lr=0.01)
        .rl_module(model_config=model_config)
        .debugging(seed=3)
        .build_algo()
    )


def play(algo: Any, explore: Any) -> Any:
    """Arrays of a rollout of the algorithm's env runner; leaf arrays are of shape (time, env, ...).

    Each vector step is one event of each environment: a step, or the reset that follows an end.
    """
    played = [env.get_wrapper_attr("events") for env in algo.env_runner.env.unwrapped.envs]
    for events in played:
        events.clear()
    torch.manual_seed(7)
    algo.env_runner.sample(num_timesteps=STEPS, explore=explore, force_reset=True)
    assert len({len(events) for events in played}) == 1
    steps = range(1, len(played[0]))
    stepped = np.array([[events[t][0] is not None for events in played] for t in steps])
    no_action = tree.map_structure(np.zeros_like, algo.env_runner.env.single_action_space.sample())
    rows = {
        "obs": [[events[t - 1][1] for events in played] for t in steps],
        "act": [
            [no_action if events[t][0] is None else events[t][0] for events in played]
            for t in steps
        ],
    }
    arrays = {"stepped": stepped}
    for key, table in rows.items():
        leaves = [[tree.flatten(item) for item in row] for row in table]
        for i in range(len(leaves[0][0])):
            arrays[f"{key}{i}"] = np.array([[item[i] for item in row] for row in leaves])
    return arrays


def freeze_filters(algo: Any) -> None:
    """An env runner goes on updating its statistics as it plays; the policy keeps them as saved."""
    for _, component in algo.env_runner.get_checkpointable_components():
        for piece in getattr(component, "connectors", ()):
            if isinstance(piece, MeanStdFilter):
                piece._update_stats = False


@pytest.fixture(scope="module")
def ray_session() -> Iterator[Any]:
    own_ray.start(2, forked=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def trained(ray_session: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """{name: directory} of the policies, each with the recorded rollouts beside its files."""
    directories = {}
    for name in CASES:
        algo = build(name)
        before = policy_parts(algo)
        untrained = weights_sha256(before.module_state)
        algo.train()
        freeze_filters(algo)
        directory = tmp_path_factory.mktemp(name)
        digest = write_policy(directory, policy_parts(algo), metadata={"iteration": 1})
        module = algo.learner_group.foreach_learner(lambda learner: learner.module)
        (module,) = [result.get() for result in module]
        assert digest == weights_sha256(module["default_policy"].state_dict())
        # Parts are copies: training on has not changed them.
        assert weights_sha256(before.module_state) == untrained != digest
        for explore in (False, True):
            np.savez(directory / f"{explore}.npz", **play(algo, explore))
        directories[name] = directory
        algo.stop()
    return directories


FRESH_PROCESS = """
import json, pickle, sys
import cloudpickle, numpy as np, ray, ray.cloudpickle, torch, tree
from raytrain.policy.arithmetic import base_struct
from raytrain.policy.policy import load_policy

def refuse(*args, **kwargs):
    raise AssertionError("unpickled")

for module in (pickle, cloudpickle, ray.cloudpickle, torch):
    for name in ("load", "loads", "Unpickler"):
        if hasattr(module, name):
            setattr(module, name, refuse)
pickle._Unpickler.load = refuse

def audit(event, args):
    # Raised by every unpickler, the one in C included, that looks for a class.
    if event == "pickle.find_class":
        refuse()

sys.addaudithook(audit)

def leaves(arrays, key, t):
    names = sorted(name for name in arrays.files if name.startswith(key))
    struct = {"obs": policy._observation_struct, "act": base_struct(policy.action_space)}[key]
    return tree.unflatten_as(struct, [arrays[name][t] for name in names])

report = {}
for directory in sys.argv[1:]:
    for explore in (False, True):
        policy = load_policy(directory, seed=7)
        arrays = np.load(f"{directory}/{explore}.npz", allow_pickle=False)
        stepped = arrays["stepped"]
        compared = 0
        wrong = []
        for t in range(len(stepped)):
            obs, want = leaves(arrays, "obs", t), leaves(arrays, "act", t)
            if stepped.shape[1] == 1:
                got = policy.act(tree.map_structure(lambda x: x[0], obs), not explore)
                got = tree.map_structure(lambda x: np.asarray(x)[None], got)
            else:
                got = policy.act(obs, deterministic=not explore)
            policy.reset(~stepped[t])
            for a, b in zip(tree.flatten(got), tree.flatten(want), strict=True):
                a = np.asarray(a)
                assert a.dtype.kind == b.dtype.kind and (a.dtype.kind == "i" or a.dtype == b.dtype)
                a = a.astype(b.dtype)
                compared += 1
                if a[stepped[t]].tobytes() != b[stepped[t]].tobytes():
                    wrong.append(t)
        report[f"{directory} {explore}"] = {"compared": compared, "wrong": wrong}
assert not ray.is_initialized()
print(json.dumps(report))
"""


def actions_are_those_recorded(program: Any, directories: Any) -> None:
    """`program` compares, for each of the directories, with and without sampling."""
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, directories.values())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert len(report) == 2 * len(CASES)
    assert all(entry["compared"] >= STEPS // 3 for entry in report.values())
    assert {key: entry["wrong"] for key, entry in report.items() if entry["wrong"]} == {}


def test_a_fresh_process_gives_the_actions_that_training_sent(trained: Any) -> None:
    """Batches and single observations, mode and sample, for every case; Ray is not started."""
    actions_are_those_recorded(FRESH_PROCESS, trained)


def test_the_recorded_rollouts_can_tell_policies_apart(trained: Any) -> None:
    """States, filters and bounds matter in these rollouts: without them the actions differ."""
    forgetful = load_policy(trained["lstm"])
    arrays = np.load(trained["lstm"] / "False.npz")
    forgetful.act(arrays["obs0"][0])
    second = forgetful.act(arrays["obs0"][1])
    forgetful.reset()
    assert second.tobytes() != forgetful.act(arrays["obs0"][1]).tobytes()
    assert not arrays["stepped"].all()
    assert arrays["act0"].min() >= -3.0 and np.unique(arrays["act0"]).size > STEPS
    clipped = np.load(trained["clip"] / "True.npz")["act0"]
    filtered, _ = read_policy(trained["filter"])
    assert isinstance(filtered.preprocessing[0], MeanStdStep)
    assert filtered.preprocessing[0].count >= 64
    assert np.abs(clipped).max() <= 2.0


def test_sampling_has_its_own_generator(trained: Any) -> None:
    policy = load_policy(trained["discrete"], seed=5)
    observations = np.load(trained["discrete"] / "False.npz")["obs0"].reshape(-1, 4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = policy.act(observations, deterministic=False)
    second = policy.act(observations, deterministic=False)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    policy.seed(5)
    np.testing.assert_array_equal(policy.act(observations, deterministic=False), first)
    np.testing.assert_array_equal(policy.act(observations, deterministic=False), second)
    assert (first != second).any()
    load_policy(trained["discrete"])
    torch.manual_seed(1)
    assert torch.equal(before, torch.get_rng_state())


def test_one_observation_or_a_batch(trained: Any) -> None:
    discrete = load_policy(trained["discrete"])
    assert type(discrete.act(np.zeros(4, np.float32))) is int
    assert type(discrete.act([0.0, 0.1, 0.0, 0.0])) is int
    assert discrete.act(np.zeros((1, 4))).shape == (1,)
    one_hot = load_policy(trained["one_hot"])
    assert type(one_hot.act(3)) is int
    assert one_hot.act(np.array([3, 5])).shape == (2,)
    image = load_policy(trained["image"])
    pixels = np.zeros((8, 8, 3), np.float32)
    assert image.act(pixels).shape == (2,)
    assert image.act(pixels[None]).shape == (1, 2)
    mixed = load_policy(trained["mixed"])
    samples = [MIXED_OBSERVATION.sample() for _ in range(2)]
    batched = gym.vector.utils.concatenate(
        MIXED_OBSERVATION,
        samples,
        gym.vector.utils.create_empty_array(MIXED_OBSERVATION, 2),
    )
    assert mixed.act(samples[0]).shape == (3,)
    assert mixed.act(samples).tobytes() == mixed.act(batched).tobytes()
    composite = load_policy(trained["composite"])
    action = composite.act(np.array([1, 2]))
    assert type(action["go"]) is int and action["how"].shape == (2,)


def test_reset_of_some_episodes(trained: Any) -> None:
    policy = load_policy(trained["lstm"])
    observations = np.load(trained["lstm"] / "False.npz")["obs0"][0]
    fresh = policy.act(observations)
    policy.act(observations)
    policy.reset([True, False, True])
    mixed = policy.act(observations)
    assert mixed[[0, 2]].tobytes() == fresh[[0, 2]].tobytes()
    assert mixed[1].tobytes() != fresh[1].tobytes()
    with pytest.raises(BadInput, match="mask of shape"):
        policy.reset([True])
    with pytest.raises(ObservationError, match="keeps the recurrent state of 3 episodes"):
        policy.act(observations[:2])


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(5, np.float32), r"shape \(5,\): expected \(4,\) for one .* \(N, 4,\)"),
        (np.zeros((2, 3, 4), np.float32), r"shape \(2, 3, 4\)"),
        (np.zeros((0, 4), np.float32), "empty"),
        (np.zeros(4, np.complex64), "dtype complex64"),
        ([[1.0], [2.0, 3.0]], "not an array"),
    ],
)
def test_wrong_observations(trained: Any, observation: Any, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        load_policy(trained["discrete"]).act(observation)


def test_wrong_composite_observations(trained: Any) -> None:
    policy = load_policy(trained["mixed"])
    sample = MIXED_OBSERVATION.sample()
    with pytest.raises(ObservationError, match=r"no part \('colour',\)"):
        policy.act({key: value for key, value in sample.items() if key != "colour"})
    with pytest.raises(ObservationError, match="different sizes"):
        policy.act({**sample, "colour": np.array([0, 1])})


def test_evaluate_depends_on_the_seed_alone(trained: Any) -> None:
    policy = load_policy(trained["discrete"], seed=99)
    make_env = partial(gym.make, "CartPole-v1")
    for deterministic in (True, False):
        first = evaluate(policy, make_env, episodes=4, seed=10, deterministic=deterministic)
        torch.manual_seed(0)
        np.random.seed(0)
        policy.act(np.zeros(4), deterministic=False)
        again = evaluate(policy, make_env, episodes=4, seed=10, deterministic=deterministic)
        assert first == again
        later = evaluate(policy, make_env, episodes=2, seed=12, deterministic=deterministic)
        assert later.returns == first.returns[2:]
    assert len(set(first.returns)) > 1
    plain = json.loads(json.dumps(first.to_dict()))
    assert plain["episodes"] == 4
    assert plain["returns"] == list(first.returns) == [float(n) for n in first.lengths]
    assert plain["episode_return_mean"] == sum(first.returns) / 4
    assert plain["episode_return_std"] == pytest.approx(np.std(first.returns), rel=1e-12)
    assert (plain["episode_len_min"], plain["episode_len_max"]) == (
        min(first.lengths),
        max(first.lengths),
    )


def test_evaluate_limits_and_refusals(trained: Any) -> None:
    policy = load_policy(trained["discrete"])
    cut = evaluate(policy, partial(gym.make, "CartPole-v1"), episodes=2, seed=0, max_steps=3)
    assert cut.lengths == (3, 3)
    with pytest.raises(BadInput, match="observation space"):
        evaluate(policy, partial(gym.make, "Pendulum-v1"), episodes=1, seed=0)
    with pytest.raises(BadInput, match="episodes is 0"):
        evaluate(policy, partial(gym.make, "CartPole-v1"), episodes=0, seed=0)


def commit(directory: Any) -> Any:
    """A manifest as a checkpoint's commit writes it, over the files that are there."""
    files = tuple(
        FileEntry(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(directory.iterdir())
    )
    tensors = safetensors.torch.load_file(directory / "policy.safetensors")
    manifest = Manifest(
        kind="periodic",
        experiment="e",
        trial_id="t",
        run_id="r",
        attempt=1,
        iteration=1,
        timesteps=64,
        episodes=1,
        stage=None,
        score=None,
        metrics={},
        config_digest="0" * 64,
        weights_sha256=weights_sha256(tensors),
        parent=None,
        exact=True,
        exact_lost=None,
        snapshot_strategy=None,
        versions={},
        created_at="2026-01-01T00:00:00+00:00",
        files=files,
    )
    (directory / "manifest.json").write_bytes(manifest.to_json())
    return manifest


@pytest.fixture
def checkpoint(trained: Any, tmp_path: Path) -> Any:
    for name in ("policy.json", "policy.safetensors"):
        shutil.copy(trained["discrete"] / name, tmp_path)
    commit(tmp_path)
    return tmp_path


def flip_byte(path: Any, position: Any) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)


def test_damage_is_found_and_named(checkpoint: Any) -> None:
    assert load_policy(checkpoint).metadata == {"iteration": 1}
    for name in ("policy.json", "policy.safetensors"):
        path = checkpoint / name
        good = path.read_bytes()
        flip_byte(path, len(good) - 3)
        with pytest.raises(PolicyFormatError, match=f"{name} is damaged: SHA-256"):
            load_policy(checkpoint)
        path.write_bytes(good[:-1])
        with pytest.raises(PolicyFormatError, match=f"{name} is damaged: {len(good) - 1} bytes"):
            load_policy(checkpoint)
        path.write_bytes(good)
    manifest = Manifest.from_json((checkpoint / "manifest.json").read_bytes(), "it")
    for changed, message in (
        (replace(manifest, weights_sha256="0" * 64), "manifest.json beside it says 000"),
        (replace(manifest, files=manifest.files[:1]), "policy.safetensors is not listed"),
    ):
        (checkpoint / "manifest.json").write_bytes(changed.to_json())
        with pytest.raises(PolicyFormatError, match=message):
            load_policy(checkpoint)
    (checkpoint / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        load_policy(checkpoint)


def test_damage_without_a_manifest_is_found(checkpoint: Any) -> None:
    (checkpoint / "manifest.json").unlink()
    weights = checkpoint / "policy.safetensors"
    good = weights.read_bytes()
    flip_byte(weights, len(good) - 3)
    with pytest.raises(PolicyFormatError, match=r"safetensors holds the weights .* policy\.json"):
        load_policy(checkpoint)
    weights.write_bytes(good[:40])
    with pytest.raises(PolicyFormatError, match=r"policy\.safetensors is damaged"):
        load_policy(checkpoint)
    weights.write_bytes(good)
    document = json.loads((checkpoint / "policy.json").read_text())
    for key, value, message in (
        ("format", 3, "format 3"),
        ("module", {**document["module"], "class": "gone.away:Net"}, "gone.away:Net"),
        ("module", {**document["module"], "class": "os:getcwd"}, "os:getcwd is not a RLModule"),
        ("module", {**document["module"], "model_config": {"fcnet_hiddens": [9]}}, "do not fit"),
        ("actions", {}, "not a policy description"),
        ("preprocessing", [{"step": "blur"}], "blur"),
    ):
        (checkpoint / "policy.json").write_text(json.dumps({**document, key: value}))
        with pytest.raises(PolicyFormatError, match=message):
            load_policy(checkpoint)
    (checkpoint / "policy.json").write_text("nonsense")
    with pytest.raises(PolicyFormatError, match=r"policy\.json is damaged"):
        load_policy(checkpoint)
    (checkpoint / "policy.json").unlink()
    with pytest.raises(PolicyNotFound, match=r"it has no policy\.json"):
        load_policy(checkpoint)


def parts_with(**changes: Any) -> Any:
    parts = PolicyParts(
        module_state={"w": torch.zeros(2)},
        observation_space=UNIT,
        action_space=Discrete(2),
        module_observation_space=UNIT,
        module_class="a:B",
        catalog_class=None,
        model_config={},
        normalize_actions=True,
        clip_actions=False,
    )
    return replace(parts, **changes)


def test_tensors_of_every_kind_keep_their_bits(tmp_path: Path) -> None:
    shared = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    state = {
        "scalar": torch.tensor(3),
        "numpy_scalar": np.array(2.5, np.float32),
        "shared": shared,
        "view": shared[:1],
        "transposed": shared.T,
        "half": torch.ones(2, dtype=torch.bfloat16) / 3,
        "flag": torch.tensor([True, False]),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": torch.zeros(0, 4),
    }
    digest = write_policy(tmp_path, parts_with(module_state=state), metadata={})
    assert digest == weights_sha256(state)
    assert digest == weights_sha256(safetensors.torch.load_file(tmp_path / "policy.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation_space": gym.spaces.Text(4)}, "observation space is Text"),
        ({"action_space": Tuple((UNIT, gym.spaces.Sequence(UNIT)))}, r"action space\[1\] is Seq"),
        ({"observation_space": Dict([(1, UNIT)])}, "keys are strings"),
        ({"model_config": {"a": {"b": print}}}, r"model_config\.a\.b is <built-in"),
        ({"module_state": {"_extra_state": [1]}}, "'_extra_state' is a list"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_no_file(
    tmp_path: Path, changes: Any, message: str
) -> None:
    with pytest.raises(PolicyFormatError, match=message):
        write_policy(tmp_path, parts_with(**changes), metadata={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "space",
    [
        Box(np.array([-4.8, -np.inf], np.float32), np.array([4.8, np.inf], np.float32)),
        Box(0, 255, (2, 3, 1), np.uint8),
        Box(-np.inf, np.inf, (), np.float64),
        Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
        Discrete(4, start=-2),
        MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]]),
        MultiBinary(3),
        MultiBinary([2, 3]),
        MIXED_OBSERVATION,
        Dict([("z", UNIT), ("a", Discrete(2))]),
    ],
    ids=str,
)
def test_spaces_come_back(space: Any) -> None:
    plain = json.loads(json.dumps(encode_space(space), allow_nan=False))
    back = decode_space(plain)
    assert back == space
    for ours, theirs in zip(_leaf_spaces(back), _leaf_spaces(space), strict=True):
        assert ours.dtype == theirs.dtype
        if isinstance(theirs, Box):
            assert ours.low.tobytes() == theirs.low.tobytes()
            assert ours.high.tobytes() == theirs.high.tobytes()
    if isinstance(space, Dict):
        assert list(back) == list(space)


def _leaf_spaces(space: Any) -> Any:
    if isinstance(space, Dict):
        return [leaf for sub in space.values() for leaf in _leaf_spaces(sub)]
    if isinstance(space, Tuple):
        return [leaf for sub in space for leaf in _leaf_spaces(sub)]
    return [space]


def test_arrays_and_settings_come_back() -> None:
    for array in (
        np.array([0.1, -0.0, 0.0, np.nan, np.inf, 5e-324]),
        np.array([1e-45, 3.4e38], np.float32).reshape(2, 1),
        np.array([2**63, 2**64 - 1], np.uint64),
        np.full((200, 300), -0.0),
        np.zeros((0, 2)),
    ):
        back = decode_array(json.loads(json.dumps(encode_array(array), allow_nan=False)))
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.tobytes() == array.tobytes()
    settings = {"conv_filters": [(16, (4, 4), 2)], "log_std_clip_param": float("inf"), "x": None}
    plain = json.loads(json.dumps(encode_settings(settings, "s"), allow_nan=False))
    assert decode_settings(plain) == settings


class Doubled(ConnectorV2):
    """A connector of a user's own."""

    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        return batch


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("env_to_module_connector", "the env-to-module connector Doubled cannot be exported"),
        ("module_to_env_connector", "the module-to-env connectors are .*Doubled"),
    ],
)
def test_a_connector_that_cannot_be_repeated_is_refused(
    ray_session: Any, setting: str, message: str
) -> None:
    algo = build("discrete", **{setting: lambda *_, **__: Doubled()})
    try:
        with pytest.raises(PolicyFormatError, match=message):
            policy_parts(algo)
    finally:
        algo.stop()


WITHOUT_STATE = [name for name in CASES if name != "lstm"]

WITHOUT_RAY = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Refuse())
""" + FRESH_PROCESS.replace("ray, ray.cloudpickle, ", "").replace("ray.cloudpickle, ", "").replace(
    "assert not ray.is_initialized()",
    "assert not [name for name in sys.modules if name.split('.')[0] == 'ray']",
)


@pytest.fixture(scope="module")
def exported(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """{name: directory} of the exported policies, with TorchScript, and the
    rollouts beside them."""
    directories = {}
    for name, directory in trained.items():
        place = tmp_path_factory.mktemp(f"exported-{name}")
        source = place / "checkpoint_000001"
        source.mkdir()
        for file in ("policy.json", "policy.safetensors"):
            shutil.copy(directory / file, source)
        commit(source)
        done = export_policy(str(source), str(place / "policy"), torchscript=name != "lstm")
        assert done.needs_ray is None
        for explore in (False, True):
            shutil.copy(directory / f"{explore}.npz", place / "policy")
        directories[name] = place / "policy"
    return directories


def test_exported_policies_give_the_actions_that_training_sent_without_ray(exported: Any) -> None:
    """As above, but with RLlib out of reach."""
    actions_are_those_recorded(WITHOUT_RAY, exported)


def recorded(directory: Any) -> Any:
    """Observations (a batch for each leaf of the space) and the actions that they
    were answered with."""
    arrays = np.load(directory / "False.npz")
    stepped = arrays["stepped"]
    return tuple(
        [arrays[key][stepped] for key in sorted(arrays.files) if key.startswith(kind)]
        for kind in ("obs", "act")
    )


@pytest.mark.parametrize("name", WITHOUT_STATE)
def test_torchscript_gives_the_actions_that_training_sent(exported: Any, name: Any) -> None:
    """In another batch size, so only to rounding."""
    given, expected = recorded(exported[name])
    with torch.no_grad():
        actions = torch.jit.load(str(exported[name] / "policy.pt"))(*map(torch.from_numpy, given))
    for ours, theirs in zip(actions, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("filter", "mixed") else pytest.mark.slow)
        for name in WITHOUT_STATE
    ],
)
def test_onnx_gives_the_actions_that_training_sent(
    exported: Any, name: Any, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    parts, _ = read_policy(exported[name])
    assert write_onnx(parts, tmp_path / "policy.onnx") <= 1e-5
    given, expected = recorded(exported[name])
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"))
    names = [each.name for each in session.get_inputs()]
    assert names == input_names(parts.observation_space, "observation")
    actions = session.run(None, dict(zip(names, given, strict=True)))
    for ours, theirs in zip(actions, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_recurrent_policy_is_not_written_as_onnx(
    exported: Any, trained: Any, tmp_path: Path
) -> None:
    source = exported["lstm"].parent / "checkpoint_000001"
    for wanted in ("onnx", "torchscript"):
        with pytest.raises(PolicyFormatError, match="it keeps a state"):
            export_policy(str(source), str(tmp_path / "out"), **{wanted: True})
    assert not (tmp_path / "out").exists()


def test_a_network_that_is_described_wrongly_is_found(exported: Any) -> None:
    directory = exported["discrete"]
    document = json.loads((directory / "policy.json").read_text())
    for layers, message in (
        ([{"layer": "maxout"}], "a layer 'maxout'"),
        ([{"layer": "linear", "tensors": "gone"}], "names the weights 'gone.weight'"),
    ):
        changed = directory.parent / "changed"
        shutil.copytree(directory, changed, dirs_exist_ok=True)
        (changed / "policy.json").write_text(json.dumps({**document, "network": layers}))
        with pytest.raises(PolicyFormatError, match=message):
            load_policy(changed)
