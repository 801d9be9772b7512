"""Why a stage differs: known mistakes, each confirmed by making it in the reference and finding the difference gone.

A mistake is a formula for one stage from the reference's own values before it. It is named only if it reproduces
what the other program computed; where none does, nothing is claimed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid import nonlinear
from pellucid.config import TransformerConfig
from pellucid.model import CkptedTransformer

AGREES = 1e-9
"""Relative difference in float64 below which a mistake counts as reproduced."""

Mistakes = Iterator[tuple[str, Callable[[], Tensor]]]


@dataclass(frozen=True)
class Stage:
    """One checkpoint of the reference, with everything that its value is made from.

    Attributes:
        name: The checkpoint, or "logits".
        values: The reference's float64 values by checkpoint name.
        model: The reference, in float64.
    """

    name: str
    values: Mapping[str, Tensor]
    model: CkptedTransformer

    @property
    def config(self) -> TransformerConfig:
        """The reference's configuration."""
        return self.model.config

    @property
    def kind(self) -> str:
        """The name without its block."""
        return self.name.split(".", 2)[2] if self.name.startswith("blocks.") else self.name

    @property
    def block(self) -> int:
        """Which block; the last one for what follows the blocks."""
        return int(self.name.split(".")[1]) if self.name.startswith("blocks.") else self.config.n_layer - 1

    def value(self, kind: str) -> Tensor:
        """The reference's value of another checkpoint of the same block."""
        return self.values[f"blocks.{self.block}.{kind}"]

    def weight(self, name: str) -> Tensor:
        """A parameter of the same block."""
        return self.model.parameter(f"blocks.{self.block}.{name}").detach()


def confirmed_cause(stage: Stage, observed: Tensor) -> str | None:
    """The first known mistake that reproduces `observed` at this stage, in words; None where none does."""
    for words, formula in _mistakes(stage):
        try:
            made = formula()
        except (RuntimeError, KeyError, IndexError):  # a mistake that is impossible with these shapes or captures
            continue
        if made.shape == observed.shape and relative_error(observed, made) < AGREES:
            return words
    return None


def relative_error(given: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value; entries that hold the dtype's minimum left out."""
    shown = expected > torch.finfo(expected.dtype).min / 2 if expected.is_floating_point() else expected == expected
    gap = (given.to(expected) - expected).abs()[shown]
    size = expected.abs()[shown]
    if not gap.numel():
        return 0.0
    largest = float(gap.max())
    return largest / (float(size.max()) or 1.0) if math.isfinite(largest) else math.inf


def _mistakes(stage: Stage) -> Mistakes:
    kind = stage.kind
    if kind == "ckpt_pos_embed":
        yield from _positions(stage)
    elif kind.endswith("ckpt_normalized"):
        yield from _normalization(stage)
    elif kind in ("attn.ckpt_q", "attn.ckpt_k", "attn.ckpt_v"):
        yield from _projections(stage)
    elif kind == "attn.ckpt_z":
        yield from _attention(stage)
    elif kind == "attn.ckpt_attn_out":
        yield from _output(stage)
    elif kind == "mlp.ckpt_post":
        pre = stage.value("mlp.ckpt_pre")
        for name, function in nonlinear.EXACT.items():
            yield f"activation function {name} instead of {stage.config.activation_function}", lambda f=function: f(pre)
    elif kind == "resid_mid":
        yield from _residual(stage)
    elif kind == "logits":
        yield from _head(stage)


def _positions(stage: Stage) -> Mistakes:
    table, expected = stage.model.pos_embed.W_pos.detach(), stage.values["ckpt_pos_embed"]
    length = expected.size(1)
    for shift in (1, 2, -1):
        rows = (torch.arange(length) + shift).clamp(min=0)
        yield f"positions shifted by {shift}", lambda r=rows: table[r].expand_as(expected)
    yield "position 0 everywhere", lambda: table[0].expand_as(expected)


def _normalization(stage: Stage) -> Mistakes:
    if stage.name.startswith("ln_final"):
        x, norm = stage.value("resid_post"), stage.model.ln_final
    else:
        layer = stage.kind.split(".")[0]
        x = stage.value("resid_pre" if layer == "ln1" else "resid_mid")
        block = stage.model.block(stage.block)
        norm = block.ln1 if layer == "ln1" else block.ln2
    w, b, eps = norm.w.detach(), norm.b.detach(), norm.eps
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True)
    for other in (1e-6, 1e-12, 1e-5, 1e-3, 1e-8, 1e-4, 1e-7, 0.0):
        yield f"LayerNorm epsilon {other:g} instead of {eps:g}", lambda e=other: centred / (variance + e).sqrt() * w + b
    unbiased = x.var(-1, keepdim=True, unbiased=True)
    yield "unbiased variance in LayerNorm", lambda: centred / (unbiased + eps).sqrt() * w + b
    yield "unbiased variance and epsilon outside the square root", lambda: centred / (unbiased.sqrt() + eps) * w + b
    yield "LayerNorm epsilon outside the square root", lambda: centred / (variance.sqrt() + eps) * w + b
    yield "LayerNorm without its gain and bias", lambda: centred / (variance + eps).sqrt()
    yield "LayerNorm without its bias", lambda: centred / (variance + eps).sqrt() * w
    yield "RMSNorm instead of LayerNorm", lambda: x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w + b
    yield "no LayerNorm here", lambda: x


