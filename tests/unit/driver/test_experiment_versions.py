"""Which other versions make a run report that its numbers may differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.checkpoint_children import manifest

from raytrain import versions as versions_module
from raytrain.checkpoint import ExperimentFile
from raytrain.config import config_from_dict
from raytrain.driver import experiment as driver
from raytrain.storage import Location
from raytrain.versions import SAME_NUMBERS, changed_versions

NOW = {"python": "3.11.7", "raytrain": "0.2.0", "torch": "2.13.0"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions_module, "versions", lambda: NOW)


@pytest.mark.parametrize("version", sorted(SAME_NUMBERS))
def test_versions_with_the_same_numbers_are_no_change(version: str) -> None:
    assert changed_versions({**NOW, "raytrain": version}) == {}


def test_every_other_version_is_a_change() -> None:
    assert changed_versions({**NOW, "raytrain": "0.0.9"}) == {"raytrain": ("0.0.9", "0.2.0")}
    assert changed_versions({"raytrain": "0.1.0", "torch": "2.12.0"}) == {
        "torch": ("2.12.0", "2.13.0"),
        "python": ("none", "3.11.7"),
    }


def test_a_run_of_a_version_with_the_same_numbers_continues_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(driver, "require_actions", lambda config, say: tried.append("actions"))
    values = {"name": "run", "environment": {"env": "CartPole-v1"}, "stop": {"iterations": 1}}
    stored = ExperimentFile(
        name="run",
        run_id="1",
        config=values,
        config_digest="",
        snapshot={"strategy": "copy", "exact": True, "reason": "", "global_random": []},
        versions={**NOW, "raytrain": "0.1.0"},
        first_start="2026-01-01T00:00:00+00:00",
    )
    config, place = config_from_dict(values), Location.of(tmp_path)
    messages: list[str] = []
    driver._describe_run(config, place, stored, messages.append)
    assert (messages, tried) == ([], [])
    older = replace(stored, versions={**NOW, "raytrain": "0.0.9"})
    monkeypatch.setattr(driver, "prove_stages", lambda *_: dict(stored.snapshot))
    driver._describe_run(config, place, older, messages.append)
    assert (messages, tried) == ([], ["actions"])  # Nothing was trained with the other version.
    trained = [manifest(3, versions=older.versions)]
    monkeypatch.setattr(driver, "newest_manifests", lambda place: trained)
    driver._describe_run(config, place, older, messages.append)
    assert messages == [
        "raytrain 0.0.9 -> 0.2.0 since the run was last trained: it continues, but is not exact "
        "from here on; its manifests say so."
    ]
