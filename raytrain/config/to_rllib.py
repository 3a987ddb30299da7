"""`ExperimentConfig` -> RLlib's `PPOConfig`, each section through the method of the same name; and
Tune's parameter space.

The env runner and learner classes are not set here; the trial chooses them.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raytrain import _ray
from raytrain.config.environment import EnvCreator, env_creator, is_atari
from raytrain.config.errors import ConfigError
from raytrain.config.own_code import HOOKS, loaded, torch_schedulers
from raytrain.config.schedules import SCHEDULED, first_value, relative_keys, resolved
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

    own = loaded(config)
    algorithm = _empty(config, with_own_code=bool(own or config.training.torch_lr_schedulers))
    algorithm.api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
    algorithm.framework("torch")
    algorithm.environment(
        **{
            **config.environment.model_dump(exclude={"action_mask"}),
            "env": register_env(env_creator(config)),
        }
    )
    algorithm.env_runners(**_env_runners(config, own))
    training, own_training = _training(config, own)
    algorithm.training(**training)
    orthogonal = config.rl_module.model.orthogonal_init
    # RLlib passes this dictionary on as it is.
    for_the_learner = {
        **(config.training.learner_config_dict or {}),
        "deterministic": config.debugging.deterministic,
        "cuda_graphs": config.learners.cuda_graphs,
        "log_std_init": config.rl_module.model.log_std_init,
        "orthogonal_init": None if orthogonal is None else orthogonal.model_dump(),
        "training": own_training,
        "action_mask": config.environment.action_mask,
        **({"learner_class": own[_LEARNER]} if _LEARNER in own else {}),
    }
    algorithm.learners(
        **config.learners.model_dump(exclude={"cuda_graphs"}),
        learner_config_dict=for_the_learner,
    )
    _ray.learners.set_torch_schedulers(algorithm, torch_schedulers(config))
    algorithm.rl_module(model_config=_model_config(config), **_rl_module(own))
    algorithm.callbacks(**_given(own, "callbacks", "callbacks_class", *HOOKS))
    algorithm.evaluation(**_evaluation(config))
    algorithm.fault_tolerance(
        max_num_env_runner_restarts=config.fault_tolerance.max_num_env_runner_restarts,
        # An evaluation runner whose environment raised sleeps so long before it ends (RLlib: 60).
        delay_between_env_runner_restarts_s=1.0,
    )
    algorithm.debugging(seed=config.seed, log_level=config.debugging.log_level)
    algorithm.resources(**config.resources.model_dump())
    return algorithm


_LEARNER = "training.learner_class"


def _empty(config: ExperimentConfig, *, with_own_code: bool) -> PPOConfig:
    if with_own_code:
        from raytrain.config.own_code_config import OwnCodeConfig

        return OwnCodeConfig.found_in(config.import_path)
    from ray.rllib.algorithms.ppo import PPOConfig

    return PPOConfig()


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
    return {key: values[key] for key in ("seed", *ALGORITHM_SECTIONS) if key in values}


_OWN_TRAINING_KEYS = (
    "adam_epsilon",
    "weight_decay",
    "target_kl",
    "normalize_advantages",
    "clip_range_vf",
)


def _model_config(config: ExperimentConfig) -> dict[str, Any]:
    """The keys of the network that are given. RLlib merges them into its defaults when it builds
    the network, but reads the sequence length of a recurrent network from here."""
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    model = config.rl_module.model.model_dump(exclude={"log_std_init", "orthogonal_init"})
    # Whether a network of the user's own is recurrent is not known before it is built.
    if model.get("use_lstm") or config.rl_module.module_class is not None:
        model.setdefault("max_seq_len", DefaultModelConfig().max_seq_len)
    return model


def _rl_module(own: Mapping[str, Any]) -> dict[str, Any]:
    classes = _given(own, "rl_module", "module_class", "catalog_class")
    if not classes:
        return {}
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    return {"rl_module_spec": RLModuleSpec(**classes)}


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


def _training(
    config: ExperimentConfig, user_code: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """RLlib's arguments, and what raytrain's learner reads of `training` (see `OwnTraining`)."""
    # The class of the learner is chosen by the trial, which also gives it its values.
    apart = {"learner_connector", "learner_class", "learner_config_dict", "torch_lr_schedulers"}
    values, end = config.training.model_dump(exclude=apart), config.stop.timesteps
    values.update({key: resolved(values[key], end) for key in SCHEDULED})
    own = {key: values.pop(key) for key in _OWN_TRAINING_KEYS}
    own["clip_param"] = values["clip_param"]
    own["relative_to"] = end if relative_keys(config) else None
    # RLlib has no schedule of it.
    values["clip_param"] = first_value(values["clip_param"])
    return {**values, **_given(user_code, "training", "learner_connector")}, own


def _given(own: Mapping[str, Any], section: str, *keys: str) -> dict[str, Any]:
    return {key: own[f"{section}.{key}"] for key in keys if f"{section}.{key}" in own}


def _env_runners(config: ExperimentConfig, own: Mapping[str, Any]) -> dict[str, Any]:
    connectors = ("env_to_module_connector", "module_to_env_connector")
    arguments = config.env_runners.model_dump(exclude={"min_actors", "max_actors", *connectors})
    arguments.update(_given(own, "env_runners", *connectors))
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
