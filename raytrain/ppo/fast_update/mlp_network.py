"""RLlib's default PPO network of dense layers as stacked matrices: forward and backward pass.

Such a network is one or two encoders and two heads of one layer:

    obs (n, D) ─> S encoders of equal shape, S = 1 (shared) or 2 (policy, value)
               ─> policy head: (K, n)    one column for each row of the minibatch
               ─> value head:  (n,)

Equal layers of the two encoders are next to each other in memory (in the order of `parameters`), so
that both are one (S, out, in) matrix and one call serves both. NumPy does the small operations,
where the time goes into calls, which take a third of Torch's. Torch has the faster products of
large matrices (NumPy does them in portable arithmetic), and `kernels` does what would take several
passes over memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from raytrain.arithmetic.portable import is_portable
from raytrain.policy.rllib_network import NotDefaultNetwork, PolicyLayers, value_layers
from raytrain.ppo.fast_update.train_batch import Array


@dataclass(frozen=True)
class MlpPolicy:
    """The layers of a default PPO network."""

    hidden: tuple[tuple[tuple[nn.Linear, ...], str], ...]
    """For each hidden layer: the layer of each encoder, and the activation behind it."""
    policy_head: nn.Linear
    value_head: nn.Linear
    log_std: nn.Parameter | None
    """The free log-std, (A,)."""
    log_std_clip: float | None
    """Log-stds are clipped to plus and minus this; None where there are none."""

    @classmethod
    def of(cls, module: Any) -> MlpPolicy:
        """Raises NotDefaultNetwork, also for a default network of other layers."""
        policy, (critic, value_head) = PolicyLayers.of(module), value_layers(module)
        encoders = [policy.encoder] if critic is None else [policy.encoder, critic]
        stacks = [_dense_layers(encoder) for encoder in encoders]
        return cls(
            hidden=tuple(
                (tuple(linear for linear, _ in layers), layers[0][1])
                for layers in zip(*stacks, strict=True)
            ),
            policy_head=_only_layer(policy.head),
            value_head=_only_layer(value_head),
            log_std=policy.log_std,
            log_std_clip=policy.log_std_bound,
        )

    def parameters(self) -> list[nn.Parameter]:
        """All parameters, equal layers of the encoders next to each other."""
        parameters: list[nn.Parameter] = []
        for linears, _ in self.hidden:
            parameters += [linear.weight for linear in linears]
            parameters += [linear.bias for linear in linears]
        for head in (self.policy_head, self.value_head):
            parameters += [head.weight, head.bias]
        return parameters if self.log_std is None else [*parameters, self.log_std]


class Matrices:
    """One flat buffer (float32, CPU), in the order of `MlpPolicy.parameters`, as matrices."""

    def __init__(self, network: MlpPolicy, flat: torch.Tensor) -> None:
        rest: Array = flat.numpy()

        def take(*shape: int) -> Array:
            nonlocal rest
            size = int(np.prod(shape))
            taken, rest = rest[:size], rest[size:]
            return taken.reshape(shape)

        self.hidden: list[tuple[Array, Array]] = []
        """(S, out, in) and (S, 1, out) of each hidden layer."""
        for linears, _ in network.hidden:
            stack, out, size = len(linears), linears[0].out_features, linears[0].in_features
            self.hidden.append((take(stack, out, size), take(stack, 1, out)))
        outputs, features = network.policy_head.weight.shape
        self.policy = take(outputs, features), take(outputs, 1)
        self.value = take(1, features), take(1)
        self.log_std = None if network.log_std is None else take(len(network.log_std), 1)


class Buffers:
    """Memory by name; smaller minibatches use the beginning of that of larger ones."""

    def __init__(self) -> None:
        self._flat: dict[str, torch.Tensor] = {}

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The memory of this name, in this shape, with undefined contents."""
        size = int(np.prod(shape))
        flat = self._flat.get(name)
        if flat is None or len(flat) < size:
            # Torch's memory is aligned for vector instructions.
            flat = self._flat[name] = torch.empty(size)
        return flat[:size].view(shape)


