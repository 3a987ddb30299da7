"""`PPOConfig`, `RunConfig` and `TuneConfig` become the config that the equivalent YAML file gives,
or one error lists what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from ray import train, tune
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.modelv2_to_rlm import ModelV2ToRLModule
from ray.tune.schedulers import ASHAScheduler

import raytrain
from raytrain import Tuner
from raytrain._ray.ppo_config import settings_of
from raytrain.config import ExperimentConfig, config_digest, config_from_dict, load_config
from raytrain.config.errors import ConfigError
from raytrain.migrate.reasons import REFUSED, WITHOUT_EFFECT
from raytrain.migrate.tuner import Experiment
from raytrain.storage.signing import KEY_VARIABLE

STOP = {"training_iteration": 3}


def experiment(param_space: Any, trainable: Any = "PPO", **options: Any) -> Experiment:
    tuned = options.pop("tune_config", None)
    run = tune.RunConfig(**{"name": "run", "storage_path": "/nowhere", "stop": STOP, **options})
    made = Tuner(trainable, param_space=param_space, run_config=run, tune_config=tuned)._experiment
    assert made is not None
    return made


def configured(param_space: Any, **options: Any) -> ExperimentConfig:
    return experiment(param_space, **options).config


def as_yaml(**sections: Any) -> ExperimentConfig:
    frame = {
        "name": "run",
        "storage_path": "/nowhere",
        "environment": {"env": "CartPole-v1"},
        "stop": {"iterations": 3},
        "failure": {"max_failures": 0},
    }
    return config_from_dict({**frame, **sections})


def cartpole() -> PPOConfig:
    return PPOConfig().environment("CartPole-v1")


def is_the_run_of(found: ExperimentConfig, expected: ExperimentConfig) -> None:
    assert {**found.to_dict(), "import_path": None} == expected.to_dict()
    assert config_digest(found) == config_digest(expected)


Make = Callable[[], PPOConfig]


@pytest.mark.parametrize(
    ("make", "sections"),
    [
        (cartpole, {}),
        (
            lambda: cartpole().training(
                lr=[[0, 1e-3], [1000, 1e-4]],
                num_sgd_iter=6,
                grad_clip=0.5,
                vf_clip_param=float("inf"),
            ),
            {
                "training": {
                    "lr": [[0, 1e-3], [1000, 1e-4]],
                    "num_epochs": 6,
                    "grad_clip": 0.5,
                    "vf_clip_param": float("inf"),
                }
            },
        ),
        (
            lambda: cartpole().training(train_batch_size=2000).learners(num_learners=2),
            {"training": {"train_batch_size_per_learner": 1000}, "learners": {"num_learners": 2}},
        ),
        (
            lambda: cartpole().env_runners(
                num_env_runners=0,
                num_envs_per_env_runner=4,
                env_to_module_connector=lambda env, spaces, device: MeanStdFilter(),
                gym_env_vectorize_mode="async",
            ),
            {
                "env_runners": {
                    "num_env_runners": 0,
                    "num_envs_per_env_runner": 4,
                    "observation_filter": "MeanStdFilter",
                }
            },
        ),
        (
            lambda: (
                cartpole()
                .env_runners(
                    env_to_module_connector=lambda env, spaces, device: [FlattenObservations()]
                )
                .reporting(min_sample_timesteps_per_iteration=1000)
            ),
            {},
        ),
        (
            lambda: cartpole().rl_module(
                model_config=DefaultModelConfig(
                    fcnet_hiddens=[32],
                    fcnet_kernel_initializer=torch.nn.init.orthogonal_,
                    fcnet_kernel_initializer_kwargs={"gain": 1.5},
                )
            ),
            {
                "rl_module": {
                    "model_config": {
                        "fcnet_hiddens": [32],
                        "fcnet_kernel_initializer": "orthogonal_",
                        "fcnet_kernel_initializer_kwargs": {"gain": 1.5},
                        "vf_share_layers": True,
                    }
                }
            },
        ),
        (
            lambda: cartpole().rl_module(model_config={"conv_filters": [(16, 4, 2)]}),
            {"rl_module": {"model_config": {"conv_filters": [[16, 4, 2]]}}},
        ),
        (
            lambda: (
                cartpole()
                .debugging(seed=7, log_level="ERROR")
                .evaluation(
                    evaluation_interval=2,
                    evaluation_parallel_to_training=True,
                    evaluation_config=PPOConfig.overrides(explore=True, num_envs_per_env_runner=3),
                )
            ),
            {
                "seed": 7,
                "debugging": {"log_level": "ERROR"},
                "evaluation": {
                    "evaluation_interval": 2,
                    "evaluation_config": {"explore": True, "num_envs_per_env_runner": 3},
                },
            },
        ),
        (
            lambda: cartpole().training(
                lr=tune.loguniform(1e-5, 1e-3), gamma=tune.grid_search([0.9, 0.99])
            ),
            {
                "training": {
                    "lr": {"loguniform": [1e-5, 1e-3]},
                    "gamma": {"grid_search": [0.9, 0.99]},
                }
            },
        ),
    ],
)
def test_settings_are_those_of_the_yaml_file(make: Make, sections: dict[str, Any]) -> None:
    is_the_run_of(configured(make()), as_yaml(**sections))


def test_flat_keys() -> None:
    flat = {
        "env": "CartPole-v1",
        "env_config": {"sutton_barto_reward": tune.choice([True, False])},
        "lr": tune.uniform(1e-4, 1e-3),
        "num_env_runners": 0,
        "train_batch_size_per_learner": 512,
    }
    expected = as_yaml(
        environment={
            "env": "CartPole-v1",
            "env_config": {"sutton_barto_reward": {"choice": [True, False]}},
        },
        env_runners={"num_env_runners": 0},
        training={"lr": {"uniform": [1e-4, 1e-3]}, "train_batch_size_per_learner": 512},
        tune={"num_samples": 3},
    )
    for trainable in ("PPO", PPO, PPOConfig):
        made = experiment(flat, trainable, tune_config=tune.TuneConfig(num_samples=3))
        is_the_run_of(made.config, expected)


def test_a_config_as_a_dictionary() -> None:
    config = (
        cartpole()
        .training(lr=tune.grid_search([1e-3, 1e-4]), lambda_=0.9)
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .debugging(seed=3)
        .callbacks(on_train_result=print)
    )
    assert configured(config.to_dict()) == configured(config)


def test_an_environment_called_with_one_dictionary() -> None:
    """RLlib calls every environment so; raytrain looks at the first argument's name."""
    made = experiment(PPOConfig().environment(CartPoleEnv))
    assert made.config.environment.env == "code_of_run:environment"
    assert made.config.import_path == "/nowhere/run/code"
    assert made.code is not None
    assert "return CartPoleEnv(config)" in made.code


