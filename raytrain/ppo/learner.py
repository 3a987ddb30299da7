"""RLlib's PPO learner with a lean update, and with the part of its state that RLlib does not save.

**The update** has the loss, the minibatches, the metrics and the meaning of RLlib's, and leaves out
what RLlib does around the arithmetic, for each minibatch anew (`update.tier` says when). Its steps:

    episodes -> columns (`train_batch`) -> values, advantages (`advantages`)
             -> the rows of each minibatch (`minibatches`)
             -> gradient (`update.steps`) -> reduced, clipped, stepped (`gradient_step`), for each
             -> metrics of the last minibatch, which are those that RLlib reports

**The state**: RLlib's checkpoint of a learner holds weights, optimizer and the learner's metrics. Its
next update also depends on the KL coefficient, on the current values of the entropy and learning rate
schedules, on loss scalers, on connector state, on the generator of the minibatch order and on the
random generators of its process. `ExactPPOTorchLearner.exact_state()` returns these; every rank of a
distributed learner has its own.
"""

from __future__ import annotations

import logging
import os
import pickle
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.evaluation.postprocessing import Postprocessing

from raytrain import _ray
from raytrain.checkpoint import weights_sha256
from raytrain.errors import RaytrainError
from raytrain.ppo.fast_update import metrics as update_metrics
from raytrain.ppo.fast_update.advantages import advantages_and_targets
from raytrain.ppo.fast_update.cuda_graphs import GraphedSteps, can_be_captured
from raytrain.ppo.fast_update.eligibility import RLLIB, Tier, choose_tier
from raytrain.ppo.fast_update.flat_adam import FlatAdam
from raytrain.ppo.fast_update.gradient_step import Clipping, GradientStep
from raytrain.ppo.fast_update.loss import ppo_loss
from raytrain.ppo.fast_update.loss_gradients import LossSettings
from raytrain.ppo.fast_update.minibatch_loop import AutogradSteps, HandWrittenSteps, TensorColumns
from raytrain.ppo.fast_update.minibatches import (
    generator_state,
    last_with_a_step,
    minibatch_generator,
    minibatch_rows,
    set_generator_state,
)
from raytrain.ppo.fast_update.train_batch import Array, TrainBatch, train_batch
from raytrain.rng import RngStreams

MODULE_ID = "default_policy"
_NOT_IN_NUMPY = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)

logger = logging.getLogger(__name__)


