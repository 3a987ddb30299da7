"""The update of Stable-Baselines3's PPO (2.9, `PPO.train`), line by line, for RLlib's modules.

`tests/ray/test_own_training.py` compares it with Stable-Baselines3 itself where that is installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from torch.nn import functional


@dataclass(frozen=True)
class Sb3:
    """Its arguments, with its defaults."""

    learning_rate: float = 3e-4
    clip_range: float = 0.2
    clip_range_vf: float | None = None
    normalize_advantage: bool = True
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float | None = None
    adam_epsilon: float = 1e-5
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Rollout:
    """(N, ...) tensors; `advantages` are not standardized."""

    observations: torch.Tensor
    actions: torch.Tensor
    old_values: torch.Tensor
    old_log_prob: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


def train(
    module: Any, rollout: Rollout, minibatches: Iterable[torch.Tensor], given: Sb3
) -> list[float]:
    """Update an RLlib module's parameters, from Adam's first step; `minibatches` are row numbers.
    Returns the approximate KL divergence before each step."""
    optimizer = torch.optim.Adam(
        module.parameters(),
        lr=given.learning_rate,
        eps=given.adam_epsilon,
        weight_decay=given.weight_decay,
    )
    divergences: list[float] = []
    for rows in minibatches:
        batch = {Columns.OBS: rollout.observations[rows]}
        output = module.forward_train(batch)
        distribution = module.get_train_action_dist_cls().from_logits(
            output[Columns.ACTION_DIST_INPUTS]
        )
        log_prob = distribution.logp(rollout.actions[rows])
        values = module.compute_values(batch)
        old_values, old_log_prob = rollout.old_values[rows], rollout.old_log_prob[rows]

        advantages = rollout.advantages[rows]
        if given.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = torch.exp(log_prob - old_log_prob)
        policy_loss_1 = advantages * ratio
        policy_loss_2 = advantages * torch.clamp(ratio, 1 - given.clip_range, 1 + given.clip_range)
        policy_loss = -torch.min(policy_loss_1, policy_loss_2).mean()
        if given.clip_range_vf is None:
            values_pred = values
        else:
            values_pred = old_values + torch.clamp(
                values - old_values, -given.clip_range_vf, given.clip_range_vf
            )
        value_loss = functional.mse_loss(rollout.returns[rows], values_pred)
        entropy_loss = -torch.mean(distribution.entropy())
        loss = policy_loss + given.ent_coef * entropy_loss + given.vf_coef * value_loss

        with torch.no_grad():
            log_ratio = log_prob - old_log_prob
            approx_kl = torch.mean((torch.exp(log_ratio) - 1) - log_ratio)
        if given.target_kl is not None and approx_kl > 1.5 * given.target_kl:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), given.max_grad_norm)
        optimizer.step()
        divergences.append(float(approx_kl))
    return divergences
