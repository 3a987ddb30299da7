"""RLlib's PPO learner with a fast update, and with the part of its state that RLlib does not save.

RLlib's checkpoint of a learner holds weights, optimizer and the learner's metrics. The next update
also depends on the KL coefficient, the current values of the entropy and learning rate schedules,
loss scalers, connector state, the generator of the minibatch order and the random generators of
the process. `ExactPPOTorchLearner.exact_state()` returns these; each rank of a distributed learner
has its own.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np
import torch
import torch.distributed
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID as MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import VF_LOSS_KEY
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from raytrain import _ray
from raytrain.arithmetic.machine import describe_machine
from raytrain.arithmetic.portable import make_portable
from raytrain.arithmetic.settings import use_threads_of
from raytrain.checkpoint import weights_sha256
from raytrain.errors import RaytrainError
from raytrain.policy.rllib_catalog import choose_catalog
from raytrain.ppo.fast_update.loss import masked_outputs
from raytrain.ppo.fast_update.minibatches import minibatch_generator
from raytrain.ppo.fast_update.update import FastUpdate
from raytrain.ppo.own_training import (
    APPROX_KL,
    AddOldValues,
    OwnTraining,
    clipped_values,
    initialize_orthogonally,
    mean_over_learners,
    standardized,
    sum_of_approximate_kl,
)
from raytrain.ppo.rehearsal import learning_fingerprint
from raytrain.rng import RngStreams

__all__ = ["MODULE_ID", "ExactPPOTorchLearner", "torch_rank"]

_NOT_IN_NUMPY = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


class _TargetKlReached(Exception):
    """Ends RLlib's own update before the step of a minibatch."""


