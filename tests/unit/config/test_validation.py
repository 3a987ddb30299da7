"""YAML -> ExperimentConfig -> RLlib; every refusal with its line, value and remedy."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from support.checkpoint_children import manifest, stage
from support.paths import ROOT

from raytrain.checkpoint.commit import commit
from raytrain.config import (
    ConfigError,
    ExperimentConfig,
    allowed_on_continue,
    config_digest,
    config_from_dict,
    differences,
    gives_up_exactness,
    has_digest,
    load_config,
    make_env,
    num_trials,
    param_space,
    resolve_env,
    to_algorithm_config,
    with_trial_values,
)
from raytrain.config.own_code import KINDS
from raytrain.config.reference import all_sections, render
from raytrain.config.schema import ALGORITHM_SECTIONS
from raytrain.config.validation import yaml_fields
from raytrain.config.yaml_lines import dump_yaml, parse_yaml
from raytrain.driver.same_run import ConfigChanged, require_same_run
from raytrain.driver.stages import may_change, prove_stages
from raytrain.errors import BadInput
from raytrain.storage import Location

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MINIMAL = "environment: {env: CartPole-v1}\nstop: {iterations: 1}\n"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_config(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_config


def refusal(path: Any, **arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, **arguments)
    assert isinstance(caught.value, BadInput) and caught.value.exit_code == 2
    return str(caught.value)


def minimal(**sections: Any) -> Any:
    return config_from_dict(
        {
            "name": "x",
            "environment": {"env": "CartPole-v1"},
            "stop": {"iterations": 1},
            **sections,
        }
    )


# What a file gives


def test_minimal_file_takes_name_from_the_file_and_defaults(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(write(MINIMAL))
    assert config.name == "run"
    assert config.storage_path == str(tmp_path / "results")
    assert config.import_path == str(tmp_path)
    assert config.checkpoint.num_to_keep == 3
    assert config.checkpoint.checkpoint_frequency == 5
    assert config.checkpoint.score == "episode_return_mean"
    assert config.failure.max_failures == 3
    assert config.debugging.deterministic is True


@pytest.mark.parametrize(
    ("written", "resolved"),
    [
        ("s3://bucket/runs", "s3://bucket/runs"),
        ("~/runs", os.path.expanduser("~/runs")),
        ("/a/b", "/a/b"),
    ],
)
def test_storage_path(written: str, resolved: Any) -> None:
    assert minimal(storage_path=written).storage_path == resolved


def test_numbers_of_yaml(write: Any) -> None:
    path = write(
        MINIMAL + "training: {lr: 1e-4, train_batch_size_per_learner: 4e3, vf_clip_param: .inf}\n"
        "checkpoint: {every_timesteps: 200_000}\n"
    )
    config = load_config(path)
    assert config.training.lr == 1e-4
    assert config.training.train_batch_size_per_learner == 4000
    assert config.training.vf_clip_param == math.inf
    assert config.checkpoint.every_timesteps == 200_000


def test_overrides_are_yaml_and_the_last_wins(write: Any) -> None:
    config = load_config(
        write(MINIMAL),
        overrides=[
            "training.lr=1e-4",
            "training.lr=2e-4",
            "rl_module.model_config.fcnet_hiddens=[32, 32]",
            "stop.timesteps=3e5",
        ],
        name="other",
        storage_path="gs://b/r",
    )
    assert config.training.lr == 2e-4
    assert config.rl_module.model.fcnet_hiddens == [32, 32]
    assert config.stop.timesteps == 300_000
    assert (config.name, config.storage_path) == ("other", "gs://b/r")


def test_an_empty_section_is_its_defaults(write: Any) -> None:
    assert load_config(write(MINIMAL + "evaluation:\n")).evaluation.evaluation_interval is None


def test_merge_keys_and_anchors(write: Any) -> None:
    text = "stop: &s {iterations: 3}\nenvironment: {env: CartPole-v1}\ntraining: {<<: {lr: 0.1}}\n"
    assert load_config(write(text)).training.lr == 0.1


def test_config_is_immutable() -> None:
    with pytest.raises(Exception, match="frozen"):
        minimal().training.lr = 1.0


def test_every_cadence_may_be_off() -> None:
    assert minimal(checkpoint={"checkpoint_frequency": 0}).checkpoint.every_seconds is None


def test_loading_does_not_import_ray(write: Any) -> None:
    path = write(MINIMAL)
    code = (
        "import sys; from raytrain.config import load_config, config_digest; "
        f"config_digest(load_config({str(path)!r})); assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What a file may not be


def test_missing_file_names_the_nearest(write: Any, tmp_path: Path) -> None:
    write(MINIMAL, "cartpole.yaml")
    message = refusal(tmp_path / "cartpol.yaml")
    assert "cartpol.yaml: no such file" in message
    assert f"did you mean '{tmp_path / 'cartpole.yaml'}'" in message


def test_directory(tmp_path: Path) -> None:
    assert f"{tmp_path}: is a directory" in refusal(tmp_path)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"name: \xff\xfe")
    assert "not a text file in UTF-8" in refusal(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(write: Any) -> None:
    path = write(MINIMAL)
    path.chmod(0)
    assert "cannot be read: Permission denied" in refusal(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it holds nothing"),
        ("- a\n- b\n", "it holds a list"),
        ("CartPole-v1\n", "it holds a str"),
    ],
)
def test_not_a_mapping(write: Any, text: str, said: str) -> None:
    assert said in refusal(write(text))


def test_syntax_error_has_line_and_column(write: Any) -> None:
    path = write("name: a\ntraining: {lr: 0.1\nstop: {}\n")
    assert f"{path}:3:5: not valid YAML" in refusal(path)


def test_two_documents(write: Any) -> None:
    assert ":3:1: not valid YAML" in refusal(write(MINIMAL + "---\na: 1\n"))


# label, the line(s) added after MINIMAL (so they begin at line 3), and what the message must hold
BAD_VALUES = [
    ("unknown key", "training: {lrr: 0.1}", ":3: training.lrr: 0.1: unknown key", "'lr'"),
    ("unknown section", "trainin: {lr: 0.1}", ':3: trainin: {"lr": 0.1}: unknown', "'training'"),
    ("lambda", "training: {lambda: 0.9}", ":3: training.lambda: 0.9: unknown", "'lambda_'"),
    ("old name", "training:\n  num_sgd_iter: 4", ":4: training.num_sgd_iter: 4:", "'num_epochs'"),
    ("elsewhere", "env_runners: {lr: 1}", ":3: env_runners.lr: 1: unknown", "'training.lr'"),
    ("at the top", "gamma: 0.9", ":3: gamma: 0.9: unknown key here", "'training.gamma'"),
    ("nothing like it", "tune: {zzz: 1}", ":3: tune.zzz: 1: unknown key", "num_samples"),
    ("deep key", "rl_module: {model_config: {fcnet_hidden: [3]}}",
     ":3: rl_module.model_config.fcnet_hidden: [3]: unknown", "'fcnet_hiddens'"),
    ("explained key", "resources: {num_gpus: 1}", ":3: resources.num_gpus: 1: not used here",
     "learners.num_gpus_per_learner"),
    ("clip_rewards", "debugging: {seed: 1}", ":3: debugging.seed: 1: not used here", "at the top"),
    ("text for number", "training: {gamma: high}", ':3: training.gamma: "high"', "be a number"),
    ("quoted number", "training: {lr: '1e-4'}", ':3: training.lr: "1e-4"', "must be a number"),
    ("true for int", "seed: true", ":3: seed: true", "must be a whole number"),
    ("fraction for int", "training: {num_epochs: 2.5}", ":3: training.num_epochs: 2.5", "whole"),
    ("num_epochs", "training: {num_epochs: 0}", ":3: training.num_epochs: 0", "at least 1"),
    ("gamma", "training: {gamma: 1.5}", ":3: training.gamma: 1.5", "at most 1"),
    ("seed", "seed: 5_000_000_000", ":3: seed: 5000000000", "at most 4000000000"),
    ("nan", "training: {clip_param: .nan}", ":3: training.clip_param: NaN", "a number, a schedule"),
    ("choice", "env_runners: {batch_mode: truncate}", ':3: env_runners.batch_mode: "truncate"',
     "'truncate_episodes' or 'complete_episodes'"),
    ("async", "env_runners: {gym_env_vectorize_mode: async}",
     ':3: env_runners.gym_env_vectorize_mode: "async"', "exact resume needs"),
    ("fragment", "env_runners: {rollout_fragment_length: 0}",
     ":3: env_runners.rollout_fragment_length: 0", "'auto' or at least 1"),
    ("list for section", "training: [1]", ":3: training: [1]", "must be a mapping"),
    ("item of a list", "rl_module:\n  model_config:\n    fcnet_hiddens:\n      - 64\n      - -1",
     ":7: rl_module.model_config.fcnet_hiddens[1]: -1", "at least 1"),
    ("conv", "rl_module: {model_config: {conv_filters: [[16, 4]]}}",
     ":3: rl_module.model_config.conv_filters", "[channels, kernel, stride]"),
    ("name", "name: a/b", ':3: name: "a/b"', "directory's name"),
    ("keep", "checkpoint: {num_to_keep: 0}", ":3: checkpoint.num_to_keep: 0", "at least 1"),
    ("cadence", "checkpoint: {every_seconds: 0}", ":3: checkpoint.every_seconds: 0", "above 0"),
    ("failures", "failure: {max_failures: -2}", ":3: failure.max_failures: -2", "at least -1"),
    ("curriculum", "curriculum: [{name: a, untl: {}}]", ":3: curriculum[0].untl: {}",
     "did you mean 'until'"),
    ("date", "rl_module: {model_config: {conv_kernel_initializer_kwargs: {a: 2024-01-01}}}",
     ":3: rl_module.model_config.conv_kernel_initializer_kwargs.a", 'write "2024-01-01"'),
    ("key not text", "training: {1: 2}", ":3: training: \"1\": a key must be text", "quotes"),
    ("duplicate", "training:\n  lr: 0.1\n  lr: 0.2", ':5: training.lr: "0.2"', "already on line 4"),
    ("duplicate section", "seed: 1\nseed: 2", ':4: seed: "2"', "already on line 3"),
    ("not YAML's", "import_path: /x", ':3: import_path: "/x"', "not set in a file"),
    ("recursion", "training: &a {lr: *a}", ":3: training.lr: the anchor contains itself", ""),
    ("schedule start", "training: {lr: [[5, 0.1], [9, 0.2]]}",
     ":3: training.lr: [[5, 0.1], [9, 0.2]]", "must start at timestep 0"),
    ("schedule order", "training: {entropy_coeff: [[0, 0.1], [9, 0.2], [9, 0]]}",
     ":3: training.entropy_coeff: [[0, 0.1]", "9 follows 9"),
    ("schedule pair", "training: {lr: [[0, 0.1], [9]]}", ":3: training.lr", "not a pair: [9]"),
    ("minibatch", "training:\n  minibatch_size: 5000", ":4: training.minibatch_size: 5000",
     "train_batch_size_per_learner, which is 4000"),
    ("small batch", "training:\n  gamma: 0.9\n  train_batch_size_per_learner: 64",
     ":5: training.minibatch_size: 128", "which is 64"),
    ("shared card", "learners:\n  num_learners: 2\n  num_gpus_per_learner: 0.5",
     ":5: learners.num_gpus_per_learner: 0.5: 2 learners cannot share a GPU", "a whole GPU"),
    ("fragment and batch", "env_runners:\n  rollout_fragment_length: 1500",
     ":4: env_runners.rollout_fragment_length: 1500", "use 'auto' or 2000"),
    ("no evaluation", "evaluation:\n  evaluation_interval: 2\n  evaluation_duration: 0",
     ":5: evaluation.evaluation_duration: 0", "at least 1"),
    ("parallel evaluation", "evaluation: {evaluation_parallel_to_training: true}",
     ":3: evaluation.evaluation_parallel_to_training: true: not used",
         "while they are being updated"),
    ("restarts", "fault_tolerance:\n  restart_failed_env_runners: false",
     ":4: fault_tolerance.restart_failed_env_runners: false: not used here", "at once"),
    ("ignored losses", "fault_tolerance: {ignore_env_runner_failures: true}",
     ":3: fault_tolerance.ignore_env_runner_failures: true: not used here", "env group"),
    ("restart delay", "fault_tolerance: {delay_between_env_runner_restarts_s: 1}",
     ":3: fault_tolerance.delay_between_env_runner_restarts_s: 1: not", "leave the key out"),
    ("health probe", "fault_tolerance: {env_runner_health_probe_timeout_s: 1}",
     ":3: fault_tolerance.env_runner_health_probe_timeout_s: 1: not", "leave the key out"),
    ("runner restore", "fault_tolerance: {env_runner_restore_timeout_s: 1}",
     ":3: fault_tolerance.env_runner_restore_timeout_s: 1: not", "max_num_env_runner_restarts"),
    ("learner's dictionary", "learners: {learner_config_dict: {deterministic: false}}",
     ":3: learners.learner_config_dict: {\"deterministic\": false}: not",
         "training.learner_config_dict"),
    ("log-std", "rl_module: {model_config: {log_std_init: -1}}",
     ":3: rl_module.model_config.log_std_init: -1.0: is the initial value", "free_log_std"),
    ("short of a sequence",
     "training: {minibatch_size: 10}\nrl_module: {model_config: {use_lstm: true}}",
     ":3: training.minibatch_size: 10: must not be smaller", "max_seq_len, which is 20"),
    ("recurrent log-std", "rl_module: {model_config: {use_lstm: true, free_log_std: true}}",
     ":3: rl_module.model_config.free_log_std: true: cannot be used with use_lstm", "RLlib's head"),
    ("no layers", "rl_module: {model_config: {fcnet_hiddens: []}}",
     ":3: rl_module.model_config.fcnet_hiddens", ""),
    ("initializer", "rl_module: {model_config: {fcnet_kernel_initializer: xavier_uniform}}",
     ":3: rl_module.model_config.fcnet_kernel_initializer: \"xavier_uniform\": must be one",
         "xavier_uniform_"),
    ("bias initializer", "rl_module: {model_config: {conv_bias_initializer: xavier_uniform_}}",
     ":3: rl_module.model_config.conv_bias_initializer: \"xavier_uniform_\": must be one",
         "zeros_"),
    ("initializer's argument", "rl_module:\n  model_config:\n    fcnet_kernel_initializer: "
                               "orthogonal_\n"
     "    fcnet_kernel_initializer_kwargs: {gian: 2}",
     ":6: rl_module.model_config.fcnet_kernel_initializer_kwargs",
         "does not take 'gian'; it takes gain"),
    ("initializer's missing argument", "rl_module: {model_config: {fcnet_bias_initializer: "
                                       "constant_}}",
     ":3: rl_module.model_config.fcnet_bias_initializer", "constant_ needs 'val'"),
    ("no GAE", "training: {use_gae: false}", ":3: training.use_gae: false", "complete_episodes"),
    ("empty grid", "training: {lr: {grid_search: []}}", ':3: training.lr.grid_search: {"grid_se',
     "a list of at least one value"),
    ("range order", "training: {lr: {uniform: [2, 1]}}", ":3: training.lr.uniform", "needs a < b"),
    ("range length", "training: {lr: {uniform: [2]}}", ":3: training.lr.uniform", "two numbers"),
    ("log of 0", "training: {lr: {loguniform: [0, 1]}}", ":3: training.lr.loguniform", "above 0"),
    ("candidate", "training:\n  gamma:\n    choice:\n      - 0.9\n      - 2",
     ":7: training.gamma: 2: must be at most 1", "(from choice)"),
    ("fraction drawn", "training: {num_epochs: {uniform: [2, 9]}}", ":3: training.num_epochs: 4.67",
     "must be a whole number (from uniform)"),
    ("combination", "training:\n  train_batch_size_per_learner: 1000\n  minibatch_size:\n"
     "    grid_search:\n      - 500\n      - 2000", ":8: training.minibatch_size: 2000", "is 1000"),
    ("search of stop", "failure: {max_failures: {grid_search: [1, 2]}}",
     ":3: failure.max_failures.grid_search", "cannot be searched"),
    ("search of section", "training: {grid_search: [1]}", ":3: training.grid_search", "one value"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "place", "said"), [c[1:] for c in BAD_VALUES], ids=[c[0] for c in BAD_VALUES]
)
def test_bad_value(write: Any, lines: Any, place: Any, said: Any) -> None:
    path = write(MINIMAL + lines + "\n")
    message = refusal(path)
    assert f"{path}{place}" in message
    assert said in message
    assert "problems" not in message, "one problem must be said once"


def test_empty_stop_and_missing_stop(write: Any) -> None:
    path = write("environment: {env: CartPole-v1}\nstop: {}\n")
    assert f"{path}:2: stop: {{}}: the run would never end" in refusal(path)
    path = write("environment: {env: CartPole-v1}\n")
    assert f"{path}: stop: must be given" in refusal(path)


def test_missing_env(write: Any) -> None:
    path = write("stop: {iterations: 1}\nenvironment: {env_config: {}}\n")
    assert f"{path}:2: environment.env: must be given" in refusal(path)


def test_file_name_that_cannot_be_a_name(write: Any) -> None:
    assert '"my run": must be usable as a directory' in refusal(write(MINIMAL, "my run.yaml"))


def test_every_problem_is_said_at_once(write: Any) -> None:
    path = write(
        "environment: {env: Cartpole-v1}\nstop: {iterations: 1}\n"
        "training:\n  lrr: 0.1\n  gamma: x\n  minibatch_size: 5000\n"
        "checkpoint:\n  num_to_keep: 0\nimport_path: a\n"
    )
    message = refusal(path, overrides=["stop.iterations=0", "seed=-1"])
    for place in (
        f"{path}:1: environment.env",
        f"{path}:4: training.lrr",
        f"{path}:5: training.gamma",
        f"{path}:6: training.minibatch_size",
        f"{path}:8: checkpoint.num_to_keep",
        f"{path}:9: import_path",
        "--set stop.iterations=0: stop.iterations: 0: must be at least 1",
        "--set seed=-1: seed: -1: must be at least 0",
    ):
        assert place in message
    assert message.startswith("8 problems")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "training.lrr=1e-4",
            "--set training.lrr=1e-4: training.lrr: 0.0001: unknown key (did you",
        ),
        ("training.lr", "--set training.lr: must be KEY=VALUE"),
        ("=3", "--set =3: must be KEY=VALUE"),
        ("a." * 1200 + "a=1", "a.a=1: must be KEY=VALUE"),
        ("seed.x=3", "--set seed.x=3: seed: 7: is a single value"),
        ("training.lr=[1", "--set training.lr=[1:1:3: not valid YAML"),
        ("name=", "--set name=: name: null: must be text"),
    ],
)
def test_bad_override(write: Any, override: Any, said: str) -> None:
    assert said in refusal(write(MINIMAL + "seed: 7\n"), overrides=[override])


def test_bad_argument(write: Any) -> None:
    message = refusal(write(MINIMAL), name="a b")
    assert message.startswith('--name a b: name: "a b": must be usable')


def test_error_survives_pickling(write: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(MINIMAL + "sed: 1\nnam: 2\n"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# Environments

ENVS = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Named(CartPoleEnv):
    def __init__(self, length=0.5):
        super().__init__()
        self.length = length

def keywords(length=0.5):
    return Named(length)

def dictionary(env_config):
    assert type(env_config) is dict
    return Named(env_config.pop("length", 0.5))

def not_an_env():
    return 3

number = 3
gymnasium.register("Long-v0", entry_point=Named, kwargs={"length": 4.0})
"""


