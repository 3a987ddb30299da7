"""Networks of one's own, as a user of RLlib writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import nn


class Dense(TorchRLModule, ValueFunctionAPI):
    """A dense network with one hidden layer of `model_config["width"]` units."""

    def setup(self) -> None:
        width = self.model_config["width"]
        (size,) = self.observation_space.shape
        self.body = nn.Sequential(nn.Linear(size, width), nn.Tanh())
        self.policy = nn.Linear(width, self.action_space.n)
        self.value = nn.Linear(width, 1)

    def _forward(self, batch: Any, **kwargs: Any) -> Any:
        return {Columns.ACTION_DIST_INPUTS: self.policy(self.body(batch[Columns.OBS]))}

    def compute_values(self, batch: Any, embeddings: Any = None) -> Any:
        return self.value(self.body(batch[Columns.OBS])).squeeze(-1)


class Chance(Dense):
    """Draws from the system's entropy."""

    def _forward(self, batch: Any, **kwargs: Any) -> Any:
        logits = super()._forward(batch)[Columns.ACTION_DIST_INPUTS]
        return {Columns.ACTION_DIST_INPUTS: logits * float(np.random.default_rng().normal())}


class Recurrent(TorchRLModule, ValueFunctionAPI):
    """A GRU of `model_config["width"]` units."""

    def setup(self) -> None:
        width = self.model_config["width"]
        (size,) = self.observation_space.shape
        self.gru = nn.GRU(size, width, batch_first=True)
        self.policy = nn.Linear(width, self.action_space.n)
        self.value = nn.Linear(width, 1)

    def get_initial_state(self) -> Any:
        return {"h": np.zeros(self.model_config["width"], np.float32)}

    def _embeddings(self, batch: Any) -> Any:
        out, last = self.gru(batch[Columns.OBS], batch[Columns.STATE_IN]["h"].unsqueeze(0))
        return out, {"h": last.squeeze(0)}

    def _forward(self, batch: Any, **kwargs: Any) -> Any:
        embeddings, state = self._embeddings(batch)
        logits = self.policy(embeddings)
        return {Columns.ACTION_DIST_INPUTS: logits, Columns.STATE_OUT: state}

    def compute_values(self, batch: Any, embeddings: Any = None) -> Any:
        return self.value(self._embeddings(batch)[0]).squeeze(-1)


class Catalog(PPOCatalog):
    """A catalog whose policy head has a bias of its own to begin with."""

    def build_pi_head(self, framework: str) -> Any:
        head = super().build_pi_head(framework)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.fill_(self._model_config_dict["fill"])
        return head
