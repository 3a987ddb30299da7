"""Environment snapshots: which strategy proves itself, and that it then really continues a run."""

from __future__ import annotations

import importlib
import json
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import awkward_envs as awkward
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import iterate

from raytrain.rng import RngStreams
from raytrain.rollout.env_snapshots import SnapshotError, prove, snapshotter
from raytrain.rollout.env_snapshots.fingerprint import digest
from raytrain.rollout.env_snapshots.replay import ActionLog


def cartpole() -> Any:
    return gym.make("CartPole-v1")


def pendulum() -> Any:
    return gym.make("Pendulum-v1")


def frozen_lake() -> Any:
    return gym.make("FrozenLake-v1")


def half_cheetah() -> Any:
    pytest.importorskip("mujoco")
    return gym.make("HalfCheetah-v5", max_episode_steps=40)


def pong() -> Any:
    gym.register_envs(pytest.importorskip("ale_py"))
    return gym.make("ALE/Pong-v5", max_episode_steps=40)


def preprocessed_pong() -> Any:
    gym.register_envs(pytest.importorskip("ale_py"))
    pytest.importorskip("cv2")
    env = gym.make("ALE/Pong-v5", frameskip=1)
    env = gym.wrappers.TimeLimit(gym.wrappers.AtariPreprocessing(env), 40)
    return gym.wrappers.FrameStackObservation(env, 4)


SLOW = pytest.mark.slow
EXACT = [
    pytest.param(cartpole, "pickle", (), id="CartPole"),
    pytest.param(pendulum, "pickle", (), id="Pendulum", marks=SLOW),
    pytest.param(frozen_lake, "pickle", (), id="FrozenLake", marks=SLOW),
    pytest.param(half_cheetah, "replay", (), id="HalfCheetah", marks=[pytest.mark.mujoco, SLOW]),
    pytest.param(pong, "native", (), id="Pong", marks=[pytest.mark.atari, SLOW]),
    pytest.param(preprocessed_pong, "native", (), id="Stacked", marks=[pytest.mark.atari, SLOW]),
    pytest.param(awkward.Walk, "pickle", (), id="Walk"),
    pytest.param(awkward.OwnState, "native", (), id="OwnState"),
    pytest.param(awkward.stacked, "native", (), id="OwnState-wrapped", marks=SLOW),
    pytest.param(awkward.LyingState, "pickle", (), id="LyingState"),
    pytest.param(awkward.RaisingState, "pickle", (), id="RaisingState", marks=SLOW),
    pytest.param(awkward.GlobalNoise, "pickle", ("numpy",), id="GlobalNoise"),
    pytest.param(awkward.Locked, "replay", (), id="Locked"),
    pytest.param(awkward.drifting, "replay", (), id="Locked-wrapped", marks=SLOW),
    pytest.param(awkward.Rebuilt, "replay", (), id="EzPickle"),
    pytest.param(awkward.RefusesCopies, "replay", (), id="RefusesCopies", marks=SLOW),
    pytest.param(awkward.StateInTable, "replay", (), id="StateInTable", marks=SLOW),
    pytest.param(awkward.Nested, "pickle", (), id="Nested"),
    pytest.param(awkward.LockedNested, "replay", (), id="LockedNested", marks=SLOW),
]


@pytest.mark.parametrize(("make_env", "strategy", "global_random"), EXACT)
def test_the_first_exact_strategy_is_found_and_continues_a_vector_env(
    make_env: Any, strategy: Any, global_random: Any
) -> None:
    before = RngStreams.capture()
    proof = prove(make_env, steps=60)
    assert (proof.strategy, proof.exact, proof.global_random) == (strategy, True, global_random), (
        proof.reason
    )
    assert RngStreams.capture() == before
    assert proof.reason.startswith(f"{strategy}: ")
    assert json.loads(json.dumps(proof.to_dict())) == proof.to_dict()

    straight, snapshots = Group(make_env, strategy), []
    for step in range(70):
        ended = straight.just_ended[:1]  # a snapshot before the autoreset, and one after it
        if step in (7, *ended, *(end + 1 for end in ended), 50):
            snapshots.append((step, straight.snapshot()))
        straight.step()
    for step, snapshot in snapshots:
        random.seed(step)
        np.random.seed(step)
        resumed = Group(make_env, strategy, snapshot)
        for _ in range(step, 70):
            resumed.step()
        assert resumed.frames == straight.frames[step:], f"resumed at {step}"