@pytest.fixture
def envs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    # A module name of its own for each test: a process imports a name once.
    name = f"envs_{re.sub('[^a-z0-9]', '_', tmp_path.name.lower())}"
    (tmp_path / f"{name}.py").write_text(ENVS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


@pytest.mark.parametrize("factory", ["Named", "keywords", "dictionary"])
def test_factory_beside_the_file(write: Any, envs: Any, factory: str) -> None:
    text = f"environment: {{env: '{envs}:{factory}', env_config: {{length: 2.0}}}}\n"
    config = load_config(write(text + "stop: {iterations: 1}\n"))
    assert make_env(config).unwrapped.length == 2.0


def test_id_that_a_module_registers(write: Any, envs: Any) -> None:
    path = write(f"environment: {{env: '{envs}:Long-v0'}}\nstop: {{iterations: 1}}\n")
    assert make_env(load_config(path)).unwrapped.length == 4.0


def test_gymnasium_id_with_arguments() -> None:
    config = minimal(environment={"env": "FrozenLake-v1", "env_config": {"map_name": "8x8"}})
    env = make_env(config)
    assert env.observation_space.n == 64
    assert isinstance(env, gymnasium.Env)


def test_creator_works_in_another_process(write: Any, envs: Any, tmp_path: Path) -> None:
    path = write(f"environment: {{env: '{envs}:keywords'}}\nstop: {{iterations: 1}}\n")
    config = load_config(path)
    stored = tmp_path / "creator.pkl"
    stored.write_bytes(pickle.dumps(resolve_env(config.environment.env, config.import_path)))
    code = (
        f"import pickle; creator = pickle.load(open({str(stored)!r}, 'rb'));"
        "assert creator({'length': 3.0}).unwrapped.length == 3.0"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_a_factory_that_changes_its_dictionary_does_not_change_the_config(
    write: Any, envs: Any
) -> None:
    path = write(
        f"environment: {{env: '{envs}:dictionary', env_config: {{length: 2.0}}}}\n"
        "stop: {iterations: 1}\n"
    )
    config = load_config(path)
    assert [make_env(config).unwrapped.length for _ in range(2)] == [2.0, 2.0]


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("Cartpole-v1", "did you mean 'CartPole-v1'"),
        ("CartPole-v9", "did you mean 'CartPole-v1'"),
        ("no_such_module_here:make", "no module no_such_module_here; looked in {beside}"),
        ("{envs}x:Named", "did you mean '{envs}'"),
        ("{envs}:Name", "has no Name (did you mean 'Named'?)"),
        ("{envs}:number", "is a int and not callable"),
        ("{envs}:Longg-v0", "did you mean '{envs}:Long-v0'"),
    ],
)
def test_bad_env(write: Any, envs: Any, tmp_path: Path, env: str, said: str) -> None:
    env = env.format(envs=envs)
    path = write(f"stop: {{iterations: 1}}\nenvironment: {{env: '{env}'}}\n")
    message = refusal(path)
    assert f'{path}:2: environment.env: "{env}"' in message
    assert said.format(envs=envs, beside=tmp_path) in message


