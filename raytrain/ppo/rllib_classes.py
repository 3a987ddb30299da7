"""RLlib's own classes and settings in the place of raytrain's, as a checkpoint names them.

RLlib writes into a checkpoint what each of its parts is made of: a class and the arguments of its
constructor. With raytrain's classes in there, nobody without raytrain could load it, and nobody at
all could make a trial of it, which needs a directory on storage. So what is named are the classes of
RLlib that raytrain's stand for, with a config by which they train on in the same way:

    PPO.from_checkpoint(".../final")      is a PPO with its PPOConfig, and imports nothing of raytrain

Two things of it are not the run's config as it stands. `kl_coeff` is the KL coefficient that PPO has
adapted so far, which RLlib does not save. A factory's environment is named `module:factory`; a program
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
from ray.rllib.env.env_runner import EnvRunner

from raytrain import _ray
from raytrain.config import name_for_others

# As text and not as a function: those are pickled by module, which is raytrain's here, or as byte code,
# which is of one Python version.
_MEAN_STD_FILTER = (
    "lambda env=None, spaces=None, device=None: __import__("
    "'ray.rllib.connectors.env_to_module', fromlist=['MeanStdFilter']).MeanStdFilter()"
)


class _FromSource:
    """Unpickled, the value of a Python expression."""

    def __init__(self, expression: str) -> None:
        self.expression = expression

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, dict[str, Any]]]:
        return eval, (self.expression, {})

    def __call__(self, *_: Any) -> Any:
        raise NotImplementedError("this stands for what it is unpickled to")


def made_by(component: Any) -> dict[str, Any]:
    """What `Checkpointable.from_checkpoint` makes a component of an algorithm of."""
    made_of = type(component)
    args, kwargs = component.get_ctor_args_and_kwargs()
    if isinstance(component, Algorithm | EnvRunner | Learner):
        # A learner in a process of its own is of a class that Ray Train has derived from its class.
        made_of = next(base for base in made_of.__mro__ if base.__module__.startswith("ray.rllib."))
    if isinstance(component, Algorithm):
        args = (stock_config(component.config).get_state(),)
    elif isinstance(kwargs.get("config"), AlgorithmConfig):
        kwargs = {**kwargs, "config": stock_config(kwargs["config"])}
    return {"class": made_of, "ctor_args_and_kwargs": (args, kwargs)}


def with_kl_coeff(algorithm: dict[str, Any], kl_coeff: float) -> dict[str, Any]:
    """What `made_by` returned for an algorithm, to begin with this KL coefficient."""
    (config,), kwargs = algorithm["ctor_args_and_kwargs"]
    return {**algorithm, "ctor_args_and_kwargs": (({**config, "kl_coeff": kl_coeff},), kwargs)}


def stock_config(config: AlgorithmConfig) -> AlgorithmConfig:
    """A copy, not frozen, with nothing of raytrain in it: what `algorithm.prepare` and
    `to_algorithm_config` plug in is as RLlib has it by default."""
    stock = config.copy(copy_frozen=False)
    stock.algo_class = PPO
    stock.env_runners(env_runner_cls=None)
    stock.learners(learner_class=None)
    stock.learner_config_dict = {}
    stock.callbacks(callbacks_class=RLlibCallback)
    stock.environment(env=name_for_others(stock.env))
    evaluation = dict(stock.evaluation_config or {})
    if "env" in evaluation:
        evaluation["env"] = name_for_others(evaluation["env"])
        stock.evaluation(evaluation_config=evaluation)
    if _ray.runners.filters_observations(stock):
        stock.env_runners(env_to_module_connector=_FromSource(_MEAN_STD_FILTER))
    _ray.runners.set_auto_sync(stock, True)
    return stock
