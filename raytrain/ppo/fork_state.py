"""What a fork takes from the state that another run saved, and what its own config decides.

    weights, optimizer, filters, counters    the parent's
    learning rate, coefficients              this config's (the optimizer's state has the parent's)
    KL coefficient                           the parent's, unless `training.kl_coeff` has changed
    random generators                        the parent's, unless `seed` has changed
    running episodes                         the parent's, unless their settings have changed

The settings of the parent are in the saved state: `settings` in resume/state.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import cloudpickle

from raytrain.policy.rllib_observations import filters_observations
from raytrain.ppo.own_training import OwnTraining
from raytrain.rng import RngStreams

_MODULE_STATE = "learner_group/learner/rl_module/default_policy/module_state.pkl"


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of an `AlgorithmConfig`, as JSON types, that the random generators, the
    episodes, their evaluation and the KL coefficient begin with, and the timesteps at which
    schedules end that are relative to the run's end (None: there are none)."""
    evaluation = config.evaluation_config
    settings = {
        "seed": config.seed,
        "episodes": {
            "env": str(config.env),
            "env_config": dict(config.env_config),
            "envs": config.num_envs_per_env_runner,
            "filtered": filters_observations(config),
            "batch_mode": config.batch_mode,
        },
        "evaluation": dict(evaluation) if isinstance(evaluation, dict) else None,
        "kl_coeff": config.kl_coeff,
        "relative_to": OwnTraining.of(config).relative_to,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


@dataclass(frozen=True)
class ForkDifferences:
    """Which settings of a fork differ from those of the run whose state it takes."""

    seed: bool
    episodes: bool
    evaluation: bool
    kl: bool

    @classmethod
    def of(cls, plain: dict[str, Any], config: Any, strategy: str) -> ForkDifferences:
        then, now = plain.get("settings", {}), settings_of(config)
        seed = then.get("seed") != now["seed"]
        return cls(
            seed=seed,
            episodes=(
                seed or then.get("episodes") != now["episodes"] or plain["strategy"] != strategy
            ),
            evaluation=then.get("evaluation") != now["evaluation"],
            kl=then.get("kl_coeff") != now["kl_coeff"],
        )


IDENTICAL = ForkDifferences(seed=False, episodes=False, evaluation=False, kl=False)


def reseed(plain: dict[str, Any], learners: list[dict[str, Any]]) -> None:
    """Replace the saved random generators by this run's. `learners`: the states of this run's
    learners, before their first update."""
    plain["rng"] = RngStreams.capture().to_state()
    for index, saved in enumerate(plain["learners"]):
        fresh = learners[index % len(learners)]
        saved["rng"], saved["minibatch_order"] = fresh["rng"], fresh["minibatch_order"]


def weights_in(directory: Path) -> dict[str, Any]:
    """Parameters and buffers of the policy module, by name, in a checkpoint of RLlib's."""
    weights: dict[str, Any] = cloudpickle.loads((directory / _MODULE_STATE).read_bytes())
    return weights
