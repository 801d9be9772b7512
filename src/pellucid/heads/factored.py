"""`FactoredMatrix`: a matrix of low rank as a product of two narrow ones, made whole only if asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, cast, overload

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import ShapeError, shown


@dataclass(frozen=True, eq=False, repr=False)
class FactoredMatrix:
    """The matrix left @ right, of which only the factors are kept.

    `matrix @ x` and `x @ matrix` give a vector if x is one, and a `FactoredMatrix` if x is a matrix or a
    `FactoredMatrix`, because the product of a tall and a wide one (such as the embedding, W_OV and the unembedding)
    may be far larger than its factors; `.dense()` of it is the product. Leading axes broadcast. What is not factored is
    taken without its gradients, in the dtype of the factors.

    Attributes:
        left: [..., I, R].
        right: [..., R, O].

    Raises:
        ShapeError: If the factors do not fit together, or are no matrices of floating-point numbers.

    Example:
        >>> import pellucid as pl
        >>> ov = pl.heads.ov(pl.load(), 2, 1)
        >>> ov.shape, ov.rank, ov.svd()[1].shape
        (torch.Size([256, 256]), 64, torch.Size([64]))
    """

    left: Tensor
    right: Tensor

    __array_ufunc__ = None
    """So that an array on the left leaves the product to `__rmatmul__`."""

    def __post_init__(self) -> None:
        left, right = self.left, self.right
        if _is_matrix(left) and _is_matrix(right) and left.size(-1) == right.size(-2):
            leading = zip(left.shape[-3::-1], right.shape[-3::-1], strict=False)
            if all(m == n or 1 in (m, n) for m, n in leading):
                return
        given = [list(one.shape) if _is_matrix(one) else shown(one) for one in (left, right)]
        raise ShapeError(
            f"FactoredMatrix: left {given[0]} and right {given[1]}, expected [..., I, R] and [..., R, O] of "
            "floating-point numbers, whose leading axes broadcast.",
            code="factors-misfit",
            remedy="Give factors that can be multiplied: FactoredMatrix(left, right) stands for left @ right.",
        )

    @property
    def shape(self) -> torch.Size:
        """The shape of the product."""
        batch = torch.broadcast_shapes(self.left.shape[:-2], self.right.shape[:-2])
        return torch.Size((*batch, self.left.size(-2), self.right.size(-1)))

    @property
    def rank(self) -> int:
        """R, which the rank of the product does not exceed."""
        return self.left.size(-1)

    @property
    def mT(self) -> Self:  # noqa: N802 (as tensors have it)
        """The transpose of the last two axes."""
        return type(self)(self.right.mT, self.left.mT)

    T = mT

    def dense(self) -> Tensor:
        """The product itself, [..., I, O]."""
        return self.left @ self.right

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Singular vectors and values: U [..., I, R], S [..., R] in descending order, Vh [..., R, O].

        U diag(S) Vh is the product. Only an R by R matrix is decomposed, after both factors were made orthogonal. A
        factor that is wider than it is long leaves as many singular values as its shorter side.
        """
        left, inner = torch.linalg.qr(self.left)
        right, outer = torch.linalg.qr(self.right.mT)
        u, s, vh = torch.linalg.svd(inner @ outer.mT, full_matrices=False)
        return left @ u, s, vh @ right.mT

    def eigenvalues(self) -> Tensor:
        """The eigenvalues that need not be zero, complex, [..., R], the largest first.

        The eigenvalues of left @ right are those of right @ left, an R by R matrix, and zeros.

        Raises:
            ShapeError: If the product is not square.
        """
        if self.shape[-1] != self.shape[-2]:
            raise ShapeError(
                f"FactoredMatrix.eigenvalues: {list(self.shape)} is not square.",
                code="not-square",
                remedy="Take the singular values instead: .svd()[1].",
            )
        found = torch.linalg.eigvals(self.right @ self.left)
        order = found.abs().argsort(-1, descending=True)
        return found.gather(-1, order)[..., : self.left.size(-2)]

    def norm(self) -> Tensor:
        """The Frobenius norm, [...]."""
        return torch.linalg.matrix_norm(triangle(self.left) @ triangle(self.right.mT).mT)

    @overload
    def __matmul__(self, other: FactoredMatrix) -> Self: ...
    @overload
    def __matmul__(self, other: Any) -> Any: ...
    def __matmul__(self, other: Any) -> Any:
        """The product with a vector [O], which is a vector [..., I], or with a matrix [..., O, N]."""
        if isinstance(other, FactoredMatrix):
            self._require(other.left, -2, self.shape[-1], "on its right")
            inner = self.right @ other.left
            if self.rank < other.rank:
                return type(self)(self.left, inner @ other.right)
            return type(self)(self.left @ inner, other.right)
        given = self._operand(other, -2, self.shape[-1], "on its right")
        if given.dim() == 1:
            return (self.left @ (self.right @ given[:, None]))[..., 0]  # a column: leading axes are no rows
        return type(self)(self.left, self.right @ given)

    def __rmatmul__(self, other: Any) -> Any:
        """The product of a vector [I] with this, which is a vector [..., O], or of a matrix [..., N, I]."""
        given = self._operand(other, -1, self.shape[-2], "on its left")
        if given.dim() == 1:
            return ((given @ self.left)[..., None, :] @ self.right)[..., 0, :]
        return type(self)(given @ self.left, self.right)

    def _operand(self, other: Any, axis: int, size: int, where: str) -> Tensor:
        """A vector or a matrix that fits."""
        if not isinstance(other, (Tensor, np.ndarray)):
            raise self._misfit(shown(other), size, where)
        given = self._taken(torch.as_tensor(other, device=getattr(other, "device", "cpu")))
        self._require(given, axis, size, where)
        return given

    def _taken(self, given: Tensor) -> Tensor:
        """A factor that was given, in the dtype and on the device of the others."""
        return given.detach().to(self.left)

    def _require(self, given: Tensor, axis: int, size: int, where: str) -> None:
        if not given.dim() or given.size(max(axis, -given.dim())) != size:
            raise self._misfit(list(given.shape), size, where)

    def _misfit(self, given: Any, size: int, where: str) -> ShapeError:
        return ShapeError(
            f"FactoredMatrix {list(self.shape)} @: {given} {where}, expected a vector or a matrix of {size} numbers "
            "along the axis that is summed over.",
            code="factors-misfit",
            remedy=f"Give a tensor whose shape fits: [{size}], "
            + (f"[{size}, N]." if where.endswith("right") else f"[N, {size}]."),
        )

    def __repr__(self) -> str:
        return f"FactoredMatrix {list(self.shape)} of rank {self.rank}, {self.left.dtype}"


def _is_matrix(given: object) -> bool:
    return isinstance(given, Tensor) and given.dim() > 1 and given.is_floating_point()


def triangle(matrix: Tensor) -> Tensor:
    """The triangular factor of [..., I, R], which is as long in every direction: |matrix x| = |triangle x|."""
    return cast(Tensor, torch.linalg.qr(matrix, mode="r")[1])
