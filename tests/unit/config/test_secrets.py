"""Secrets in a config are refused, and the values of references stay in their process."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import cloudpickle
import gymnasium as gym
import pytest
from support.running import write_config

from raytrain.config import ConfigError, config_from_dict, load_config, make_env
from raytrain.config.secrets import SecretText, secrets_in, with_secrets

CANARY = "canary-of-a-licence"


@pytest.mark.parametrize(
    "key", ["api_key", "apiKey", "password", "db-password", "auth_token", "LICENSE_KEY", "secret"]
)
def test_a_text_under_the_name_of_a_secret_is_refused(tmp_path: Path, key: str) -> None:
    config = write_config(tmp_path / "a.yaml", environment={"env_config": {key: CANARY}})
    with pytest.raises(ConfigError, match=r"a\.yaml:\d+: .*from_environment") as caught:
        load_config(config)
    assert CANARY not in str(caught.value)
    with pytest.raises(ConfigError, match=r"--set environment\.env_config") as caught:
        override = f"environment.env_config.{key}={CANARY}"
        load_config(write_config(tmp_path / "b.yaml"), overrides=[override])
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "AKIAABCDEFGHIJKLMNOP",
        "ghp_abcdefghijklmnopqrstuvwxyz012345",
        "postgres://me:hidden@host/db",
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_a_text_like_a_credential_is_refused(text: str) -> None:
    assert [path for path, _ in secrets_in({"a": [{"b": text}]})] == [("a", 0, "b")]


def test_ordinary_values_are_not_secrets() -> None:
    ordinary = {
        "num_tokens": 8,
        "token": 3,
        "keys": ["a"],
        "tokenizer": "bpe",
        "url": "https://host/path",
        "password": "",
        "key": "C-sharp",
        "hf": "hf_short",
        "monkey": "x",
    }
    assert list(secrets_in(ordinary)) == []


def test_a_reference_is_resolved_where_the_environment_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_key.py").write_text(
        "import gymnasium as gym\n"
        "def make(licence_key):\n"
        "    env = gym.make('CartPole-v1')\n"
        "    env.unwrapped.licence_key = licence_key\n"
        "    return env\n"
    )
    reference = {"licence_key": {"from_environment": "SIM_LICENCE"}}
    path = write_config(
        tmp_path / "a.yaml", environment={"env": "needs_key:make", "env_config": reference}
    )
    config = load_config(path)
    assert CANARY not in str(config.to_dict())
    with pytest.raises(ConfigError, match=r"SIM_LICENCE.*not set"):
        make_env(config)
    monkeypatch.setenv("SIM_LICENCE", CANARY)
    env = make_env(config_from_dict(config.to_dict()))
    assert isinstance(env, gym.Env) and env.unwrapped.licence_key == CANARY
    assert CANARY.encode() not in cloudpickle.dumps(env)
    assert cloudpickle.loads(cloudpickle.dumps(env)).unwrapped.licence_key == CANARY


def test_the_value_travels_as_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_LICENCE", CANARY)
    values = with_secrets({"a": [{"from_environment": "SIM_LICENCE"}], "b": 1}, "env_config")
    (secret,) = values["a"]
    assert isinstance(secret, SecretText) and secret == CANARY and values["b"] == 1
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(secret, protocol=protocol)
        assert CANARY.encode() not in data and pickle.loads(data) == CANARY
    assert copy.deepcopy(secret) == CANARY and CANARY not in repr(values)
    monkeypatch.setenv("SIM_LICENCE", "another")
    assert pickle.loads(data) == "another"
