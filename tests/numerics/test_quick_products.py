"""Products by oneDNN, of weights or packed copies: near enough, where asked for, never where torch must know more."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from watched_products import Watch

import pellucid as pl
import support
from pellucid.numerics import products

IDS = support.some_ids(2, 13)
ALL = 4 * support.SIZES["n_layer"] + 1
"""Products with stored matrices in a run: four in each block, and the logits."""
IGNORING = pytest.mark.filterwarnings(
    "ignore:There is a performance drop",  # vmap's
    "ignore:.*torch.jit.script:DeprecationWarning",  # forward differentiation's own
    "ignore:.*autograd kernel was not registered:UserWarning",  # what mutants ask for
)


def fast(**fields: Any) -> pl.CkptedTransformer:
    return support.glass(numerics="packed" if os.environ["PELLUCID_PRODUCTS"] == "packed" else "fast", **fields)


pytestmark = pytest.mark.every_pair


@pytest.fixture(autouse=True, params=["onednn", "packed"])
def _without_measuring(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with the weights as they lie in memory, and with packed copies of them."""
    monkeypatch.setenv("PELLUCID_PRODUCTS", request.param)


def taken(run: Callable[[], Any]) -> int:
    with Watch() as watch:
        run()
    return watch.seen


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_as_near_to_float64_as_torch_is(tied: bool) -> None:
    model = fast(tie_word_embeddings=tied)
    with Watch() as watch:
        logits = model(IDS)
    assert watch.seen == ALL
    exact = support.glass(dtype=torch.float64, tie_word_embeddings=tied)(IDS)
    plain = support.glass(tie_word_embeddings=tied)(IDS)
    ours, theirs = ((each.double() - exact).abs() for each in (logits, plain))
    assert 0 < ours.max() < 4 * theirs.max()
    assert logits.is_contiguous()


@torch.no_grad()
def test_of_some_positions() -> None:
    model = fast()
    for logits in (model.next_token_logits(IDS), model(IDS)[:, -1]):
        assert support.close(logits, support.glass(dtype=torch.float64).next_token_logits(IDS), 1e-4)


@torch.no_grad()
def test_rounded_factors_multiplied_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: False)
    assert taken(lambda: support.glass(numerics="bfloat16")(IDS)) == ALL


def trained() -> None:
    model, double = fast(), support.glass(dtype=torch.float64)
    assert taken(lambda: model.loss(IDS).backward()) == ALL
    double.loss(IDS).backward()
    assert model.embed.W_E.grad is not None
    assert double.embed.W_E.grad is not None
    assert support.close(model.embed.W_E.grad, double.embed.W_E.grad, 1e-4)


def gradients_of_inputs_alone() -> None:
    def slope(model: pl.CkptedTransformer) -> Tensor:
        normalized = torch.linspace(-1, 1, support.SIZES["n_embd"], dtype=model.dtype).requires_grad_()
        model.requires_grad_(False).unembed(normalized[None]).square().sum().backward()
        assert normalized.grad is not None
        return normalized.grad

    assert support.close(slope(fast()), slope(support.glass(dtype=torch.float64)), 1e-3)


@torch.no_grad()
def forward_differentiation() -> None:
    def slope(model: pl.CkptedTransformer) -> Tensor:
        x = torch.linspace(-1, 1, support.SIZES["n_embd"], dtype=model.dtype)[None]
        with forward.dual_level():
            tangent = forward.unpack_dual(model.unembed(forward.make_dual(x, x.cos()))).tangent
        assert tangent is not None
        return tangent

    assert support.close(slope(fast()), slope(support.glass(dtype=torch.float64)), 1e-4)


