"""A stored config with values in place of some of its own, and texts that stand for too much."""

from __future__ import annotations

from typing import Any

import pytest

from raytrain.config import ConfigError, config_from_dict, stored_config
from raytrain.config.yaml_lines import parse_yaml

STORED: dict[str, Any] = config_from_dict(
    {"name": "run", "environment": {"env": "CartPole-v1"}, "stop": {"iterations": 4}}
).to_dict()


def test_values_are_replaced_and_the_stored_ones_stay() -> None:
    changed = stored_config(STORED, ["stop.iterations=8", "training.lr=1e-3"])
    assert changed.stop.iterations == 8
    assert changed.training.lr == 1e-3
    assert STORED["stop"]["iterations"] == 4
    assert stored_config(STORED) == config_from_dict(STORED)
    assert stored_config(STORED, ["stop.timesteps=5"]).stop.iterations == 4


@pytest.mark.parametrize(
    ("override", "field", "message"),
    [
        ("training.lrr=1", "training.lrr", "unknown key"),
        ("stop.iterations=0", "stop.iterations", "must be at least 1"),
        ("name=b", "name", "cannot be changed"),
        ("storage_path=/x", "storage_path", "cannot be changed"),
        (" import_path =/x", "import_path", "cannot be changed"),
        ("search=1", "search", "cannot be changed"),
        ("nothing", "", "must be KEY=VALUE"),
    ],
)
def test_what_cannot_be_replaced_is_said(override: str, field: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stored_config(STORED, ["stop.time_s=9", override])
    (problem,) = caught.value.problems
    assert message in problem.message
    assert problem.where.startswith("--set ")
    assert problem.field == field


def test_anchors_that_stand_for_billions_are_refused() -> None:
    text = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True):
        text += f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    with pytest.raises(ConfigError, match="anchors"):
        parse_yaml(text, "x.yaml")
    assert parse_yaml("a: &a [1, 2]\nb: *a\n", "x.yaml").value == {"a": [1, 2], "b": [1, 2]}
