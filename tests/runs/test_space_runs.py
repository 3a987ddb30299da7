"""Runs whose observations are not one Box of floats, and those with action masks, are killed, and
end as those that were not; what they have learned is exported and plays. Some of them learn all
that there is to learn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
import tree
import yaml
from courier import Courier
from gymnasium.vector.utils import concatenate, create_empty_array
from masked_envs import Masked
from support import exact_returns
from support.commands import here
from support.paths import CONFIGS, ENVS
from support.running import (
    Holds,
    Reference,
    Run,
    committed,
    experiment_of,
    rows,
    train,
    trial_of,
    write_config,
)
from support.same_run import assert_same_run

import raytrain

pytestmark = pytest.mark.slow

FILTER = {"observation_filter": "MeanStdFilter"}
SPACES: dict[str, tuple[str, dict[str, Any]]] = {
    "one-hot": ("started axes", {}),
    "nested-filtered": ("nested", FILTER),
    "images-and-numbers": ("eyes", {}),
    "bytes-filtered": ("bytes", FILTER),
}


MASKS: dict[str, dict[str, Any]] = {
    "in-the-observation": {"space": "discrete", "where": "legal"},
    "in-the-info": {"space": "multi-discrete", "where": "info"},
}


def config_at(place: Path, holds: Holds, env: str, environment: Any, runners: Any = ()) -> Path:
    shutil.copy(ENVS / f"{env}.py", place)
    held = holds.sections["environment"]["env_config"]
    environment["env_config"] = {**environment["env_config"], **held}
    sections = {
        **holds.sections,
        "environment": {"env": f"{env}:held", **environment},
        "env_runners": {"num_env_runners": 1, "num_envs_per_env_runner": 2, **dict(runners)},
        "training": {"train_batch_size_per_learner": 512, "lr": 3e-3},
        "stop": {"iterations": 8},
        "evaluation": {"evaluation_interval": 4, "evaluation_duration": 2},
    }
    return write_config(place / "run.yaml", **sections)


def killed_run(tmp_path: Path, configured: Callable[[Path, Holds], Path]) -> Path:
    """The config of a run that was killed and continued, and is the same as one that was not."""
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    for place in (quiet, disturbed):
        place.mkdir()
    train(configured(quiet, Holds(quiet)))
    reference = Reference(trial_of(quiet / "run.yaml"))
    holds = Holds(disturbed, 3, steps=256)
    config = configured(disturbed, holds)
    run = Run("train", str(config), log=disturbed / "log.txt")
    run.until(lambda: committed(trial_of(config)))
    run.kill_everything()
    holds.release()
    said = train(config, log=disturbed / "again.txt")
    assert "not exact" not in said and "RLlib's own" not in said
    assert_same_run(trial_of(config), reference)
    returns = [row["env_runners"]["episode_return_mean"] for row in rows(trial_of(config))]
    assert returns[-1] > returns[0]  # It learns.
    return config


@pytest.mark.parametrize("name", SPACES)
def test_killed_runs_end_as_the_undisturbed_one(tmp_path: Path, name: str) -> None:
    kind, runners = SPACES[name]

    def configured(place: Path, holds: Holds) -> Path:
        return config_at(place, holds, "observed", {"env_config": {"kind": kind}}, runners)

    require_policy(killed_run(tmp_path, configured), tmp_path / "policy")


@pytest.mark.parametrize("name", MASKS)
def test_killed_runs_with_masks_end_as_the_undisturbed_one(tmp_path: Path, name: str) -> None:
    arguments = MASKS[name]

    def configured(place: Path, holds: Holds) -> Path:
        environment = {"action_mask": arguments["where"], "env_config": arguments}
        return config_at(place, holds, "masked_envs", environment)

    config = killed_run(tmp_path, configured)
    require_plays(config, tmp_path)
    policy = raytrain.load_policy(f"{experiment_of(config)}:final")
    env: Any = Masked(**arguments)
    observation, info = env.reset(seed=0)
    over = False
    while not over:  # It raises at an action that is not allowed.
        given = {"action_mask": info["action_mask"]} if "action_mask" in info else {}
        action = policy.act(observation, **given)
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated


def require_policy(config: Path, exported: Path) -> None:
    """It is exported, acts without Ray and as ONNX, and plays."""
    found = here("export", f"{experiment_of(config)}:final", exported, "--onnx", "--json")
    assert found.code == 0, found
    assert json.loads(found.out)["needs_ray"] is None
    policy = raytrain.load_policy(exported)
    space = policy.observation_space
    space.seed(0)
    shown = [space.sample() for _ in range(100)]
    chosen = [policy.act(each) for each in shown]
    assert all(policy.action_space.contains(np.int64(action)) for action in chosen)
    arrays = concatenate(space, shown, create_empty_array(space, len(shown)))
    session = onnxruntime.InferenceSession(exported / "policy.onnx")
    feeds = {
        ".".join(["observation", *map(str, path)]): leaf
        for path, leaf in tree.flatten_with_path(arrays)
    }
    (actions,) = session.run(None, feeds)
    assert actions.tolist() == chosen
    require_plays(config, exported.parent)


def require_plays(config: Path, place: Path) -> None:
    # In a process of its own: each run has its own copy of the environment's module.
    final, log = f"{experiment_of(config)}:final", place / "played.txt"
    played = Run("evaluate", final, "--episodes", "3", log=log)
    assert played.wait() == 0, played.output()


def tuned(name: str, env: str | None = None, timesteps: int = 0, **env_config: Any) -> Any:
    """A config in configs/tuned; with another environment and end, if they are given."""
    values = yaml.safe_load((CONFIGS / "tuned" / f"{name}.yaml").read_text())
    if env is not None:
        values["environment"] = {"env": env, "env_config": env_config}
        values["stop"] = {"timesteps": timesteps}
    return values


def of_table(name: str, steps: int, **env_config: Any) -> Callable[[Any], float]:
    return lambda policy: exact_returns.of_toy_text(gym.make(name, **env_config), policy.act, steps)


def less_than_optimal(policy: Any) -> float:
    """The mean return of 200 episodes, less the mean of the optima."""
    env, found = Courier(), []
    for seed in range(200):
        observation, _ = env.reset(seed=seed)
        found.append(-env.optimum)
        ended = cut = False
        while not (ended or cut):
            observation, reward, ended, cut, _ = env.step(policy.act(observation))
            found[-1] += reward
    return float(np.mean(found))


DRY: dict[str, Any] = {"is_slippery": False}
# A config, what a policy is worth, what it must be worth at least: the optimum stands behind.
LEARNED: dict[str, tuple[Any, Callable[[Any], float], float]] = {
    "frozenlake": (tuned("frozenlake"), of_table("FrozenLake-v1", 100), 0.7),  # 0.744
    "frozenlake-not-slippery": (
        tuned("frozenlake", "FrozenLake-v1", 60_000, **DRY),
        of_table("FrozenLake-v1", 100, **DRY),
        1.0,  # 1.0
    ),
    "taxi": (
        tuned("taxi"),
        of_table("Taxi-v3", 200),
        7.0,
    ),  # 7.93; a passenger who is left standing costs 0.7
    "blackjack": (
        tuned("blackjack"),
        lambda policy: exact_returns.of_blackjack(policy.act),
        -0.05,  # -0.0466
    ),
    "courier": (
        tuned("frozenlake", "courier:Courier-v0", 100_000),
        less_than_optimal,
        -1e-9,  # 0, but for rounding
    ),
}


def learning_config(place: Path, name: str, holds: Holds, frequency: int) -> Path:
    """The config in an environment that can be held, with one checkpoint in the middle."""
    values, *_ = LEARNED[name]
    for module in (ENVS / "courier.py", CONFIGS / "tuned" / "wrapped.py"):
        shutil.copy(module, place)
    environment = values["environment"]
    arguments = {**environment.get("env_config", {})}
    arguments.update(holds.sections["environment"]["env_config"])
    if environment["env"] == "wrapped:normalized":
        arguments.update(name=arguments["env"], env="held_env:Held-v0")
        held = {"env": "wrapped:normalized", "env_config": arguments}
    else:
        arguments.update(name=environment["env"])
        held = {"env": "held_env:make", "env_config": arguments}
    values = {
        **values,
        **holds.sections,
        "storage_path": str(place / "results"),
        "environment": held,
        "checkpoint": {"checkpoint_frequency": frequency},
    }
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", LEARNED)
def test_a_killed_run_learns_all_that_there_is(tmp_path: Path, name: str) -> None:
    values, worth, enough = LEARNED[name]
    batch = values["training"]["train_batch_size_per_learner"]
    middle = values["stop"]["timesteps"] // batch // 2
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    for place in (quiet, disturbed):
        place.mkdir()
    undisturbed = learning_config(quiet, name, Holds(quiet), middle)
    assert Run("train", str(undisturbed), log=quiet / "log.txt").wait(3000) == 0
    steps = batch // values["env_runners"]["num_envs_per_env_runner"]
    # Iterations are of a step more here and there, so it may be held some iterations before.
    holds = Holds(disturbed, middle + 8, steps=steps)
    config = learning_config(disturbed, name, holds, middle)
    run = Run("train", str(config), log=disturbed / "log.txt")
    run.until(lambda: committed(trial_of(config)), timeout=3000)
    run.kill_everything()
    holds.release()
    again = Run("train", str(config), log=disturbed / "again.txt")
    assert again.wait(3000) == 0, again.output()
    assert "not exact" not in again.output()
    assert_same_run(trial_of(config), Reference(trial_of(undisturbed)))
    require_policy(config, disturbed / "policy")
    assert worth(raytrain.load_policy(disturbed / "policy")) >= enough
