"""The configs in configs/ with environments of their own: exact snapshots, a small run each, and
what they teach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from structure_env import Structure
from support.paths import CONFIGS
from support.running import Run, rows

import raytrain
from raytrain.commands.evaluate import evaluate_path
from raytrain.config import env_creator, load_config
from raytrain.records import read_episodes
from raytrain.rollout.env_snapshots import prove

trading = pytest.param("trading", "pickle", marks=[pytest.mark.trading, pytest.mark.slow])
structure = pytest.param("structure", "pickle", marks=pytest.mark.slow)
halfcheetah = pytest.param("halfcheetah", "replay", marks=pytest.mark.mujoco)


def short_stages() -> list[dict[str, Any]]:
    """The stages of structure.yaml, each ending after one iteration."""
    stages = yaml.safe_load((CONFIGS / "structure.yaml").read_text())["curriculum"]
    return [{**stage, "until": {"timesteps": 1}} for stage in stages]


SMALL = ["stop.iterations=2", "stop.timesteps=null", "checkpoint.checkpoint_frequency=1"]
FEW = {
    "trading": [
        "evaluation.evaluation_interval=1",
        "environment.env_config.days=50",
        "training.train_batch_size_per_learner=1000",
    ],
    "structure": [
        "environment.env_config.duration=2",
        "training.train_batch_size_per_learner=1024",
        "stop.iterations=null",  # the end is that of the fourth stage, one iteration each
        f"curriculum={json.dumps(short_stages())}",
    ],
    "halfcheetah": [
        "evaluation.evaluation_interval=1",
        "evaluation.evaluation_duration=1",
        "training.train_batch_size_per_learner=1024",
        "training.num_epochs=1",
    ],
}
REPORTED = {
    "trading": ["profit", "sharpe", "max_drawdown", "trades", "hold_profit"],
    "structure": ["peak_drift", "rms_drift", "peak_force", "rms_force", "peak_stroke"],
    "halfcheetah": ["raw_return"],
}


def require(name: str) -> None:
    """Skip where the extra that an example needs is not installed."""
    mujoco = dict.fromkeys(("halfcheetah", "hopper", "walker2d", "ant"), "mujoco")
    others = {"lunarlander": "Box2D", "minigrid-empty": "minigrid"}
    atari = dict.fromkeys(("pong", "breakout"), "cv2")
    module = {"trading": "gym_anytrading", **mujoco, **others, **atari}.get(name)
    if module is not None:
        pytest.importorskip(module, reason=f"needs the extra of {name}.yaml")


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_valid(path: Any) -> None:
    require(path.stem)
    load_config(path)


@pytest.mark.parametrize(("name", "strategy"), [trading, structure, halfcheetah])
def test_the_environment_is_restored_exactly(name: Any, strategy: Any) -> None:
    require(name)
    config = load_config(CONFIGS / f"{name}.yaml")
    creator = env_creator(config)
    proof = prove(lambda: creator(config.environment.env_config))
    assert (proof.strategy, proof.exact, proof.global_random) == (strategy, True, ())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy"), [trading, structure, halfcheetah])
def test_a_small_run(name: Any, strategy: Any, tmp_path: Path) -> None:
    require(name)
    settings = [f"--set={each}" for each in SMALL + FEW[name]]
    arguments = ("train", str(CONFIGS / f"{name}.yaml"), "--storage-path", str(tmp_path), *settings)
    run = Run(*arguments, log=tmp_path / "log.txt")
    assert run.wait() == 0, run.output()
    assert "not exact" not in run.output()
    trial = tmp_path / name / "trial_00000"
    iterations = [row["training_iteration"] for row in rows(trial)]
    assert iterations == ([1, 2, 3, 4] if name == "structure" else [1, 2])
    episodes = read_episodes(trial)
    assert episodes.num_rows
    for each in REPORTED[name]:
        values = np.array(episodes.column(f"custom/{each}").to_pylist(), float)
        assert np.isfinite(values).all()
    if name != "structure":  # the environment of evaluation: the whole year; rewards as they are
        in_training = rows(trial)[-1]["evaluation"]["env_runners"]
        assert in_training["episode_len_max"] == {"trading": 251, "halfcheetah": 1000}[name]
        assert abs(in_training["episode_return_mean"]) < {"trading": 1, "halfcheetah": 1e4}[name]
    best = json.loads((trial / "best" / "manifest.json").read_text())
    assert np.isfinite(best["score"])
    # It plays where evaluation plays.
    played = evaluate_path(f"{tmp_path / name}:best", episodes=1, seed=0, deterministic=True)
    assert played.lengths == ({"trading": 251, "structure": 100, "halfcheetah": 1000}[name],)
    if name == "halfcheetah":  # it begins there, and has hardly moved
        log_std = raytrain.load_policy(f"{tmp_path / name}:final").module.pi.log_std
        np.testing.assert_allclose(log_std.detach().numpy(), -2.0, atol=1e-2)
    if name == "trading":  # nothing is drawn in it, so it is what evaluation found
        assert np.expm1(played.episode_return_mean) == pytest.approx(best["score"], rel=1e-6)
    if name == "structure":
        passed = [f"stages/{stage['name']}" for stage in short_stages()]
        assert all((trial / each / "manifest.json").exists() for each in passed)
        peaks: dict[str, list[Any]] = {
            each: [] for each in ("moderate", "strong", "heavy", "severe")
        }
        for row in episodes.to_pylist():
            peaks[row["stage"]].append(row["custom/pga"])
        middle = {each: (min(found) + max(found)) / 2 for each, found in peaks.items()}
        assert sorted(middle, key=middle.__getitem__) == list(peaks)
        assert best["stage"] == "severe"


@pytest.mark.mujoco
def test_normalized_rewards_and_the_raw_return() -> None:
    require("halfcheetah")
    config = load_config(CONFIGS / "halfcheetah.yaml")
    creator = env_creator(config)
    for_evaluation = config.evaluation.evaluation_config.env_config
    assert config.environment.env_config["gamma"] == config.training.gamma
    env, plain = creator(config.environment.env_config), gym.make("HalfCheetah-v5")
    env.reset(seed=2)
    plain.reset(seed=2)
    total, scaled, returned = 0.0, [], 0.0
    squares = []
    for action in np.random.default_rng(0).uniform(-1, 1, (1000, 6)).astype(np.float32):
        *_, ended, info = env.step(action)
        reward = float(plain.step(action)[1])
        total += reward
        returned = 0.98 * returned + reward
        squares.append(returned)
        scaled.append(float(_[1]))
    assert ended
    assert info["raw_return"] == pytest.approx(total, rel=1e-12)
    # The last reward, divided by the deviation of the discounted return so far.
    assert scaled[-1] == pytest.approx(reward / np.std(squares), rel=0.02)
    raw = creator({**config.environment.env_config, **(for_evaluation or {})})
    raw.reset(seed=2)
    plain.reset(seed=2)
    assert raw.step(np.ones(6))[1] == plain.step(np.ones(6))[1]


def drifts(policy: Any, seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """Peak inter-storey drifts [m] with the policy and with the passive damper, by earthquake."""
    env, found = Structure(**policy.env_config), []
    for act in (policy.act, lambda _: np.zeros(1)):
        peaks = []
        for seed in seeds:
            observation, _ = env.reset(seed=seed)
            ended = False
            while not ended:
                observation, _, _, ended, info = env.step(act(observation))
            peaks.append(info["peak_drift"])
        found.append(np.array(peaks))
    return found[0], found[1]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_trained_controller_beats_the_passive_damper(tmp_path: Path) -> None:
    arguments = ("train", str(CONFIGS / "structure.yaml"), "--storage-path", str(tmp_path))
    run = Run(*arguments, log=tmp_path / "log.txt")
    assert run.wait(2700) == 0, run.output()
    policy = raytrain.load_policy(f"{tmp_path / 'structure'}:final")
    active, passive = drifts(policy, range(1000, 1030))
    assert active.mean() < 0.9 * passive.mean()
    assert (active < passive).sum() >= 22
