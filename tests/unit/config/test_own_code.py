"""The user's own code in a config: what is accepted, refused, packed and hashed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from support.config_files import MINIMAL

from raytrain.cluster.package import needs_files
from raytrain.config import (
    ConfigError,
    config_digest,
    config_from_dict,
    differences,
    load_config,
)
from raytrain.config.own_code import HOOKS, load_object, own_code, own_code_modules
from raytrain.config.run_code import RunCode, code_of

CODE = """
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule


class Net(TorchRLModule, ValueFunctionAPI):
    class Large(TorchRLModule, ValueFunctionAPI):
        pass

class NoValues(TorchRLModule): ...
class Catalog(PPOCatalog): ...
class Learner(PPOTorchLearner): ...

class Counts(RLlibCallback):
    def on_episode_end(self, *, episode, env_index, **kwargs): ...

class Old(RLlibCallback):
    def on_episode_end(self, *, worker, base_env, episode, **kwargs): ...

class Narrow(RLlibCallback):
    def on_train_result(self, *, algorithm, result): ...

def on_end(*, episode, **kwargs): ...
def on_result(algorithm, result): ...
def to_module(env, spaces, device): ...
def to_module_of_old(env): ...
def to_env(env, spaces): ...
def batch(input_observation_space, input_action_space): ...
number = 3
"""

_numbers = itertools.count()


@pytest.fixture
def own(tmp_path: Path) -> str:
    """The name of a module of its own beside the config."""
    name = f"own_code_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    return name


@pytest.fixture
def refusal(tmp_path: Path, own: str) -> Callable[[str], str]:
    def refused(line: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(
            "environment: {env: CartPole-v1}\nstop: {iterations: 2}\n" + line.replace("OWN", own)
        )
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        return str(caught.value).replace(own, "OWN")

    return refused


EVERYTHING = """
environment: {env: CartPole-v1}
stop: {iterations: 2}
rl_module: {module_class: 'OWN:Net.Large', catalog_class: 'OWN:Catalog', model_config: {any: [1]}}
callbacks:
  callbacks_class: ['OWN:Counts', 'OWN:Counts']
  on_episode_end: OWN:on_end
  on_sample_end: ['OWN:on_end_of_all']
