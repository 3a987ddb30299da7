"""What the policy chooses is what the environment gets, in every place where actions are made: the
array sampler, RLlib's own sampling, `load_policy`, an export without RLlib, TorchScript, ONNX.

The learner sees indices from 0 and unscaled numbers; the environment gets members of its space.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import action_envs
import numpy as np
import pytest
import torch
import tree
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple
from support.commands import here
from support.samplers import Stock, config, runner, unlike

from raytrain.config import config_from_dict
from raytrain.driver.spaces import require_actions
from raytrain.policy.arithmetic import base_struct
from raytrain.policy.env_actions import LeafMapping, policy_space
from raytrain.policy.format import read_policy, write_policy
from raytrain.policy.from_algorithm import policy_parts
from raytrain.policy.onnx import ActingModule, write_onnx, write_torchscript
from raytrain.policy.policy import Policy
from raytrain.policy.rllib_module import build_module
from raytrain.policy.rllib_network import describe_network
from raytrain.ppo.learner import MODULE_ID
from raytrain.rollout.env_group import EnvGroup


def settings(name: str, **environment: Any) -> dict[str, Any]:
    return {
        "environment": {
            "env": "action_envs:Remembering",
            "env_config": {"space": name},
            **environment,
        }
    }


def sent(of: Any) -> list[Any]:
    """The actions that the runner's first environment was sent."""
    return list(of.env.unwrapped.envs[0].unwrapped.got)


