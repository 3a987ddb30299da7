"""RLlib's own classes and settings, which a checkpoint names instead of raytrain's.

RLlib writes the class and the constructor's arguments of each of its components into a checkpoint.
With raytrain's classes there, no program without raytrain could load it, and no program at all
could build a trial, which needs a directory on storage. So the classes are those of RLlib that
raytrain's derive from, with a config by which they train in the same way:

    PPO.from_checkpoint(".../final")    is a PPO with its PPOConfig, and imports nothing of raytrain

Only for observation spaces that RLlib has no network for (see `policy.observations`) are connectors
and the network's catalog raytrain's.

Two settings differ from the run's config. `kl_coeff` is the KL coefficient that PPO has adapted so
far, which RLlib does not save. The environment of a factory is named `module:factory`; a program
that loads the checkpoint registers its environment under this name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.env_runner import EnvRunner

from raytrain import _ray
from raytrain.config import name_for_others
from raytrain.config.cross_checks import KEYS_FOR_LEARNERS
from raytrain.config.own_code_config import OwnCodeConfig
from raytrain.config.to_rllib import mean_std_filter
from raytrain.policy.rllib_catalog import ObservationCatalog
from raytrain.policy.rllib_observations import (
    EncodeObservations,
    NormalizeParts,
    ObservationConnectors,
)
from raytrain.rollout.fast_sampling.episode_rows import EpisodeRecorder

# As text: a function is pickled by its module, which is raytrain's here, or as byte code, which
# only one Python version reads.
_MEAN_STD_FILTER = (
    "lambda env=None, spaces=None, device=None: __import__("
    "'ray.rllib.connectors.env_to_module', fromlist=['MeanStdFilter']).MeanStdFilter()"
)


_BEFORE = ("raytrain.", "ray.train.")
"""Where the classes of a learner lie that come before RLlib's, or the user's own."""


class _FromSource:
    """Unpickles to the value of a Python expression."""

    def __init__(self, expression: str) -> None:
        self.expression = expression

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, dict[str, Any]]]:
        return eval, (self.expression, {})

    def __call__(self, *_: Any) -> Any:
        raise NotImplementedError("only what this unpickles to can be called")


def made_by(component: Any) -> dict[str, Any]:
    """What `Checkpointable.from_checkpoint` builds a component of an algorithm from."""
    kind = type(component)
    args, kwargs = component.get_ctor_args_and_kwargs()
    if isinstance(component, Learner):
        kind = next(base for base in kind.__mro__ if not base.__module__.startswith(_BEFORE))
    elif isinstance(component, Algorithm | EnvRunner):
        kind = next(base for base in kind.__mro__ if base.__module__.startswith("ray.rllib."))
    if isinstance(component, Algorithm):
        args = (_config_to_load(component).get_state(),)
    elif isinstance(kwargs.get("config"), AlgorithmConfig):
        kwargs = {**kwargs, "config": stock_config(kwargs["config"])}
    return {"class": kind, "ctor_args_and_kwargs": (args, kwargs)}


def with_kl_coeff(algorithm: dict[str, Any], kl_coeff: float) -> dict[str, Any]:
    """What `made_by` returned for an algorithm, with another KL coefficient to begin with."""
    (config,), kwargs = algorithm["ctor_args_and_kwargs"]
    return {**algorithm, "ctor_args_and_kwargs": (({**config, "kl_coeff": kl_coeff},), kwargs)}


def _config_to_load(algorithm: Algorithm) -> AlgorithmConfig:
    """With raytrain's connectors and catalog only if the observation space needs them."""
    stock, runner = stock_config(algorithm.config), algorithm.env_runner
    to_module, _ = _ray.runners.connectors(runner)
    if any(
        isinstance(piece, EncodeObservations | NormalizeParts) for piece in to_module.connectors
    ):
        connectors = _ray.runners.env_to_module_connector(algorithm.config)
        stock.env_runners(env_to_module_connector=connectors)
    if type(getattr(runner.module, "catalog", None)) is ObservationCatalog:
        stock.rl_module(rl_module_spec=RLModuleSpec(catalog_class=ObservationCatalog))
    return stock


def stock_config(config: AlgorithmConfig) -> AlgorithmConfig:
    """A copy, not frozen, without raytrain: the settings of `algorithm.prepare` and of
    `to_algorithm_config` have RLlib's defaults."""
    stock = config.copy(copy_frozen=False)
    if isinstance(stock, OwnCodeConfig):
        stock = stock.plain()
    stock.algo_class = PPO
    stock.env_runners(env_runner_cls=None)
    stock.learners(learner_class=stock.learner_config_dict.get("learner_class"))
    stock.learner_config_dict = {
        key: value
        for key, value in stock.learner_config_dict.items()
        if key not in KEYS_FOR_LEARNERS
    }
    own = [kind for kind in stock.callbacks_class if kind is not EpisodeRecorder]
    stock.callbacks(callbacks_class=own or RLlibCallback)
    stock.environment(env=name_for_others(stock.env))
    evaluation = dict(stock.evaluation_config or {})
    if "env" in evaluation:
        evaluation["env"] = name_for_others(evaluation["env"])
        stock.evaluation(evaluation_config=evaluation)
    connector = _ray.runners.env_to_module_connector(stock)
    if isinstance(connector, ObservationConnectors):
        filtering = _FromSource(_MEAN_STD_FILTER) if connector.normalize else None
        stock.env_runners(env_to_module_connector=filtering)
    elif connector is mean_std_filter:
        stock.env_runners(env_to_module_connector=_FromSource(_MEAN_STD_FILTER))
    _ray.runners.set_auto_sync(stock, True)
    return stock