class Pass:
    """Forward and backward of a minibatch of n rows.

    `forward` fills `outputs` (K, n) and `values` (n,). The caller writes their derivatives into
    `d_outputs` and `d_values`, from which `backward` computes `gradient`.
    """

    def __init__(
        self,
        network: MlpPolicy,
        weights: Matrices,
        gradient: Matrices,
        n: int,
        buffers: Buffers,
    ) -> None:
        # Importing Numba takes half a second, and only an update needs it.
        from raytrain.ppo.fast_update import kernels

        self._kernels = kernels
        self._weights, self._gradient = weights, gradient
        self._activations = [activation for _, activation in network.hidden]
        sizes = [(len(linears), n, linears[0].out_features) for linears, _ in network.hidden]

        def for_each_layer(name: str) -> list[torch.Tensor]:
            return [buffers.take(f"{name}{at}", *size) for at, size in enumerate(sizes)]

        hidden, d_hidden = for_each_layer("hidden"), for_each_layer("d_hidden")
        self._hidden: list[Array] = [tensor.numpy() for tensor in hidden]
        self._d_hidden: list[Array] = [tensor.numpy() for tensor in d_hidden]
        self._scratch: list[Array] = [tensor.numpy() for tensor in for_each_layer("scratch")]
        # The first and the last encoder: policy and value, or twice the shared one.
        self._features = self._hidden[-1][0], self._hidden[-1][-1]
        outputs = len(weights.policy[0])
        self.outputs: Array = buffers.take("outputs", outputs, n).numpy()
        self.d_outputs: Array = buffers.take("d_outputs", outputs, n).numpy()
        self.values: Array = buffers.take("values", n).numpy()
        self.d_values: Array = buffers.take("d_values", n).numpy()
        self._ones_row, self._ones = np.ones((1, n), np.float32), np.ones(n, np.float32)
        # Transposed views, made once.
        self._first_weight_t = weights.hidden[0][0].transpose(0, 2, 1)
        self._features_t = self._features[0].T
        self._d_first_t = self._d_hidden[0].transpose(0, 2, 1)
        self._d_outputs_t = self.d_outputs.T
        self._value_row, self._d_value_column = weights.value[0][0], self.d_values[:, None]
        self._value_grad_row = gradient.value[0][0]
        self._shared_scratch = self._scratch[-1][0] if sizes[-1][0] == 1 else None

        # The factors and results of the large products.
        weight_tensors = [torch.from_numpy(weight) for weight, _ in weights.hidden]
        self._product: Callable[..., Any] = np.matmul if is_portable() else torch.bmm
        self._hidden_factors = _factors(hidden)
        self._d_hidden_factors = _factors(d_hidden)
        self._d_hidden_factors_t = _factors([tensor.transpose(1, 2) for tensor in d_hidden])
        self._weight_factors = _factors(weight_tensors)
        self._weight_factors_t = _factors([tensor.transpose(1, 2) for tensor in weight_tensors])
        self._weight_grad_factors = _factors(
            [torch.from_numpy(grad) for grad, _ in gradient.hidden]
        )

    def forward(self, obs: Array) -> None:
        """`obs` is (n, D)."""
        hidden = self._hidden_factors
        for index, (_, bias) in enumerate(self._weights.hidden):
            if index:
                self._product(hidden[index - 1], self._weight_factors_t[index], out=hidden[index])
            else:
                np.matmul(obs, self._first_weight_t, out=self._hidden[0])
            self._activate(index, bias)
        weight, bias = self._weights.policy
        np.matmul(weight, self._features_t, out=self.outputs)
        np.add(self.outputs, bias, out=self.outputs)
        np.matmul(self._features[1], self._value_row, out=self.values)
        np.add(self.values, self._weights.value[1], out=self.values)

    def backward(self, obs: Array) -> None:
        """`obs` as in `forward`."""
        weight_grad, bias_grad = self._gradient.policy
        np.matmul(self.d_outputs, self._features[0], out=weight_grad)
        np.matmul(self.d_outputs, self._ones, out=bias_grad[:, 0])
        np.matmul(self.d_values, self._features[1], out=self._value_grad_row)
        self._gradient.value[1][0] = self.d_values.dot(self._ones)

        above = self._d_hidden[-1]
        np.matmul(self._d_outputs_t, self._weights.policy[0], out=above[0])
        if self._shared_scratch is None:
            np.multiply(self._d_value_column, self._value_row, out=above[1])
        else:
            np.multiply(self._d_value_column, self._value_row, out=self._shared_scratch)
            np.add(above[0], self._shared_scratch, out=above[0])
        d_hidden = self._d_hidden_factors
        for index in reversed(range(len(self._hidden))):
            self._through_activation(index)
            if index:
                self._product(
                    self._d_hidden_factors_t[index],
                    self._hidden_factors[index - 1],
                    out=self._weight_grad_factors[index],
                )
                self._product(d_hidden[index], self._weight_factors[index], out=d_hidden[index - 1])
            else:
                np.matmul(self._d_first_t, obs, out=self._gradient.hidden[0][0])

    def _activate(self, index: int, bias: Array) -> None:
        activation, here = self._activations[index], self._hidden[index]
        if activation == "tanh":
            self._kernels.add_bias_and_tanh(here, bias)
            return
        np.add(here, bias, out=here)
        if activation == "relu":
            np.maximum(here, 0.0, out=here)

    def _through_activation(self, index: int) -> None:
        """Turn derivatives by a layer's activations into those by its sums and by its bias."""
        d_here, here = self._d_hidden[index], self._hidden[index]
        bias_grad = self._gradient.hidden[index][1]
        activation = self._activations[index]
        if activation == "tanh":
            self._kernels.back_through_tanh(d_here, here, bias_grad)
            return
        if activation == "relu":
            np.multiply(d_here, np.sign(here, out=self._scratch[index]), out=d_here)
        np.matmul(self._ones_row, d_here, out=bias_grad)


def _factors(tensors: list[torch.Tensor]) -> list[Any]:
    """As `Pass` multiplies them: the tensors themselves, or arrays that share their memory."""
    return [tensor.numpy() for tensor in tensors] if is_portable() else tensors


_ACTIVATIONS = {nn.Tanh: "tanh", nn.ReLU: "relu"}


def _dense_layers(encoder: list[nn.Module]) -> list[tuple[nn.Linear, str]]:
    """The encoder's dense layers, each with the activation behind it."""
    layers: list[tuple[nn.Linear, str]] = []
    for part in encoder:
        if type(part) is nn.Linear and part.bias is not None:
            layers.append((part, "linear"))
        elif type(part) in _ACTIVATIONS and layers and layers[-1][1] == "linear":
            layers[-1] = (layers[-1][0], _ACTIVATIONS[type(part)])
        else:
            raise NotDefaultNetwork(f"the encoder has a layer {part}")
    if not layers:
        raise NotDefaultNetwork("the encoder has no layer")
    return layers


def _only_layer(head: list[nn.Module]) -> nn.Linear:
    layer: Any = head[0] if len(head) == 1 else None
    if type(layer) is not nn.Linear or layer.bias is None:
        raise NotDefaultNetwork("the heads have hidden layers")
    return layer
