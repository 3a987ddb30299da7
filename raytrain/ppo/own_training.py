"""raytrain's own keys of `training`, as a learner uses them: what RLlib's PPO has no setting for.

    adam_epsilon, weight_decay    in the optimizer, whose state RLlib saves
    orthogonal_init               once, in the network that RLlib has built
    clip_param, clip_range_vf     schedules, whose values are part of the learner's state
    normalize_advantages          of a batch, or in each minibatch
    target_kl                     ends the epochs of an update

The formulas are those of Stable-Baselines3's PPO (2.9, `PPO.train`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.schedules.scheduler import Scheduler
from torch import nn

APPROX_KL = "approx_kl"
"""The metric of the divergence that `target_kl` is compared with, of the last minibatch."""

_INITIAL = 1
"""Tells the initial weights from what else is drawn from the seed."""

_CLIPS = ("clip_param", "clip_range_vf")


@dataclass(frozen=True)
class OwnTraining:
    """The keys; a schedule is RLlib's list of [timestep, value]."""

    clip_param: Any
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    target_kl: float | None = None
    normalize_advantages: str = "batch"
    clip_range_vf: Any = None
    relative_to: int | None = None
    """`stop.timesteps` if something is relative to it."""

    @classmethod
    def of(cls, config: Any) -> OwnTraining:
        """Of an `AlgorithmConfig`; one that was not made by `to_algorithm_config` has defaults."""
        given = config.learner_config_dict.get("training", {})
        return cls(**{"clip_param": config.clip_param, **given})

    @property
    def in_minibatches(self) -> bool:
        """Whether advantages are standardized in each minibatch."""
        return self.normalize_advantages == "minibatch"

    @property
    def needs_old_values(self) -> bool:
        """Whether the loss needs the values of the network that began the update."""
        return self.in_minibatches or self.clip_range_vf is not None

    @property
    def kl_limit(self) -> float | None:
        """Above this approximate KL divergence of a minibatch an update ends."""
        return None if self.target_kl is None else 1.5 * self.target_kl

    def clip_schedulers(self, timesteps: int = 0) -> dict[str, Scheduler]:
        """The schedulers of the clip ranges that are set, as they are after `timesteps`."""
        made = {}
        for name in _CLIPS:
            value = getattr(self, name)
            if value is not None:
                made[name] = Scheduler(fixed_value_or_schedule=value, framework="torch")
                made[name].update(timestep=timesteps)
        return made

    def set_up_optimizers(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Set epsilon and weight decay, which a restored state brings along."""
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group.update(eps=self.adam_epsilon, weight_decay=self.weight_decay)


class AddOldValues(ConnectorV2):
    """Adds the values of the network that begins an update to RLlib's train batch, behind RLlib's
    `GeneralAdvantageEstimation`; and takes back its standardization of advantages if they are
    standardized in minibatches. `own` returns the settings of the present update."""

    def __init__(self, module_id: str, own: Callable[[], OwnTraining]) -> None:
        super().__init__()
        self._module_id, self._own = module_id, own

    def __call__(self, *, rl_module: Any, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        own, columns = self._own(), batch[self._module_id]
        if own.needs_old_values:
            with torch.no_grad():
                values = rl_module[self._module_id].unwrapped().compute_values(columns)
            columns[Columns.VF_PREDS] = values
            if own.in_minibatches:
                targets = columns[Postprocessing.VALUE_TARGETS]
                columns[Postprocessing.ADVANTAGES] = targets - values
        return batch


def standardized(advantages: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(A - mean) / (std + 1e-8) over the entries in `mask`, which has the same shape; unchanged if
    there is only one. Entries outside are finite, and mean nothing."""
    if mask is None:
        mask = torch.ones_like(advantages, dtype=torch.bool)
    # A sum over where, not a selection: that would wait for the GPU.
    count = mask.sum()
    mean = torch.where(mask, advantages, 0.0).sum() / count.clamp(min=1)
    deviation = torch.where(mask, advantages - mean, 0.0)
    std = (deviation.square().sum() / (count - 1).clamp(min=1)).sqrt()
    return torch.where(mask & (count > 1), deviation / (std + 1e-8), advantages)


def clipped_values(values: torch.Tensor, old: torch.Tensor, clip: float) -> torch.Tensor:
    """The values that the value loss compares with its targets; all (n,)."""
    return old + torch.clamp(values - old, -clip, clip)


def sum_of_approximate_kl(log_ratio: torch.Tensor) -> float:
    """The sum of (r - 1) - log r, an estimate of KL(old | new), for log r = logp_new - logp_old; an
    entry of 0 adds nothing (Schulman 2020, http://joschu.net/blog/kl-approx.html)."""
    # With NumPy, whose calls take a quarter of Torch's at these sizes.
    exact = log_ratio.detach().cpu().numpy().astype(np.float64)
    with np.errstate(all="ignore"):  # One that is not finite ends nothing.
        return float(((np.exp(exact) - 1.0) - exact).sum())


def mean_over_learners(total: float, count: int, *, learners: int, device: Any) -> float:
    """The mean of a minibatch, over all learners; each contributes its sum and count. All must call
    it, and all get the same number."""
    if learners > 1:
        sums = torch.tensor([total, float(count)], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(sums)
        total, count = sums.tolist()
    return total / count if count else 0.0


def initialize_orthogonally(module: Any, gains: dict[str, float], seed: int | None) -> None:
    """Orthogonal weights (Saxe et al. 2014, https://arxiv.org/abs/1312.6120) and biases of 0 in all
    dense layers and convolutions of RLlib's default PPO module. The last layers of the heads have
    the gains `policy_head` and `value_head`, all others `hidden`. Every process draws the same
    from `seed`.
    """
    last = {
        id(_layers(module.pi)[-1]): "policy_head",
        id(_layers(module.vf)[-1]): "value_head",
    }
    generator = torch.Generator()
    generator.manual_seed(int(np.random.SeedSequence((seed or 0, _INITIAL)).generate_state(1)[0]))
    with torch.no_grad():
        for layer in _layers(module):
            gain = gains[last.get(id(layer), "hidden")]
            drawn = torch.empty(layer.weight.shape)
            nn.init.orthogonal_(drawn, gain=gain, generator=generator)
            layer.weight.copy_(drawn)
            if layer.bias is not None:
                layer.bias.zero_()


def _layers(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
