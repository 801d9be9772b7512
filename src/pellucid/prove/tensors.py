"""Tensors of another program: fingerprints that ignore order, what is compared, and those that hold no parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pellucid.errors import ShapeError
from pellucid.family.json_config import Config
from pellucid.names.calls import named_methods
from pellucid.numerics.rounding import same_bits
from pellucid.weights.layouts import buffers_among

ATOL, RTOL = 1e-4, 1e-3
"""What the share of close values means by close; everything else here is exact."""


@named_methods
@dataclass(frozen=True)
class TensorComparison:
    """How two tensors of one shape differ.

    Attributes:
        fraction: Share of values within atol=1e-4 and rtol=1e-3 of each other (`torch.isclose`).
        bit_equal: Whether every bit is the same (so that -0 differs from 0, and a NaN equals its own bits).
        max_abs: Largest absolute difference; nan if either holds a NaN that the other has not.
        max_rel: Largest difference relative to the second tensor's value.
        max_ulp: Largest number of representable values between two numbers, in the coarser dtype of the two.
        shape: Their shape.
        dtype: In which they were compared; of two dtypes, the coarser.
        relative: Norm of the difference (Frobenius), relative to the norm of the first tensor.
        relative_to_b: The same, relative to the norm of the second.
    """

    fraction: float
    bit_equal: bool
    max_abs: float
    max_rel: float
    max_ulp: int
    shape: tuple[int, ...]
    dtype: str
    relative: float = 0.0
    relative_to_b: float = 0.0

    def __repr__(self) -> str:
        return f"{self.fraction:.2%} of the values are correct."

    def __bool__(self) -> bool:
        return self.bit_equal

    def to_dict(self) -> dict[str, object]:
        """The attributes, for JSON."""
        return asdict(self)


def compare_tensors(a: Tensor, b: Tensor) -> TensorComparison:
    """Compare two tensors of one shape.

    Args:
        a: Any floating or integer tensor.
        b: The one to compare with; of another dtype, both are compared in the coarser one.

    Example:
        >>> import torch
        >>> from pellucid.prove.tensors import compare_tensors
        >>> one = torch.ones(4)
        >>> compare_tensors(one, torch.nextafter(one, 2 * one)).max_ulp
        1
        >>> compare_tensors(one, one)
        100.00% of the values are correct.
    """
    if a.shape != b.shape:
        raise ShapeError(
            f"compare: shapes {list(a.shape)} and {list(b.shape)}, expected equal ones.",
            code="compare-shapes",
            remedy="Compare tensors of one shape; a transposed weight is compared after .T.",
        )
    a, b = _on_common_ground(a.detach(), b.detach())
    shape = tuple(a.shape)
    if a.is_complex():  # two numbers each
        a, b = torch.view_as_real(a.resolve_conj()).contiguous(), torch.view_as_real(b.resolve_conj()).contiguous()
    flat = a.reshape(-1), b.reshape(-1)
    same = same_bits(a, b)
    chunks = [] if same else list(zip(*(side.split(_CHUNK) for side in flat), strict=True))
    parts = [_compare_parts(*pair) for pair in chunks] or [(a.numel(), 0.0, 0.0, 0)]
    close, gap, relative, ulp = (list(column) for column in zip(*parts, strict=True))
    by_a, by_b = (0.0, 0.0) if same else _relative(*flat)
    return TensorComparison(
        fraction=sum(close) / a.numel() if a.numel() else 1.0,
        bit_equal=same,
        max_abs=_largest(gap),
        max_rel=_largest(relative),
        max_ulp=max(ulp),
        shape=shape,
        dtype=str(a.dtype).removeprefix("torch."),
        relative=by_a,
        relative_to_b=by_b,
    )


def _relative(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The norm of the difference of two vectors, relative to the norm of each."""
    squares = [0.0, 0.0, 0.0]
    for part_a, part_b in zip(a.split(_CHUNK), b.split(_CHUNK), strict=True):
        wide = part_a.double(), part_b.double()
        for place, vector in enumerate((wide[0] - wide[1], *wide)):
            squares[place] += float(vector.square().sum())
    gap, *norms = map(math.sqrt, squares)
    by_a, by_b = (gap / norm if norm else math.inf if gap else 0.0 for norm in norms)
    return by_a, by_b


_CHUNK = 1 << 20  # what is computed on the way stays small beside the tensors