class ExactPPOTorchLearner(PPOTorchLearner):
    """`PPOTorchLearner` that is lean, and whose whole state can be taken and put back."""

    def build(self) -> None:
        if self._deterministic_kernels():
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        with _ray.runners.quick_connectors():
            super().build()
        self._set_log_std()
        self._last_loss: Any = None
        self._hidden_loss: Any = None
        self.minibatch_generator: Any = minibatch_generator(self.config.seed, torch_rank())
        self.tier = self._tier()
        if self.tier.reason:
            logger.info("Learner updates: %s, because %s.", self.tier.name, self.tier.reason)
        if self.tier.name != RLLIB:
            self._prepare_steps(self.tier)

    def _set_log_std(self) -> None:
        # RLlib begins with 0 and has no setting for it. A restored state is loaded over this.
        log_std = self.config.learner_config_dict.get("log_std_init")
        if log_std is not None:
            with torch.no_grad():
                self.module[MODULE_ID].unwrapped().pi.log_std.fill_(log_std)

    def _deterministic_kernels(self) -> bool:
        # RLlib switches deterministic kernels on for CPU builds of Torch only.
        wanted = bool(self.config.learner_config_dict.get("deterministic", True))
        return wanted and torch.cuda.is_available()

    def _tier(self) -> Tier:
        return choose_tier(self, MODULE_ID)

    # -- the update ------------------------------------------------------------------------------

    def update(
        self,
        *,
        training_data: TrainingData | None = None,
        episodes: Any = None,
        timesteps: dict[str, Any] | None = None,
        num_total_minibatches: int = 0,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool = False,
        _no_metrics_reduce: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As `Learner.update`; anything but episodes in minibatches goes to it."""
        if training_data is None and episodes is not None:
            training_data = TrainingData(episodes=episodes)
        if training_data is not None:
            training_data.validate()
            training_data.solve_refs()
        if (
            self.tier.name == RLLIB
            or training_data is None
            or training_data.episodes is None
            or not minibatch_size
        ):
            return super().update(
                training_data=training_data,
                timesteps=timesteps,
                num_total_minibatches=num_total_minibatches,
                num_epochs=num_epochs,
                minibatch_size=minibatch_size,
                shuffle_batch_per_epoch=shuffle_batch_per_epoch,
                _no_metrics_reduce=_no_metrics_reduce,
                **kwargs,
            )
        self.before_gradient_based_update(timesteps=timesteps or {})
        sequence_number = _ray.learners.begin_update(self)
        with update_metrics.batch_building(self.metrics):
            columns = train_batch(training_data.episodes)
            tensors = self._tensors(columns)
            self._add_advantages(columns, tensors)
        rows = minibatch_rows(
            len(columns),
            minibatch_size,
            epochs=num_epochs,
            shuffle=shuffle_batch_per_epoch and num_epochs > 1,
            generator=self.minibatch_generator,
            minibatches=num_total_minibatches,
        )
        with _ray.learners.time_minibatches(self):
            self._run(columns, tensors, rows)
        update_metrics.log_steps(
            self.metrics,
            MODULE_ID,
            batch=columns,
            minibatches=rows.shape,
            sequence_number=sequence_number,
        )
        _ray.learners.count_trained_steps(self, len(rows) * len(columns), rows.size)
        self.after_gradient_based_update(timesteps=timesteps or {})
        return None if _no_metrics_reduce else self.metrics.reduce()

    def _prepare_steps(self, tier: Tier) -> None:
        (name, optimizer), config = _ray.learners.optimizers(self)[0], self._module_config()
        module = self._policy_module()
        network = tier.network
        adam = FlatAdam(
            optimizer,
            list(module.parameters()) if network is None else network.parameters(),
            compiled=network is not None,
        )
        clipping = Clipping(config.grad_clip, config.grad_clip_by, log_norm=config.log_gradients)
        self._norm_name = f"gradients_{name}_global_norm"
        self._gradient_step = GradientStep(
            adam, clipping, learners=max(1, self.config.num_learners)
        )
        self._steps: HandWrittenSteps | AutogradSteps
        loss = partial(ppo_loss, module, use_critic=config.use_critic)
        if network is None and self._wants_graphs(module):
            self._steps = GraphedSteps(adam, self._gradient_step, loss, module)
        elif network is None:
            self._steps = AutogradSteps(adam, self._gradient_step, loss)
        else:
            self._steps = HandWrittenSteps(network, adam, self._gradient_step)

    def use_settings(self, config: Any, *, timesteps: int, kl_coeff: float | None) -> None:
        """Go on with the training values of `config`; weights and the optimizer's moments stay.
        `timesteps`: sampled so far, where a schedule stands. `kl_coeff`: the KL coefficient to go on
        with; None keeps the present one."""
        self.config = config.copy(copy_frozen=False)
        _ray.learners.use_training_values(self, timesteps)
        if kl_coeff is not None:
            for value in _ray.learners.kl_coefficients(self).values():
                value.fill_(kl_coeff)
        if self.tier.name != RLLIB:
            own = self._module_config()
            self._gradient_step.clipping = Clipping(
                own.grad_clip, own.grad_clip_by, log_norm=own.log_gradients
            )

    def _wants_graphs(self, module: Any) -> bool:
        wanted = self.config.learner_config_dict.get("cuda_graphs", "auto")
        if torch.device(self.device).type != "cuda" or self.config.num_learners > 1:
            return False
        return can_be_captured(module) if wanted == "auto" else bool(wanted)

    def _tensors(self, batch: TrainBatch) -> TensorColumns:
        """The columns under RLlib's names, on the learner's device."""
        arrays = {
            Columns.OBS: batch.obs,
            Columns.ACTIONS: batch.actions,
            Columns.ACTION_LOGP: batch.logp,
            Columns.ACTION_DIST_INPUTS: batch.dist_inputs,
            Columns.LOSS_MASK: batch.loss_mask,
        }
        if batch.weights_seq_no is not None:
            arrays[_ray.learners.WEIGHTS_SEQ_NO] = batch.weights_seq_no
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    def _add_advantages(self, batch: TrainBatch, tensors: TensorColumns) -> None:
        with torch.no_grad():
            values = self._policy_module().compute_values(tensors).cpu().numpy()
        advantages, targets = advantages_and_targets(
            batch, values, gamma=self.config.gamma, lambda_=self.config.lambda_
        )
        tensors[Postprocessing.ADVANTAGES] = torch.from_numpy(advantages).to(self.device)
        tensors[Postprocessing.VALUE_TARGETS] = torch.from_numpy(targets).to(self.device)

    def _run(self, batch: TrainBatch, tensors: TensorColumns, rows: Array) -> None:
        """All minibatches. RLlib reports losses of the last, before its step; here it is the last that
        has a loss."""
        settings, steps = self._loss_settings(), self._steps
        logged = last_with_a_step(rows, batch.loss_mask)
        before, rest = rows[:logged], rows[len(rows) if logged is None else logged :]
        if isinstance(steps, HandWrittenSteps):
            advantages, targets = (
                tensors[name].numpy()
                for name in (Postprocessing.ADVANTAGES, Postprocessing.VALUE_TARGETS)
            )
            steps.begin(batch, advantages, targets, settings)
            steps.run(before)
            if logged is not None:
                with torch.no_grad():
                    index = torch.from_numpy(rest[0])
                    self._logged_loss({name: column[index] for name, column in tensors.items()})
            steps.run(rest)
        else:
            steps.begin(tensors, settings)
            steps.run(before)
            steps.run(rest[:1], self._logged_loss)
            steps.run(rest[1:])
        steps.end()
        if self._gradient_step.clipping.wants_norm:
            self.metrics.log_value((MODULE_ID, self._norm_name), self._gradient_step.norm, window=1)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> torch.Tensor:
        """RLlib's loss, which logs its parts. For a minibatch without a step (bootstrap rows and padding
        alone), where RLlib divides by 0, it is 0 and nothing is logged."""
        mask = batch.get(Columns.LOSS_MASK)
        if mask is None or bool(mask.any()):
            found: torch.Tensor = super().compute_loss_for_module(
                module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
            )
            self._hidden_loss = None
            self._last_loss = found.detach()
            return found
        self._hidden_loss = self._last_loss
        # 0 of all that the loss depends on: several learners reduce the gradients of all parameters.
        outputs = [fwd_out[Columns.ACTION_DIST_INPUTS].sum(-1)]
        if config.use_critic:
            module = self.module[module_id].unwrapped()
            embeddings = fwd_out.get(Columns.EMBEDDINGS)
            outputs.append(module.compute_values(batch, embeddings=embeddings))
        return sum(torch.where(mask, each, 0.0).sum() for each in outputs)

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """As RLlib's, which has logged the loss of the last minibatch, if it had one or not."""
        if self._hidden_loss is not None:
            self.metrics.log_value((MODULE_ID, self.TOTAL_LOSS_KEY), self._hidden_loss, window=1)
        self._hidden_loss = self._last_loss = None
        super().after_gradient_based_update(timesteps=timesteps)

    def _logged_loss(self, minibatch: TensorColumns) -> torch.Tensor:
        """RLlib's loss of a minibatch, which goes into the metrics with its parts."""
        _ray.learners.log_off_policyness(self, {MODULE_ID: minibatch})
        loss: torch.Tensor = self.compute_loss_for_module(
            module_id=MODULE_ID,
            config=self._module_config(),
            batch=minibatch,
            fwd_out=self._policy_module().forward_train(minibatch),
        )
        self.metrics.log_value((MODULE_ID, self.TOTAL_LOSS_KEY), loss.detach(), window=1)
        return loss

    def _loss_settings(self) -> LossSettings:
        config = self._module_config()
        entropy = self.entropy_coeff_schedulers_per_module[MODULE_ID].get_current_value()
        return LossSettings(
            clip_param=config.clip_param,
            vf_clip_param=config.vf_clip_param,
            vf_loss_coeff=config.vf_loss_coeff,
            entropy_coeff=float(entropy),
            kl_coeff=float(_ray.learners.kl_coefficients(self)[MODULE_ID])
            if config.use_kl_loss
            else 0.0,
        )

    def _module_config(self) -> Any:
        return self.config.get_config_for_module(MODULE_ID)

    # -- the state -------------------------------------------------------------------------------

    def exact_state(self) -> dict[str, Any]:
        """What RLlib leaves out: plain numbers as JSON types, the rest (`opaque`) pickled."""
        opaque = {
            "metrics": self.metrics.stats,
            # RLlib's copies of these are float32 and int32.
            "tensors": {
                name: value.detach().cpu().clone()
                for name, value in self._policy_module().state_dict().items()
                if value.dtype != torch.float32
            },
            "connector": _connector_state(_ray.learners.learner_connector(self)),
            "torch_schedulers": {
                name: [scheduler.state_dict() for scheduler in group]
                for name, group in _ray.learners.torch_schedulers(self).items()
            },
            "grad_scalers": {
                name: scaler.state_dict()
                for name, scaler in _ray.learners.grad_scalers(self).items()
            },
        }
        return {
            "rng": RngStreams.capture().to_state(),
            "minibatch_order": generator_state(self.minibatch_generator),
            "kl_coeff": {
                module: float(value)
                for module, value in _ray.learners.kl_coefficients(self).items()
            },
            "schedules": {
                name: float(scheduler.get_current_value())
                for name, scheduler in _ray.learners.schedulers(self).items()
            },
            "opaque": pickle.dumps(opaque, protocol=pickle.HIGHEST_PROTOCOL),
        }

    def load_exact_state(self, state: dict[str, Any]) -> None:
        """Put back what `exact_state` returned. To be called after RLlib's own restore.

        Raises:
            RaytrainError: the state holds no minibatch order, or a damaged one.
        """
        if "minibatch_order" not in state:
            raise RaytrainError(
                "the saved state of the learner has no minibatch order: another version of raytrain "
                "wrote it. Use the version named in the checkpoint's manifest.json."
            )
        set_generator_state(self.minibatch_generator, state["minibatch_order"])
        for module, value in _ray.learners.kl_coefficients(self).items():
            value.fill_(state["kl_coeff"][module])
        for name, scheduler in _ray.learners.schedulers(self).items():
            _ray.learners.set_scheduler_value(scheduler, state["schedules"][name])
        opaque = pickle.loads(state["opaque"])
        self.metrics.stats = opaque["metrics"]
        present = self._policy_module().state_dict()
        for name, value in opaque.get("tensors", {}).items():
            present[name].copy_(value)
        if opaque["connector"]:
            _ray.learners.learner_connector(self).set_state(opaque["connector"])
        for name, group in _ray.learners.torch_schedulers(self).items():
            for scheduler, saved in zip(group, opaque["torch_schedulers"][name], strict=True):
                scheduler.load_state_dict(saved)
        for name, scaler in _ray.learners.grad_scalers(self).items():
            scaler.load_state_dict(opaque["grad_scalers"][name])
        RngStreams.from_state(state["rng"]).install()

    def weights_for_sampling(self, names: tuple[str, ...]) -> tuple[dict[str, Any], int]:
        """Those of all parameters and buffers that env runners hold, and their sequence number. Arrays,
        which may share memory with the module; tensors of the types that NumPy has not.

        Raises:
            RaytrainError: the module has none of such a name.
        """
        state = self._policy_module().state_dict()
        missing = [name for name in names if name not in state]
        if missing:
            raise RaytrainError(
                f"The module on the env runners has {', '.join(missing[:3])}, which the learner's module "
                "has not. What a module builds with inference_only must be a part of what it builds "
                "without."
            )
        return {name: _plain(state[name]) for name in names}, _ray.learners.weights_version(self)

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of all parameters and buffers of the policy module, by name."""
        return {
            name: value.detach().cpu().numpy().copy()
            for name, value in self._policy_module().state_dict().items()
        }

    def load_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Set all parameters and buffers, which must be exactly those of `weights()`."""
        self._policy_module().load_state_dict(
            {name: torch.from_numpy(np.array(value)) for name, value in weights.items()},
            strict=True,
        )

    def weights_check(self) -> tuple[str, list[str]]:
        """The weights digest (64 hex digits), and the names of tensors that hold a NaN or an infinity."""
        state = self._policy_module().state_dict()
        damaged = [
            name
            for name, value in state.items()
            if value.is_floating_point() and not bool(torch.isfinite(value).all())
        ]
        return weights_sha256(state), damaged

    def _policy_module(self) -> Any:
        return self.module[MODULE_ID].unwrapped()


def torch_rank() -> int:
    """This process's rank among the learners, 0 if there is only one."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0


def _plain(tensor: torch.Tensor) -> Any:
    found = tensor.detach().cpu()
    return found if found.dtype in _NOT_IN_NUMPY else found.numpy()


def _connector_state(connector: Any) -> dict[str, Any]:
    return {} if connector is None else dict(connector.get_state() or {})