def bits(struct: Any) -> list[Any]:
    return [
        (np.asarray(leaf).dtype.kind, np.asarray(leaf).tolist()) for leaf in tree.flatten(struct)
    ]


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        pytest.param(name, clip, marks=[pytest.mark.slow] * (clip and name != "one-side-open"))
        for name in action_envs.SERVED
        for clip in (False, True)
    ],
)
def test_training_and_every_form_of_the_policy_send_the_same_members_of_the_space(
    name: str, clip: bool, tmp_path: Path
) -> None:
    space = action_envs.SERVED[name]
    given = config(**settings(name, clip_actions=clip), env_runners={"num_envs_per_env_runner": 1})
    ours, theirs = runner(EnvGroup, given), runner(Stock, given)
    one, other = ours.sample(num_timesteps=30), theirs.sample(num_timesteps=30)
    assert ours._sampler is not None
    # RLlib's episodes name the environment's space, ours that of the actions which they hold.
    assert [each for each in unlike(one, other) if each[1] != "spaces"] == []
    assert one[0].action_space == policy_space(space)
    assert [bits(each) for each in sent(ours)] == [bits(each) for each in sent(theirs)]
    assert all(space.contains(each) for each in sent(ours))

    for each in (ours, theirs):
        for env in each.env.unwrapped.envs:
            env.unwrapped.got.clear()
    # In nested spaces RLlib 2.60 adds up arrays of different shapes when it does not explore.
    player = ours if isinstance(space, Dict | Tuple) else theirs
    (episode,) = player.sample(num_episodes=1, explore=False)
    observations = episode.get_observations()[:-1]
    parts = policy_parts(
        SimpleNamespace(config=given),
        env_runner=theirs,
        module_state=given.build_learner(
            spaces={MODULE_ID: (action_envs.Remembering.observation_space, policy_space(space))}
        ).module[MODULE_ID].state_dict()
        | theirs.module.state_dict(),
    )  # fmt: skip
    write_policy(tmp_path, parts, metadata={})
    loaded, _ = read_policy(tmp_path)
    described = replace(loaded, network=describe_network(build_module(loaded)))
    for policy in (Policy(loaded, metadata={}), Policy(described, metadata={})):
        acted = [policy.act(each) for each in observations]
        assert [bits(each) for each in acted] == [bits(each) for each in sent(player)]
        assert all(space.contains(each) for each in acted)
    write_torchscript(described, tmp_path / "policy.pt")
    batch = torch.from_numpy(np.stack(observations))
    scripted = torch.jit.load(str(tmp_path / "policy.pt"))(batch)
    expected = [np.stack(leaves) for leaves in zip(*map(tree.flatten, sent(player)), strict=True)]
    for found, wanted in zip(scripted, expected, strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-3)
        assert found.numpy().dtype.kind == wanted.dtype.kind


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("dict", "one-side-open") else pytest.mark.slow)
        for name in action_envs.SERVED
    ],
)
def test_onnx_sends_the_same(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    given = config(**settings(name))
    made = runner(EnvGroup, given)
    learner = given.build_learner(
        spaces={
            MODULE_ID: (
                action_envs.Remembering.observation_space,
                policy_space(action_envs.SERVED[name]),
            )
        }
    )
    parts = policy_parts(
        SimpleNamespace(config=given),
        env_runner=made,
        module_state=learner.module[MODULE_ID].state_dict(),
    )
    parts = replace(parts, network=describe_network(build_module(parts)))
    assert write_onnx(parts, tmp_path / "policy.onnx") <= 1e-5
    observations = np.random.default_rng(0).uniform(-1, 1, (16, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"))
    found = session.run(None, {session.get_inputs()[0].name: observations})
    with torch.no_grad():
        expected = ActingModule(parts)(torch.from_numpy(observations))
    space = action_envs.SERVED[name]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=0, atol=1e-5)
    for row in range(16):
        action = tree.unflatten_as(base_struct(space), [leaf[row] for leaf in found])
        assert all(
            leaf.contains(np.asarray(each) if isinstance(leaf, Box) else each)
            for leaf, each in zip(
                tree.flatten(base_struct(space)), tree.flatten(action), strict=True
            )
        )


INFINITE = np.array([0, -1], np.float32), np.array([np.inf, 1], np.float32)
FAR = np.array([-7.0, 3.0], np.float32)


@pytest.mark.parametrize(
    ("space", "normalize", "clip", "action", "expected"),
    [
        (Discrete(3, start=-1), True, False, np.int32(2), 1),
        (Discrete(3), True, False, np.int32(2), 2),
        (MultiDiscrete([2, 3], start=[5, -2]), False, False, np.array([1, 0], np.int32), [6, -2]),
        (Box(*INFINITE), True, False, FAR, [0, 1]),
        (Box(*INFINITE), True, True, FAR, [0, 1]),
        (Box(*INFINITE), False, True, FAR, [0, 1]),
        (Box(*INFINITE), False, False, FAR, [-7, 3]),
        (Box(-np.inf, np.inf, (2,)), True, True, FAR, [-7, 3]),
        (Box(-action_envs.LARGEST, action_envs.LARGEST, (2,)), True, True, FAR, [-7, 3]),
        (Box(-1e19, 1e19, (2,)), True, True, np.zeros(2, np.float32), [0, 0]),
        (Box(0.0, 8.0, (2,)), True, False, np.array([0.0, 0.5], np.float32), [4, 6]),
        (Box(0.0, 8.0, (2,)), True, False, FAR, [0, 8]),
        (Box(0.0, 8.0, (2,)), False, True, FAR, [0, 3]),
    ],
)
def test_one_leaf(space: Any, normalize: bool, clip: bool, action: Any, expected: Any) -> None:
    found = LeafMapping.of(space, normalize=normalize, clip=clip)(action)
    assert np.asarray(found).tolist() == expected


def _written(tmp_path: Any, name: str) -> Any:
    file = tmp_path / "run.yaml"
    file.write_text(
        f"environment: {{env: 'action_envs:Remembering', env_config: {{space: {name}}}}}\n"
        "env_runners: {num_env_runners: 0}\nstop: {iterations: 1}\n"
    )
    return file


@pytest.mark.parametrize("name", action_envs.REFUSED)
def test_a_space_without_a_policy_is_refused_before_ray_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    done = here("train", _written(tmp_path, name), "--storage-path", tmp_path / "results")
    assert done.code == 2, done.err
    assert action_envs.REFUSED[name][1] in " ".join(done.err.split())


def test_a_log_std_of_its_own_needs_a_box(tmp_path: Path) -> None:
    file = _written(tmp_path, "discrete")
    done = here(
        "train",
        file,
        "--set",
        "rl_module.model_config.free_log_std=true",
        "--storage-path",
        tmp_path,
    )
    assert done.code == 2, done.err
    assert "only a Box has a log-std" in " ".join(done.err.split())


def test_bounds_that_are_taken_for_none_are_said() -> None:
    said: list[str] = []
    for name, normalize in (("largest-float", True), ("largest-float", False), ("dict", True)):
        given = {
            "name": "x",
            "stop": {"iterations": 1},
            **settings(name, normalize_actions=normalize),
        }
        require_actions(config_from_dict(given), said.append)
    assert len(said) == 1
    assert "count as no bounds" in said[0]
    assert "the action space has -3.40282e+38" in said[0]