def test_arguments_that_cannot_be_stored_are_written_into_the_module() -> None:
    from gymnasium.spaces import Box, Discrete
    from ray.rllib.examples.envs.classes.action_mask_env import ActionMaskEnv

    arguments = {"action_space": Discrete(100), "observation_space": Box(-1.0, 1.0, (5,)), "n": 2}
    made = experiment(PPOConfig().environment(ActionMaskEnv, env_config=arguments))
    scope: dict[str, Any] = {}
    exec(made.code or "", scope)
    env = scope["environment"](dict(made.config.environment.env_config))
    assert env.action_space == Discrete(100)
    assert env.observation_space["observations"] == Box(-1.0, 1.0, (5,))
    assert made.config.environment.env_config == {"n": 2}


def test_values_of_a_network_that_cannot_be_stored_are_written_into_a_class() -> None:
    values = {"max_seq_len": 20, "old_api_stack_algo_config": PPOConfig().training(lr=0.1)}
    spec = RLModuleSpec(module_class=ModelV2ToRLModule, model_config=values)
    made = experiment(cartpole().rl_module(rl_module_spec=spec))
    assert made.config.to_dict()["rl_module"] == {
        "module_class": "code_of_run:ModelV2ToRLModuleWithValues",
        "model_config": {"max_seq_len": 20},
    }
    written = "'old_api_stack_algo_config': PPOConfig().update_from_dict({'lr': 0.1})"
    assert written in (made.code or "")


