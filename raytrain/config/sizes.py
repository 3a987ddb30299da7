"""What one trial asks a cluster for, as far as its config tells. Only RLlib knows the exact numbers, and
to ask it takes seconds of imports."""

from __future__ import annotations

from raytrain.config.schema import ExperimentConfig
from raytrain.config.sections import EnvRunners


def most_env_runners(runners: EnvRunners) -> int:
    """How many env runner actors a trial has if the cluster has room for all."""
    groups = runners.num_env_runners
    return groups if runners.max_actors is None else min(groups, runners.max_actors)


def cpus_at_most(config: ExperimentConfig) -> float:
    """An upper bound of the CPUs that one trial asks for."""
    each = config.learners.num_cpus_per_learner
    learner = 1.0 if isinstance(each, str) else float(each)
    main = float(config.resources.num_cpus_for_main_process)
    runners = most_env_runners(config.env_runners) + config.evaluation.evaluation_num_env_runners
    if config.learners.num_learners == 0:
        main = max(main, learner)
    return (
        main
        + config.learners.num_learners * learner
        + runners * config.env_runners.num_cpus_per_env_runner
    )