@torch.no_grad()
def several_models_as_one() -> None:
    models = [fast(seed=seed) for seed in range(3)]
    stacked, _ = stack_module_state(models)

    def run(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(models[0], parameters, (IDS,))

    with Watch() as watch:
        together = vmap(run)(stacked)
    assert not watch.seen
    for logits, model in zip(together, models, strict=True):
        assert support.close(logits, model(IDS), 1e-4)


@torch.no_grad()
def under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast()(IDS).dtype == support.glass()(IDS).dtype == torch.bfloat16


@torch.no_grad()
def other_dtypes() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert fast(dtype=dtype)(IDS).dtype == dtype


@torch.no_grad()
def other_memory_layouts() -> None:
    model = fast()
    taken_before = taken(lambda: model(IDS))
    wide = torch.empty(model.embed.W_E.size(0), 2 * model.embed.W_E.size(1))
    model.embed.W_E = nn.Parameter(wide[:, ::2].copy_(model.embed.W_E))
    assert taken(lambda: model(IDS)) == taken_before - 1


@torch.no_grad()
def exact_numerics() -> None:
    assert taken(lambda: support.glass()(IDS)) == 0


def looking() -> None:
    """A plain run has gradients unless told otherwise, a run that looks has none unless asked."""
    model = fast()
    assert taken(lambda: model(IDS)) == taken(lambda: model.run_with_ckpts(IDS)) == ALL  # each rounds in its own way
    logits = model(IDS)
    assert logits.requires_grad
    for grads in (False, True):
        assert torch.equal(model.run_with_ckpts(IDS, names="blocks.*.resid_post", grads=grads)[0], logits)


DIFFERENTIATED = (trained, gradients_of_inputs_alone)


@pytest.mark.parametrize("check", [*DIFFERENTIATED, looking], ids=lambda check: check.__name__)
def test_with_gradients(check: Callable[[], None]) -> None:
    check()


ELSEWHERE = (
    forward_differentiation, several_models_as_one, under_autocast, other_dtypes,
    other_memory_layouts,
)  # fmt: skip


@IGNORING
@pytest.mark.parametrize("check", [*ELSEWHERE, exact_numerics], ids=lambda check: check.__name__)
def test_torch_multiplies_where_it_must(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("_without_measuring", ["onednn"], indirect=True)
@torch.no_grad()
def test_a_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fast(n_layer=1)
    compiled = torch.compile(model, backend="aot_eager")
    monkeypatch.setattr(products, "library_for", lambda *product: pytest.fail("asked for another library"))
    assert support.close(compiled(IDS), support.glass(n_layer=1, dtype=torch.float64)(IDS), 1e-4)


@torch.no_grad()
def test_torch_multiplies_if_it_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_PRODUCTS", "torch")
    assert taken(lambda: fast()(IDS)) == 0


@pytest.mark.parametrize("check", DIFFERENTIATED, ids=lambda check: check.__name__)
def test_a_wrong_derivative_is_noticed(check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    right = products._ByOneDNN.backward
    monkeypatch.setattr(
        products._ByOneDNN, "backward", lambda ctx, *grads: tuple(g if g is None else -g for g in right(ctx, *grads))
    )
    with pytest.raises(AssertionError):
        check()


def test_torch_multiplying_whenever_there_are_gradients_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = products._onednn_can
    monkeypatch.setattr(products, "_onednn_can", lambda *product: plain(*product) and not torch.is_grad_enabled())
    with pytest.raises(AssertionError):
        looking()


@IGNORING
@pytest.mark.parametrize("check", ELSEWHERE, ids=lambda check: check.__name__)
def test_a_product_by_onednn_wherever_it_can_be_asked_is_noticed(
    check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_onednn_can", lambda *product: True)
    with pytest.raises((AssertionError, RuntimeError)):
        check()


def test_quick_products_in_exact_numerics_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.family.network.products_of", lambda execution: products.QuickProducts())
    with pytest.raises(AssertionError):
        exact_numerics()


def test_rounding_to_bfloat16_on_the_way_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = products.by_onednn
    monkeypatch.setattr(products, "by_onednn", lambda x, *rest: plain(x.bfloat16().float(), *rest))
    with pytest.raises(AssertionError):
        test_as_near_to_float64_as_torch_is(tied=True)