def _projections(stage: Stage) -> Mistakes:
    x, letter = stage.value("ln1.ckpt_normalized"), stage.kind[-1].upper()
    for source in "QKV":
        if source != letter:
            product = torch.einsum("bpd,hdk->bphk", x, stage.weight(f"attn.W_{source}"))
            yield (
                f"{source.lower()} in the place of {letter.lower()}",
                lambda p=product, s=source: p + stage.weight(f"attn.b_{s}"),
            )
    product = torch.einsum("bpd,hdk->bphk", x, stage.weight(f"attn.W_{letter}"))
    yield f"no bias on {letter.lower()}", lambda: product
    yield (
        "block input not normalized",
        lambda: (
            torch.einsum("bpd,hdk->bphk", stage.value("resid_pre"), stage.weight(f"attn.W_{letter}"))
            + stage.weight(f"attn.b_{letter}")
        ),
    )


def _attention(stage: Stage) -> Mistakes:
    heads = [stage.value(f"attn.ckpt_{letter}").transpose(1, 2) for letter in "qkv"]
    q, k, v = heads
    right = stage.config.attention_scale(stage.block)
    d_head, d_model = stage.config.d_head, stage.config.n_embd
    for words, scale in (
        ("no scaling of the scores", 1.0),
        ("scores scaled by 1/sqrt(d_model)", d_model**-0.5),
        ("scores scaled by 1/d_head", 1 / d_head),
        ("scores multiplied by sqrt(d_head)", d_head**0.5),
        ("scores scaled by 1/sqrt(d_head) where the configuration says otherwise", d_head**-0.5),
    ):
        if not math.isclose(scale, right):
            yield words, lambda s=scale: _attend(q, k, v, s, 0)
    yield "no causal mask", lambda: _attend(q, k, v, right, None)
    yield "causal mask off by one: sees the next token", lambda: _attend(q, k, v, right, 1)
    yield "causal mask off by one: does not see itself", lambda: _attend(q, k, v, right, -1)
    yield "masked scores set to 0 instead of the minimum", lambda: _attend(q, k, v, right, 0, fill=0.0)
    yield "softmax over the queries", lambda: _attend(q, k, v, right, 0, over=-2)
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            taken = "".join("qkv"[i] for i in order)
            yield (
                f"q, k, v taken in the order {taken}",
                lambda o=order: _attend(heads[o[0]], heads[o[1]], heads[o[2]], right, 0),
            )
    yield "heads split as (d_head, head)", lambda: _resplit(stage, right)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, diagonal: int | None, *, fill: float | None = None, over: int = -1
) -> Tensor:
    """Attention by hand, z [B, P, H, K]; `diagonal` is where the causal mask ends, None for no mask."""
    scores = q @ k.transpose(-1, -2) * scale
    if diagonal is not None:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(diagonal)
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min if fill is None else fill)
    return (scores.softmax(over) @ v).transpose(1, 2)


def _resplit(stage: Stage, scale: float) -> Tensor:
    """z when the columns of q, k and v are read as (d_head, head), and merged back the same way."""
    shape = stage.value("attn.ckpt_q").shape
    mixed = [
        stage.value(f"attn.ckpt_{letter}").flatten(2).unflatten(2, (shape[3], shape[2])).permute(0, 3, 1, 2)
        for letter in "qkv"
    ]
    z = _attend(mixed[0], mixed[1], mixed[2], scale, 0)  # [B, P, H, K]
    return z.transpose(2, 3).reshape(shape)


def _output(stage: Stage) -> Mistakes:
    z = stage.value("attn.ckpt_z")
    W, b = stage.weight("attn.W_O").flatten(0, 1), stage.weight("attn.b_O")
    yield "output projection transposed", lambda: z.flatten(2) @ W.T + b
    yield "no bias on the output projection", lambda: z.flatten(2) @ W
    yield "heads merged as (d_head, head)", lambda: z.transpose(2, 3).flatten(2) @ W + b
    yield (
        "heads not moved behind positions before they are merged",
        lambda: z.transpose(1, 2).reshape(*z.shape[:2], -1) @ W + b,
    )


def _residual(stage: Stage) -> Mistakes:
    x, attn_out = stage.value("resid_pre"), stage.value("attn.ckpt_attn_out")
    yield "the residual connection around attention is missing", lambda: attn_out
    yield "attention's output is not added", lambda: x
    norm = stage.model.block(stage.block).ln1
    yield (
        "LayerNorm after the residual connection (post-LN)",
        lambda: F.layer_norm(x + attn_out, norm.w.shape, norm.w.detach(), norm.b.detach(), norm.eps),
    )


def _head(stage: Stage) -> Mistakes:
    W_U = stage.model.unembed.W_U.detach()
    yield "no final LayerNorm", lambda: stage.value("resid_post") @ W_U
    if not stage.model.unembed.tied:
        yield (
            "head tied to the embedding",
            lambda: stage.values["ln_final.ckpt_normalized"] @ stage.model.embed.W_E.detach().T,
        )
