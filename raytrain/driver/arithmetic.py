"""What experiment.json says of arithmetic: the settings of the first start, and what computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raytrain.arithmetic.settings import ArithmeticSettings, Role
from raytrain.checkpoint import ExperimentFile
from raytrain.config import ExperimentConfig, config_from_dict
from raytrain.rng import hash_seed
from raytrain.storage import Location


def settings_for(config: ExperimentConfig, stored: ExperimentFile | None) -> ArithmeticSettings:
    """Those of the first start, whatever CPUs the config asks for now."""
    if stored is not None and stored.arithmetic is not None:
        kept = ArithmeticSettings.read(stored.arithmetic["settings"])
        return replace(kept, portable=config.debugging.portable)
    first = config if stored is None else config_from_dict(stored.config)
    return ArithmeticSettings(
        threads=_threads(first),
        hash_seed=hash_seed(first.seed),
        portable=config.debugging.portable,
    )


def add_computed_by(place: Location, entry: Mapping[str, Any]) -> None:
    """Add a trial's entry (see `manifest`) to the experiment's file, without the settings."""
    experiment = ExperimentFile.existing(place)
    known = experiment.arithmetic or {}
    added = {key: value for key, value in entry.items() if key != "settings"}
    if added not in (before := known.get("computed_by", [])):
        replace(experiment, arithmetic={**known, "computed_by": [*before, added]}).write(place)


def _threads(config: ExperimentConfig) -> dict[Role, int]:
    """One for each whole CPU of a process."""
    of_learner = config.learners.num_cpus_per_learner
    learner = 1.0 if isinstance(of_learner, str) else float(of_learner)
    main = float(config.resources.num_cpus_for_main_process)
    if config.learners.num_learners == 0:
        main = max(main, learner)
    cpus: dict[Role, float] = {
        "trial": main,
        "learner": learner,
        "env_runner": float(config.env_runners.num_cpus_per_env_runner),
    }
    return {role: max(1, int(number)) for role, number in cpus.items()}