class ExactPPOTorchLearner(PPOTorchLearner):
    """`PPOTorchLearner` with `fast` updates where possible, and a complete state."""

    fast: FastUpdate | None
    why_not_fast: str | None
    """Why RLlib's own update must be used; None where `fast` is."""
    own_training: OwnTraining

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        own = config.learner_config_dict.get("learner_class")
        if own is not None and not isinstance(self, own):
            # Ray makes an actor's class before the user's module can be imported in its process,
            # so the class of the object changes here. Its methods come between these and RLlib's.
            self.__class__ = type(own.__name__, (type(self), own), {"__module__": __name__})
        super().__init__(config=config, **kwargs)

    def build(self) -> None:
        if self.config.num_learners > 0:  # Otherwise the trial's process has its own number.
            use_threads_of("learner", self.config.learner_config_dict)
        make_portable()
        # RLlib switches deterministic kernels on for CPU builds of Torch only. Some kernels for the
        # CPU have two versions as well, so it must not depend on whether a GPU is visible.
        if self.config.learner_config_dict.get("deterministic", True):
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
            torch.use_deterministic_algorithms(True)
        for spec in _ray.learners.module_spec(self).rl_module_specs.values():
            choose_catalog(spec)
        with _ray.runners.quick_connectors():
            super().build()
        _ray.learners.make_torch_schedulers(self)
        # RLlib has no settings for these. A restored state is loaded over them.
        gains = self.config.learner_config_dict.get("orthogonal_init")
        if gains is not None:
            initialize_orthogonally(self.policy_module(), gains, self.config.seed)
        log_std = self.config.learner_config_dict.get("log_std_init")
        if log_std is not None:
            with torch.no_grad():
                self.policy_module().pi.log_std.fill_(log_std)
        self._arithmetic: tuple[str, dict[str, str]] | None = None
        self._last_loss: Any = None
        self._hidden_loss: Any = None
        self._loss_config: Any = None
        self._use_own_training(timesteps=0)
        self.minibatch_generator: Any = minibatch_generator(self.config.seed, torch_rank())
        fast = FastUpdate.of(self)
        self.fast, self.why_not_fast = (None, fast) if isinstance(fast, str) else (fast, None)
        self._add_old_values()

    # -- the update ------------------------------------------------------------------------------

    def update(
        self,
        *,
        training_data: TrainingData | None = None,
        episodes: Any = None,
        timesteps: dict[str, Any] | None = None,
        minibatch_size: int | None = None,
        _no_metrics_reduce: bool = False,
        **settings: Any,
    ) -> Any:
        """As `Learner.update`, which also serves anything but episodes in minibatches."""
        if training_data is None and episodes is not None:
            training_data = TrainingData(episodes=episodes)
        if training_data is not None:
            training_data.validate()
            training_data.solve_refs()
        chunks = None if training_data is None else training_data.episodes
        self._loss_config = None
        if self.fast is None or chunks is None or not minibatch_size:
            try:
                return super().update(
                    training_data=training_data,
                    timesteps=timesteps,
                    minibatch_size=minibatch_size,
                    _no_metrics_reduce=_no_metrics_reduce,
                    **settings,
                )
            except _TargetKlReached:
                if self._last_loss is not None:
                    key = (MODULE_ID, self.TOTAL_LOSS_KEY)
                    self.metrics.log_value(key, self._last_loss, window=1)
        else:
            self.before_gradient_based_update(timesteps=timesteps or {})
            self.fast.update(chunks, minibatch_size=minibatch_size, **settings)
        self.after_gradient_based_update(timesteps=timesteps or {})
        return None if _no_metrics_reduce else self.metrics.reduce()

    def use_settings(self, config: Any, *, timesteps: int, kl_coeff: float | None) -> None:
        """Use the training values of `config` from now on; weights and the optimizer's moments
        stay. `timesteps` sampled so far give the values of schedules. `kl_coeff` None keeps
        the present one.
        """
        self.config = config.copy(copy_frozen=False)
        _ray.learners.use_training_values(self, timesteps)
        self._use_own_training(timesteps)
        self._add_old_values()
        if kl_coeff is not None:
            for value in _ray.learners.kl_coefficients(self).values():
                value.fill_(kl_coeff)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> torch.Tensor:
        """RLlib's loss, with action masks; it logs its parts. For a minibatch of bootstrap rows and
        padding alone, where RLlib divides by 0, it is 0 and nothing is logged."""
        fwd_out = masked_outputs(fwd_out, batch)
        mask = batch.get(Columns.LOSS_MASK)
        if mask is None or bool(mask.any()):
            loss = self._loss(module_id, config, batch, fwd_out)
            self._hidden_loss = None
            self._last_loss = loss.detach()
            return loss
        self._hidden_loss = self._last_loss
        # 0 of all that the loss depends on: several learners reduce the gradients of
        # all parameters.
        outputs = [fwd_out[Columns.ACTION_DIST_INPUTS].sum(-1)]
        if config.use_critic:
            module = self.module[module_id].unwrapped()
            embeddings = fwd_out.get(Columns.EMBEDDINGS)
            outputs.append(module.compute_values(batch, embeddings=embeddings))
        return sum(torch.where(mask, output, 0.0).sum() for output in outputs)

    def compute_losses(
        self, *, fwd_out: dict[str, Any], batch: dict[str, Any]
    ) -> dict[str, torch.Tensor]:
        """As RLlib's, for a minibatch of RLlib's own update, which may be where that ends."""
        losses: dict[str, torch.Tensor] = super().compute_losses(fwd_out=fwd_out, batch=batch)
        limit = self.own_training.kl_limit
        if limit is not None:
            kl = self._approximate_kl(batch[MODULE_ID], fwd_out[MODULE_ID])
            self.metrics.log_value((MODULE_ID, APPROX_KL), kl, window=1)
            if kl > limit:
                raise _TargetKlReached
        return losses

    def clip(self, name: str) -> float | None:
        """The present value of `clip_param` or `clip_range_vf`; None where it is not set."""
        scheduler = self._clip_schedulers.get(name)
        return None if scheduler is None else float(scheduler.get_current_value())

    def _loss(
        self, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> torch.Tensor:
        """RLlib's loss, with raytrain's own terms."""
        own, clip = self.own_training, self.clip("clip_range_vf")
        mask = batch.get(Columns.LOSS_MASK)
        if own.in_minibatches:
            advantages = standardized(batch[Postprocessing.ADVANTAGES], mask)
            batch = {**batch, Postprocessing.ADVANTAGES: advantages}
        changed = clip is not None or isinstance(own.clip_param, list)
        loss: torch.Tensor = super().compute_loss_for_module(
            module_id=module_id,
            config=self._config_of_loss(config) if changed else config,
            batch=batch,
            fwd_out=fwd_out,
        )
        if clip is None:
            return loss
        module, old = self.module[module_id].unwrapped(), batch[Columns.VF_PREDS]
        values = module.compute_values(batch, embeddings=fwd_out.get(Columns.EMBEDDINGS))
        error = clipped_values(values, old, clip) - batch[Postprocessing.VALUE_TARGETS]
        each = error.square().clamp(0, config.vf_clip_param)
        mean = each.mean() if mask is None else each[mask].mean()
        self.metrics.log_value((module_id, VF_LOSS_KEY), mean.detach(), window=1)
        return loss + config.vf_loss_coeff * mean

    def _config_of_loss(self, config: Any) -> Any:
        """For RLlib's loss: with the present clip range, and without a value loss where raytrain
        adds its own."""
        if self._loss_config is None:
            self._loss_config = config.copy(copy_frozen=False)
            self._loss_config.clip_param = self.clip("clip_param")
            if self.own_training.clip_range_vf is not None:
                self._loss_config.vf_loss_coeff = 0.0
        return self._loss_config

    def _approximate_kl(self, batch: dict[str, Any], fwd_out: dict[str, Any]) -> float:
        """Of a minibatch, over all learners."""
        inputs = masked_outputs(fwd_out, batch)[Columns.ACTION_DIST_INPUTS].detach()
        mask = batch.get(Columns.LOSS_MASK)
        distribution = self.policy_module().get_train_action_dist_cls().from_logits(inputs)
        log_ratio = distribution.logp(batch[Columns.ACTIONS]) - batch[Columns.ACTION_LOGP]
        if mask is not None:
            log_ratio = log_ratio[mask]
        return mean_over_learners(
            sum_of_approximate_kl(log_ratio),
            log_ratio.numel(),
            learners=self.config.num_learners,
            device=log_ratio.device,
        )

    def _use_own_training(self, timesteps: int) -> None:
        """Use raytrain's own keys of the present config, as they are after `timesteps`."""
        self.own_training = OwnTraining.of(self.config)
        self._clip_schedulers = self.own_training.clip_schedulers(timesteps)
        if "learner_class" not in self.config.learner_config_dict:  # It may make its own.
            self.own_training.set_up_optimizers(
                optimizer for _, optimizer in _ray.learners.optimizers(self)
            )

    def _add_old_values(self) -> None:
        """Let RLlib's own update have the values that the loss needs."""
        if self.fast is None and self.own_training.needs_old_values:
            connector = AddOldValues(MODULE_ID, lambda: self.own_training)
            _ray.learners.append_connector(self, connector)

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """As RLlib's, but the total loss reported is that of the last minibatch with a step."""
        if self._hidden_loss is not None:
            self.metrics.log_value((MODULE_ID, self.TOTAL_LOSS_KEY), self._hidden_loss, window=1)
        self._hidden_loss = self._last_loss = None
        super().after_gradient_based_update(timesteps=timesteps)
        for scheduler in self._clip_schedulers.values():
            scheduler.update(timestep=timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0))

    # -- the state -------------------------------------------------------------------------------

    def exact_state(self) -> dict[str, Any]:
        """What RLlib does not save: plain numbers as JSON types, the rest (`opaque`) pickled."""
        connector = _ray.learners.learner_connector(self)
        opaque = {
            "metrics": self.metrics.stats,
            # RLlib's copies of these are float32 and int32.
            "tensors": {
                name: value.detach().cpu().clone()
                for name, value in self.policy_module().state_dict().items()
                if value.dtype != torch.float32
            },
            "connector": {} if connector is None else dict(connector.get_state() or {}),
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
            "minibatch_order": self.minibatch_generator.bit_generator.state,
            "kl_coeff": {
                module: float(value)
                for module, value in _ray.learners.kl_coefficients(self).items()
            },
            "schedules": {
                name: float(scheduler.get_current_value())
                for name, scheduler in self._schedulers().items()
            },
            "opaque": pickle.dumps(opaque, protocol=pickle.HIGHEST_PROTOCOL),
            "rank": torch_rank(),
        }

    def load_exact_state(self, state: dict[str, Any]) -> None:
        """Restore what `exact_state` returned, after RLlib's own restore.

        Raises:
            RaytrainError: the state holds no minibatch order, or one that is damaged.
        """
        try:
            self.minibatch_generator.bit_generator.state = state["minibatch_order"]
        except (KeyError, TypeError, ValueError) as error:
            raise RaytrainError(
                f"The saved state of the learner has no valid minibatch order ({error!r}). Use an "
                "older checkpoint, or the raytrain version named in its manifest.json."
            ) from error
        for module, value in _ray.learners.kl_coefficients(self).items():
            value.fill_(state["kl_coeff"][module])
        for name, scheduler in self._schedulers().items():
            if name in state["schedules"]:  # A fork may follow schedules that its parent had not.
                _ray.learners.set_scheduler_value(scheduler, state["schedules"][name])
        opaque = pickle.loads(state["opaque"])
        self.metrics.stats = opaque["metrics"]
        present = self.policy_module().state_dict()
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
        """The parameters and buffers `names`, which env runners hold, and their sequence
        number. They are arrays, which may share memory with the module, or tensors of a type
        that NumPy lacks.

        Raises:
            RaytrainError: the module lacks one of the names.
        """
        state = self.policy_module().state_dict()
        missing = [name for name in names if name not in state]
        if missing:
            raise RaytrainError(
                f"The module on the env runners has {', '.join(missing[:3])}, which the learner's "
                "module lacks. With inference_only a module must build a part of what it builds "
                "without."
            )
        return {name: _plain(state[name]) for name in names}, _ray.learners.weights_version(self)

    def load_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Set all parameters and buffers. Raises RuntimeError if names or shapes differ."""
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
        self.policy_module().load_state_dict(tensors, strict=True)

    def weights_check(self) -> tuple[str, list[str]]:
        """The weights digest (64 hex digits), and the names of tensors with NaN or infinity."""
        state = self.policy_module().state_dict()
        damaged = [
            name
            for name, value in state.items()
            if value.is_floating_point() and not bool(torch.isfinite(value).all())
        ]
        return weights_sha256(state), damaged

    def arithmetic(self) -> tuple[str, dict[str, str]]:
        """The fingerprint of what this process computes (see `rehearsal`), and the description of
        its machine."""
        if self._arithmetic is None:  # It takes as long as two minibatches.
            self._arithmetic = learning_fingerprint(self), describe_machine()
        return self._arithmetic

    def _schedulers(self) -> dict[str, Any]:
        follow = {name: each for name, each in self._clip_schedulers.items() if each.use_schedule}
        return {**_ray.learners.schedulers(self), **follow}

    def policy_module(self) -> Any:
        """The policy's module, without the wrapper of distributed learners."""
        return self.module[MODULE_ID].unwrapped()


def torch_rank() -> int:
    """The rank of this process among the learners, 0 if there is only one."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0


def _plain(tensor: torch.Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return tensor if tensor.dtype in _NOT_IN_NUMPY else tensor.numpy()
