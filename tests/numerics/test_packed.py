"""Packed copies of weights: only where asked for and quicker, never of weights that were, in the memory stated."""

from __future__ import annotations

import copy
import gc
import pickle
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from weight_writes import WRITES, written

import pellucid as pl
import support
from pellucid.numerics import products, quickest
from pellucid.numerics.products import Copies, PackedProducts

IDS = support.some_ids(2, 13)


@pytest.fixture(autouse=True)
def _packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(quickest.VARIABLE, "packed")


def packing(**fields: Any) -> pl.CkptedTransformer:
    return support.glass(numerics="packed", **fields)


def bytes_of(model: pl.CkptedTransformer) -> int:
    return sum(torch.ops.mkldnn._nbytes(kept.made) for kept in model.products.kept())


@torch.no_grad()
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_a_copy_is_never_that_of_weights_that_were(write: Callable[[pl.CkptedTransformer], None]) -> None:
    model = packing()
    before = model(IDS)
    write(model)
    fresh = pl.CkptedTransformer(model.config, copy.deepcopy(model.state_dict()), numerics="packed").eval()
    after = model(IDS)
    assert torch.equal(after, fresh(IDS))
    assert not torch.equal(after, before)


def test_a_copy_that_is_never_made_again_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products.Copy, "is_of", lambda self, matrix: True)
    with pytest.raises(AssertionError):
        test_a_copy_is_never_that_of_weights_that_were(written)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_memory_is_what_was_stated_and_goes(tied: bool) -> None:
    sizes = {"n_embd": 192, "vocab_size": 192, "n_layer": 1, "tie_word_embeddings": tied}  # nothing is filled up
    model, fast = packing(**sizes), support.glass(numerics="fast", **sizes)
    ids = IDS % 192
    stated, kernels = (pl.estimate_generation(each, ids).prepared for each in (model, fast))
    assert stated > kernels
    model(ids)
    first = model.products.kept()
    assert stated - kernels == bytes_of(model)
    model(ids)
    assert all(kept is before for kept, before in zip(model.products.kept(), first, strict=True))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not other.products.kept()
        assert torch.equal(other(ids), model(ids))
    model.refresh()
    assert not model.products.kept()


def test_copies_go_at_once_with_whoever_keeps_them_and_with_what_they_are_of() -> None:
    copies, stored, other = Copies(), nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    made = [weakref.ref(copies.of(each, each, torch.clone)) for each in (stored, other)]
    gc.disable()
    try:
        del other
        assert [each() is None for each in made] == [False, True]
        assert len(copies.all()) == 1
        del copies
        assert made[0]() is None
    finally:
        gc.enable()


@torch.no_grad()
@pytest.mark.parametrize("wish", quickest.LIBRARIES)
def test_no_copies_where_nobody_wants_them(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner in (quickest, products):
        monkeypatch.setattr(owner, "packed", lambda weight: pytest.fail("a copy"))
    for numerics in ("exact", "fast"):
        support.glass(numerics=numerics)(IDS)
    packing(dtype=torch.float64)(IDS)
    monkeypatch.setenv(quickest.VARIABLE, wish)
    model = packing()
    model(IDS)
    assert isinstance(model.products, PackedProducts)
    assert not model.products.kept()


@pytest.mark.parametrize("quick", quickest.WAYS)
def test_a_copy_is_kept_where_it_is_clearly_quicker(quick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(quickest.VARIABLE)
    quickest.forget()
    for name in ("by_torch", "by_onednn"):
        plain = getattr(quickest, name)

        def late(x: Tensor, weight: Tensor, bias: Tensor | None, name: str = name, plain: Any = plain) -> Tensor:
            if quick != (quickest.PACKED if weight.is_mkldnn else name.removeprefix("by_")):
                time.sleep(0.01)
            return plain(x, weight, bias)

        monkeypatch.setattr(quickest, name, late)
    model = packing(n_embd=96, n_layer=1, vocab_size=200)
    with torch.no_grad():
        model(support.some_ids(8, 16) % 200)
    assert {choice.library for choice in quickest.choices().values()} == {quick}
    assert all(shape.may_pack and set(choice.rates) == {*quickest.WAYS} for shape, choice in quickest.choices().items())
    assert len(model.products.kept()) == (5 if quick == quickest.PACKED else 0)
    quickest.forget()