def test_code_of_the_program_needs_a_disk_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PPOConfig().environment(CartPoleEnv)
    with pytest.raises(ConfigError, match="not possible for runs that are on an object store"):
        experiment(config, storage_path="s3://bucket/runs")
    monkeypatch.setenv(KEY_VARIABLE, "a" * 32)
    with pytest.raises(ConfigError, match="not possible for runs that are signed"):
        experiment(config)


def test_one_error_lists_every_setting_with_its_reason() -> None:
    config = (
        cartpole()
        .multi_agent(policies={"a", "b"}, policy_mapping_fn=lambda *_: "a")
        .offline_data(input_="/data")
        .framework(torch_compile_learner=True)
        .training(lr=-1.0, gamma=tune.randint(0, 2))
        .evaluation(evaluation_duration="auto")
    )
    options = {"stop": lambda trial, result: True}
    tuned = tune.TuneConfig(scheduler=ASHAScheduler(), time_budget_s=timedelta(hours=1))
    with pytest.raises(ConfigError) as caught:
        experiment(config, tune_config=tuned, **options)
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {
        "policies",
        "policy_mapping_fn",
        "input_",
        "torch_compile_learner",
        "training.lr",
        "gamma",
        "evaluation.evaluation_duration",
        "stop",
        "scheduler",
        "time_budget_s",
    }
    text = str(caught.value)
    assert "raytrain trains one policy for one agent" in text
    assert "tune.choice(list(range(0, 2)))" in text


class OtherPPO(PPO):
    pass


@pytest.mark.parametrize(
    ("trainable", "space", "message"),
    [
        ("IMPALA", None, "the trainable is 'IMPALA'"),
        (lambda config: None, None, "raytrain trains RLlib's PPO"),
        ("PPO", APPOConfig(), "the trainable is 'APPO'"),
        # A good param_space does not make another trainable PPO.
        ("SAC", cartpole(), "the trainable is 'SAC'"),
        (OtherPPO, cartpole(), "the trainable is 'OtherPPO', a subclass"),
        (tune.with_resources(PPO, {"cpu": 1}), cartpole(), "a subclass .*with_resources"),
        (None, {"env": "CartPole-v1"}, "no trainable is given"),
        (cartpole(), cartpole(), "two configs are given"),
        ("PPO", {"env": "CartPole-v1", "gama": 1}, r"gama: 1: PPOConfig has no such setting"),
        ("PPO", {"model_config": {}}, "RLlib does not accept param_space"),
    ],
)
def test_another_trainable_is_refused(trainable: Any, space: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(space, trainable)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"run_config": train.RunConfig()},
            "run_config: is a ray.train.RunConfig; give a ray.tune",
        ),
        ({"run_config": {"stop": {}}}, "run_config: is a dict"),
        ({"tune_config": {"num_samples": 2}}, "tune_config: is a dict"),
    ],
)
def test_other_classes_of_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tuner("PPO", param_space=cartpole(), **options)


def test_an_id_that_the_program_registered_is_registered_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", gymnasium.envs.registration.registry)
    gymnasium.register(
        "OfProgram-v0", CartPoleEnv, max_episode_steps=7, kwargs={"render_mode": None}
    )
    config = PPOConfig().environment("OfProgram-v0", env_config={"sutton_barto_reward": True})
    made = experiment(config)
    assert made.config.environment.env == "code_of_run:environment"
    module: dict[str, Any] = {}
    exec(str(made.code), module)
    gymnasium.registry.pop("OfProgram-v0")
    env = module["environment"](made.config.environment.env_config)
    assert env.spec.max_episode_steps == 7
    assert env.unwrapped._sutton_barto_reward


