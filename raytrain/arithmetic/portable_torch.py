"""Kernels of Torch for CPUs, replaced for the whole process.

Autograd, layers and modules stay as they are: they call these operators. Products of float32
matrices and 2D convolutions are much faster with NumPy's OpenBLAS than in MKL's compatible mode.
Some functions need another kernel to be portable (see `portable`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

Kernel: TypeAlias = Callable[..., Any]
Pair: TypeAlias = Sequence[int]
Gradients: TypeAlias = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]

_KEPT: list[torch.library.Library] = []
"""Torch puts its own kernels back when a library is garbage."""


def replace_kernels() -> None:
    """To be called once."""
    torch.backends.mkldnn.set_flags(False)
    torch.backends.nnpack.set_flags(False)
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # Torch reports the first kernel that is replaced.
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for kernels, serves in ((PRODUCTS, _is_float32), (FUNCTIONS, _is_real), (ROOTS, _is_root)):
            for name, kernel in kernels.items():
                original = torch.library.get_kernel(f"aten::{name}", "CPU")
                library.impl(name, _choice(kernel, serves, original), "CPU", with_keyset=True)
    _KEPT.append(library)


def _choice(kernel: Kernel, serves: Callable[..., bool], original: Any) -> Kernel:
    def chosen(keys: Any, *tensors: Any, **named: Any) -> Any:
        if serves(*tensors):
            return kernel(*tensors, **named)
        return original.call_boxed(keys, *tensors, **named)

    return chosen


def _is_float32(first: torch.Tensor, *_: Any) -> bool:
    return first.dtype is torch.float32


def _is_real(x: torch.Tensor) -> bool:
    """NumPy has no bfloat16, and MKL computes no roots of that or of complex numbers."""
    return not (x.is_complex() or x.dtype is torch.bfloat16)


def _is_root(x: torch.Tensor, exponent: Any) -> bool:
    """Torch takes a power of 0.5 for a square root."""
    return bool(exponent == 0.5) and _is_real(x)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(..., n, k) by (..., k, m)."""
    batch = a.shape[:-2] if a.dim() >= b.dim() else b.shape[:-2]
    out = a.new_empty((*batch, a.shape[-2], b.shape[-1]))
    np.matmul(a.detach().numpy(), b.detach().numpy(), out=out.numpy())
    return out


def _addmm(
    added: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    """beta * added + alpha * (a b)"""
    product = _product(a, b)
    if alpha != 1:
        product.mul_(alpha)
    return product.add_(added, alpha=beta) if beta else product


def _conv2d(  # noqa: PLR0917 - Torch's operator
    images: torch.Tensor,
    weight: torch.Tensor,
    size: Pair,
    bias: torch.Tensor | None,
    stride: Pair,
    padding: Pair,
) -> torch.Tensor:
    """From (n, c, h, w) to (n, o, h', w')."""
    patches = torch.ops.aten.im2col(images, size, [1, 1], padding, stride)
    height, width = (
        (images.shape[2 + axis] + 2 * padding[axis] - size[axis]) // stride[axis] + 1
        for axis in (0, 1)
    )
    out = _product(weight.reshape(len(weight), -1), patches)
    if bias is not None:
        out.add_(bias[:, None])
    return out.view(len(images), len(weight), height, width)


def _conv2d_backward(  # noqa: PLR0917 - Torch's operator
    d_out: torch.Tensor,
    images: torch.Tensor,
    weight: torch.Tensor,
    size: Pair,
    stride: Pair,
    padding: Pair,
    wanted: Sequence[bool],
) -> Gradients:
    """Derivatives by images, weight and bias; None for those that are not `wanted`."""
    d_images = d_weight = d_bias = None
    by_row = d_out.reshape(*d_out.shape[:2], -1)
    if wanted[0]:
        d_patches = _product(weight.reshape(len(weight), -1).t(), by_row)
        d_images = torch.ops.aten.col2im(d_patches, images.shape[2:], size, [1, 1], padding, stride)
    if wanted[1]:
        patches = torch.ops.aten.im2col(images, size, [1, 1], padding, stride)
        d_weight = _product(by_row, patches.transpose(1, 2)).sum(0).view(weight.shape)
    if wanted[2]:
        d_bias = by_row.sum((0, 2))
    return d_images, d_weight, d_bias


def _function(of_numpy: Any) -> Kernel:
    def kernel(x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype())
        result = torch.empty_like(x)
        with np.errstate(all="ignore"):
            of_numpy(x.detach().numpy(), out=result.numpy())
        return result if out is None else out.resize_(x.shape).copy_(result)

    return kernel


def _in_place(kernel: Kernel) -> Kernel:
    return lambda x: x.copy_(kernel(x))


PRODUCTS: dict[str, Kernel] = {  # for float32
    "mm": _product,
    "bmm": _product,
    "addmm": _addmm,
    "_slow_conv2d_forward": _conv2d,
    "_slow_conv2d_backward.output_mask": _conv2d_backward,
}
_FUNCTIONS = {"sqrt": np.sqrt, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan}
FUNCTIONS: dict[str, Kernel] = {}
for _name, _of_numpy in _FUNCTIONS.items():
    FUNCTIONS[_name] = FUNCTIONS[f"{_name}.out"] = _function(_of_numpy)
    FUNCTIONS[f"{_name}_"] = _in_place(FUNCTIONS[_name])
ROOTS: dict[str, Kernel] = {
    "pow.Tensor_Scalar": lambda x, _, **out: FUNCTIONS["sqrt"](x, **out),
    "pow.Tensor_Scalar_out": lambda x, _, **out: FUNCTIONS["sqrt"](x, **out),
    "pow_.Scalar": lambda x, _: FUNCTIONS["sqrt_"](x),
}
