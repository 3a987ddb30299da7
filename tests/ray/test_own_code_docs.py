"""The examples of docs/guide/own_code.md: each trains, and continues exactly from a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT
from support.tiny_ppo import built, iterate, unlike

from raytrain.config import load_config

pytestmark = pytest.mark.usefixtures("local_ray")

_EXAMPLE = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```\n\n```yaml\n(.*?)^```$", re.M | re.S)
EXAMPLES = _EXAMPLE.findall((ROOT / "docs" / "guide" / "own_code.md").read_text())


def test_every_kind_has_an_example() -> None:
    assert [name for name, _, _ in EXAMPLES] == ["nets.py", "cb.py", "conn.py", "learn.py"]


@pytest.mark.parametrize(("name", "code", "config"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_it_trains_and_continues_exactly(tmp_path: Path, name: str, code: str, config: str) -> None:
    (tmp_path / name).write_text(code)
    (tmp_path / "run.yaml").write_text(config)
    load_config(tmp_path / "run.yaml")
    own: dict[str, Any] = {**yaml.safe_load(config), "import_path": str(tmp_path)}
    with built(**own) as algorithm:
        iterate(algorithm, 1)
        algorithm.save_exact(tmp_path / "saved")
        trail = iterate(algorithm, 1)
    with built(**own) as restored:
        restored.load_exact(tmp_path / "saved")
        assert unlike(trail, iterate(restored, 1)) == []