def _compare_parts(a: Tensor, b: Tensor) -> tuple[int, float, float, int]:
    """How many values are close, the largest absolute and relative difference, and the largest in ulps."""
    if same_bits(a, b):
        return a.numel(), 0.0, 0.0, 0
    wide_a, wide_b = a.double(), b.double()
    same = (wide_a == wide_b) | (wide_a.isnan() & wide_b.isnan())
    gap = (wide_a - wide_b).abs()
    if not a.is_floating_point():  # whole numbers beyond 2^53 may be one float64
        same, gap = a == b, gap.clamp(min=1.0)
    gap = gap.masked_fill(same, 0.0)
    relative = (gap / wide_b.abs()).masked_fill(same, 0.0)
    wide = a.element_size() == 1  # floats of eight bits have no arithmetic of their own
    close = (
        torch.isclose(*(wide_a, wide_b) if wide else (a, b), atol=ATOL, rtol=RTOL) if a.is_floating_point() else a == b
    )
    ulp = int((_ordered(a).double() - _ordered(b).double()).abs().max()) if a.is_floating_point() else 0
    return int(close.sum()), float(gap.max()), float(relative.max()), ulp


def _on_common_ground(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the first one's device and in the coarser of their dtypes."""
    b = b.to(a.device)
    if a.dtype == b.dtype:
        return a.contiguous(), b.contiguous()
    if a.is_floating_point() and b.is_floating_point():
        dtype = a.dtype if torch.finfo(a.dtype).eps >= torch.finfo(b.dtype).eps else b.dtype
    else:
        dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype).contiguous(), b.to(dtype).contiguous()


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _ordered(tensor: Tensor) -> Tensor:
    """Floats as integers in the same order, neighbours one apart; both zeros are 0 (Dawson 2012)."""
    bits = tensor.view(_INTEGERS[tensor.element_size()]).long()
    lowest = -(2 ** (8 * tensor.element_size() - 1))
    return torch.where(bits < 0, lowest - bits, bits)


def _largest(values: list[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values)


_IN_CACHE = 1 << 16
"""Values that are summed at a time, so that they stay in the cache, also squared: 0.6 of the time of 2^18."""

Fingerprint = tuple[int, int]


def fingerprint(tensor: Tensor) -> Fingerprint:
    """The order-free fingerprint of a tensor's bits."""
    flat = tensor.detach().reshape(-1)
    first = second = 0
    for chunk in flat.view(_INTEGERS[flat.element_size()]).split(_IN_CACHE):
        bits = chunk.long()  # of float64 the tensor's own memory, which is not written to
        first += int(bits.sum())
        second += int((bits * bits).sum())
    return _wrap(first), _wrap(second)


def total(fingerprints: Iterable[Fingerprint]) -> Fingerprint:
    """The fingerprint of several tensors together."""
    pairs = list(fingerprints)
    return _wrap(sum(first for first, _ in pairs)), _wrap(sum(second for _, second in pairs))


def _wrap(value: int) -> int:
    return value % (1 << 64)


def what_buffer(tensor: Tensor, known: bool) -> str:
    """What a tensor is that holds no parameter, in words; an empty string if it may be one."""
    if tensor.numel() <= 1 and (known or not tensor.is_floating_point()):
        return "a single value"
    square = tensor.dim() >= 2 and tensor.shape[-1] == tensor.shape[-2] and tensor.numel() == tensor.shape[-1] ** 2
    if square and _is_causal(tensor.reshape(tensor.shape[-2:])):
        return "a causal mask"
    if tensor.is_floating_point() or tensor.is_complex():
        return ""
    flat = tensor.reshape(-1)
    return "positions" if torch.equal(flat.long(), torch.arange(flat.numel())) else "whole numbers"


def known_buffers(tensors: Mapping[str, Tensor], config: Config) -> tuple[set[str], set[str]]:
    """What the layout of a state dict has beside weights: names of what changes nothing, and of what may.

    A mask that is not causal, or a bias of the unembedding, is no matter of form.
    """
    names = buffers_among(tensors, config)
    trivial = {name for name in names if what_buffer(tensors[name], True) or not bool(tensors[name].any())}
    return trivial, names - trivial


def _is_causal(square: Tensor) -> bool:
    """Whether a matrix has one value for the keys up to a query's own, and another for later ones."""
    if len(square) < 2 or square[0, 0] != square[-1, 0]:
        return False
    causal = torch.ones(square.shape, dtype=torch.bool).tril()
    inside, outside = square[causal], square[~causal]
    return _is_constant(inside) and _is_constant(outside) and bool(inside[0] != outside[0])


def _is_constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())
