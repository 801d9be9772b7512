"""The distance of two values by its definition: what is not finite or masked, and what has another shape."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pellucid.numerics.rounding import bits, not_alike, relative_error, same_bits

INF, NAN = math.inf, math.nan
LEAST = torch.finfo(torch.float32).min
VALUES = [0.0, -0.0, 1.0, -3.0, 1e-30, 3e38, -3e38, LEAST, LEAST / 2, -INF, INF, NAN]


def by_definition(given: Tensor, expected: Tensor) -> float:
    """Value by value: equal ones, two NaN and two masked ones are no distance apart."""
    sizes, gaps = [0.0], [0.0]
    for g, e in zip(given.flatten().tolist(), expected.flatten().tolist(), strict=True):
        masked = e <= LEAST / 2
        sizes += [abs(e)] if math.isfinite(e) and not masked else []
        alike = g == e or (math.isnan(g) and math.isnan(e)) or (masked and g <= LEAST / 2)
        gaps += [] if alike else [float((torch.tensor(g) - torch.tensor(e)).abs())]
    return max(gaps) / (max(sizes) or 1.0) if all(map(math.isfinite, gaps)) else INF


BESIDE = [1.0, LEAST, -INF]
"""What stands beside each value."""
PAIRS = list(itertools.product(itertools.product(VALUES, BESIDE), repeat=2))


@pytest.mark.parametrize("first", VALUES)
def test_the_distance_is_the_one_that_is_defined(first: float) -> None:
    for given, expected in PAIRS:
        if given[0] == first or (math.isnan(first) and math.isnan(given[0])):
            g, e = torch.tensor([given]), torch.tensor([expected])
            assert relative_error(g, e) == pytest.approx(by_definition(g, e), rel=1e-6), (given, expected)


def test_what_is_finite_on_one_side_only_is_not_alike() -> None:
    g, e = torch.tensor(PAIRS).unbind(1)
    same = (g == e) | (g.isnan() & e.isnan()) | ((g <= LEAST / 2) & (e <= LEAST / 2))
    assert torch.equal(not_alike(g, e), ~(g.isfinite() & e.isfinite()) & ~same)


def test_nothing_is_no_distance_apart() -> None:
    assert relative_error(torch.zeros(1, 0), torch.zeros(1, 0)) == 0
    assert str(relative_error(torch.ones(1, 2), torch.ones(1, 2))) == "0.0", "a size has no sign"
    assert relative_error(torch.ones(1, 2, 3), torch.ones(1, 2, 4)) == INF


def test_of_positions_that_are_left_out_nothing_is_said() -> None:
    whole = torch.arange(6.0).view(1, 3, 2)
    assert relative_error(whole[:, -1:], whole) == 0
    assert relative_error(whole[:, :-1], whole) == 0
    assert relative_error(whole[:, :1], whole) > 0
    assert relative_error(whole[:, -1:, 0], whole[..., 0]) == 0, "a number for each position, such as a loss"


def test_beside_nothing_but_zeros_the_distance_is_the_difference_itself() -> None:
    assert relative_error(torch.tensor([[0.25, 0.0]]), torch.zeros(1, 2)) == 0.25


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.bool]
)
def test_bits_are_equal_or_not(dtype: torch.dtype) -> None:
    one = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 5.0]]).to(dtype)
    assert same_bits(one, one.T.contiguous().T)
    assert not same_bits(one, one.roll(1))
    assert not same_bits(one, one[:, :2])
    assert bits(one).element_size() * bits(one).numel() == one.element_size() * one.numel()
    if dtype.is_floating_point:
        assert not same_bits(torch.zeros(1, dtype=dtype), -torch.zeros(1, dtype=dtype))
        assert same_bits(torch.full((1,), NAN, dtype=dtype), torch.full((1,), NAN, dtype=dtype))
