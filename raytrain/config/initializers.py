"""Initializers of `torch.nn.init` that a model config may name, known without importing Torch.

RLlib looks names up when it builds the network, in the trial; only in-place initializers work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

_ARGUMENTS = {
    "constant_": ("val",),
    "dirac_": ("groups",),
    "eye_": (),
    "kaiming_normal_": ("a", "mode", "nonlinearity"),
    "kaiming_uniform_": ("a", "mode", "nonlinearity"),
    "normal_": ("mean", "std"),
    "ones_": (),
    "orthogonal_": ("gain",),
    "sparse_": ("sparsity", "std"),
    "trunc_normal_": ("mean", "std", "a", "b"),
    "uniform_": ("a", "b"),
    "xavier_normal_": ("gain",),
    "xavier_uniform_": ("gain",),
    "zeros_": (),
}
_REQUIRED = {"constant_": "val", "sparse_": "sparsity"}
_OF_ANY_SHAPE = ("constant_", "normal_", "ones_", "trunc_normal_", "uniform_", "zeros_")


def _one_of(*names: str) -> AfterValidator:
    def check(name: str | None) -> str | None:
        if name is not None and name not in names:
            raise ValueError(f"must be one of torch.nn.init's {', '.join(names)}")
        return name

    return AfterValidator(check)


_WEIGHTS = Field(description="A name in torch.nn.init, for the weights.")
_BIASES = Field(description="A name in torch.nn.init, for the biases.")
_DENSE = _one_of(*(name for name in _ARGUMENTS if name != "dirac_"))
_CONV = _one_of(*(name for name in _ARGUMENTS if name not in ("eye_", "sparse_")))

Dense = Annotated[str | None, _DENSE, _WEIGHTS]
"""For the weights of dense layers and of an LSTM."""
Conv = Annotated[str | None, _CONV, _WEIGHTS]
"""For the weights of convolutions."""
Bias = Annotated[str | None, _one_of(*_OF_ANY_SHAPE), _BIASES]
"""For biases, which have one axis."""


def why_not_with(name: str, arguments: Mapping[str, Any]) -> str | None:
    """Why an initializer does not accept these keyword arguments; None if it does."""
    unknown = [key for key in arguments if key not in _ARGUMENTS[name]]
    if unknown:
        known = ", ".join(_ARGUMENTS[name]) or "no arguments"
        return f"{name} does not take {unknown[0]!r}; it takes {known}"
    missing = _REQUIRED.get(name)
    return None if missing is None or missing in arguments else f"{name} needs {missing!r}"
