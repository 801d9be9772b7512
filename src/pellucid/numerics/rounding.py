"""How far apart two values are, by the one measure and the one threshold that tell rounding from an error."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

BEYOND_ROUNDING = 1e-10
"""Relative error in float64 that rounding never reaches (it stays near 1e-15) and that every real difference passes."""


def relative_error(given: Tensor, expected: Tensor) -> float:
    """Largest difference [B, P, ...] relative to the largest expected value; infinite if only one of both is finite."""
    return min((_error(given, part) for part in windows(expected, given)), default=math.inf)


def shown_part(expected: Tensor, given: Tensor) -> Tensor:
    """The positions of `expected` [B, P, ...] that a program shows, of which it may leave out some."""
    parts = windows(expected, given)
    return min(parts, key=lambda part: _error(given, part)) if len(parts) > 1 else (*parts, expected)[0]


def windows(expected: Tensor, given: Tensor) -> list[Tensor]:
    """The parts of `expected` [B, P, ...] that `given` may be: all, the last positions, or all but the last."""
    if given.shape == expected.shape:
        return [expected]
    if given.dim() != expected.dim() or given.dim() < 2:
        return []
    shown, positions = given.size(1), expected.size(1)
    last = [expected[:, positions - shown :]] if 0 < shown < positions else []
    parts = [*last, expected[:, :-1]] if shown == positions - 1 else last
    return [part for part in parts if part.shape == given.shape]


def _error(given: Tensor, expected: Tensor) -> float:
    given = given.to(expected)
    if (size := _plain_size(expected)) is not None:
        gap = size_or_nan(given - expected)
        if math.isfinite(gap):
            return gap / (size or 1.0)
    same = (given == expected) | (given.isnan() & expected.isnan()) | (_hidden(given) & _hidden(expected))
    gap = (given - expected).abs().masked_fill(same, 0.0)
    largest = float(gap.max()) if gap.numel() else 0.0
    return largest / size_of(expected) if math.isfinite(largest) else math.inf


def _plain_size(values: Tensor) -> float | None:
    """The largest magnitude of values that are all finite and none of them masked; None if that is not so.

    What is seen in one pass over the values spares the dozen that tell the finite and the masked from others: for the
    logits of 128 tokens of GPT-2 34 ms instead of 220.
    """
    if not values.numel():
        return 0.0
    low, high = _ends(values)
    return max(0.0, high, -low) if math.isfinite(low) and math.isfinite(high) and low > _least(values.dtype) else None


def size_or_nan(values: Tensor) -> float:
    """The largest magnitude, NaN if one of the values is."""
    if not values.numel():
        return 0.0
    low, high = _ends(values)
    return math.nan if math.isnan(low) else max(0.0, high, -low)  # of zeros alone 0.0, not -0.0


def _ends(values: Tensor) -> tuple[float, float]:
    """The least and the largest value, both NaN if one of the values is; an accelerator is waited for once."""
    low, high = torch.stack(values.aminmax()).tolist()
    return low, high


def size_of(values: Tensor) -> float:
    """The largest magnitude that is finite and not masked; 1 if that is 0."""
    shown = values.abs().masked_fill(~values.isfinite() | _hidden(values), 0.0)
    return (float(shown.max()) if shown.numel() else 0.0) or 1.0


def not_alike(given: Tensor, expected: Tensor) -> Tensor:
    """Where one of two values is finite and the other is not, or they are not finite in different ways.

    Rounding turns no finite number into an infinity or a NaN, so this needs no float64 run to be told from it.
    """
    expected = shown_part(expected, given)
    if given.shape != expected.shape:
        return torch.zeros(given.shape, dtype=torch.bool, device=given.device)
    given = given.to(expected.device)
    if _plain_size(given) is not None and _plain_size(expected) is not None:
        return torch.zeros(given.shape, dtype=torch.bool, device=expected.device)
    odd = ~given.isfinite() | ~expected.isfinite()
    same = (given == expected) | (given.isnan() & expected.isnan()) | (_hidden(given) & _hidden(expected))
    return odd & ~same


def _hidden(values: Tensor) -> Tensor:
    """Scores that a mask hides: minus infinity, or the least numbers of the dtype."""
    return values <= _least(values.dtype)


@functools.cache
def _least(dtype: torch.dtype) -> float:
    least = torch.finfo(dtype).min
    return least if dtype == torch.float16 else least / 2  # real values come near float16's least


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """The bits of a tensor as whole numbers of its element size, compared in a quarter of the time of its bytes."""
    values = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return values.contiguous().view(_INTEGERS[values.element_size()])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are of one dtype and shape and equal in every bit: -0 is not 0, a NaN is itself."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b.to(a.device)))


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers; a NaN equals the same NaN, 0.0 equals -0.0 as ever."""
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return True
    if a.dtype != b.dtype:
        return False
    whole = _INTEGERS.get(a.element_size())  # None for complex128
    if whole is not None and torch.equal(a.view(whole), b.view(whole)):
        return True
    if a.is_floating_point() and a.element_size() == 1:
        a, b = a.float(), b.float()  # exact; torch.equal does not take float8
    return torch.equal(a, b)
