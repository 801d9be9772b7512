"""Activation functions under transformers' names, operation for operation, so that results are equal to the bit.

GELU and its tanh approximation: Hendrycks and Gimpel 2016, arXiv:1606.08415; `gelu_new` is the form that GPT-2
was trained with. `FAST` computes the same functions with other rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]

_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)


def may_write_into_results(x: Tensor) -> bool:
    """Whether nobody needs what an operation gave but the next one: no gradient, and no dtype that autocast chooses."""
    return not torch.is_grad_enabled() and (x.is_meta or not torch.is_autocast_enabled(x.device.type))


def gelu_new(x: Tensor) -> Tensor:
    if may_write_into_results(x):
        return _gelu_new_in_place(x)
    return 0.5 * x * (1.0 + torch.tanh(_SQRT_2_OVER_PI * (x + 0.044715 * torch.pow(x, 3.0))))


def _gelu_new_in_place(x: Tensor) -> Tensor:
    """The same operations with two tensors of memory instead of eight."""
    inner = torch.pow(x, 3.0).mul_(0.044715).add_(x).mul_(_SQRT_2_OVER_PI)
    return (0.5 * x).mul_(inner.tanh_().add_(1.0))


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def gelu_python_tanh(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.tanh(_SQRT_2_OVER_PI * (x + 0.044715 * torch.pow(x, 3.0))))


def gelu_python(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def gelu_fast(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def gelu_accurate(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(_SQRT_2_OVER_PI * (x + 0.044715 * torch.pow(x, 3))))


def gelu_10(x: Tensor) -> Tensor:
    return torch.clip(F.gelu(x), -10, 10)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def relu2(x: Tensor) -> Tensor:
    return torch.square(F.relu(x))


def linear(x: Tensor) -> Tensor:
    return x


def laplace(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf((x - 0.707107).div(0.282095 * math.sqrt(2.0))))


def sqrtsoftplus(x: Tensor) -> Tensor:
    return F.softplus(x).sqrt()


EXACT: dict[str, Activation] = {
    "gelu_new": gelu_new, "gelu": F.gelu, "gelu_fast": gelu_fast, "gelu_pytorch_tanh": gelu_tanh,
    "gelu_python": gelu_python, "gelu_python_tanh": gelu_python_tanh, "gelu_accurate": gelu_accurate,
    "gelu_10": gelu_10, "quick_gelu": quick_gelu, "relu": F.relu, "relu2": relu2, "relu6": F.relu6,
    "silu": F.silu, "swish": F.silu, "mish": F.mish, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "linear": linear, "leaky_relu": F.leaky_relu, "hardswish": F.hardswish, "laplace": laplace,
    "sqrtsoftplus": sqrtsoftplus,
}  # fmt: skip
"""Every activation function without parameters that transformers' GPT-2 accepts."""


def quickest_gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU, by (1 + tanh u) / 2 = sigmoid(2 u) if that is quicker than torch's kernel."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return gelu_tanh(x)
    twice = 2.0 * _SQRT_2_OVER_PI
    slope = torch.addcmul(x.new_full((), twice), x, x, value=0.044715 * twice)
    if may_write_into_results(x):
        return slope.mul_(x).sigmoid_().mul_(x)
    return torch.sigmoid(slope * x) * x


FAST: dict[str, Activation] = {
    **EXACT,
    **dict.fromkeys(
        ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "gelu_pytorch_tanh"), quickest_gelu_tanh
    ),
    "gelu_python": F.gelu,
}
"""The same functions by fewer or quicker kernels, if there are any."""


def settle() -> None:
    """Call the functions that torch leaves to MKL once, on one number and so in one thread.

    MKL prepares such a function at its first call. If two threads make that call together, as they do on a large
    tensor, one of them may get half of the digits: seen in 3 of 400 fresh processes on a busy machine, as a first
    forward pass that differs from all later ones by 1e-4. After a call in one thread it was not seen.
    """
    for dtype in (torch.float32, torch.float64):
        one = torch.zeros(1, dtype=dtype, device="cpu")
        torch.tanh(one)
        torch.erf(one)


settle()
