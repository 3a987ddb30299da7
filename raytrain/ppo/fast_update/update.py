"""The fast update of a learner: RLlib's loss, minibatches and metrics, without RLlib's
work around them.

episodes ─> columns (`train_batch`) ─> values, advantages (`advantages`)
         ─> the rows of each minibatch (`minibatches`)
         ─> for each: gradient (`minibatch_loop`), reduced, clipped, stepped (`gradient_step`)
         ─> metrics of the last minibatch, which are those that RLlib reports (`metrics`)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.metrics import ALL_MODULES, CONNECTOR_PIPELINE_TIMER, LEARNER_CONNECTOR

from raytrain import _ray
from raytrain.ppo.fast_update.advantages import advantages_and_targets
from raytrain.ppo.fast_update.cuda_graphs import GraphedSteps, can_be_captured
from raytrain.ppo.fast_update.eligibility import (
    hand_written_network,
    has_own_loss,
    why_not_fast,
)
from raytrain.ppo.fast_update.flat_adam import FlatAdam
from raytrain.ppo.fast_update.gradient_step import Clipping, GradientStep
from raytrain.ppo.fast_update.loss import as_rllib, ppo_loss
from raytrain.ppo.fast_update.loss_gradients import LossSettings
from raytrain.ppo.fast_update.metrics import log_steps
from raytrain.ppo.fast_update.minibatch_loop import (
    AutogradSteps,
    HandWrittenSteps,
    KlLimit,
    TensorColumns,
)
from raytrain.ppo.fast_update.minibatches import last_with_a_step, minibatch_rows
from raytrain.ppo.fast_update.train_batch import Array, TrainBatch, train_batch
from raytrain.ppo.own_training import APPROX_KL

logger = logging.getLogger(__name__)


class FastUpdate:
    """`gradients` says how they are computed: "hand-written" or "autograd"; `reason` says why they
    are not hand-written, and is empty where they are."""

    @classmethod
    def of(cls, learner: Any) -> FastUpdate | str:
        """The fast update of a built PPO learner, or the reason why RLlib must update."""
        reason = why_not_fast(learner)
        if reason:
            return reason
        fast = cls(learner)
        if fast.reason:
            logger.info("Learner updates: gradients by autograd, because %s.", fast.reason)
        return fast

    def __init__(self, learner: Any) -> None:
        self._learner = learner
        self._own_loss = has_own_loss(learner)
        self._module = module = learner.module[DEFAULT_MODULE_ID].unwrapped()
        network = hand_written_network(learner, module)
        by_autograd = isinstance(network, str)
        self.gradients = "autograd" if by_autograd else "hand-written"
        self.reason = network if isinstance(network, str) else ""
        ((name, optimizer),) = _ray.learners.optimizers(learner)
        self._norm_name = f"gradients_{name}_global_norm"
        parameters = module.parameters() if isinstance(network, str) else network.parameters()
        adam = FlatAdam(optimizer, list(parameters), compiled=not by_autograd)
        learners = max(1, learner.config.num_learners)
        self._gradient_step = step = GradientStep(adam, self._clipping(), learners=learners)
        loss = partial(ppo_loss, module, use_critic=self._config().use_critic)
        self._kl_limit = limit = KlLimit(learners=learners, device=adam.weights.device)
        self._steps: HandWrittenSteps | AutogradSteps
        if not isinstance(network, str):
            self._steps = HandWrittenSteps(network, adam, step, limit)
        elif self._wants_graphs() and not self._own_loss:
            self._steps = GraphedSteps(adam, step, loss, limit, module)
        else:
            self._steps = AutogradSteps(adam, step, loss, limit)

    def update(
        self,
        episodes: Sequence[Any],
        *,
        minibatch_size: int,
        num_epochs: int = 1,
        shuffle_batch_per_epoch: bool = False,
        num_total_minibatches: int = 0,
        **_: Any,
    ) -> None:
        """The part of `Learner.update` between its two callbacks, with its arguments."""
        learner = self._learner
        sequence_number = _ray.learners.begin_update(learner)
        # This replaces RLlib's connector pipeline.
        with learner.metrics.log_time((ALL_MODULES, LEARNER_CONNECTOR, CONNECTOR_PIPELINE_TIMER)):
            batch = train_batch(episodes, everything=self._own_loss)
            columns = self._columns(batch)
        rows = minibatch_rows(
            len(batch),
            minibatch_size,
            epochs=num_epochs,
            shuffle=shuffle_batch_per_epoch and num_epochs > 1,
            generator=learner.minibatch_generator,
            minibatches=num_total_minibatches,
        )
        with _ray.learners.time_minibatches(learner):
            done = self._run(columns, rows)
        log_steps(
            learner.metrics,
            DEFAULT_MODULE_ID,
            batch=batch,
            minibatches=(done, rows.shape[1]),
            sequence_number=sequence_number,
        )
        if done:
            _ray.learners.count_trained_steps(learner, done * len(batch), done * rows.shape[1])

    def _config(self) -> Any:
        return self._learner.config.get_config_for_module(DEFAULT_MODULE_ID)

    def _clipping(self) -> Clipping:
        config = self._config()
        return Clipping(config.grad_clip, config.grad_clip_by, log_norm=config.log_gradients)

    def _wants_graphs(self) -> bool:
        config = self._learner.config
        wanted = config.learner_config_dict.get("cuda_graphs", "auto")
        if torch.device(self._learner.device).type != "cuda" or config.num_learners > 1:
            return False
        return can_be_captured(self._module) if wanted == "auto" else bool(wanted)

    def _columns(self, batch: TrainBatch) -> TensorColumns:
        """The columns under RLlib's names, advantages included, on the learner's device."""
        tensors = {name: self._on_device(array) for name, array in batch.columns.items()}
        with torch.no_grad():
            values = self._module.compute_values(tensors).cpu().numpy()
        config = self._learner.config
        own = self._learner.own_training
        advantages, targets = advantages_and_targets(
            batch,
            values,
            gamma=config.gamma,
            lambda_=config.lambda_,
            standardize=not own.in_minibatches,
        )
        if own.clip_range_vf is not None:
            tensors[Columns.VF_PREDS] = self._on_device(values)
        tensors[Postprocessing.ADVANTAGES] = self._on_device(advantages)
        tensors[Postprocessing.VALUE_TARGETS] = self._on_device(targets)
        return tensors

    def _on_device(self, array: Array) -> torch.Tensor:
        # A copy, which Torch aligns to 64 bytes: only then does MKL promise the same sums.
        return torch.from_numpy(array).to(self._learner.device, copy=True)

    def _run(self, columns: TensorColumns, rows: Array) -> int:
        """All minibatches; the number of those with a step. RLlib reports losses of the last,
        before its step; here it is the last that has a loss, or the one that ended the update."""
        self._kl_limit.present = None
        self._gradient_step.clipping = self._clipping()
        logged = last_with_a_step(rows, columns[Columns.LOSS_MASK].cpu().numpy())
        first = len(rows) if logged is None else logged
        self._steps.begin(columns, self._loss_settings())
        # A loss of the user's own may also log something, in each minibatch.
        logs = self._logged_loss if self._own_loss else None
        done = self._steps.run(rows[:first], logs)
        if done < first:
            self._log_losses(columns, rows[done])
        else:
            done += self._steps.run(rows[first : first + 1], self._logged_loss)
            if done > first:
                done += self._steps.run(rows[first + 1 :], logs)
        self._steps.end()
        if self._kl_limit.present is not None:
            key = (DEFAULT_MODULE_ID, APPROX_KL)
            self._learner.metrics.log_value(key, self._kl_limit.present, window=1)
        if done and self._gradient_step.clipping.wants_norm:
            norm = self._gradient_step.norm
            self._learner.metrics.log_value((DEFAULT_MODULE_ID, self._norm_name), norm, window=1)
        return done

    def _log_losses(self, columns: TensorColumns, rows: Array) -> None:
        index = torch.from_numpy(rows).to(self._learner.device)
        with torch.no_grad():
            self._logged_loss({name: column[index] for name, column in columns.items()})

    def _logged_loss(self, minibatch: TensorColumns) -> torch.Tensor:
        """RLlib's loss of a minibatch, which goes into the metrics with its parts."""
        learner = self._learner
        _ray.learners.log_off_policyness(learner, {DEFAULT_MODULE_ID: minibatch})
        actions = as_rllib(minibatch[Columns.ACTIONS], self._module.action_space)
        loss: torch.Tensor = learner.compute_loss_for_module(
            module_id=DEFAULT_MODULE_ID,
            config=self._config(),
            batch={**minibatch, Columns.ACTIONS: actions},
            fwd_out=self._module.forward_train(minibatch),
        )
        key = (DEFAULT_MODULE_ID, learner.TOTAL_LOSS_KEY)
        learner.metrics.log_value(key, loss.detach(), window=1)
        return loss

    def _loss_settings(self) -> LossSettings:
        config, learner = self._config(), self._learner
        entropy = learner.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID]
        kl_coeff = _ray.learners.kl_coefficients(learner)[DEFAULT_MODULE_ID]
        return LossSettings(
            clip_param=learner.clip("clip_param"),
            vf_clip_param=config.vf_clip_param,
            vf_loss_coeff=config.vf_loss_coeff,
            entropy_coeff=float(entropy.get_current_value()),
            kl_coeff=float(kl_coeff) if config.use_kl_loss else 0.0,
            clip_range_vf=learner.clip("clip_range_vf"),
            in_minibatches=learner.own_training.in_minibatches,
            kl_limit=learner.own_training.kl_limit,
        )
