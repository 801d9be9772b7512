"""How the same mathematics is run: the caller's choices of attention and numerics, and products of stored matrices.

Products are taken as transformers takes them, by the quickest way, or of rounded factors. Modules hand over what they
store, so that a rounded copy can be kept beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from pellucid.check import require_one_of
from pellucid.errors import ConfigError
from pellucid.numerics.quickest import by_onednn, library_for

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
"""The dtypes that a model may have, by name."""

ATTENTION = ("auto", "eager")
NUMERICS = ("exact", "fast", "bfloat16")


@dataclass(frozen=True)
class Execution:
    """How a model is run.
    Raises:
        ConfigError: Another choice.
    """

    attention: str = "auto"  # "auto" fuses every layer that nobody looks inside; "eager" makes every layer explicit
    # "exact" performs the reference implementation's operations; "fast" may fuse them; "bfloat16" is fast and
    # multiplies by the weights in bfloat16
    numerics: str = "exact"

    def __post_init__(self) -> None:
        remedy = "Give one of these."
        require_one_of(
            "attention", self.attention, ATTENTION, error=ConfigError, code="unknown-attention", remedy=remedy
        )
        require_one_of("numerics", self.numerics, NUMERICS, error=ConfigError, code="unknown-numerics", remedy=remedy)

    @property
    def is_fast(self) -> bool:
        """Whether other operations than the reference implementation's may give the values."""
        return self.numerics != "exact"

    @property
    def rounds_to(self) -> torch.dtype | None:
        """What matrices are rounded to before values are multiplied by them; None if they are not."""
        return torch.bfloat16 if self.numerics == "bfloat16" else None


EXACT = Execution()
"""The default: fused attention, the reference's operations."""


def is_transformed() -> bool:
    """Whether torch.compile, torch.func or forward differentiation run what is called, and so must know it."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]  (there is no public way to ask)
    return (
        torch.compiler.is_compiling()
        or functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


@contextmanager
def ordinary_tensors() -> Generator[None]:
    """Tensors made inside are ordinary ones: a model opened under `torch.inference_mode` can be trained afterwards.

    They are made on the processor where no device is named, whatever `torch.set_default_device` says, so that their
    numbers can be looked at.
    """
    elsewhere = torch.get_default_device().type != "cpu"
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu") if elsewhere else nullcontext():
        yield


def is_batched(tensor: Tensor) -> bool:
    """Whether `torch.func.vmap` runs several samples as this tensor, at whatever depth of transforms."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    if torch.compiler.is_compiling():  # which does not know these functions
        return False
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [..., I], weight [I, O], bias [O] -> [..., O], by one `addmm`, as transformers' Conv1D does."""
    return torch.addmm(bias, x.reshape(-1, weight.size(0)), weight).view(*x.shape[:-1], -1)


Rows = Callable[[Tensor], Tensor]
"""What a module stores, as the matrix [O, I] whose rows make the outputs; a view."""


def as_it_is(stored: Tensor) -> Tensor:
    """Itself: it is stored as [O, I]."""
    return stored


class Products:
    """Products in the dtype of the model."""

    def affine(self, x: Tensor, stored: Tensor, bias: Tensor) -> Tensor:
        """x [..., I], stored [I, O] or [H, K, O] with I = H K, bias [O] -> [..., O]."""
        return affine(x, _matrix(stored), bias)

    def linear(self, x: Tensor, stored: Tensor, bias: Tensor | None = None, *, rows: Rows = as_it_is) -> Tensor:
        """x [..., I], stored with [O, I] as its rows, bias [O] or none -> [..., O], as torch's Linear does."""
        return self._by_rows(x, rows(stored), bias)

    def _by_rows(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., I], weight [O, I], bias [O] or none -> [..., O]."""
        return F.linear(x, weight, bias)

    def forget(self) -> None:
        """Drop what is kept of the matrices."""

    def kept(self) -> list[object]:
        """What is kept of the matrices, for whoever goes on reading it after it was dropped here."""
        return []

    def bytes_needed(self, matrices: Iterable[Tensor]) -> int:
        """What is kept of these matrices."""
        return 0


class QuickProducts(Products):
    """The same products, where the result may be rounded otherwise, by whichever library is quicker at them here."""

    def affine(self, x: Tensor, stored: Tensor, bias: Tensor) -> Tensor:
        matrix = _matrix(stored)
        return _by_onednn(x, matrix.t(), bias) if _onednn_is_quicker(x, matrix.t(), bias) else affine(x, matrix, bias)

    def _by_rows(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if _onednn_is_quicker(x, weight, bias):
            return _by_onednn(x, weight, bias)
        return super()._by_rows(x, weight, bias)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., I], weight [O, I], bias [O] or none -> [..., O]; without gradients by a shorter call."""
    return cast(Tensor, _ByOneDNN.apply(x, weight, bias)) if torch.is_grad_enabled() else by_onednn(x, weight, bias)


