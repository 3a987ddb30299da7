"""RLlib's PPO learner, with the part of its state that RLlib neither saves nor restores.

RLlib's checkpoint of a learner holds weights, optimizer and the learner's metrics. Its next update
also depends on the KL coefficient, on the current values of the entropy and learning rate schedules,
on loss scalers, on connector state and on the random generators of its process (minibatch shuffling
is `numpy.random`). `ExactPPOTorchLearner.exact_state()` returns these; every rank of a distributed
learner has its own.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner

from raytrain import _ray
from raytrain.checkpoint import weights_sha256
from raytrain.trainable.rng import RngStreams

MODULE_ID = "default_policy"


class ExactPPOTorchLearner(PPOTorchLearner):
    """`PPOTorchLearner` whose whole state can be taken and put back."""

    def build(self) -> None:
        if self._deterministic_kernels():
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        super().build()

    def _deterministic_kernels(self) -> bool:
        # RLlib switches deterministic kernels on for CPU builds of Torch only.
        wanted = bool(self.config.learner_config_dict.get("deterministic", True))
        return wanted and torch.cuda.is_available()

    def exact_state(self) -> dict[str, Any]:
        """What RLlib leaves out: plain numbers as JSON types, the rest (`opaque`) pickled."""
        opaque = {
            "metrics": self.metrics.stats,
            "connector": _connector_state(_ray.learner_connector(self)),
            "torch_schedulers": {
                name: [scheduler.state_dict() for scheduler in group]
                for name, group in _ray.torch_schedulers(self).items()
            },
            "grad_scalers": {
                name: scaler.state_dict() for name, scaler in _ray.grad_scalers(self).items()
            },
        }
        return {
            "rng": RngStreams.capture().to_state(),
            "kl_coeff": {
                module: float(value) for module, value in _ray.kl_coefficients(self).items()
            },
            "schedules": {
                name: _ray.scheduler_value(scheduler)
                for name, scheduler in _ray.schedulers(self).items()
            },
            "opaque": pickle.dumps(opaque, protocol=pickle.HIGHEST_PROTOCOL),
        }

    def load_exact_state(self, state: dict[str, Any]) -> None:
        """Put back what `exact_state` returned. To be called after RLlib's own restore."""
        for module, value in _ray.kl_coefficients(self).items():
            value.fill_(state["kl_coeff"][module])
        for name, scheduler in _ray.schedulers(self).items():
            _ray.set_scheduler_value(scheduler, state["schedules"][name])
        opaque = pickle.loads(state["opaque"])
        self.metrics.stats = opaque["metrics"]
        if opaque["connector"]:
            _ray.learner_connector(self).set_state(opaque["connector"])
        for name, group in _ray.torch_schedulers(self).items():
            for scheduler, saved in zip(group, opaque["torch_schedulers"][name], strict=True):
                scheduler.load_state_dict(saved)
        for name, scaler in _ray.grad_scalers(self).items():
            scaler.load_state_dict(opaque["grad_scalers"][name])
        RngStreams.from_state(state["rng"]).install()

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

    def _policy_module(self) -> torch.nn.Module:
        module: torch.nn.Module = self.module[MODULE_ID].unwrapped()
        return module


def _connector_state(connector: Any) -> dict[str, Any]:
    return {} if connector is None else dict(connector.get_state() or {})
