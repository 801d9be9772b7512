"""Products of values and stored matrices: as transformers takes them, or with both factors rounded.

Modules hand over what they store, so that a rounded copy can be kept beside it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [..., I], weight [I, O], bias [O] -> [..., O], by one `addmm`, as transformers' Conv1D does."""
    return torch.addmm(bias, x.reshape(-1, weight.size(0)), weight).view(*x.shape[:-1], -1)


class Products:
    """Products in the dtype of the model."""

    def affine(self, x: Tensor, stored: Tensor, bias: Tensor) -> Tensor:
        """x [..., I], stored [I, O] or [H, K, O] with I = H K, bias [O] -> [..., O]."""
        return affine(x, _matrix(stored), bias)

    def linear(self, x: Tensor, stored: Tensor, *, transposed: bool = False) -> Tensor:
        """x [..., I], stored [O, I], or [I, O] if it is transposed -> [..., O]."""
        return F.linear(x, stored.t() if transposed else stored)

    def forget(self) -> None:
        """Drop what is kept of the matrices."""


class RoundedProducts(Products):
    """Products whose factors and results are rounded to another dtype; biases are added, and values go on, in theirs.

    A rounded copy of each matrix is kept, and made anew when the matrix was written to. Where gradients have to reach
    the matrix it is rounded on the way instead, as under `torch.autocast`.

    Args:
        dtype: What factors are rounded to.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._copies: Any = WeakIdKeyDictionary()  # parameter -> (its state, its copy)

    def __reduce__(self) -> tuple[Any, ...]:  # a copy of a model, or a pickled one, makes its own
        return type(self), (self.dtype,)

    def affine(self, x: Tensor, stored: Tensor, bias: Tensor) -> Tensor:
        rows = x.flatten(0, -2).to(self.dtype)
        product = torch.mm(rows, _matrix(self._rounded(stored))).to(x.dtype)
        return product.add_(bias).view(*x.shape[:-1], -1)

    def linear(self, x: Tensor, stored: Tensor, *, transposed: bool = False) -> Tensor:
        return super().linear(x.to(self.dtype), self._rounded(stored), transposed=transposed).to(x.dtype)

    def forget(self) -> None:
        self._copies.clear()

    def _rounded(self, stored: Tensor) -> Tensor:
        if not self._can_keep(stored):
            return stored.to(self.dtype)
        state = (stored.data_ptr(), stored._version)
        kept = self._copies.get(stored)
        if kept is None or kept[0] != state:
            kept = self._copies[stored] = (state, stored.detach().to(self.dtype))
        return kept[1]

    def _can_keep(self, stored: Tensor) -> bool:
        is_traced = torch.compiler.is_compiling() or not isinstance(
            stored, nn.Parameter
        )  # torch.func puts others there
        is_differentiated = torch.is_grad_enabled() and stored.requires_grad
        return not (is_traced or is_differentiated or stored.is_inference() or stored.dtype == self.dtype)


def _matrix(stored: Tensor) -> Tensor:
    return stored if stored.dim() == 2 else stored.flatten(0, -2)


def products_of(numerics: str) -> Products:
    """The products of a model with these numerics."""
    return RoundedProducts(torch.bfloat16) if numerics == "bfloat16" else Products()