env_runners: {env_to_module_connector: 'OWN:to_module', module_to_env_connector: 'OWN:to_env'}
training: {learner_connector: 'OWN:batch', learner_class: 'OWN:Learner'}
"""


def test_every_key_is_read_checked_packed_and_hashed(tmp_path: Path, own: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(EVERYTHING.replace("OWN", own))
    (tmp_path / f"{own}.py").write_text(CODE + "def on_end_of_all(**kwargs): ...\n")
    config = load_config(path)
    assert config_from_dict(config.to_dict()) == config
    assert config.to_dict()["rl_module"]["model_config"] == {"any": [1]}
    assert {named.kind for named in own_code(config)} >= {
        "rl_module.module_class",
        "callbacks.on_sample_end",
        "training.learner_class",
    }
    assert len(own_code(config)) == 10
    assert own_code_modules(config) == [own]
    assert needs_files(config)
    assert f"{own}.py" in code_of(config, {}, RunCode(), print).files


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rl_module: {module_class: OWN}", "must be a name in a module, such as my_code:Name"),
        ("rl_module: {module_class: 3}", "must be a name in a module, such as my_code:Name"),
        ("rl_module: {module_class: 'OWNx:Net'}", "no module OWNx; looked in"),
        ("rl_module: {module_class: 'OWNx:Net'}", "(did you mean 'OWN'?)"),
        ("rl_module: {module_class: 'OWN:Nett'}", "has no Nett (did you mean 'Net'?)"),
        ("rl_module: {module_class: 'OWN:Net.Lage'}", "no Net.Lage (did you mean 'Large'?)"),
        ("rl_module: {module_class: 'OWN.py:Net'}", "no module OWN.py"),
        ("rl_module: {module_class: './OWN.py:Net'}", "write OWN:Net"),
        ("rl_module: {module_class: 'OWN:on_end'}", "OWN:on_end is a function; write a class"),
        ("rl_module: {module_class: 'OWN:Counts'}", "not derive from RLlib's TorchRLModule and"),
        ("rl_module: {module_class: 'OWN:NoValues'}", "not derive from RLlib's ValueFunctionAPI ("),
        ("rl_module: {catalog_class: 'OWN:Net'}", "does not derive from RLlib's Catalog"),
        (
            "rl_module: {module_class: 'OWN:Net', model_config: {a: 010}}",
            "has different meanings",
        ),
        ("rl_module: {module_class: 'OWN:Net', model_config: 3}", "model_config: 3: must be a ma"),
        ("callbacks: {callbacks_class: 'OWN:Net'}", "does not derive from RLlib's RLlibCallback"),
        ("callbacks: {callbacks_class: ['OWN:Counts', 'OWN:Net']}", ":3: callbacks.callbacks_cl"),
        ("callbacks: {callbacks_class: ['OWN:Counts', 'OWN:Net']}", "callbacks_class[1]: OWN:Net"),
        ("callbacks: {callbacks_class: 'OWN:Old'}", "a method on_episode_end that is called with"),
        ("callbacks: {callbacks_class: 'OWN:Old'}", "missing a required argument: 'worker'"),
        ("callbacks: {callbacks_class: 'OWN:Narrow'}", "unexpected keyword argument 'metrics_lo"),
        ("callbacks: {on_episode_end: 'OWN:number'}", "is a int and cannot be called"),
        ("callbacks: {on_train_result: 'OWN:on_result'}", "algorithm, metrics_logger, result: got"),
        ("callbacks: {on_train_result: 'OWN:on_result'}", "take **kwargs too"),
        ("callbacks: {on_episode_ended: 'OWN:on_end'}", "(did you mean 'on_episode_end'?)"),
        ("callbacks: {on_evaluate_offline_end: 'OWN:on_end'}", "there is no offline evaluation"),
        ("env_runners: {env_to_module_connector: 'OWN:to_env'}", "called with env, spaces, device"),
        ("env_runners: {module_to_env_connector: 'OWN:to_module'}", "called with env, spaces: "),
        ("training: {learner_connector: 'OWN:to_module'}", "observation_space, action_space: "),
        ("training: {learner_class: 'OWN:Net'}", "does not derive from RLlib's PPOTorchLearner"),
        ("learners: {learner_class: 'OWN:Learner'}", "stands under training.learner_class"),
        (
            "curriculum: [{name: a, training: {learner_class: 'OWN:Learner'}}]",
            "the stage 'a' cannot change training.learner_class",
        ),
        (
            "training: {learner_class: {grid_search: ['OWN:Learner', 'OWN:Net']}}",
            "training.learner_class: OWN:Net does not derive",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    refusal: Callable[[str], str], line: str, said: str
) -> None:
    assert said in refusal(line)


def test_a_connector_of_older_programs_is_accepted(tmp_path: Path, own: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "environment: {env: CartPole-v1}\nstop: {iterations: 2}\n"
        f"env_runners: {{env_to_module_connector: '{own}:to_module_of_old'}}"
    )
    assert load_config(path).env_runners.env_to_module_connector == f"{own}:to_module_of_old"


def test_a_module_that_raises_is_named_with_its_line(refusal: Callable[[str], str]) -> None:
    said = refusal("callbacks: {on_episode_end: 'raytrain.no_such:f'}")
    assert "no module raytrain.no_such" in said


def test_a_config_without_own_code_has_the_digest_that_it_had() -> None:
    config = config_from_dict(MINIMAL)
    assert "callbacks" not in config.to_dict()
    assert "module_class" not in config.to_dict()["rl_module"]
    assert config_digest(config) == (
        "5c91b6defca2cb08f9d704a9560d02fa59a60f280d979988fefd5e3666e0fd28"
    )
    other = config_from_dict({**MINIMAL, "callbacks": {"on_episode_end": "a:b"}})
    assert [d.field for d in differences(config, other)] == ["callbacks.on_episode_end"]
    assert config_digest(config) != config_digest(other)


def test_the_hooks_are_those_of_rllib_with_their_arguments() -> None:
    import inspect

    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.callbacks.callbacks import RLlibCallback

    theirs = {
        name
        for name in inspect.signature(AlgorithmConfig.callbacks).parameters
        if name.startswith("on_") and "offline" not in name
    }
    assert set(HOOKS) == theirs
    for name, keywords in HOOKS.items():
        inspect.signature(getattr(RLlibCallback, name)).bind(None, **dict.fromkeys(keywords))


def test_an_object_is_found_by_its_name(tmp_path: Path, own: str) -> None:
    assert load_object(f"{own}:Net.Large", str(tmp_path), "x").__qualname__ == "Net.Large"
