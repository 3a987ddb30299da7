"""What the algorithm of a trial is built from: for the trial itself, and for those who repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raytrain.config import ExperimentConfig, stage_config, to_algorithm_config
from raytrain.ppo.algorithm import prepare
from raytrain.ppo.curriculum import StagePlan, recent_size
from raytrain.ppo.stopping import StopRule


def algorithm_arguments(config: ExperimentConfig, snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `ExactPPO` for a trial's own config. `snapshot`: what experiment.json says of
    how the environments are snapshotted."""
    own = snapshot.get("stages", {})
    stages = [
        StagePlan(
            name=stage.name,
            rule=StopRule.of_stage(stage.until),
            config=prepare(to_algorithm_config(stage_config(config, index))),
            strategy=str(own.get(stage.name, snapshot)["strategy"]),
        )
        for index, stage in enumerate(config.curriculum)
    ]
    return {
        "config": stages[0].config if stages else prepare(to_algorithm_config(config)),
        "strategy": str(snapshot["strategy"]),
        "stages": stages,
        "recent": recent_size(config),
    }
