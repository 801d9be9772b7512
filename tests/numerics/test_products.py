"""Products in bfloat16: near enough, really taken, never of weights that were; gradients as under autocast."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from weight_writes import WRITES, behind_torch, by_view, written

import pellucid as pl
import support
from pellucid.generate.stepper import Stepper
from pellucid.numerics import products
from pellucid.numerics.products import Copies, Execution, RoundedProducts, products_of

IDS = support.some_ids(2, 13)
CONFIGS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "odd": {"n_embd": 30, "n_head": 5, "n_layer": 2, "activation_function": "gelu", "n_inner": 50, "vocab_size": 97},
}
UNIT = 2.0**-8
"""Largest relative error of rounding to bfloat16, which has 8 significant bits."""


@pytest.fixture(autouse=True, params=[True, False], ids=["by bfloat16", "by float32"])
def multiplies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every test, or a case of it, on a processor with products in bfloat16 and on one without."""
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: request.param)
    return request.param


def rounded(**fields: Any) -> pl.CkptedTransformer:
    return support.glass(numerics="bfloat16", **fields)


def error(logits: Tensor, truth: Tensor) -> float:
    return float((logits.double() - truth).square().mean().sqrt())


@torch.no_grad()
def test_a_product_is_that_of_rounded_factors() -> None:
    x, weight, bias = torch.randn(2, 7, 24), nn.Parameter(torch.randn(24, 40)), torch.randn(40)
    factors = x.bfloat16().double() @ weight.bfloat16().double()
    rounding = RoundedProducts(torch.bfloat16)
    for product, truth in (
        (rounding.affine(x, weight, bias) - bias, factors),
        (rounding.affine(x, nn.Parameter(weight.view(4, 6, 40)), bias) - bias, factors),
        (rounding.linear(x, nn.Parameter(weight.t().contiguous())), factors),
        (rounding.linear(x, weight, rows=Tensor.t), factors),
    ):
        assert product.dtype == torch.float32
        assert bool(((product - truth).abs() <= truth.abs() * UNIT + 1e-5).all())


@torch.no_grad()
def test_products_are_taken_in_what_the_processor_has(multiplies: bool) -> None:
    taken: list[torch.dtype] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket.__name__.endswith("mm"):
                taken.append(args[-1].dtype)
            return func(*args, **(kwargs or {}))

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with Watch():
            rounded(dtype=dtype)(IDS)
    assert set(taken) == {torch.bfloat16 if multiplies else torch.float32}


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_nearer_to_float64_than_a_model_in_bfloat16_is(name: str) -> None:
    fields = CONFIGS[name]
    ids = support.some_ids(2, 13, fields.get("vocab_size", support.SIZES["vocab_size"]))
    truth = support.glass(dtype=torch.float64, **fields)(ids)
    ours = error(rounded(**fields)(ids), truth)
    assert ours < error(support.glass(dtype=torch.bfloat16, **fields)(ids), truth)
    assert ours > 100 * error(support.glass(**fields)(ids), truth)  # they are taken in bfloat16 indeed


@torch.no_grad()
@pytest.mark.parametrize("write", WRITES)
def test_a_copy_is_never_that_of_weights_that_were(write: Callable[[pl.CkptedTransformer], None]) -> None:
    model = rounded()
    before = model(IDS)
    write(model)
    fresh = pl.CkptedTransformer(model.config, copy.deepcopy(model.state_dict()), numerics="bfloat16").eval()
    after = model(IDS)
    assert torch.equal(after, fresh(IDS))
    assert not torch.equal(after, before)


@torch.no_grad()
def test_memory_that_a_copy_is_known_by_is_not_given_out_again() -> None:
    model = rounded()
    weight = model.blocks[1].mlp.W_in
    model(IDS)
    memory = StorageWeakRef(weight.untyped_storage())
    weight.data = weight.data.clone()
    assert not memory.expired()
    model.refresh()
    assert memory.expired()


@torch.no_grad()
def test_a_copied_model_has_copies_of_its_own() -> None:
    model = rounded()
    plain = model(IDS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(IDS), plain)
        other.blocks[0].mlp.W_out.zero_()
        assert not torch.equal(other(IDS), plain)
        assert torch.equal(model(IDS), plain)


def test_copies_are_made_once_and_only_without_gradients() -> None:
    model = rounded()
    model(IDS).sum().backward()
    assert not model.products.kept()
    with torch.no_grad():
        model(IDS)
        first = model.products.kept()
        model(IDS)
    assert len(first) == 4 * model.config.n_layer + 1
    assert all(kept is copy for kept, copy in zip(model.products.kept(), first, strict=True))
    assert not products_of(Execution()).__dict__


def test_gradients_are_those_of_the_rounded_products() -> None:
    model, double = rounded(), support.glass(dtype=torch.float64)
    for each in (model, double):
        each.loss(IDS).backward()
    for (name, ours), (_, true) in zip(model.named_parameters(), double.named_parameters(), strict=True):
        assert ours.grad is not None, name
        assert ours.grad.dtype == torch.float32
        cosine = torch.cosine_similarity(ours.grad.double().flatten(), true.grad.flatten(), 0)
        assert cosine > 0.999, (name, float(cosine))


