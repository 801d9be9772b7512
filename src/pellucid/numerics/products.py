"""How the same mathematics is run: the caller's choices of attention and numerics, and products of stored matrices.

Products are taken as transformers takes them, by the quickest way, or of rounded factors. Modules hand over what they
store, so that a packed or rounded copy can be kept beside it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.check import require_one_of
from pellucid.errors import ConfigError
from pellucid.numerics.quickest import PACKED, by_onednn, library_for, packed, packed_bytes

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
"""The dtypes that a model may have, by name."""

ATTENTION = ("auto", "eager")
NUMERICS = ("exact", "fast", "packed", "bfloat16")


@dataclass(frozen=True)
class Execution:
    """How a model is run.

    Raises:
        ConfigError: If it is another choice.
    """

    attention: str = "auto"  # "auto" fuses every layer that nobody looks inside; "eager" makes every layer explicit
    # "exact" performs the reference implementation's operations; "fast" may fuse them; "packed" is fast and may keep a
    # second copy of each matrix, in the order in which oneDNN reads it; "bfloat16" is fast and
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


def recordable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if `torch.inference_mode` was on when it was made: a backward pass could not keep it."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return tensor
    return tensor.clone() if tensor.is_inference() else tensor


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [..., I], weight [I, O], bias [O] -> [..., O], by one `addmm`, as transformers' Conv1D does."""
    if x.dim() == 2:
        return torch.addmm(bias, x, weight)
    return torch.addmm(bias, x.reshape(-1, x.size(-1)), weight).view(*x.shape[:-1], -1)


Rows = Callable[[Tensor], Tensor]
"""What a module stores, as the matrix [O, I] whose rows make the outputs; a view."""


def as_it_is(stored: Tensor) -> Tensor:
    """Itself: it is stored as [O, I]."""
    return stored


@dataclass(frozen=True)
class Copy:
    """A copy and what it was made from: while that is held, no other matrix can take its place in memory."""

    source: Tensor
    version: int
    made: Tensor

    def is_of(self, matrix: Tensor) -> bool:
        """Whether the copy holds the numbers that are in this matrix now."""
        return (
            self.source.data_ptr() == matrix.data_ptr()
            and self.version == matrix._version
            and self.source.stride() == matrix.stride()
        )


class Copies:
    """One copy of each matrix."""

    def __init__(self) -> None:
        # By the id of a parameter, with what takes the entry out when it goes: torch.utils.weak takes microseconds.
        self._of: dict[int, tuple[weakref.ref[Tensor], Copy]] = {}

    def of(self, stored: Tensor, matrix: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """The copy that `make` makes of a stored parameter, seen as the view `matrix` of it."""
        held = self._of.get(id(stored))
        if held is not None and held[1].is_of(matrix):
            return held[1].made
        with torch.inference_mode(False), torch.no_grad():  # a backward pass may read it later
            source = matrix.detach()
            kept = Copy(source, source._version, make(source))
        key, here = id(stored), weakref.ref(self)  # held by the callback, they would outlive their model
        gone = weakref.ref(stored, lambda _: (copies := here()) and copies._of.pop(key, None))
        self._of[key] = gone, kept
        return kept.made

    def all(self) -> list[Copy]:
        """Those that are there."""
        return [kept for _, kept in list(self._of.values())]  # parameters may go meanwhile

    def forget(self) -> None:
        """Drop them."""
        self._of.clear()


def can_keep(stored: Tensor) -> bool:
    """Whether torch counts writes into it, and it is no stand-in of the compiler's or of torch.func's."""
    return not torch.compiler.is_compiling() and isinstance(stored, nn.Parameter) and not stored.is_inference()


class Products:
    """Products in the dtype of the model."""

    def affine(self, x: Tensor, stored: Tensor, bias: Tensor) -> Tensor:
        """x [..., I], stored [I, O] or [H, K, O] with I = H K, bias [O] -> [..., O]."""
        return affine(x, _matrix(stored), bias)

    def linear(self, x: Tensor, stored: Tensor, bias: Tensor | None = None, *, rows: Rows = as_it_is) -> Tensor:
        """x [..., I], stored with [O, I] as its rows, bias [O] or none -> [..., O], as torch's Linear does."""
        return F.linear(x, rows(stored), bias)

    def forget(self) -> None:
        """Drop what is kept of the matrices."""

    def kept(self) -> list[Copy]:
        """What is kept of the matrices, for whoever goes on reading it after it was dropped here."""
        return []

    def bytes_needed(self, matrices: Iterable[Tensor]) -> int:
        """What is kept of these matrices, at most."""
        return 0


class QuickProducts(Products):
    """The same products, where the result may be rounded otherwise, by whichever library is quicker at them here."""

    def affine(self, x: Tensor, stored: Tensor, bias: Tensor) -> Tensor:
        matrix = _matrix(stored)
        read = self._read_by_onednn(x, stored, matrix, bias, turned=True) if _onednn_can(x, matrix) else None
        return affine(x, matrix, bias) if read is None else _by_onednn(x, matrix.t(), bias, read)

    def linear(self, x: Tensor, stored: Tensor, bias: Tensor | None = None, *, rows: Rows = as_it_is) -> Tensor:
        weight = rows(stored)
        read = self._read_by_onednn(x, stored, weight, bias) if _onednn_can(x, weight) else None
        return F.linear(x, weight, bias) if read is None else _by_onednn(x, weight, bias, read)

    def _read_by_onednn(
        self, x: Tensor, stored: Tensor, matrix: Tensor, bias: Tensor | None, *, turned: bool = False
    ) -> Tensor | None:
        """What oneDNN, which can take the product, is to read as the weight; None if torch takes it in less time.

        The matrix is a view of what is stored: the weight [O, I] or, turned, [I, O].
        """
        if library_for(x, matrix, bias, turned=turned) != "onednn":
            return None
        return matrix.t() if turned else matrix


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, read: Tensor) -> Tensor:
    """x [..., I], weight [O, I], bias [O] or none -> [..., O]; without gradients by a shorter call.

    `read` is the weight or its packed copy.
    """
    return cast(Tensor, _ByOneDNN.apply(x, weight, bias, read)) if torch.is_grad_enabled() else by_onednn(x, read, bias)


