from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raytrain.checkpoint import ExperimentFile
from raytrain.config import config_from_dict
from raytrain.driver.arithmetic import add_computed_by, settings_for
from raytrain.storage import Location

BASE: dict[str, Any] = {
    "name": "run",
    "environment": {"env": "CartPole-v1"},
    "stop": {"iterations": 1},
}


def stored(config: Any, **arithmetic: Any) -> ExperimentFile:
    return ExperimentFile(
        name="run",
        run_id="id",
        config=config.to_dict(),
        config_digest="",
        snapshot={"strategy": "native", "exact": True, "reason": ""},
        versions={},
        first_start="2026-01-01T00:00:00+00:00",
        arithmetic=arithmetic or None,
    )


@pytest.mark.parametrize(
    ("sections", "threads"),
    [
        ({}, (1, 1, 1)),
        ({"resources": {"num_cpus_for_main_process": 4}}, (4, 1, 1)),
        ({"resources": {"num_cpus_for_main_process": 0}}, (1, 1, 1)),
        ({"learners": {"num_cpus_per_learner": 3}}, (3, 3, 1)),
        ({"learners": {"num_cpus_per_learner": 3, "num_learners": 1}}, (1, 3, 1)),
        ({"env_runners": {"num_cpus_per_env_runner": 2.5}}, (1, 1, 2)),
        ({"env_runners": {"num_cpus_per_env_runner": 0.5}}, (1, 1, 1)),
    ],
)
def test_a_process_has_a_thread_for_each_cpu_of_the_first_start(
    sections: dict[str, Any], threads: tuple[int, int, int]
) -> None:
    settings = settings_for(config_from_dict({**BASE, **sections}), None)
    assert tuple(settings.threads.values()) == threads


def test_later_starts_keep_what_the_first_one_had() -> None:
    first = config_from_dict(BASE)
    settings = settings_for(first, None)
    later = config_from_dict({**BASE, "resources": {"num_cpus_for_main_process": 4}})
    assert settings_for(later, stored(first, settings=settings.to_dict())) == settings
    # Of raytrain 0.1, which stored no settings: what its config says.
    assert settings_for(later, stored(first)) == settings


def test_the_hash_seed_follows_from_the_seed() -> None:
    def seed_of(seed: int) -> int:
        return settings_for(config_from_dict({**BASE, "seed": seed}), None).hash_seed

    assert seed_of(1) == seed_of(1) != seed_of(2)


def test_each_kind_of_machine_is_added_once(tmp_path: Path) -> None:
    place = Location.of(tmp_path / "run")
    config = config_from_dict(BASE)
    settings = settings_for(config, None).to_dict()
    stored(config, settings=settings).write(place)
    for fingerprint in ("1:a", "1:a", "1:b"):
        add_computed_by(place, {"settings": {}, "learner": {"fingerprint": fingerprint}})
    arithmetic = ExperimentFile.existing(place).arithmetic
    assert arithmetic == {
        "settings": settings,
        "computed_by": [{"learner": {"fingerprint": text}} for text in ("1:a", "1:b")],
    }
