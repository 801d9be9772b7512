"""Attribution and lenses of a Llama: root-mean-square norms, heads of values that queries share, perhaps no biases.

Its norms are computed in float32 in every dtype, so sums equal what is read to that precision: the bound is the
rounding of one norm in float32, times the values that are summed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attribution_cases import BYS, furthest, run, total

import llamas
import pellucid as pl
from pellucid.family.blocks import RMSNorm

TEXTS = llamas.ragged_ids(3, 7, 5)
ROUNDING = torch.finfo(torch.float32).eps


def bound(parts: Any) -> float:
    """What rounding each part in float32 may add up to."""
    return 4 * ROUNDING * float(abs(parts).sum("component").max())


@pytest.mark.parametrize("fields", [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}])
@pytest.mark.parametrize("by", BYS)
def test_the_parts_sum_to_the_logit(by: Any, fields: dict[str, Any]) -> None:
    logits, ckpts = run(llamas.glass(dtype=torch.float64, **fields), TEXTS)
    parts = pl.attribution.direct(ckpts, 17, by=by)
    assert furthest(total(parts), logits[..., 17], ckpts) < bound(parts)
    assert {"ckpt_pos_embed", "ln_final.b", "edits"}.isdisjoint(parts.component.values)
    assert ("blocks.0.attn.b_O" in parts.component.values) == (by == "head" and "attention_bias" in fields)


@pytest.mark.parametrize("at", ["attn.ckpt_q", "attn.ckpt_k", "mlp.ckpt_gate", "mlp.ckpt_up", "resid_mid"])
def test_at_an_earlier_place(at: str) -> None:
    _, ckpts = run(llamas.glass(dtype=torch.float64, attention_bias=True), TEXTS)
    value = ckpts[f"blocks.1.{at}"]
    direction = torch.randn(value.shape[2:], dtype=torch.float64)
    parts = pl.attribution.direct(ckpts, direction, by="head", at=f"blocks.1.{at}")
    assert furthest(total(parts), (value * direction).flatten(2).sum(-1), ckpts) < bound(parts)


def test_the_sources_of_a_head_sum_to_the_head() -> None:
    _, ckpts = run(llamas.glass(dtype=torch.float64), TEXTS)
    sources = pl.attribution.sources(ckpts, 17)
    heads = pl.attribution.direct(ckpts, 17, by="head").sel(component=sources.component.values)
    assert abs(sources.sum("key", min_count=1) - heads).max() < 1e-10


def test_the_last_block_says_what_the_model_says_to_the_bit() -> None:
    logits, ckpts = run(llamas.glass(), TEXTS)
    assert torch.equal(pl.lens.logit(ckpts).logits(-1), logits)


def centred(self: Any, direction: Any, x: Any) -> Any:
    gained = self.w * direction
    return (gained - gained.mean(-1, keepdim=True)) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def of_another_position(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, direction, x: right(self, direction, x.roll(1, 1))


@pytest.mark.parametrize("reads", [centred, of_another_position(RMSNorm.reads)])
def test_mutants_are_noticed(reads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RMSNorm, "reads", reads)
    with pytest.raises(AssertionError):
        test_the_parts_sum_to_the_logit("component", {})
