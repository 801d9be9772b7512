"""A NaN in scores is not hidden: where explicit attention gives NaN, the fused one does, and captures say the same."""

from __future__ import annotations

from typing import Any

import checks
import pytest
import torch
from torch import Tensor

import pellucid as pl
import support
from pellucid.family import attend
from pellucid.gpt2 import model as attention

IDS = support.some_ids(2, 5)
BAD = (torch.nan, torch.inf, -torch.inf)


def spoil(model: pl.CkptedTransformer, part: str, value: float = torch.nan) -> None:
    """Write a number into the second head of block 1, as training or a bad file does."""
    with torch.no_grad():
        getattr(model.blocks[1].attn, part).select(0, 1)[..., 1] = value


def both(part: str, value: float = torch.nan, **options: Any) -> tuple[pl.CkptedTransformer, pl.CkptedTransformer]:
    """The same spoilt model, fused and explicit."""
    models = tuple(support.glass(attention=kind, **options) for kind in ("auto", "eager"))
    for model in models:
        with torch.no_grad():
            model(IDS)  # its weights have been looked at before
        spoil(model, part, value)
    return models


@pytest.mark.parametrize("part", ["W_Q", "W_K", "W_V", "b_Q", "b_K"])
@pytest.mark.parametrize("numerics", ["exact", "fast", "bfloat16"])
def test_nan_is_where_explicit_attention_has_it(part: str, numerics: str) -> None:
    fused, explicit = both(part, numerics=numerics)
    with torch.no_grad():
        for inputs in (IDS, IDS[:1, :1], support.ragged_ids(4, 2)):
            found = fused(inputs).isnan()
            assert torch.equal(found, explicit(inputs).isnan())
            assert found.any()
            assert fused.next_token_logits(inputs).isnan().any()


@pytest.mark.parametrize("part", ["W_Q", "W_K"])
@pytest.mark.parametrize("value", BAD)
def test_infinities_are_as_in_explicit_attention(part: str, value: float) -> None:
    fused, explicit = both(part, value)
    with torch.no_grad():
        assert torch.equal(fused(IDS).isnan(), explicit(IDS).isnan())


@pytest.mark.parametrize("part", ["W_Q", "b_K"])
def test_captures_fit_together(part: str) -> None:
    model, _ = both(part)
    plain = model(IDS)
    logits, c = model.run_with_ckpts(IDS)
    z = torch.einsum("bhqp,bphk->bqhk", c["pattern", 1], c["blocks.1.attn.ckpt_v"])
    assert c["pattern", 1].isnan().any()
    assert torch.equal(z.isnan(), c["blocks.1.attn.ckpt_z"].isnan())
    assert torch.equal(plain.isnan(), logits.isnan())


@pytest.mark.parametrize("numerics", ["exact", "fast"])
@pytest.mark.parametrize("part", ["W_Q", "W_K"])
def test_generating_says_where_it_comes_from(part: str, numerics: str) -> None:
    model, _ = both(part, numerics=numerics)
    for rows in (IDS, [[1]]):
        with pytest.raises(pl.NumericsError, match=r"blocks\.1\.attn\.ckpt_[qk]"):
            model.generate(rows, max_new_tokens=3, end_ids=())


@pytest.mark.parametrize("way", ["edit", "hook"])
@pytest.mark.parametrize("name", ["ckpt_q", "ckpt_k"])
def test_nan_that_somebody_puts_there_is_not_hidden(way: str, name: str) -> None:
    fused, explicit = support.glass(), support.glass(attention="eager")
    where = f"blocks.1.attn.{name}"

    def spoilt(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, :, 0, 0] = torch.nan
        return value

    def run(model: pl.CkptedTransformer) -> Tensor:
        if way == "edit":
            return model.run_with_ckpts(IDS, edits=pl.Edit.apply(where, spoilt))[0]
        handle = model.get_submodule(where).register_forward_hook(lambda module, args, out: spoilt(out))
        try:
            return model(IDS)
        finally:
            handle.remove()

    with torch.no_grad():
        assert run(fused).isnan().any()
        assert torch.equal(run(fused).isnan(), run(explicit).isnan())


def test_weights_are_looked_at_when_they_were_written_to_and_only_then() -> None:
    model = support.glass()

    def looks() -> int:
        with torch.no_grad():
            return checks.ops(lambda: model(IDS)).count("_local_scalar_dense")

    looks()
    batches = looks()  # what making a batch asks
    assert looks() == batches
    with torch.no_grad():
        model.blocks[1].attn.W_QKV.mul_(1.0)
    assert looks() > batches
    assert looks() == batches
    model.blocks[1].attn.W_QKV.data[0, 0] = torch.nan  # around torch's counting
    model.refresh()
    with torch.no_grad():
        assert model(IDS).isnan().any()


def test_a_finite_model_stays_fused() -> None:
    model, hf = support.pair()
    with torch.no_grad():
        assert torch.equal(model(IDS), hf(IDS).logits)
        assert checks.ops(lambda: model(IDS)).count("softmax") == 0


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("_holds_nan", lambda: test_nan_is_where_explicit_attention_has_it("W_Q", "exact")),
        ("_holds_nan", lambda: test_captures_fit_together("W_Q")),
    ],
)
def test_a_hidden_nan_is_noticed(name: str, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.Attention, name, lambda self: False)
    with pytest.raises(AssertionError):
        check()


def test_a_hidden_nan_of_somebodys_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "hold_nan", lambda q, k: False)
    with pytest.raises(AssertionError):
        test_nan_that_somebody_puts_there_is_not_hidden("edit", "ckpt_q")