class Group:
    """Three environments in a NEXT_STEP vector env, a policy that draws from the global
    generators, and the streams; what a run's env group is, as small as it gets."""

    def __init__(self, make_env: Any, strategy: Any, snapshot: Any = None) -> None:
        self.own = snapshotter(strategy)
        self.frames: list[str] = []
        self.just_ended: list[int] = []
        self.streams = RngStreams.seeded(4)
        with self.streams.active():
            self.vector = SyncVectorEnv(
                [lambda: self.own.wrap(make_env())] * 3, autoreset_mode=AutoresetMode.NEXT_STEP
            )
            self.actions = self.vector.action_space
            self.actions.seed(1)
            if snapshot is None:
                self.vector.reset(seed=11)
        if snapshot is not None:
            loaded = pickle.loads(snapshot)
            self.vector.envs = [
                self.own.restore(env, each)
                for env, each in zip(self.vector.envs, loaded["envs"], strict=True)
            ]
            for name, value in loaded["vector"].items():
                setattr(self.vector, name, value)
            self.actions = loaded["actions"]
            self.streams = RngStreams.from_state(loaded["streams"])

    def snapshot(self) -> bytes:
        names = ("_env_obs", "_observations", "_rewards", "_terminations", "_truncations",
                 "_autoreset_envs")  # fmt: skip
        return pickle.dumps(
            {
                "envs": [self.own.take(env) for env in self.vector.envs],
                "vector": {name: getattr(self.vector, name) for name in names},
                "actions": self.actions,
                "streams": self.streams.to_state(),
            }
        )

    def step(self) -> None:
        with self.streams.active():
            actions = self.actions.sample()
            drawn = [random.random(), np.random.random(), torch.rand(1).item()]
            assert len(list(iterate(self.actions, actions))) == 3
            *result, _ = self.vector.step(actions)
        if result[2].any() or result[3].any():
            self.just_ended.append(len(self.frames) + 1)
        self.frames.append(digest((drawn, *result)))


@pytest.mark.parametrize(
    ("make_env", "words"),
    [
        (awkward.EpisodeCounter, ["in a process of its own", "share state", "module"]),
        (awkward.Clock, ["two copies with one seed differ at step", "not deterministic"]),
        (awkward.Entropy, ["two copies with one seed differ at step", "not deterministic"]),
        (awkward.LockedGlobalNoise, ["pickle: ", "cannot pickle", "replay: ", "global generators"]),
    ],
)
def test_what_cannot_be_exact_is_said_in_plain_words(make_env: Any, words: Any) -> None:
    proof = prove(make_env, steps=60)
    assert (proof.strategy, proof.exact) == ("reset", False)
    assert not [word for word in words if word not in proof.reason], proof.reason
    assert "Traceback" not in proof.reason
    assert "\n" not in proof.reason


def test_a_generator_seeded_by_chance_is_seen_before_its_first_draw() -> None:
    proof = prove(awkward.SeededByEntropy, steps=4)
    assert not proof.exact
    assert "(state of the process's random generators differs)" in proof.reason
    assert "the environment itself is not deterministic" in proof.reason


def test_state_of_the_process_is_found_out_in_a_fresh_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awkward, "LEVEL", 3.0)
    proof = prove(awkward.ModuleLevel, steps=60)
    assert not proof.exact
    assert all("in a fresh process" in each.detail for each in proof.attempts[1:])
    assert len(proof.attempts) == 3


@pytest.mark.slow
def test_another_environment_registered_by_lost_code_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "soon_gone.py").write_text(
        "import gymnasium as gym\nclass Gone(gym.Env): pass\ngym.register('Gone-v0', Gone)\n"
    )
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        importlib.import_module("soon_gone")
    try:
        assert prove(cartpole, steps=60).strategy == "pickle"
    finally:
        del gym.registry["Gone-v0"], sys.modules["soon_gone"]


@pytest.mark.slow
def test_each_failed_attempt_says_what_was_seen() -> None:
    details = {
        make_env: {each.strategy: each.detail for each in prove(make_env, steps=60).attempts}
        for make_env in (
            awkward.LyingState, awkward.RaisingState, awkward.Rebuilt, awkward.RefusesCopies,
            awkward.StateInTable,
        )
    }  # fmt: skip
    assert "observation and reward differ at step 1" in details[awkward.LyingState]["native"]
    assert (
        "NotImplementedError: get_state is for grown-ups"
        in (details[awkward.RaisingState]["native"])
    )
    assert "rebuilt from constructor arguments" in details[awkward.Rebuilt]["pickle"]
    assert "no copies of me" in details[awkward.RefusesCopies]["pickle"]
    assert "observation and reward differ" in details[awkward.StateInTable]["pickle"]


def test_the_proof_needs_an_environment_that_runs() -> None:
    def broken() -> None:
        raise ValueError("no such map")

    with pytest.raises(SnapshotError, match="making the environment raised ValueError: no such"):
        prove(broken)


