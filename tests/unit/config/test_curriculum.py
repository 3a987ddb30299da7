"""The stages of a config: what is refused, and where."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_ppo import TINY

from raytrain.config import ConfigError, config_from_dict, load_config

# -- the config ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("[{name: a}, {name: b}]", "would never end"),
        ("[{name: a, until: {timesteps: 5}}, {name: a}]", "two stages have this name"),
        ("[{name: a, until: {timesteps: 5}, training: {lrr: 1}}]", "(did you mean 'lr'?)"),
        ("[{name: a, until: {timesteps: 5}, training: {use_gae: false}}]", "cannot change"),
        ("[{name: a, until: {timesteps: 5}, training: {minibatch_size: 9000}}]", "in the stage"),
        ("[{name: a, until: {timestep: 5}}]", "(did you mean 'timesteps'?)"),
        (
            "[{name: a, until: {timesteps: 5}, environment: {env_config: {max_episode_step: 5}}}]",
            "curriculum[0].environment.env_config.max_episode_step",
        ),
        ("[{name: a.old, until: {timesteps: 5}}]", "cannot end in"),
        ("[{name: ../a, until: {timesteps: 5}}]", "usable as a directory's name"),
    ],
)
def test_a_wrong_stage_is_refused_with_its_line(tmp_path: Path, stages: str, said: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        f"environment: {{env: CartPole-v1}}\nstop: {{timesteps: 9}}\ncurriculum: {stages}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert said in str(caught.value)
    assert "a.yaml:3" in str(caught.value)


def test_a_return_that_may_never_come_needs_a_bound() -> None:
    config = {**TINY, "stop": {"episode_return_mean": 9.0}}
    config["curriculum"] = [{"name": "a", "until": {"episode_return_mean": 5}}]
    with pytest.raises(ConfigError, match="may never end"):
        config_from_dict(config)
    bounded = {**config, "curriculum": [{"name": "a", "until": {"timesteps": 5}}]}
    # The last stage's end is the run's; then `stop` needs nothing.
    assert config_from_dict({**bounded, "stop": {}}).curriculum[0].name == "a"


def test_stop_score_and_stages_have_the_same_window_where_none_is_given() -> None:
    stages = [{"name": "a", "until": {"timesteps": 5}}, {"name": "b"}]
    config = config_from_dict({**TINY, "curriculum": stages})
    assert config.stop.window == 100
    assert config.checkpoint.score_window == 100
    assert config.curriculum[0].until.window == 100
