"""Activation functions: equal to transformers' to the bit, and fast ones that are the same functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import support
from pellucid.numerics import nonlinear


@pytest.mark.parametrize("name", nonlinear.EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("with_grad", [True, False])
def test_activations_equal_transformers_to_the_bit(name: str, dtype: torch.dtype, with_grad: bool) -> None:
    from transformers.activations import ACT2FN

    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-30, 1e4, -1e4])]).to(dtype)
    before = x.clone()
    with torch.set_grad_enabled(with_grad):
        ours, theirs = nonlinear.EXACT[name](x), ACT2FN[name](before.clone())
    assert torch.equal(x, before)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def test_nothing_is_written_into_a_dtype_that_autocast_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    x, written = torch.randn(3, 5), []
    plain = nonlinear._gelu_new_in_place
    monkeypatch.setattr(nonlinear, "_gelu_new_in_place", lambda x: (written.append(1), plain(x))[1])
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            nonlinear.gelu_new(x)
        assert not written
        nonlinear.gelu_new(x)
    assert written


@pytest.mark.parametrize("name", nonlinear.FAST)
@pytest.mark.parametrize("with_grad", [True, False])
def test_fast_activations_are_the_same_functions(name: str, with_grad: bool) -> None:
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    before = x.clone()
    with torch.set_grad_enabled(with_grad):
        exact, fast = nonlinear.EXACT[name](x), nonlinear.FAST[name](x)
    assert torch.equal(x, before)
    # gelu_fast rounds sqrt(2 / pi) to ten digits.
    assert torch.allclose(exact, fast, rtol=0, atol=1e-9 if name == "gelu_fast" else 1e-14)


@pytest.mark.parametrize("with_grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_the_quickest_gelu_is_torchs_kernel_where_no_way_is_quicker(dtype: torch.dtype, with_grad: bool) -> None:
    """In float32 and float64 it goes by the sigmoid, to within rounding; else it is the kernel, to the bit."""
    given = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-30, 1e4, torch.nan])]).to(dtype)
    before = given.clone()
    with torch.set_grad_enabled(with_grad):
        ours, kernel = nonlinear.quickest_gelu_tanh(given), F.gelu(given, approximate="tanh")
    assert torch.equal(given.nan_to_num(), before.nan_to_num())
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-14}.get(dtype, 0.0)
    assert torch.allclose(ours, kernel, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_the_quickest_gelu_has_the_gradient_of_the_function() -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(nonlinear.quickest_gelu_tanh, x)


def test_the_two_gelus_are_two_functions() -> None:
    x = torch.linspace(-3, 3, 101)
    assert float((nonlinear.EXACT["gelu_new"](x) - F.gelu(x)).abs().max()) > 1e-4


def test_fast_stays_close_to_exact() -> None:
    ids = support.some_ids(2, 11)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        with torch.no_grad():
            assert support.close(
                support.glass(numerics="fast", dtype=dtype)(ids), support.glass(dtype=dtype)(ids), tolerance
            )