def test_a_connector_with_values_of_its_own_is_taken_as_it_is() -> None:
    def only_some(env: Any, spaces: Any, device: Any) -> Any:
        return FlattenObservations(keys_to_remove=["a"])

    found = configured(cartpole().env_runners(env_to_module_connector=only_some))
    assert found.env_runners.env_to_module_connector is not None
    found = configured(cartpole().env_runners(env_to_module_connector=lambda *_: MeanStdFilter()))
    assert found.env_runners.env_to_module_connector is None


def test_options_of_the_run() -> None:
    made = configured(
        cartpole(),
        stop={
            "env_runners/episode_return_mean": 450.0,
            "num_env_steps_sampled_lifetime": 10_000.0,
            "env_runners": {"episode_len_mean": 400},
        },
        checkpoint_config=tune.CheckpointConfig(
            checkpoint_frequency=2,
            checkpoint_score_attribute="env_runners/episode_return_mean",
            checkpoint_score_order="min",
        ),
        failure_config=tune.FailureConfig(max_failures=5),
        tune_config=tune.TuneConfig(max_concurrent_trials=2),
    )
    expected = as_yaml(
        stop={
            "episode_return_mean": 450.0,
            "timesteps": 10_000,
            "metrics": {"env_runners/episode_len_mean": 400.0},
            "window": None,
        },
        checkpoint={
            "checkpoint_frequency": 2,
            "num_to_keep": None,
            "score": "episode_return_mean",
            "score_order": "min",
            "score_window": None,
        },
        failure={"max_failures": 5},
        tune={"max_concurrent_trials": 2},
    )
    is_the_run_of(made, expected)


def test_what_cannot_be_searched_or_is_of_another_library() -> None:
    config = (
        PPOConfig()
        .environment(tune.grid_search(["CartPole-v1", "Acrobot-v1"]))
        .rl_module(model_config=tune.grid_search([{"fcnet_hiddens": [8]}]))
    )
    with pytest.raises(ConfigError) as caught:
        Tuner("PPO", param_space=config, run_config=train.RunConfig(name="run"))
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"env", "model_config", "run_config", "stop"}


def test_samples_that_differ_in_nothing_get_seeds() -> None:
    made = configured(cartpole(), tune_config=tune.TuneConfig(num_samples=3))
    is_the_run_of(made, as_yaml(seed={"grid_search": [0, 1, 2]}))
    searched = cartpole().training(lr=tune.uniform(1e-4, 1e-3))
    made = configured(searched, tune_config=tune.TuneConfig(num_samples=3))
    assert (made.tune.num_samples, made.seed) == (3, 0)


def test_a_run_without_a_name_is_named_by_its_settings() -> None:
    def named(config: PPOConfig, **options: Any) -> str:
        return configured(config, name=None, **options).name

    name = named(cartpole())
    assert name.startswith("PPO_CartPole-v1_")
    assert named(cartpole(), stop={"training_iteration": 9}) == name
    assert named(cartpole().training(gamma=0.9)) != name


def test_the_yaml_file_is_the_same_run(tmp_path: Path) -> None:
    config = cartpole().training(lr=tune.grid_search([1e-3, 1e-4])).debugging(seed=3)
    text = raytrain.to_yaml(config, stop={"training_iteration": 4}, name="run")
    (tmp_path / "run.yaml").write_text(text)
    loaded = load_config(tmp_path / "run.yaml")
    expected = as_yaml(
        seed=3,
        training={"lr": {"grid_search": [1e-3, 1e-4]}},
        stop={"iterations": 4},
        failure={},
        storage_path="results",
    )
    is_the_run_of(loaded, expected)


def test_reasons_are_those_of_settings_that_exist() -> None:
    """Fails when a version of RLlib renames or drops a setting."""
    known = settings_of(PPOConfig())
    assert [name for name in (*REFUSED, *WITHOUT_EFFECT) if name not in known] == []
    assert REFUSED.keys() & WITHOUT_EFFECT.keys() == set()
