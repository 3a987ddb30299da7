"""Schedules of `training`, and the keys that Stable-Baselines3 has and RLlib has not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.config_files import MINIMAL, STOP, refused

from raytrain.config import (
    config_digest,
    config_from_dict,
    differences,
    has_digest,
    param_space,
    stage_config,
    to_algorithm_config,
)
from raytrain.config.schedules import relative_keys

LINEAR = {"linear": [3e-4, 0]}


def minimal(**sections: Any) -> Any:
    return config_from_dict({**MINIMAL, **sections})


def own_training(config: Any) -> Any:
    return to_algorithm_config(config).learner_config_dict["training"]


def test_a_linear_schedule_ends_at_stop_timesteps() -> None:
    config = minimal(
        training={"lr": LINEAR, "entropy_coeff": {"linear": [0.1, 0.01]}, "clip_param": 0.2},
        stop={"timesteps": 5000},
    )
    algorithm = to_algorithm_config(config)
    algorithm.validate()
    assert algorithm.lr == [[0, 3e-4], [5000, 0.0]]
    assert algorithm.entropy_coeff == [[0, 0.1], [5000, 0.01]]
    assert algorithm.learner_config_dict["training"]["relative_to"] == 5000
    assert config_from_dict(config.to_dict()) == config


def test_tunes_parameters_which_have_no_stop_are_a_valid_config() -> None:
    """Tune asks for a trial's resources with them."""
    from raytrain.trial.trainable import TrialPPO

    config = minimal(training={"lr": LINEAR}, stop={"timesteps": 5000})
    parameters = param_space(config)
    assert "stop" not in parameters
    assert TrialPPO.default_resource_request(parameters)


def test_clip_ranges_follow_schedules_that_rllib_does_not_know() -> None:
    ranges = {"clip_param": {"linear": [0.2, 0]}, "clip_range_vf": [[0, 1.0], [100, 0.5]]}
    config = minimal(training=ranges, stop={"timesteps": 5000})
    own = own_training(config)
    assert own["clip_param"] == [[0, 0.2], [5000, 0.0]]
    assert own["clip_range_vf"] == [[0, 1.0], [100, 0.5]]
    assert to_algorithm_config(config).clip_param == 0.2


def test_defaults_are_rllibs_and_what_is_fixed_is_relative_to_nothing() -> None:
    assert own_training(minimal(stop={"timesteps": 5000})) == {
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "target_kl": None,
        "normalize_advantages": "batch",
        "clip_param": 0.3,
        "clip_range_vf": None,
        "relative_to": None,
    }


def test_a_stage_is_relative_to_the_end_of_the_run() -> None:
    stages = [
        {"name": "a", "until": {"timesteps": 10}, "training": {"lr": LINEAR}},
        {"name": "b", "training": {"clip_range_vf": 0.3}},
    ]
    config = minimal(curriculum=stages, stop={"timesteps": 5000})
    assert relative_keys(config) == ["curriculum.a.training.lr"]
    assert to_algorithm_config(stage_config(config, 0)).lr == [[0, 3e-4], [5000, 0.0]]
    assert own_training(stage_config(config, 1))["clip_range_vf"] == 0.3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("training: {lr: {linear: [1, 0]}}", "ends at stop.timesteps, which is not given"),
        ("training: {lr: {linear: [1]}}", "{linear: [value at timestep 0"),
        ("training: {lr: {lin: [1, 0]}}", "{linear: [value at timestep 0"),
        ("training: {lr: {linear: [1, -1]}}", "at least 0; one is -1"),
        ("training: {lr: {linear: [1, x]}}", "not a number: 'x'"),
        ("training: {clip_param: 0}", "must be above 0"),
        ("training: {clip_range_vf: 0}", "must be above 0"),
        ("training: {target_kl: 0}", "must be above 0"),
        ("training: {normalize_advantages: epoch}", "'batch' or 'minibatch'"),
        ("training: {use_critic: false, clip_range_vf: 1}", "clips values"),
        ("training: {weight_decay: 1, learner_class: 'a:B'}", "your learner_class makes"),
        ("training: {target_kl: 1}\nlearners: {cuda_graphs: true}", "which a CUDA graph cannot"),
        ("rl_module: {model_config: {orthogonal_init: 1}}", "must be a mapping"),
        ("rl_module: {model_config: {orthogonal_init: {gain: 1}}}", "the keys under"),
        (
            "rl_module: {model_config: {orthogonal_init: true, fcnet_kernel_initializer: ones_}}",
            "so fcnet_kernel_initializer would have no effect",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, line: str, said: str) -> None:
    assert said in refused(tmp_path, STOP + line)


def test_orthogonal_weights_have_gains() -> None:
    def gains(given: Any) -> Any:
        config = minimal(rl_module={"model_config": {"orthogonal_init": given}})
        return to_algorithm_config(config).learner_config_dict["orthogonal_init"]

    assert gains(True) == {"hidden": math.sqrt(2), "policy_head": 0.01, "value_head": 1.0}
    assert gains({"policy_head": 1})["policy_head"] == 1
    assert gains(None) is gains(False) is None


def test_a_run_of_an_earlier_version_is_the_same_run() -> None:
    former = "84942a4bf782d7e75b2fbff858ac903b8e313e2777e1277604245d8cdfcd9eaf"
    env = {"env": "CartPole-v1", "env_config": {"k": 1}}
    assert has_digest(minimal(environment=env), former)
    stored = minimal().to_dict()
    for key in ("adam_epsilon", "weight_decay", "target_kl", "clip_range_vf"):
        del stored["training"][key]
    assert differences(stored, minimal()) == []
    for key, value in {
        "adam_epsilon": 1e-5,
        "weight_decay": 0.1,
        "target_kl": 0.1,
        "normalize_advantages": "minibatch",
        "clip_range_vf": 0.2,
    }.items():
        changed = minimal(training={key: value})
        assert config_digest(changed) != config_digest(minimal()), key
