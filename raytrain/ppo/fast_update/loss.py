"""PPO's loss as RLlib defines it, for autograd, with the usual distributions written out.

The loss is the one in `loss_gradients`; rows outside of the loss mask do not count, whatever they
hold. Terms whose coefficient is 0 are not computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import torch
import tree
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from raytrain.policy.action_masks import COLUMN as ACTION_MASKS
from raytrain.policy.action_masks import masked
from raytrain.policy.arithmetic import base_struct
from raytrain.policy.distributions import input_columns
from raytrain.ppo.fast_update.loss_gradients import LossSettings
from raytrain.ppo.own_training import clipped_values, standardized


class Loss(NamedTuple):
    """Of a minibatch: the mean loss, and logp - logp_old (n,), 0 where a row does not count."""

    mean: Tensor
    log_ratio: Tensor


class PolicyTerms(NamedTuple):
    """(n,) each; `entropy` and `kl` are None where they are not needed."""

    logp: Tensor
    entropy: Tensor | None
    kl: Tensor | None
    """KL(old | new)."""


TermsOf = Callable[..., PolicyTerms]


def ppo_loss(
    module: Any, minibatch: dict[str, Tensor], settings: LossSettings, *, use_critic: bool
) -> Loss:
    """The loss of a minibatch; keys are RLlib's column names."""
    mask = minibatch[Columns.LOSS_MASK]
    output = module.forward_train(minibatch)
    terms = _terms_of(module)(
        masked_outputs(output, minibatch)[Columns.ACTION_DIST_INPUTS],
        minibatch[Columns.ACTION_DIST_INPUTS],
        minibatch[Columns.ACTIONS],
        entropy=_counts(settings.entropy_coeff),
        kl=_counts(settings.kl_coeff),
    )
    advantages = minibatch[Postprocessing.ADVANTAGES]
    if settings.in_minibatches:
        advantages = standardized(advantages, mask)
    # A row that does not count has the ratio 1: an overflow would be a NaN in the derivative.
    difference = torch.where(mask, terms.logp - minibatch[Columns.ACTION_LOGP], 0.0)
    ratio = torch.exp(difference)
    clipped = torch.clamp(ratio, 1 - settings.clip_param, 1 + settings.clip_param)
    loss = -torch.min(advantages * ratio, advantages * clipped)
    if use_critic:
        values = module.compute_values(minibatch, embeddings=output.get(Columns.EMBEDDINGS))
        if settings.clip_range_vf is not None:
            old = minibatch[Columns.VF_PREDS]
            values = clipped_values(values, old, settings.clip_range_vf)
        error = (values - minibatch[Postprocessing.VALUE_TARGETS]).square()
        loss = loss + settings.vf_loss_coeff * torch.clamp(error, 0, settings.vf_clip_param)
    if terms.entropy is not None:
        loss = loss - settings.entropy_coeff * terms.entropy
    if terms.kl is not None:
        loss = loss + settings.kl_coeff * terms.kl
    # A minibatch of bootstrap rows alone has a loss of 0.
    return Loss(torch.where(mask, loss, 0.0).sum() / mask.sum().clamp(min=1), difference)


