"""Learners of one's own."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner


class Regularized(PPOTorchLearner):
    """A loss of its own: PPO's and a multiple of the mean of all weights."""

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: Any, fwd_out: Any
    ) -> Any:
        loss = super().compute_loss_for_module(
            module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
        )
        weights = torch.stack([w.mean() for w in self.get_parameters(self.module[module_id])])
        self.metrics.log_value((module_id, "mean_weight"), weights.mean(), window=1)
        self.metrics.log_value((module_id, "rewards"), batch["rewards"].mean(), window=1)
        return loss + config.learner_config_dict["factor"] * weights.mean()


class Plain(Regularized):
    """The same in RLlib's own update."""

    def compute_gradients(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_gradients(*args, **kwargs)


class TwoOptimizers(PPOTorchLearner):
    """A learning rate of its own for the value function."""

    def configure_optimizers_for_module(self, module_id: str, config: Any) -> None:
        module = self.module[module_id]
        values = [*module.vf.parameters(), *module.encoder.critic_encoder.parameters()]
        known = {id(parameter) for parameter in values}
        others = [p for p in self.get_parameters(module) if id(p) not in known]
        for name, parameters, rate in (("vf", values, 1e-2), ("pi", others, config.lr)):
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=torch.optim.Adam(parameters),
                params=parameters,
                lr_or_lr_schedule=rate,
            )


class Counting(PPOTorchLearner):
    """Has state: each update trains with a smaller weight of the entropy bonus."""

    def build(self) -> None:
        super().build()
        self.updates = 0

    def before_gradient_based_update(self, *, timesteps: Any) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        self.updates += 1

    def compute_loss_for_module(self, *, fwd_out: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss_for_module(fwd_out=fwd_out, **kwargs)
        return loss * (1.0 + 1.0 / self.updates)

    def get_state(self, *args: Any, **kwargs: Any) -> Any:
        return {**super().get_state(*args, **kwargs), "updates": self.updates}

    def set_state(self, state: Any) -> None:
        super().set_state(state)
        self.updates = state.get("updates", self.updates)