def test_env_is_taken_on_trust_without_check(write: Any) -> None:
    path = write("environment: {env: No-v0}\nstop: {iterations: 1}\n")
    config = load_config(path, check_env=False)
    with pytest.raises(ConfigError, match="No-v0"):
        make_env(config)


@pytest.mark.parametrize("env", ["CartPole-v1", "{envs}:keywords"])
def test_bad_env_argument(write: Any, envs: Any, env: str) -> None:
    key = "lenght" if ":" in env else "sutton_bartow_reward"
    near = "length" if ":" in env else "sutton_barto_reward"
    path = write(
        f"stop: {{iterations: 1}}\nenvironment:\n  env: '{env.format(envs=envs)}'\n"
        f"  env_config:\n    {key}: 1\n"
    )
    message = refusal(path)
    assert f"{path}:5: environment.env_config.{key}: 1" in message
    assert f"did you mean '{near}'" in message


def test_factory_that_returns_no_env(write: Any, envs: Any) -> None:
    path = write(f"environment: {{env: '{envs}:not_an_env'}}\nstop: {{iterations: 1}}\n")
    with pytest.raises(ConfigError, match=r"must return a gymnasium\.Env; it returned a int"):
        make_env(load_config(path))


def test_second_module_of_one_name_is_refused(write: Any, envs: Any, tmp_path: Path) -> None:
    resolve_env(f"{envs}:Named", str(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / f"{envs}.py").write_text(ENVS)
    with pytest.raises(ConfigError, match="was already imported from"):
        resolve_env(f"{envs}:Named", str(other))


@pytest.mark.parametrize(
    ("env", "package", "extra"),
    [
        ("ALE/Pong-v5", "ale_py", "raytrain[atari]"),
        ("HalfCheetah-v5", "mujoco", "raytrain[mujoco]"),
        ("LunarLander-v3", "Box2D", "raytrain[box2d]"),
    ],
)
def test_missing_extra_says_what_to_install(write: Any, env: str, package: str, extra: str) -> None:
    """In a process where the package cannot be imported, as where it is not installed."""
    path = write(f"environment: {{env: {env}}}\nstop: {{iterations: 1}}\n")
    code = f"""
import importlib.machinery as m
real = m.PathFinder.find_spec
m.PathFinder.find_spec = classmethod(
    lambda cls, name, *a, **k: None if name == {package!r} else real(name, *a, **k))
from raytrain.config import load_config, ConfigError
try: load_config({str(path)!r})
except ConfigError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert f"needs the package {package}: pip install '{extra}'" in done.stdout
    assert ":1: environment.env" in done.stdout


@pytest.mark.mujoco
def test_mujoco_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log into the current directory.
    assert make_env(minimal(environment={"env": "HalfCheetah-v5"})).action_space.shape == (6,)


@pytest.mark.atari
def test_atari_env() -> None:
    pytest.importorskip("ale_py")
    assert make_env(minimal(environment={"env": "ALE/Pong-v5"})).action_space.n == 6


# Search spaces


def searched() -> Any:
    return minimal(
        training={
            "lr": {"loguniform": [1e-5, 1e-3]},
            "gamma": {"uniform": [0.9, 0.99]},
            "minibatch_size": {"grid_search": [64, 128]},
            "entropy_coeff": {"grid_search": [0.0, [[0, 0.1], [100, 0]], 0.01]},
        },
        env_runners={"num_env_runners": {"choice": [0, 1]}},
        rl_module={"model_config": {"fcnet_hiddens": {"choice": [[32], [64, 64]]}}},
        environment={"env": "CartPole-v1", "env_config": {"a": {"b": {"choice": ["x", "y"]}}}},
        tune={"num_samples": 2},
    )


def test_search_spaces_round_trip_and_count() -> None:
    config = searched()
    assert config.search and not minimal().search
    assert num_trials(config) == 12
    assert num_trials(minimal()) == 1
    written = config.to_dict()
    assert written["training"]["lr"] == {"loguniform": [1e-5, 1e-3]}
    assert written["environment"]["env_config"] == {"a": {"b": {"choice": ["x", "y"]}}}
    assert config_from_dict(json.loads(json.dumps(written))) == config


def test_param_space_resolves_to_trials_that_validate() -> None:
    from ray.tune.search.basic_variant import BasicVariantGenerator

    config = searched()
    space = param_space(config)
    assert set(space) == {"seed", *ALGORITHM_SECTIONS} - {"callbacks"}
    generator = BasicVariantGenerator(random_state=1)
    generator.add_configurations(
        {"x": {"run": "PPO", "config": space, "num_samples": config.tune.num_samples}}
    )
    trials = [generator.next_trial() for _ in range(num_trials(config))]
    assert None not in trials and generator.next_trial() is None
    resolved = [with_trial_values(config, trial.config) for trial in trials]
    assert not any(trial.search for trial in resolved)
    assert {trial.training.minibatch_size for trial in resolved} == {64, 128}
    rates = [trial.training.lr for trial in resolved]
    assert all(isinstance(rate, float) and 1e-5 <= rate <= 1e-3 for rate in rates)
    assert all(trial.stop == config.stop and trial.name == "x" for trial in resolved)


def test_algorithm_refuses_search_spaces() -> None:
    with pytest.raises(ConfigError, match=r"training\.lr"):
        to_algorithm_config(minimal(training={"lr": {"grid_search": [0.1, 0.2]}}))


# RLlib


OUR_OWN = (
    "environment.action_mask",
    "debugging.deterministic",
    "debugging.portable",
    "debugging.threads",
    "environment.action_mask",
    "env_runners.max_actors",
    "env_runners.min_actors",
    "fault_tolerance.env_runner_timeout_s",
    "fault_tolerance.hang_factor",
    "fault_tolerance.hang_floor_s",
    "fault_tolerance.max_short_iterations",
    "fault_tolerance.on_env_runner_loss",
    "fault_tolerance.on_other_arithmetic",
    "evaluation.max_episode_steps",
    "learners.cuda_graphs",
    "training.adam_epsilon",
    "training.weight_decay",
    "training.target_kl",
    "training.normalize_advantages",
    "training.clip_range_vf",
    # Of RLlib's `learners` and `experimental`; they belong to what is under `training` here.
    "training.learner_config_dict",
    "training.torch_lr_schedulers",
)


def test_fields_are_arguments_of_rllib_and_defaults_are_its_own() -> None:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.algorithms.ppo import PPOConfig

    defaults = PPOConfig()
    departures = {}
    sections = all_sections()
    for name in ALGORITHM_SECTIONS:
        arguments = set(inspect.signature(getattr(AlgorithmConfig, name)).parameters)
        arguments |= set(inspect.signature(getattr(PPOConfig, name)).parameters)
        for attribute, field in sections[name].model_fields.items():
            key = field.alias or attribute
            if f"{name}.{key}" in OUR_OWN:
                continue
            # RLlib's rl_module_spec has the class of the network and that of the catalog.
            assert key in arguments or name == "rl_module", f"{name}.{key}"
            if f"{name}.{key}" in KINDS:  # RLlib has an object where the config has a name.
                assert field.get_default() is None
                continue
            stored = getattr(defaults, key)
            if not field.is_required() and name != "rl_module" and key != "evaluation_config":
                ours = field.get_default()
                if (stored.value if hasattr(stored, "value") else stored) != ours:
                    departures[key] = (stored, ours)
    assert departures == {"sample_timeout_s": (60.0, 600.0)}


def test_model_config_keys_are_those_of_rllib() -> None:
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    theirs = {
        field.name
        for field in dataclasses.fields(DefaultModelConfig)
        if not field.name.startswith(("fusionnet_", "lstm_use_prev_"))
    }
    ours = {"log_std_init", "orthogonal_init"}
    assert set(all_sections()["rl_module.model_config"].model_fields) == theirs | ours


def test_initializers_are_those_of_torch() -> None:
    """Named without Torch; each takes what is said, in place."""
    import inspect

    from torch.nn import init

    from raytrain.config import initializers

    signatures = {
        name: inspect.signature(getattr(init, name)).parameters for name in initializers._ARGUMENTS
    }
    for name, arguments in initializers._ARGUMENTS.items():
        found = [key for key in signatures[name] if key not in ("tensor", "generator")]
        assert tuple(found) == arguments, name
        required = [
            key for key in found if signatures[name][key].default is inspect.Parameter.empty
        ]
        assert required == [each for each in [initializers._REQUIRED.get(name)] if each], name
    in_place = {name for name in dir(init) if name.endswith("_") and not name.startswith("_")}
    assert in_place == set(signatures)


def test_algorithm_config_for_cartpole() -> None:
    config = load_config(
        ROOT / "configs" / "cartpole.yaml",
        overrides=[
            "env_runners.observation_filter=MeanStdFilter",
            "training.lr=[[0, 1e-3], [1000, 0]]",
            "seed=7",
        ],
    )
    algorithm = to_algorithm_config(config)
    algorithm.validate()
    assert algorithm.env == "CartPole-v1"
    assert algorithm.framework_str == "torch"
    assert algorithm.enable_rl_module_and_learner and algorithm.enable_env_runner_and_connector_v2
    assert algorithm.lr == [[0, 1e-3], [1000, 0]]
    assert algorithm.seed == 7
    assert algorithm.num_envs_per_env_runner == 8
    assert algorithm.model_config["fcnet_hiddens"] == [64, 64]
    assert algorithm.model_config["vf_share_layers"] is False
    pipeline = algorithm.build_env_to_module_connector(env=make_env(config))
    assert type(pipeline.connectors[0]).__name__ == "MeanStdFilter"


@pytest.mark.parametrize(
    ("model", "length"),
    [({"use_lstm": True}, 20), ({"use_lstm": True, "max_seq_len": 7}, 7), ({}, None)],
)
def test_a_recurrent_network_has_a_length_of_sequences(model: Any, length: Any) -> None:
    """RLlib's default, which RLlib itself does not put where it looks it up."""
    algorithm = to_algorithm_config(minimal(rl_module={"model_config": model}))
    assert algorithm.model_config.get("max_seq_len") == length


@pytest.mark.parametrize("wanted", [True, False])
def test_the_learner_is_told_what_rllib_has_no_key_for(wanted: bool) -> None:
    log_std = {"free_log_std": True, "log_std_init": -2} if wanted else {}
    sections = {
        "debugging": {"deterministic": wanted},
        "learners": {"cuda_graphs": wanted},
        "rl_module": {"model_config": log_std},
        "environment": {"env": "CartPole-v1", "action_mask": "info" if wanted else None},
    }
    algorithm = to_algorithm_config(minimal(**sections))
    told = dict(algorithm.learner_config_dict)
    assert told.pop("training")["clip_param"] == 0.3
    assert told == {
        "deterministic": wanted,
        "cuda_graphs": wanted,
        "log_std_init": -2 if wanted else None,
        "orthogonal_init": None,
        "action_mask": "info" if wanted else None,
    }
    assert "log_std_init" not in algorithm.model_config


def test_registered_env_is_the_one_that_make_env_makes(write: Any, envs: Any) -> None:
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    path = write(
        f"environment: {{env: '{envs}:dictionary', env_config: {{length: 2.0}}}}\n"
        "env_runners: {num_env_runners: 0, num_envs_per_env_runner: 2}\nstop: {iterations: 1}\n"
    )
    config = load_config(path)
    algorithm = to_algorithm_config(config)
    runner = SingleAgentEnvRunner(config=algorithm, worker_index=0)
    try:
        assert [env.unwrapped.length for env in runner.env.unwrapped.envs] == [2.0, 2.0]
    finally:
        runner.stop()


# Continuing


def test_differences_and_what_they_mean() -> None:
    old = minimal(stop={"iterations": 1}, training={"lr": 0.1, "gamma": 0.9})
    new = minimal(
        stop={"timesteps": 9},
        training={"lr": {"grid_search": [0.1]}, "gamma": 0.9},
        env_runners={"num_env_runners": 5},
        rl_module={"model_config": {"use_lstm": True}},
    )
    found = {d.field: (d.old, d.new) for d in differences(old.to_dict(), new)}
    assert found == {
        "env_runners.num_env_runners": (2, 5),
        "rl_module.model_config": ({}, None),
        "rl_module.model_config.use_lstm": (None, True),
        "stop.iterations": (1, None),
        "stop.timesteps": (None, 9),
        "training.lr": (0.1, {"grid_search": [0.1]}),
    }
    assert differences(old, old) == []


@pytest.mark.parametrize(
    ("field", "allowed", "inexact"),
    [
        ("stop.timesteps", True, False),
        ("checkpoint.score", True, False),
        ("failure.max_failures", True, False),
        ("resources.num_cpus_for_main_process", True, False),
        ("resources.custom_resources_for_main_process.gpu_node", True, False),
        ("storage_path", True, False),
        ("import_path", True, False),
        ("tune.max_concurrent_trials", True, False),
        ("tune.num_samples", False, False),
        ("debugging.log_level", True, False),
        ("debugging.deterministic", False, False),
        ("training.lr", False, False),
        ("seed", False, False),
        ("env_runners.num_env_runners", False, True),
        ("env_runners.num_envs_per_env_runner", False, True),
        ("learners.num_learners", False, True),
        ("learners.num_gpus_per_learner", False, False),
    ],
)
def test_what_a_continued_run_may_change(field: str, allowed: bool, inexact: bool) -> None:
    assert allowed_on_continue(field) is allowed
    assert gives_up_exactness(field) is inexact


def test_digest_covers_what_defines_the_run() -> None:
    digest = config_digest(minimal())
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert config_digest(minimal().to_dict()) == digest
    same = minimal(
        name="y",
        stop={"timesteps": 5},
        checkpoint={"num_to_keep": 9},
        storage_path="/elsewhere",
        import_path="/elsewhere",
        training={"lr": 5e-5},
    )
    assert config_digest(same) == digest
    for other in (minimal(seed=1), minimal(training={"lr": 0.1}), searched()):
        assert config_digest(other) != digest


def of_env(env_config: Any) -> Any:
    return minimal(environment={"env": "CartPole-v1", "env_config": env_config})


VALUES = [
    1, 1.0, True, 0.0, -0.0, math.nan, math.inf, "1", None, [1], [1.0], [math.nan], {}, {"b": 1}
]  # fmt: skip


@pytest.mark.parametrize("old", VALUES, ids=repr)
def test_two_values_are_equal_if_their_digests_are(old: Any) -> None:
    stored = json.loads(json.dumps(of_env({"a": old}).to_dict()))
    for new in VALUES:
        config = of_env({"a": new})
        same = repr(old) == repr(new)
        assert (differences(stored, config) == []) is same
        assert (config_digest(stored) == config_digest(config)) is same


def test_a_key_with_a_dot_is_no_section() -> None:
    dotted, nested = of_env({"a.b": 1}), of_env({"a": {"b": 1}})
    fields = [each.field for each in differences(dotted, nested)]
    assert fields == ['environment.env_config."a.b"', "environment.env_config.a.b"]
    assert config_digest(dotted) != config_digest(nested)
    assert config_digest(of_env({'"a.b"': 1})) != config_digest(dotted)


def test_what_may_differ_is_not_in_the_digest() -> None:
    fewer = minimal(env_runners={"num_env_runners": 1}, learners={"num_learners": 2})
    assert config_digest(fewer) == config_digest(minimal())


def test_a_digest_of_an_earlier_version_is_known() -> None:
    """SHA-256 with the number of env runners in it, as version 0.1.0 wrote it."""
    former = "84942a4bf782d7e75b2fbff858ac903b8e313e2777e1277604245d8cdfcd9eaf"
    assert has_digest(of_env({"k": 1}), former)
    assert not has_digest(of_env({"k": 2}), former)


def test_a_stored_config_of_an_earlier_version_is_read() -> None:
    stored = minimal().to_dict()
    stored["learners"] = {**stored["learners"], "compile_updates": True}
    del stored["learners"]["cuda_graphs"]
    assert differences(stored, minimal()) == []
    assert allowed_on_continue("learners.cuda_graphs")


def test_without_experiment_json_what_may_change_may_have_changed(tmp_path: Path) -> None:
    def saved(iteration: Any, config: Any) -> None:
        checkpoint = tmp_path / "trial_00000" / f"checkpoint_{iteration:06d}"
        told = manifest(iteration, config_digest=config_digest(config))
        commit(stage(tmp_path / "staging" / str(iteration)), Location.of(checkpoint), told)

    stages = [{"name": name, "until": {"timesteps": 10}} for name in ("first", "second")]
    begun, longer = minimal(curriculum=stages[:1]), minimal(curriculum=stages)
    saved(2, begun)
    saved(4, longer)
    place = Location.of(tmp_path)
    runners = longer.env_runners.model_copy(update={"num_env_runners": 7})
    for config in (longer, longer.model_copy(update={"env_runners": runners})):
        assert require_same_run(config, place, None, print, None) == []
    with pytest.raises(ConfigChanged, match="checkpoint_000004 was written by a run with another"):
        require_same_run(begun, place, None, print, None)


def test_stages_that_have_begun_are_compared_as_the_config_is(tmp_path: Path) -> None:
    checkpoint = Location.of(tmp_path / "trial_00000" / "checkpoint_000002")
    commit(stage(tmp_path / "staging"), checkpoint, manifest(2, stage="only"))

    def stages(value: Any) -> Any:
        return [{"name": "only", "environment": {"env_config": {"k": value}}}]

    assert may_change(Location.of(tmp_path), stages(math.nan), stages(float("nan")), None) is None
    assert may_change(Location.of(tmp_path), stages(1), stages(True), None) is not None


def test_environments_are_proved_again_only_for_other_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proof = {"strategy": "pickle", "exact": True, "reason": "", "global_random": []}
    proved = []

    def prove(config: ExperimentConfig, *_: Any) -> dict[str, Any]:
        proved.append(config)
        return dict(proof)

    monkeypatch.setattr("raytrain.driver.stages._proved", prove)

    def stages(*values: Any) -> Any:
        each = [
            {
                "name": f"s{i}",
                "until": {"timesteps": 1},
                "environment": {"env_config": {"k": value}},
            }
            for i, value in enumerate(values)
        ]
        return minimal(curriculum=each)

    known = prove_stages(stages(math.nan, 1, True), None, print, 0)
    assert len(proved) == 3
    prove_stages(stages(float("nan"), 1, True), known, print, 0)
    assert len(proved) == 3


# The files of the repository


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_round_trip(path: Any) -> None:
    config = load_config(path)
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.import_path == str(path.parent)


def test_grid_has_four_trials() -> None:
    assert num_trials(load_config(ROOT / "configs" / "grid.yaml")) == 4


def test_reference_matches_the_schema_both_ways() -> None:
    text = (ROOT / "docs" / "guide" / "config.md").read_text()
    assert render(text) == text, "run: python -m raytrain.config.reference docs/guide/config.md"
    documented = re.findall(r"<!-- table: (\S+) -->", text)
    assert documented == list(all_sections())
    keys = set()
    for section, body in re.findall(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", text, re.DOTALL):
        prefix = () if section == "top" else tuple(section.split("."))
        keys |= {(*prefix, key) for key in re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)}
    sections = {tuple(section.split(".")) for section in documented}
    # The keys of a stage's `training` are those of `training`, and have no table of their own.
    fields = set(yaml_fields())
    again = {path for path in fields if path[:2] == ("curriculum", "training") and path[2:]}
    assert {path[1:] for path in again} == {path for path in fields if path[0] == "training"} - {
        ("training",)
    }
    assert keys | sections - {("top",)} == fields - again


# -- plain values of YAML ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("+7", 7),
        ("-0", 0),
        ("200_000", 200_000),
        ("0x1F", 31),
        ("0o17", 15),
        ("1e-4", 1e-4),
        ("1e1", 10.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("true", True),
        ("~", None),
        # Text, also where YAML 1.1 has a word of its own for it.
        ("y", "y"),
        ("=", "="),
        ("'010'", "010"),
        ("!!str no", "no"),
        ("10.0.0.1", "10.0.0.1"),
        ("{on: 1, no: 2}", {"on": 1, "no": 2}),
    ],
)
def test_a_plain_value(text: str, value: Any) -> None:
    found = parse_yaml(text, "here").value
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("!!bool abc", "FILE:1:7: not valid YAML: 'abc' is no !!bool"),
        ("!!int x", "'x' is no !!int"),
        ("!!timestamp soon", "FILE:1: stop: the tag !!timestamp has no meaning here"),
        ("!!set {a, b}", "the tag !!set has no meaning here"),
        ("!!binary AA==", "the tag !!binary has no meaning here"),
        ("!mine 3", "could not determine a constructor for the tag '!mine'"),
        ("[" * 200 + "]" * 200, "it is nested more than 100 deep"),
        ("[" * 5000 + "]" * 5000, "FILE: not readable: it is nested too deeply"),
    ],
)
def test_what_is_no_plain_value_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_yaml(f"stop: {text}", "FILE")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("010", 'write 10, or "010"'),
        ("-08", 'write -8, or "-08"'),
        ("1__0", 'write 10, or "1__0"'),
        ("yes", 'write true, or "yes"'),
        ("Off", 'write false, or "Off"'),
        ("1:30", 'write the number in decimal digits, or "1:30"'),
        ("0b11", 'write the number in decimal digits, or "0b11"'),
        ("2024-01-31", 'write "2024-01-31"'),
        ("2024-01-31 10:00:00", 'write "2024-01-31 10:00:00"'),
    ],
)
def test_a_value_that_yaml_1_1_and_1_2_read_differently_is_refused_with_its_line(
    write: Any, text: str, instead: str
) -> None:
    said = refusal(write(f"{MINIMAL}env_config_:\n  - {{size: {text}}}\n"))
    line = MINIMAL.count("\n") + 2
    assert (
        f"run.yaml:{line}: env_config_[0].size: {text} has different meanings in YAML 1.1" in said
    )
    assert instead in said


def test_what_is_written_is_read_as_the_same() -> None:
    """A packed config holds the text of another file's values."""
    values: list[Any] = [
        "010",
        "08",
        "yes",
        "1e5",
        "0o17",
        "1:30",
        "2024-01-31",
        "~",
        "true",
        "12",
        "text",
        "",
    ]
    values += [10, 1e-5, 1e5, True, None, float("inf"), 2**70]
    assert parse_yaml(dump_yaml({"a": values}), "here").value == {"a": values}
