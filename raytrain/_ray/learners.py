"""Private names of Ray that concern learners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raytrain._ray.connectors import LEARNER, why_not_default

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.core.learner.learner import Learner


def schedulers(learner: Learner) -> dict[str, Any]:
    """RLlib's entropy and learning rate schedulers of a PPO learner, under stable names."""
    modules, entropy = learner.module.keys(), learner.entropy_coeff_schedulers_per_module
    named = {f"entropy/{module}": entropy[module] for module in modules}
    for name, optimizer in learner._named_optimizers.items():
        if optimizer in learner._optimizer_lr_schedules:
            named[f"lr/{name}"] = learner._optimizer_lr_schedules[optimizer]
    return named


def set_scheduler_value(scheduler: Any, value: float) -> None:
    """Set the current value of a scheduler that follows a schedule; a fixed one has none to set.
    `Scheduler` has `get_current_value()`, and no counterpart."""
    if scheduler.use_schedule:
        scheduler._curr_value.fill_(value)


def use_training_values(learner: Learner, timesteps: int) -> None:
    """Make a built PPO learner use the learning rate, entropy coefficient, gamma and lambda of its
    present config, as they are after `timesteps`. RLlib reads these once, when it builds a learner,
    and a restored optimizer brings its old learning rate back."""
    from ray.rllib.connectors.learner import GeneralAdvantageEstimation
    from ray.rllib.utils.schedules.scheduler import Scheduler

    def scheduler(value: Any) -> Any:
        made = Scheduler(
            fixed_value_or_schedule=value, framework=learner.framework, device=learner._device
        )
        made.update(timestep=timesteps)
        return made

    for name, optimizer in learner._named_optimizers.items():
        module = learner._optimizer_name_to_module[name]
        rate = scheduler(learner.config.get_config_for_module(module).lr)
        learner._optimizer_lr_schedules[optimizer] = rate
        learner._set_optimizer_lr(optimizer, lr=rate.update(timestep=timesteps))
    for module in list(learner.module.keys()):
        entropy = learner.config.get_config_for_module(module).entropy_coeff
        learner.entropy_coeff_schedulers_per_module[module] = scheduler(entropy)
    for piece in learner._learner_connector.connectors if learner._learner_connector else ():
        if isinstance(piece, GeneralAdvantageEstimation):
            piece.gamma, piece.lambda_ = learner.config.gamma, learner.config.lambda_


def kl_coefficients(learner: Learner) -> dict[str, Any]:
    """PPO's adaptive KL coefficients by module id, 0-d float32. RLlib does not save them."""
    modules = learner.module.keys()
    return {module: learner.curr_kl_coeffs_per_module[module] for module in modules}


def torch_schedulers(learner: Learner) -> dict[str, list[Any]]:
    """`torch.optim.lr_scheduler` objects of a learner, by module and optimizer name."""
    return {
        f"{module}/{optimizer}": list(schedulers_)
        for module, by_optimizer in learner._lr_schedulers.items()
        for optimizer, schedulers_ in by_optimizer.items()
    }


def set_torch_schedulers(config: AlgorithmConfig, schedulers: list[Any]) -> None:
    """Set what makes the schedulers of an optimizer, in a config that is not built yet."""
    config._torch_lr_scheduler_classes = schedulers or None


def make_torch_schedulers(learner: Learner) -> None:
    """Make the schedulers that the config of a built learner names. RLlib makes them in its first
    gradient step, so a learner that was restored has none, and their state could not be loaded."""
    for made_by in learner.config._torch_lr_scheduler_classes or ():
        for module, names in learner._module_optimizers.items():
            of_module = learner._lr_schedulers.setdefault(module, {})
            for name in names:
                optimizer = learner.get_optimizer(module, name)
                of_module.setdefault(name, []).append(made_by(optimizer))
                # Torch would warn that nobody calls `step`: the fast update steps by itself.
                optimizer._opt_called = True


def grad_scalers(learner: Learner) -> dict[str, Any]:
    """Loss scalers of mixed-precision training, by module id."""
    return dict(learner._grad_scalers or {})


def learner_connector(learner: Learner) -> Any:
    """The learner's connector pipeline. RLlib does not save its state."""
    return learner._learner_connector


def append_connector(learner: Learner, connector: Any) -> None:
    """Append a connector to the learner's pipeline, unless one of its class is there."""
    pipeline = learner._learner_connector
    if not any(type(piece) is type(connector) for piece in pipeline.connectors):
        pipeline.append(connector)


def module_spec(learner: Learner) -> Any:
    """What a learner's module is built from."""
    return learner._module_spec


def has_default_connectors(learner: Learner) -> bool:
    """Whether the learner's connectors are the ones that RLlib's PPO puts there, and no others."""
    pipeline = learner._learner_connector
    return pipeline is not None and not why_not_default(map(type, pipeline.connectors), LEARNER)


def optimizers(learner: Learner) -> list[tuple[str, Any]]:
    """All optimizers of a learner, by the name that RLlib logs them under."""
    return [
        (name.partition(f"{module}_")[2], learner._named_optimizers[name])
        for module, names in learner._module_optimizers.items()
        for name in names
    ]


def unusual_torch_settings(config: AlgorithmConfig) -> list[str]:
    """RLlib's rarer settings of a Torch learner that are in use; some have no public name."""
    names = (
        "torch_compile_learner",
        "torch_skip_nan_gradients",
        "_torch_grad_scaler_class",
        "policies_to_train",
    )
    return [name for name in names if getattr(config, name)]


def begin_update(learner: Learner) -> int:
    """Count an update of the weights, as `Learner.update` does. Returns the new sequence number."""
    learner._weights_seq_no += 1
    return weights_version(learner)


def weights_version(learner: Learner) -> int:
    """The sequence number of the weights that a learner holds."""
    return int(learner._weights_seq_no)


def log_off_policyness(learner: Learner, columns: dict[str, dict[str, Any]]) -> None:
    """Log how many updates lie between the weights and the ones that sampled a minibatch."""
    learner._compute_off_policyness(columns)


def time_minibatches(learner: Learner) -> Any:
    """A context in which Ray's metrics (not RLlib's results) see the time of gradient steps."""
    from ray.rllib.utils.metrics.ray_metrics import TimerAndPrometheusLogger

    return TimerAndPrometheusLogger(learner._metrics_learner_inner_update)


def count_trained_steps(learner: Learner, env_steps: int, module_steps: int) -> None:
    """Add to the counters of trained steps among Ray's metrics."""
    learner._metrics_all_modules_num_env_steps_trained.inc(value=env_steps)
    learner._metrics_all_modules_num_module_steps_trained.inc(value=module_steps)