def masked_outputs(output: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
    """A module's outputs for a batch that may have a column of action masks."""
    mask = batch.get(ACTION_MASKS)
    if mask is None:
        return output
    name = Columns.ACTION_DIST_INPUTS
    return {**output, name: masked(output[name], mask)}


def _counts(coefficient: float | Tensor) -> bool:
    """Whether a term is computed; with a tensor always, since reading it would wait for the GPU."""
    return isinstance(coefficient, Tensor) or bool(coefficient)


def _terms_of(module: Any) -> TermsOf:
    new, old = module.get_train_action_dist_cls(), module.get_exploration_action_dist_cls()
    if new is old is TorchCategorical:
        return _categorical
    if new is old is TorchDiagGaussian:
        return _gaussian
    space = module.action_space
    nested = isinstance(space, gym.spaces.Dict | gym.spaces.Tuple)
    if nested and type(module) is DefaultPPOTorchRLModule:
        return partial(_sums, tree.flatten(base_struct(space)))

    def other(inputs: Tensor, old_inputs: Tensor, actions: Tensor, **needed: bool) -> PolicyTerms:
        now = new.from_logits(inputs)
        return PolicyTerms(
            now.logp(as_rllib(actions, space)),
            now.entropy() if needed["entropy"] else None,
            old.from_logits(old_inputs).kl(now) if needed["kl"] else None,
        )

    return other


def as_rllib(actions: Tensor, space: gym.Space[Any]) -> Any:
    """The column of actions as RLlib's distributions take it, nested as its space."""
    if not isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        return actions
    struct = base_struct(space)
    leaves = _leaves(actions, tree.flatten(struct))
    return tree.unflatten_as(struct, leaves)


def _leaves(actions: Tensor, spaces: Sequence[gym.Space[Any]]) -> list[Tensor]:
    sizes = [max(1, math.prod(leaf.shape or ())) for leaf in spaces]
    parts = torch.split(actions, sizes, dim=-1)
    return [
        part.squeeze(-1) if isinstance(leaf, gym.spaces.Discrete) else part
        for part, leaf in zip(parts, spaces, strict=True)
    ]


def _sums(
    spaces: Sequence[gym.Space[Any]],
    inputs: Tensor,
    old_inputs: Tensor,
    actions: Tensor,
    *,
    entropy: bool,
    kl: bool,
) -> PolicyTerms:
    """Of several independent actions."""
    columns = [input_columns(leaf) for leaf in spaces]
    terms: list[PolicyTerms] = []
    for leaf, now, old, chosen in zip(
        spaces,
        torch.split(inputs, columns, dim=-1),
        torch.split(old_inputs, columns, dim=-1),
        _leaves(actions, spaces),
        strict=True,
    ):
        if isinstance(leaf, gym.spaces.MultiDiscrete):
            # Each of its choices is an action of its own.
            parts = [gym.spaces.Discrete(int(n)) for n in leaf.nvec]
            terms.append(_sums(parts, now, old, chosen, entropy=entropy, kl=kl))
        else:
            of_leaf = _gaussian if isinstance(leaf, gym.spaces.Box) else _categorical
            terms.append(of_leaf(now, old, chosen, entropy=entropy, kl=kl))
    return PolicyTerms(
        *(None if part[0] is None else sum(part[1:], part[0]) for part in zip(*terms, strict=True))
    )


def _categorical(
    logits: Tensor, old_logits: Tensor, actions: Tensor, *, entropy: bool, kl: bool
) -> PolicyTerms:
    log_p = torch.log_softmax(logits, dim=-1)
    # Not `gather`: its derivative is a scatter, for which deterministic kernels sort.
    chosen = torch.arange(log_p.shape[-1], device=log_p.device) == actions.long().unsqueeze(-1)
    logp = torch.where(chosen, log_p, 0.0).sum(-1)
    entropy_, kl_ = None, None
    if entropy:
        # An action that is ruled out has a log-probability of minus infinity.
        finite = log_p.clamp(min=torch.finfo(log_p.dtype).min)
        entropy_ = -(finite * log_p.exp()).sum(-1)
    if kl:
        old_log_p = torch.log_softmax(old_logits, dim=-1)
        old_p = old_log_p.exp()
        ratio = torch.where(log_p.exp() == 0, math.inf, old_p * (old_log_p - log_p))
        kl_ = torch.where(old_p == 0, 0.0, ratio).sum(-1)
    return PolicyTerms(logp, entropy_, kl_)


def _gaussian(
    inputs: Tensor, old_inputs: Tensor, actions: Tensor, *, entropy: bool, kl: bool
) -> PolicyTerms:
    mean, log_std = inputs.chunk(2, dim=-1)
    dimensions = mean.shape[-1]
    inverse = torch.exp(-log_std)
    z = (actions - mean) * inverse
    total_log_std = log_std.sum(-1)
    half_log_2pi = 0.5 * math.log(2 * math.pi)
    logp = -0.5 * z.square().sum(-1) - total_log_std - dimensions * half_log_2pi
    entropy_, kl_ = None, None
    if entropy:
        entropy_ = total_log_std + dimensions * (0.5 + half_log_2pi)
    if kl:
        old_mean, old_log_std = old_inputs.chunk(2, dim=-1)
        log_ratio = old_log_std - log_std
        m = (old_mean - mean) * inverse
        kl_ = 0.5 * (torch.exp(2 * log_ratio) + m.square() - 1 - 2 * log_ratio).sum(-1)
    return PolicyTerms(logp, entropy_, kl_)