@torch.no_grad()
def test_weights_given_for_one_call() -> None:
    model, other = rounded(), rounded(seed=4)
    plain = model(IDS)
    assert torch.equal(functional_call(model, dict(other.named_parameters()), (IDS,)), other(IDS))
    assert torch.equal(functional_call(model, {k: v.detach() for k, v in other.named_parameters()}, (IDS,)), other(IDS))
    assert torch.equal(model(IDS), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_in_any_dtype(dtype: torch.dtype) -> None:
    logits = rounded(dtype=dtype)(IDS)
    assert logits.dtype == dtype
    assert error(logits, support.glass(dtype=torch.float64)(IDS)) < 0.3


def test_generation_reads_weights_of_sixteen_bits() -> None:
    model, exact = rounded(), support.glass()
    assert model.blocks[0].mlp.W_in.dtype == torch.float32
    kernels = pl.estimate_generation(support.glass(numerics="fast"), [[1, 2, 3]]).prepared // 2
    prompt = pl.estimate_generation(model, [[1, 2, 3]]).prepared - kernels
    with torch.no_grad():
        model([[1, 2, 3]])
    assert prompt == sum(copy.made.nbytes for copy in model.products.kept())
    rows = support.ragged_ids(7, 3)
    out = model.generate(rows, max_new_tokens=8, names=None, end_ids=())
    _, whole = exact.run_with_ckpts([row.tolist() for row in out.ids])
    mask = whole.batch.mask
    for name in ("blocks.0.resid_post", "ln_final.ckpt_normalized"):
        unit = whole[name][mask].std()
        gap = (out.ckpts[name] - whole[name])[mask].square().mean().sqrt() / unit
        assert 1e-4 < gap < 0.1, (name, float(gap))


def test_the_kernels_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    plain = Stepper._decoded
    monkeypatch.setattr(Stepper, "_decoded", lambda *args: (steps.append(1), plain(*args))[1])
    rounded().generate([[1, 2, 3]], max_new_tokens=5, end_ids=())
    assert len(steps) == 4


@pytest.fixture
def _never_outdated(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Copies.of

    def first(self: Any, stored: Tensor, *how: Any) -> Tensor:
        return self.__dict__.setdefault("first", {}).setdefault(id(stored), keep(self, stored, *how))

    monkeypatch.setattr(Copies, "of", first)


@pytest.fixture
def _kept_in_conversions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.CkptedTransformer, "_apply", nn.Module._apply)
    monkeypatch.setattr(RoundedProducts, "forget", lambda self: None)


def test_a_copy_that_is_known_by_its_place_alone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Placed:
        def __init__(self, source: Tensor, version: int, made: Tensor) -> None:
            self.place, self.version, self.made = source.data_ptr(), version, made

        def is_of(self, stored: Tensor) -> bool:
            return self.place == stored.data_ptr() and self.version == stored._version

    monkeypatch.setattr(products, "Copy", Placed)
    with pytest.raises(AssertionError):
        test_memory_that_a_copy_is_known_by_is_not_given_out_again()


@pytest.mark.parametrize(("mutant", "write"), [
    ("_never_outdated", written), ("_never_outdated", by_view), ("_kept_in_conversions", behind_torch),
])  # fmt: skip
def test_outdated_copies_are_noticed(mutant: str, write: Any, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(mutant)
    with pytest.raises(AssertionError):
        test_a_copy_is_never_that_of_weights_that_were(write)


def test_products_in_what_the_processor_lacks_are_noticed(monkeypatch: pytest.MonkeyPatch, multiplies: bool) -> None:
    other = torch.float32 if multiplies else torch.bfloat16
    monkeypatch.setattr(RoundedProducts, "_multiplied_in", lambda self, like: other)
    with pytest.raises(AssertionError):
        test_products_are_taken_in_what_the_processor_has(multiplies)


def test_products_that_are_not_rounded_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.family.network.products_of", lambda execution: products_of(Execution()))
    with pytest.raises(AssertionError):
        test_nearer_to_float64_than_a_model_in_bfloat16_is("tied")


def test_rounded_copies_made_under_inference_mode_serve_a_backward_pass(tiny: pl.CkptedTransformer):
    rounded = pl.CkptedTransformer(tiny.config, tiny.state_dict(), numerics="bfloat16").eval().requires_grad_(False)
    with torch.inference_mode():
        rounded(support.ROW)
    push = torch.zeros(tiny.config.n_embd, requires_grad=True)
    logits, _ = rounded.run_with_ckpts(
        support.ROW, names="ckpt_embed", edits=pl.Edit.add("blocks.0.resid_pre", push), grads=True
    )
    logits.sum().backward()
    assert push.grad is not None
    assert push.grad.abs().max() > 0