class _ByOneDNN(torch.autograd.Function):
    """x [..., I], weight [O, I], bias [O] or none -> [..., O], with its derivatives, which torch does not know."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, read: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return by_onednn(x, read, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        each = grad.flatten(0, -2)
        return (
            grad @ weight if for_x else None,
            each.t() @ x.flatten(0, -2) if for_weight else None,
            each.sum(0) if for_bias else None,
            None,
        )


class KeepingProducts(QuickProducts):
    """Products that keep a copy of each matrix in another form, made again when the matrix was written to."""

    def __init__(self) -> None:
        self._copies = Copies()

    def __reduce__(self) -> tuple[Any, ...]:  # a copy of a model, or a pickled one, makes its own
        return type(self), ()

    def forget(self) -> None:
        self._copies.forget()

    def kept(self) -> list[Copy]:
        return self._copies.all()


class PackedProducts(KeepingProducts):
    """Quick products, for which oneDNN reads a copy in an order of its own wherever that is clearly quicker.

    Gradients are those of the matrix itself, which the copy equals.
    """

    def bytes_needed(self, matrices: Iterable[Tensor]) -> int:
        return sum(packed_bytes(_matrix(m)) for m in matrices if m.dtype == torch.float32 and m.device.type == "cpu")

    def _read_by_onednn(
        self, x: Tensor, stored: Tensor, matrix: Tensor, bias: Tensor | None, *, turned: bool = False
    ) -> Tensor | None:
        way = library_for(x, matrix, bias, turned=turned, may_pack=can_keep(stored))
        if way == "torch":
            return None
        weight = matrix.t() if turned else matrix
        return self._copies.of(stored, weight, packed) if way == PACKED else weight


class RoundedProducts(KeepingProducts):
    """Products whose factors and results are rounded to another dtype; biases are added, and values go on, in theirs.

    If gradients have to reach the matrix it is rounded on the way instead of kept, as under `torch.autocast`. A
    processor for which torch has no such products (they would take fifty times as long) multiplies the rounded factors
    in float32, which holds them exactly.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._on_cpu = torch.float32 if dtype == torch.bfloat16 and not cpu_multiplies_bfloat16() else dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.dtype,)

    def affine(self, x: Tensor, stored: Tensor, bias: Tensor) -> Tensor:
        return self.linear(x, stored, bias, rows=lambda rounded: _matrix(rounded).t())

    def linear(self, x: Tensor, stored: Tensor, bias: Tensor | None = None, *, rows: Rows = as_it_is) -> Tensor:
        product = super().linear(self._factor(x), self._rounded(stored), rows=rows).to(self.dtype).to(x.dtype)
        return product if bias is None else product.add_(bias)

    def bytes_needed(self, matrices: Iterable[Tensor]) -> int:
        return sum(m.numel() * self._multiplied_in(m).itemsize for m in matrices if m.dtype != self.dtype)

    def _multiplied_in(self, like: Tensor) -> torch.dtype:
        return self._on_cpu if like.device.type == "cpu" else self.dtype

    def _factor(self, values: Tensor) -> Tensor:
        """Rounded, in the dtype that products are taken in."""
        return values.to(self.dtype).to(self._multiplied_in(values))

    def _rounded(self, stored: Tensor) -> Tensor:
        is_differentiated = torch.is_grad_enabled() and stored.requires_grad
        if is_differentiated or stored.dtype == self.dtype or not can_keep(stored):
            return self._factor(stored)
        return self._copies.of(stored, stored, self._factor)


def _matrix(stored: Tensor) -> Tensor:
    return stored if stored.dim() == 2 else stored.flatten(0, -2)


def products_of(execution: Execution) -> Products:
    """The products of a model that is run so."""
    if execution.rounds_to is not None:
        return RoundedProducts(execution.rounds_to)
    if execution.numerics == "packed":
        return PackedProducts()
    return QuickProducts() if execution.is_fast else Products()


def cpu_multiplies_bfloat16() -> bool:
    """Whether torch has matrix products in bfloat16 for this processor that are meant to be used."""
    return _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def _onednn_can(x: Tensor, matrix: Tensor) -> bool:
    """Whether oneDNN can take a product, which torch cannot transform; the matrix may lie either way round."""
    # every product asks: `is_cpu` takes a tenth of the time of `device.type`, and what takes longest comes last
    return (
        x.is_cpu
        and matrix.is_cpu
        and x.dtype == matrix.dtype == torch.float32
        and _HAS_ONEDNN
        and not (is_transformed() or torch.is_autocast_enabled("cpu"))
        and (matrix.is_contiguous() or matrix.t().is_contiguous())
    )
