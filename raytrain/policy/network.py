"""The network of an exported policy as a list of layers: plain Torch, without RLlib.

    [{"layer": "linear", "tensors": "encoder.actor_encoder.net.mlp.0"}, {"layer": "tanh"}, ...]

`tensors` is the name of the layer's weights in `policy.safetensors`. The list leads from a batch of
preprocessed observations to the inputs of the action distribution, in the operations of RLlib's
module. The layers:

    linear, conv2d (stride), layer_norm (eps)          with tensors NAME.weight and NAME.bias
    lstm (layers)                                      with tensors NAME.weight_ih_l0 and so on
    tanh, relu, elu, silu, gelu, sigmoid, leaky_relu, softplus
    zero_pad2d (padding), permute (axes), flatten
    scale (divisor)                                    as float32, divided by it
    parts (images, rest)                               images and other columns cut out of a vector
    clip_log_std (bound)                               the second half of the columns
    free_log_std (bound or null)                       columns to append, from the tensor NAME
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from raytrain.policy.spaces import PolicyFormatError

Layer = Mapping[str, Any]
Tensors = Mapping[str, torch.Tensor]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
}


def describe_layer(module: Any, name: str) -> Layer:
    """A layer as `build_network` reads it; `name` is where its tensors are in the state dict.

    Raises PolicyFormatError for a layer that this format cannot describe.
    """
    kind = type(module)
    if kind is nn.Linear:
        return {"layer": "linear", "tensors": name}
    if kind is nn.LayerNorm:
        return {"layer": "layer_norm", "tensors": name, "eps": module.eps}
    if kind is nn.LSTM and module.batch_first:
        return {"layer": "lstm", "tensors": name, "layers": module.num_layers}
    plain = kind is nn.Conv2d and (module.dilation, module.groups) == ((1, 1), 1)
    if plain and tuple(module.padding) == (0, 0):
        return {"layer": "conv2d", "tensors": name, "stride": list(module.stride)}
    if kind is nn.ZeroPad2d:
        return {"layer": "zero_pad2d", "padding": list(module.padding)}
    if kind is Permute:
        return {"layer": "permute", "axes": list(module.axes)}
    if kind is Scale:
        return {"layer": "scale", "divisor": module.divisor}
    if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return {"layer": "flatten"}
    for activation, activation_type in _ACTIVATIONS.items():
        if kind is activation_type and repr(module) == repr(kind()):
            return {"layer": activation}
    raise PolicyFormatError(f"{name} is {module!r}, which policy.json cannot describe")


def build_network(layers: Sequence[Layer], tensors: Tensors) -> nn.Sequential:
    """The layers with their weights, in eval mode; nothing is drawn from Torch's generator.

    Raises PolicyFormatError for an unknown layer, or one whose weights are missing.
    """
    built = []
    for layer in layers:
        kind = layer["layer"]
        if kind in _ACTIVATIONS:
            built.append(_ACTIVATIONS[kind]())
        elif kind in _BUILDERS:
            built.append(_BUILDERS[kind](layer, tensors))
        else:
            known = ", ".join([*_BUILDERS, *_ACTIVATIONS])
            raise PolicyFormatError(
                f"policy.json describes a layer {kind!r}; this version of raytrain knows {known}"
            )
    return nn.Sequential(*built).requires_grad_(False).eval()


def run_recurrent(
    network: nn.Sequential, inputs: torch.Tensor, states: Sequence[Any]
) -> tuple[torch.Tensor, Sequence[Any]]:
    """One step of a network with LSTMs: outputs (N, columns) for inputs (N, ...), and the states
    after it. States: for each LSTM its (h, c), float32 arrays (N, layers, hidden)."""
    # With a time axis of length one, as RLlib runs a recurrent module.
    x, left, after = inputs.unsqueeze(1), list(states), []
    for layer in network:
        if isinstance(layer, nn.LSTM):
            h, c = (torch.from_numpy(state).transpose(0, 1) for state in left.pop(0))
            x, (h, c) = layer(x, (h, c))
            after.append((h.transpose(0, 1).numpy(), c.transpose(0, 1).numpy()))
        else:
            x = layer(x)
    return x.squeeze(1), tuple(after)


class Permute(nn.Module):
    """The axes of a batch in another order."""

    def __init__(self, axes: Sequence[int]) -> None:
        super().__init__()
        self.axes = tuple(axes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.axes)


class Scale(nn.Module):
    """Numbers of any dtype as float32, divided by `divisor`."""

    def __init__(self, divisor: float) -> None:
        super().__init__()
        self.divisor = divisor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() / self.divisor


Columns = tuple[int, int]
"""Of a vector: from, to."""


class Parts(nn.Module):
    """Vectors (N, D) with images in them: each image goes through its own layers, to (N, F), and
    the `rest` of the columns follows, in one vector.

    `images`: for each its columns, its shape, and its layers.
    """

    def __init__(
        self,
        images: Sequence[tuple[Columns, Sequence[int], nn.Sequential]],
        rest: Sequence[Columns],
    ) -> None:
        super().__init__()
        self.places = [(tuple(columns), tuple(shape)) for columns, shape, _ in images]
        self.images = nn.ModuleList([layers for *_, layers in images])
        self.rest = [tuple(columns) for columns in rest]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [
            layers(x[:, start:stop].unflatten(1, shape))
            for ((start, stop), shape), layers in zip(self.places, self.images, strict=True)
        ]
        return torch.cat([*parts, *(x[:, start:stop] for start, stop in self.rest)], dim=1)


class _ClipLogStd(nn.Module):
    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means, log_stds = torch.chunk(x, chunks=2, dim=-1)
        return torch.cat((means, torch.clamp(log_stds, -self.bound, self.bound)), dim=-1)


class _FreeLogStd(nn.Module):
    def __init__(self, log_std: torch.Tensor, bound: float | None) -> None:
        super().__init__()
        clipped = log_std if bound is None else torch.clamp(log_std, -bound, bound)
        self.register_buffer("log_std", clipped)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = self.log_std.unsqueeze(0).expand(x.shape[0], -1)
        return torch.cat((x, columns), dim=1)


def _tensor(tensors: Tensors, name: str) -> torch.Tensor:
    if name not in tensors:
        raise PolicyFormatError(
            f"policy.json names the weights {name!r}, which policy.safetensors does not hold: the "
            "files do not belong together. Export the policy again."
        )
    return tensors[name]


def _loaded(kind: type[nn.Module], layer: Layer, tensors: Tensors, *args: Any, **kw: Any) -> Any:
    """A layer of this kind, made with these arguments, on the tensors that `layer` names."""
    module = kind(*args, device="meta", **kw)  # No weights are drawn.
    for name, _ in list(module.named_parameters()):
        value = _tensor(tensors, f"{layer['tensors']}.{name}")
        setattr(module, name, nn.Parameter(value, requires_grad=False))
    return module


def _linear(layer: Layer, tensors: Tensors) -> nn.Module:
    name = layer["tensors"]
    out, size = _tensor(tensors, f"{name}.weight").shape
    return _loaded(nn.Linear, layer, tensors, size, out, bias=f"{name}.bias" in tensors)


def _conv2d(layer: Layer, tensors: Tensors) -> nn.Module:
    name = layer["tensors"]
    out, channels, *kernel = _tensor(tensors, f"{name}.weight").shape
    stride, bias = tuple(layer["stride"]), f"{name}.bias" in tensors
    return _loaded(
        nn.Conv2d, layer, tensors, channels, out, tuple(kernel), stride=stride, bias=bias
    )


def _layer_norm(layer: Layer, tensors: Tensors) -> nn.Module:
    shape = list(_tensor(tensors, f"{layer['tensors']}.weight").shape)
    return _loaded(nn.LayerNorm, layer, tensors, shape, eps=layer["eps"])


def _lstm(layer: Layer, tensors: Tensors) -> nn.Module:
    name, count = layer["tensors"], int(layer["layers"])
    gates, size = _tensor(tensors, f"{name}.weight_ih_l0").shape
    bias = f"{name}.bias_ih_l0" in tensors
    return _loaded(nn.LSTM, layer, tensors, size, gates // 4, count, batch_first=True, bias=bias)


def _parts(layer: Layer, tensors: Tensors) -> nn.Module:
    images = [
        (image["columns"], image["shape"], build_network(image["layers"], tensors))
        for image in layer["images"]
    ]
    return Parts(images, layer["rest"])


_BUILDERS: dict[str, Callable[[Layer, Tensors], nn.Module]] = {
    "linear": _linear,
    "conv2d": _conv2d,
    "layer_norm": _layer_norm,
    "lstm": _lstm,
    "zero_pad2d": lambda layer, _: nn.ZeroPad2d(tuple(layer["padding"])),
    "permute": lambda layer, _: Permute(layer["axes"]),
    "flatten": lambda layer, _: nn.Flatten(),
    "scale": lambda layer, _: Scale(float(layer["divisor"])),
    "parts": _parts,
    "clip_log_std": lambda layer, _: _ClipLogStd(float(layer["bound"])),
    "free_log_std": lambda layer, tensors: _FreeLogStd(
        _tensor(tensors, layer["tensors"]), layer["bound"]
    ),
}
