"""A cause is confirmed when every point that is shown agrees, and the smallest is named; what is harmless is a note."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from course import course
from rights import RIGHTS
from test_outputs import Returning
from torch import Tensor

import pellucid as pl
import support

SMALL = {"vocab_size": 53, "n_positions": 16, "n_embd": 24, "n_layer": 3, "n_head": 3}
IDS = support.some_ids(2, 7, 53)


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


def cause_of(report: Any) -> str:
    assert report.verdict == "different", report
    return report.first_divergence.cause or ""


def with_attention(made: Any, attention: Any, blocks: tuple[int, ...] = (0, 1, 2)) -> Any:
    for i in blocks:
        module = made.blocks[i].attn
        module.__class__ = type("Changed", (type(module),), {"forward": attention})
    return made


def attending(*, dropout: float = 0.0, blind: bool = False, unbiased: str = "", exchanged: bool = False) -> Any:
    """A forward of the course's attention with a mistake in it."""

    def forward(self: Any, x: Tensor, cache: Any = None) -> Tensor:
        parts = dict(zip("qkv", self.qkv_proj(x).chunk(3, -1), strict=True))
        bias = dict(zip("qkv", self.qkv_proj.bias.chunk(3), strict=True))
        q, k, v = (
            (parts[c] - (bias[c] if c in unbiased else 0)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for c in "qkv"
        )
        seen = torch.ones(x.size(1), x.size(1)).tril().bool()
        if blind:
            seen = seen & ~torch.eye(x.size(1)).bool()
            seen[0, 0] = True
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
        return self.output_proj(z.transpose(1, 2).flatten(2))

    return forward


def test_the_smallest_mistake_that_every_point_confirms(small: pl.CkptedTransformer) -> None:
    for made in (course(small), Returning(course(small), lambda x: x)):
        inner = getattr(made, "inner", made)
        with_attention(inner, attending(unbiased="v"))
        assert "no bias on v (" in cause_of(pl.compare(small, made, IDS))


def test_blocks_that_show_a_mistake_are_all_named(small: pl.CkptedTransformer) -> None:
    """The last position's logits do not show what block 2 sees of the next token; its z does."""
    made = course(small)
    for i in (1, 2):
        made.blocks[i] = course(small, "mask sees next").blocks[i]
    report = pl.compare(small, Returning(made, lambda x: x[:, -1:]), IDS)
    assert "causal mask off by one: sees the next token, in blocks 1, 2 only" in cause_of(report), report


def test_masks_and_dropout_inside_attention(small: pl.CkptedTransformer) -> None:
    blind = with_attention(course(small), attending(blind=True))
    assert "does not see itself, the first position excepted" in cause_of(pl.compare(small, blind, IDS))
    random = with_attention(course(small), attending(dropout=0.1))
    assert "dropout is active" in cause_of(pl.compare(small, random, IDS))


def gelu(constant: float) -> Any:
    return lambda x: 0.5 * x * (1 + torch.tanh(constant * (x + 0.044715 * x.pow(3))))


def with_gelu(made: Any, constant: float) -> Any:
    for block in made.blocks:
        block.mlp = lambda x, b=block: b.linear2(gelu(constant)(b.linear1(x)))
    return made


@pytest.mark.parametrize("constant", [0.79788456, 0.7978846, 0.797884561, 0.7978845608])
def test_a_constant_of_seven_digits_is_a_note(constant: float, small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, with_gelu(course(small), constant), IDS)
    assert report.verdict == "equivalent", report


@pytest.mark.parametrize("constant", [0.797885, 0.79788, 0.7979, 0.798, 0.8])
def test_a_constant_of_six_digits_is_a_mistake(constant: float, small: pl.CkptedTransformer) -> None:
    found = cause_of(pl.compare(small, with_gelu(course(small), constant), IDS))
    assert f"GELU's constant is {constant:g} for sqrt(2/pi)" in found


def test_the_bias_of_k_that_is_not_added(small: pl.CkptedTransformer) -> None:
    made = course(small)
    for block in made.blocks:
        bias = F.pad(block.attn.qkv_proj.bias.detach()[24:48], (24, 24))
        block.attn.qkv_proj.register_forward_hook(lambda module, given, out, b=bias: out - b)
    report = pl.compare(small, made, IDS)
    assert report.verdict == "equivalent", report
    assert "no text can show it: softmax ignores" in " ".join(report.notes)


def test_other_parameters_with_the_same_logits(small: pl.CkptedTransformer) -> None:
    made = course(small)
    order = torch.randperm(96)
    with torch.no_grad():
        for layer, axis in ((made.blocks[0].linear1, 0), (made.blocks[0].linear2, 1)):
            layer.weight.copy_(layer.weight.index_select(axis, order))
        made.blocks[0].linear1.bias.copy_(made.blocks[0].linear1.bias[order])
    report = pl.compare(small, made, IDS)
    assert report.verdict == "different"
    assert "other parameters, the same logits" in " ".join(report.notes), report


def test_amplified_rounding_accuses_nobody() -> None:
    deep = support.glass(**{**SMALL, "n_layer": 40, "n_embd": 12})
    with torch.no_grad():
        for block in deep.blocks:
            block.attn.W_QKV.mul_(8.0)
            block.ln1.w.mul_(3.0)
    report = pl.compare(deep, RIGHTS["per head"](deep), IDS)
    assert report.verdict == "equivalent", report
    assert "amplified" in " ".join(report.notes), max(row.fp64 for row in report.checkpoints)


def test_two_mistakes_are_not_one(small: pl.CkptedTransformer) -> None:
    made = with_gelu(course(small, "eps 1e-6"), 0.8)
    found = cause_of(pl.compare(small, made, IDS))
    assert found == "" or "more differs later" in found
