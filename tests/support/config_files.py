"""Small configs, as mappings and as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from raytrain.config import ConfigError, load_config

MINIMAL = {"name": "a", "environment": {"env": "CartPole-v1"}, "stop": {"iterations": 2}}
STOP = "stop: {iterations: 2}\n"


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text("environment: {env: CartPole-v1}\n" + text + "\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value)
