"""HookedTransformer's `FactoredMatrix`, by pellucid's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pellucid.errors import InputError, ShapeError, shown
from pellucid.heads import factored


class FactoredMatrix(factored.FactoredMatrix):
    """The matrix A @ B, of which only the factors are kept, under HookedTransformer's names.

    Args:
        A: [..., I, R].
        B: [..., R, O]; leading axes broadcast.

    Example:
        >>> from pellucid.compat.hooked import HookedTransformer
        >>> model = HookedTransformer.from_pretrained_no_processing("bundled")
        >>> model.OV.shape, model.OV[2, 1].S.shape
        (torch.Size([4, 4, 256, 256]), torch.Size([64]))
    """

    def __init__(self, A: Tensor, B: Tensor) -> None:
        batch = factored.FactoredMatrix(A, B).shape[:-2]
        super().__init__(A.expand(*batch, *A.shape[-2:]), B.expand(*batch, *B.shape[-2:]))

    @property
    def A(self) -> Tensor:
        """The left factor."""
        return self.left

    @property
    def B(self) -> Tensor:
        """The right factor."""
        return self.right

    @property
    def AB(self) -> Tensor:
        """The product, [..., I, O]."""
        return self.dense()

    @property
    def BA(self) -> Tensor:
        """The product the other way round, [..., R, R]."""
        return self.right @ self.left

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Both factors."""
        return self.left, self.right

    @property
    def ldim(self) -> int:
        """I."""
        return self.left.size(-2)

    @property
    def mdim(self) -> int:
        """R."""
        return self.left.size(-1)

    @property
    def rdim(self) -> int:
        """O."""
        return self.right.size(-1)

    @property
    def ndim(self) -> int:
        """How many axes the product has."""
        return len(self.shape)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U [..., I, R], S [..., R] and, as in HookedTransformer, V [..., O, R], not its transpose."""
        u, s, vh = super().svd()
        return u, s, vh.mT

    @property
    def U(self) -> Tensor:
        """The left singular vectors, [..., I, R]."""
        return self.svd()[0]

    @property
    def S(self) -> Tensor:
        """The singular values in descending order, [..., R]."""
        return self.svd()[1]

    @property
    def Vh(self) -> Tensor:
        """The right singular vectors, [..., O, R]."""
        return self.svd()[2]

    @property
    def eigenvalues(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The eigenvalues that need not be zero, complex, [..., R], the largest first."""
        return super().eigenvalues()

    def make_even(self) -> FactoredMatrix:
        """The same product with the singular values shared by both factors."""
        u, s, v = self.svd()
        root = s.sqrt()
        return FactoredMatrix(u * root[..., None, :], root[..., None] * v.mT)

    def collapse_l(self) -> Tensor:
        """S V^T, [..., R, O]: the product without a rotation on its left."""
        _, s, v = self.svd()
        return s[..., None] * v.mT

    def collapse_r(self) -> Tensor:
        """U S, [..., I, R]: the product without a rotation on its right."""
        u, s, _ = self.svd()
        return u * s[..., None, :]

    def unsqueeze(self, k: int) -> FactoredMatrix:
        """A further leading axis of length one."""
        return FactoredMatrix(self.left.unsqueeze(k), self.right.unsqueeze(k))

    def get_corner(self, k: int = 3) -> Tensor:
        """The first entries of every axis."""
        corner = self.left[..., :k, :] @ self.right[..., :k]
        return corner[tuple(slice(k) for _ in range(corner.dim()))]

    def __getitem__(self, idx: Any) -> FactoredMatrix:
        """Part of the leading axes, and of rows and columns, which stay axes when one is chosen."""
        index = idx if isinstance(idx, tuple) else (idx,)
        leading = self.ndim - 2
        own, inner = index[:leading], index[leading:]
        if len(inner) > 2:
            raise InputError(
                f"FactoredMatrix{list(self.shape)}: index {shown(idx)} has more entries than there are axes.",
                code="factors-index",
                remedy=f"Give at most {self.ndim} entries.",
            )
        kept = tuple(slice(i, i + 1 or None) if isinstance(i, int) else i for i in inner)
        rows, columns = (*kept, slice(None), slice(None))[:2]
        left, right = self.left[own], self.right[own]
        return FactoredMatrix(left[..., rows, :], right[..., columns])

    def _taken(self, given: Tensor) -> Tensor:
        return given  # as it is, with its gradient

    def __mul__(self, scalar: float | Tensor) -> FactoredMatrix:
        if isinstance(scalar, Tensor) and scalar.numel() != 1:
            raise ShapeError(
                f"FactoredMatrix: a tensor {list(scalar.shape)} after *, expected one number.",
                code="factors-misfit",
                remedy="Use @ for the product of matrices.",
            )
        return FactoredMatrix(self.left * scalar, self.right)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"FactoredMatrix: Shape({self.shape}), Hidden Dim({self.mdim})"


def composition_scores(left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True) -> Tensor:
    """|left right| / (|left| |right|) by Frobenius norms (Elhage et al. 2021).

    Args:
        left: [..., I, M].
        right: [..., M, O].
        broadcast_dims: Whether every pair of leading indices is meant, [*left's, *right's]; else they broadcast.
    """
    if broadcast_dims:
        for _ in range(right.ndim - 2):
            left = left.unsqueeze(left.ndim - 2)
        for _ in range(left.ndim - right.ndim):
            right = right.unsqueeze(0)
    norms = left.norm() * right.norm()
    # |A (B C) D| from triangles of A and of D, which leave lengths as they are
    outer, inner = factored.triangle(left.left), factored.triangle(right.right.mT).mT
    return torch.linalg.matrix_norm(outer @ (left.right @ right.left) @ inner) / norms