def test_a_replay_that_comes_out_otherwise_is_refused() -> None:
    own = snapshotter("replay")
    env = own.wrap(awkward.Locked())
    env.reset(seed=1)
    env.step(1)
    snapshot = own.take(env)
    snapshot["episode"]["actions"][0] = 0
    with pytest.raises(SnapshotError, match="observation and reward differ"):
        own.restore(own.wrap(awkward.Locked()), snapshot)


def test_snapshots_of_other_wrappers_or_strategies_are_refused() -> None:
    own = snapshotter("replay")
    env = own.wrap(awkward.drifting())
    env.reset(seed=1)
    with pytest.raises(SnapshotError, match=r"is built of .* its snapshot of"):
        own.restore(own.wrap(awkward.Locked()), own.take(env))
    with pytest.raises(SnapshotError, match="taken by the strategy 'replay', this run uses"):
        snapshotter("pickle").restore(awkward.Locked(), own.take(env))
    with pytest.raises(SnapshotError, match="outermost wrapper"):
        own.take(awkward.Locked())
    with pytest.raises(SnapshotError, match="unknown snapshot strategy 'memory'"):
        snapshotter("memory")  # type: ignore[arg-type]


def test_wrappers_keep_their_references() -> None:
    own = snapshotter("native")
    env = own.wrap(awkward.stacked())
    env.reset(seed=1)
    fresh = own.wrap(awkward.stacked())
    lock = fresh.unwrapped.lock
    restored = own.restore(fresh, own.take(env))
    assert restored.env.inner is restored.env.env
    assert restored.unwrapped.lock is lock is not env.unwrapped.lock
    assert restored.unwrapped.np_random is not env.unwrapped.np_random
    assert restored.env.random is not env.env.random


@pytest.mark.parametrize("strategy", ["replay", "pickle"])
def test_a_snapshot_before_the_first_reset(strategy: Any) -> None:
    own = snapshotter(strategy)
    env = own.wrap(awkward.Walk())
    env.unwrapped.np_random.normal()
    restored = own.restore(own.wrap(awkward.Walk()), own.take(env))
    assert np.array_equal(env.reset()[0], restored.reset()[0])


def test_actions_come_back_as_they_went_in() -> None:
    reused = np.zeros(2, np.float32)
    log = ActionLog()
    expected: list[Any] = []
    for value in range(200):
        reused[:] = value
        log.append(reused)
        expected.append(reused.copy())
    assert digest(list(log.copied())) == digest(expected)
    assert isinstance(log.copied(), np.ndarray)
    log.append((1, {"a": reused}))
    expected.append((1, {"a": reused.copy()}))
    reused[:] = -1
    assert digest(list(log.copied())) == digest(expected)
    discrete = ActionLog()
    discrete.append(np.int64(3))
    assert digest(list(discrete.copied())) == digest([np.int64(3)])


def test_digests_see_every_bit() -> None:
    nan = np.float32("nan")
    one = {"a": np.zeros(3, np.float32), "b": (np.array([1.0, nan]), 2)}
    same = {"b": (np.array([1.0, -nan]), 2), "a": np.zeros(3, np.float32)}
    assert digest(one) == digest(same)
    others = [
        {**one, "a": np.zeros(3)},
        {**one, "a": np.zeros((3, 1), np.float32)},
        {**one, "a": -np.zeros(3, np.float32)},
        {**one, "b": (np.array([1.0, 0.0]), 2)},
        {**one, "b": (np.array([1.0, nan]), np.int64(2))},
    ]
    assert len({digest(value) for value in [one, *others]}) == 6


@pytest.mark.atari
def test_a_games_sticky_action_is_restored() -> None:
    """The emulator's system state lacks the action that sticky actions repeat."""
    pong()
    rng, own = np.random.default_rng(0), snapshotter("native")
    env = own.wrap(gym.make("ALE/Pong-v5"))
    env.reset(seed=1)
    for _ in range(30):
        for action in rng.integers(6, size=5):
            env.step(action)
        copy = own.restore(own.wrap(gym.make("ALE/Pong-v5")), pickle.loads(
            pickle.dumps(own.take(env))))  # fmt: skip
        for action in rng.integers(6, size=3):
            assert digest(env.step(action)[:4]) == digest(copy.step(action)[:4])


def test_the_fresh_process_imports_neither_torch_nor_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.rllib  # as in a driver, where RLlib has registered environments of its own

    spec = gym.envs.registration.EnvSpec("OfRay-v0", entry_point=ray.rllib.BaseEnv)
    monkeypatch.setitem(gym.registry, spec.id, spec)
    found = tmp_path / "modules"

    def make_env() -> Any:
        import sys

        found.write_text(" ".join(sys.modules))
        return gym.make("CartPole-v1")

    assert prove(make_env).exact
    modules = set(found.read_text().split())
    assert "gymnasium" in modules
    assert not {"torch", "ray", "pytest"} & modules