class _ByOneDNN(torch.autograd.Function):
    """x [..., I], weight [O, I], bias [O] or none -> [..., O], with its derivatives, which torch does not know."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        each = grad.flatten(0, -2)
        return (
            grad @ weight if for_x else None,
            each.t() @ x.flatten(0, -2) if for_weight else None,
            each.sum(0) if for_bias else None,
        )


class RoundedProducts(QuickProducts):
    """Products whose factors and results are rounded to another dtype; biases are added, and values go on, in theirs.

    A rounded copy of each matrix is kept, and made again when the matrix was written to. Where gradients have to reach
    the matrix it is rounded on the way instead, as under `torch.autocast`. A processor for which torch has no such
    products (they would take fifty times as long) multiplies the rounded factors in float32, which holds them exactly.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._on_cpu = torch.float32 if dtype == torch.bfloat16 and not cpu_multiplies_bfloat16() else dtype
        self._copies: Any = WeakIdKeyDictionary()  # parameter -> _Copy

    def __reduce__(self) -> tuple[Any, ...]:  # a copy of a model, or a pickled one, makes its own
        return type(self), (self.dtype,)

    def affine(self, x: Tensor, stored: Tensor, bias: Tensor) -> Tensor:
        product = self._by_rows(self._factor(x), _matrix(self._rounded(stored)).t(), None)
        return product.to(self.dtype).to(x.dtype).add_(bias)

    def linear(self, x: Tensor, stored: Tensor, bias: Tensor | None = None, *, rows: Rows = as_it_is) -> Tensor:
        product = super().linear(self._factor(x), self._rounded(stored), rows=rows).to(self.dtype).to(x.dtype)
        return product if bias is None else product.add_(bias)

    def forget(self) -> None:
        self._copies.clear()

    def kept(self) -> list[object]:
        return list(self._copies.values())

    def bytes_needed(self, matrices: Iterable[Tensor]) -> int:
        return sum(m.numel() * self._multiplied_in(m).itemsize for m in matrices if m.dtype != self.dtype)

    def _multiplied_in(self, like: Tensor) -> torch.dtype:
        return self._on_cpu if like.device.type == "cpu" else self.dtype

    def _factor(self, values: Tensor) -> Tensor:
        """Rounded, in the dtype that products are taken in."""
        return values.to(self.dtype).to(self._multiplied_in(values))

    def _rounded(self, stored: Tensor) -> Tensor:
        if not self._can_keep(stored):
            return self._factor(stored)
        kept = self._copies.get(stored)
        if kept is None or not kept.is_of(stored):
            with torch.inference_mode(False), torch.no_grad():  # a backward pass may read it later
                source = stored.detach()
                kept = self._copies[stored] = _Copy(source, source._version, self._factor(source))
        return kept.rounded

    def _can_keep(self, stored: Tensor) -> bool:
        is_traced = torch.compiler.is_compiling() or not isinstance(
            stored, nn.Parameter
        )  # torch.func puts others there
        is_differentiated = torch.is_grad_enabled() and stored.requires_grad
        return not (is_traced or is_differentiated or stored.is_inference() or stored.dtype == self.dtype)


@dataclass(frozen=True)
class _Copy:
    """A rounded matrix and what it was made from: while that is held, no other can take its place in memory."""

    source: Tensor
    version: int
    rounded: Tensor

    def is_of(self, stored: Tensor) -> bool:
        return self.source.data_ptr() == stored.data_ptr() and self.version == stored._version


def _matrix(stored: Tensor) -> Tensor:
    return stored if stored.dim() == 2 else stored.flatten(0, -2)


def products_of(execution: Execution) -> Products:
    """The products of a model that is run so."""
    if execution.rounds_to is not None:
        return RoundedProducts(execution.rounds_to)
    return QuickProducts() if execution.is_fast else Products()


def cpu_multiplies_bfloat16() -> bool:
    """Whether torch has matrix products in bfloat16 for this processor that are meant to be used."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _onednn_is_quicker(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN can take the product, which torch cannot transform, and gains by it."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not (is_transformed() or torch.is_autocast_enabled("cpu"))
        and torch.backends.mkldnn.is_available()
        and (weight.is_contiguous() or weight.t().is_contiguous())
        and library_for(x, weight, bias) == "onednn"
    )
