"""`ExperimentConfig` -> RLlib's `PPOConfig`, each section through the method of the same name; and
Tune's parameter space.

The env runner and learner classes are not set here; the trial chooses them.
"""

from __future__ import annotations

import copy
import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raytrain.config.environment import EnvCreator, env_creator, is_atari
from raytrain.config.errors import ConfigError
from raytrain.config.schema import ALGORITHM_SECTIONS, ExperimentConfig
from raytrain.config.search import put_value

if TYPE_CHECKING:
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.connector_v2 import ConnectorV2


def to_algorithm_config(config: ExperimentConfig) -> PPOConfig:
    """PPO on the new API stack, with Torch. Also registers the environment's creator with Ray.

    The registration holds for the whole Ray job, as soon as Ray runs. A trial calls this function
    too, so that its env runners find the environment after any restore.

    Raises ConfigError if the environment does not exist, or if the config has search spaces.
    """
    if config.search:
        fields = ", ".join(".".join(space.path) for space in config.search)
        raise ConfigError(
            f"{fields}: a search space; build the algorithm from a trial's own values"
        )

    from ray.rllib.algorithms.ppo import PPOConfig

    algorithm = PPOConfig()
    algorithm.api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
    algorithm.framework("torch")
    algorithm.environment(
        **{
            **config.environment.model_dump(exclude={"action_mask"}),
            "env": register_env(env_creator(config)),
        }
    )
    algorithm.env_runners(**_env_runners(config))
    algorithm.training(**config.training.model_dump())
    # RLlib passes this dictionary on as it is.
    for_the_learner = {
        "deterministic": config.debugging.deterministic,
        "cuda_graphs": config.learners.cuda_graphs,
        "log_std_init": config.rl_module.model.log_std_init,
        "action_mask": config.environment.action_mask,
    }
    algorithm.learners(
        **config.learners.model_dump(exclude={"cuda_graphs"}),
        learner_config_dict=for_the_learner,
    )
    algorithm.rl_module(model_config=_model_config(config))
    algorithm.evaluation(**_evaluation(config))
    algorithm.fault_tolerance(
        max_num_env_runner_restarts=config.fault_tolerance.max_num_env_runner_restarts,
        # An evaluation runner whose environment raised sleeps so long before it ends (RLlib: 60).
        delay_between_env_runner_restarts_s=1.0,
    )
    algorithm.debugging(seed=config.seed, log_level=config.debugging.log_level)
    algorithm.resources(**config.resources.model_dump())
    return algorithm


def param_space(config: ExperimentConfig) -> dict[str, Any]:
    """Tune's parameter space: the seed and the algorithm's sections, with Tune's domains in the
    places of the search spaces."""
    from ray import tune

    domains = {
        "grid_search": tune.grid_search,
        "choice": tune.choice,
        "uniform": lambda ends: tune.uniform(*ends),
        "loguniform": lambda ends: tune.loguniform(*ends),
    }
    values = config.to_dict()
    for space in config.search:
        put_value(values, space.path, domains[space.kind](copy.deepcopy(list(space.values))))
    return {key: values[key] for key in ("seed", *ALGORITHM_SECTIONS)}


def _model_config(config: ExperimentConfig) -> dict[str, Any]:
    """The keys of the network that are given. RLlib merges them into its defaults when it builds
    the network, but reads the sequence length of a recurrent network from here."""
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    model = config.rl_module.model.model_dump(exclude={"log_std_init"})
    if model.get("use_lstm"):
        model.setdefault("max_seq_len", DefaultModelConfig().max_seq_len)
    return model


def register_env(creator: EnvCreator) -> str:
    """Register an environment's creator with Ray; returns the name by which RLlib finds it.

    A Gymnasium id keeps its name. The name of a factory gets the digest of the import path, as two
    experiments in one Ray job may each have a module of that name.
    """
    from ray import tune

    name = creator.spec
    if ":" in name and creator.import_path is not None:
        name = f"{name}@{hashlib.sha256(creator.import_path.encode()).hexdigest()[:8]}"
    if creator.mask_key is not None:
        name = f"{name}@mask={creator.mask_key}"
    if creator.max_episode_steps is not None:
        name = f"{name}@{creator.max_episode_steps}"
    tune.register_env(name, creator)
    return name


def name_for_others(registered: str) -> str:
    """The name, for programs without raytrain, of the environment that `register_env` registered:
    an id that Gymnasium finds by itself, or `module:factory`."""
    plain = re.sub(r"(@[0-9a-f]{8})?(@mask=.+?)?(@\d+)?$", "", registered)
    return f"ale_py:{plain}" if is_atari(plain) else plain


def mean_std_filter(env: Any = None, spaces: Any = None, device: Any = None) -> ConnectorV2:
    """The connector of `observation_filter: MeanStdFilter`; RLlib gives the arguments."""
    from ray.rllib.connectors.env_to_module import MeanStdFilter

    return MeanStdFilter()


def _env_runners(config: ExperimentConfig) -> dict[str, Any]:
    arguments = config.env_runners.model_dump(exclude={"min_actors", "max_actors"})
    # On the new API stack RLlib ignores `observation_filter`; the filter is a connector.
    if arguments.pop("observation_filter") == "MeanStdFilter":
        arguments["env_to_module_connector"] = mean_std_filter
    return arguments


def _evaluation(config: ExperimentConfig) -> dict[str, Any]:
    arguments = config.evaluation.model_dump(exclude={"max_episode_steps"})
    # The policy is evaluated as it would be used, without exploration.
    arguments["evaluation_config"] = {"explore": False, **arguments["evaluation_config"]}
    limit = config.evaluation.max_episode_steps
    if limit is not None:
        limited = replace(env_creator(config), max_episode_steps=limit)
        arguments["evaluation_config"]["env"] = register_env(limited)
    return arguments
