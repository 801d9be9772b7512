"""A cause is confirmed when every point that is shown agrees, and the smallest is named; what is harmless is a note."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from course import course, monolith
from rights import RIGHTS
from test_outputs import Returning
from torch import Tensor

import pellucid as pl
import support
from pellucid.family.families import Span
from pellucid.gpt2.family import GPT2
from pellucid.gpt2.formulas import PlainWeights, Sizes
from pellucid.gpt2.mistakes import known_mistakes
from pellucid.gpt2.parts import RIGHT, run_parts
from pellucid.prove import causes, comparison, probes, runs
from pellucid.prove.units import units_of

SMALL = {"vocab_size": 53, "n_positions": 16, "n_embd": 24, "n_layer": 3, "n_head": 3}
IDS = support.some_ids(2, 7, 53)


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


@pytest.fixture(scope="module")
def one() -> pl.CkptedTransformer:
    """Of one block, which is enough where blocks do not matter."""
    return support.glass(**{**SMALL, "n_layer": 1})


def cause_of(report: Any) -> str:
    assert report.verdict == "different", report
    return report.first_divergence.cause or ""


def with_attention(made: Any, attention: Any, blocks: Sequence[int] | None = None) -> Any:
    for i in range(len(made.blocks)) if blocks is None else blocks:
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


def test_the_smallest_mistake_that_every_point_confirms(one: pl.CkptedTransformer) -> None:
    for made in (course(one), Returning(course(one), lambda x: x)):
        inner = getattr(made, "inner", made)
        with_attention(inner, attending(unbiased="v"))
        assert "no bias on v (" in cause_of(pl.compare(one, made, IDS))


def test_blocks_that_show_a_mistake_are_all_named(small: pl.CkptedTransformer) -> None:
    """The last position's logits do not show what block 2 sees of the next token; its z does."""
    made = course(small)
    for i in (1, 2):
        made.blocks[i] = course(small, "mask sees next").blocks[i]
    report = pl.compare(small, Returning(made, lambda x: x[:, -1:]), IDS)
    assert "causal mask off by one: sees the next token, in blocks 1, 2 only" in cause_of(report), report


def test_masks_and_dropout_inside_attention(one: pl.CkptedTransformer) -> None:
    blind = with_attention(course(one), attending(blind=True))
    assert "does not see itself, the first position excepted" in cause_of(pl.compare(one, blind, IDS))
    random = with_attention(course(one), attending(dropout=0.1))
    assert "dropout is active" in cause_of(pl.compare(one, random, IDS))


def gelu(constant: float) -> Any:
    return lambda x: 0.5 * x * (1 + torch.tanh(constant * (x + 0.044715 * x.pow(3))))


def with_activation(made: Any, function: Any) -> Any:
    for block in made.blocks:
        block.mlp = lambda x, b=block: b.linear2(function(b.linear1(x)))
    return made


def with_gelu(made: Any, constant: float) -> Any:
    return with_activation(made, gelu(constant))


@pytest.mark.parametrize(
    "constant", support.few_of([0.79788456, 0.7978846, 0.797884561, 0.7978845608], 0.7978846, 0.7978845608)
)
def test_a_constant_of_seven_digits_is_a_note(constant: float, one: pl.CkptedTransformer) -> None:
    report = pl.compare(one, with_gelu(course(one), constant), IDS)
    assert report.verdict == "equivalent", report


@pytest.mark.parametrize("constant", support.few_of([0.797885, 0.79788, 0.7979, 0.798, 0.8], 0.797885, 0.79788, 0.8))
def test_a_constant_of_six_digits_is_a_mistake(constant: float, one: pl.CkptedTransformer) -> None:
    found = cause_of(pl.compare(one, with_gelu(course(one), constant), IDS))
    assert f"GELU's constant is {constant:g} for sqrt(2/pi)" in found


def test_the_bias_of_k_that_is_not_added(one: pl.CkptedTransformer) -> None:
    made = course(one)
    for block in made.blocks:
        bias = F.pad(block.attn.qkv_proj.bias.detach()[24:48], (24, 24))
        block.attn.qkv_proj.register_forward_hook(lambda module, given, out, b=bias: out - b)
    report = pl.compare(one, made, IDS)
    assert report.verdict == "equivalent", report
    assert "no text can show it: softmax ignores" in " ".join(report.notes)


def test_other_parameters_with_the_same_logits(one: pl.CkptedTransformer) -> None:
    made = course(one)
    order = torch.randperm(96)
    with torch.no_grad():
        for layer, axis in ((made.blocks[0].linear1, 0), (made.blocks[0].linear2, 1)):
            layer.weight.copy_(layer.weight.index_select(axis, order))
        made.blocks[0].linear1.bias.copy_(made.blocks[0].linear1.bias[order])
    report = pl.compare(one, made, IDS)
    assert report.verdict == "different"
    assert "other parameters, the same logits" in " ".join(report.notes), report


def amplifying(n_layer: int = 13) -> pl.CkptedTransformer:
    """A model that makes float64's rounding larger by five orders of magnitude and more on its way to the logits."""
    deep = support.glass(vocab_size=53, n_positions=64, n_embd=24, n_layer=n_layer, n_head=4)
    with torch.no_grad():
        for block in deep.blocks:
            block.attn.W_QKV.mul_(8.0)
            block.ln1.w.mul_(3.0)
    return deep


def test_amplified_rounding_accuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a program that shows its values, nor one that shows only logits."""
    monkeypatch.setattr(probes.Probes, "batches", lambda self: [])  # these ids show as much as a probe does
    deep, long = amplifying(), support.some_ids(2, 64, 53)
    report = pl.compare(deep, RIGHTS["per head"](deep), long)
    assert report.verdict == "equivalent", report
    assert "amplified" in " ".join(report.notes), max(row.fp64 for row in report.checkpoints)
    report = pl.compare(deep, monolith(deep), long)
    assert report.verdict == "equivalent", report
    gap = report.checkpoints[-1].fp64
    assert gap is not None
    assert gap > 1e-10, "float64's rounding alone is as small as ever: this shows nothing"
    assert "rounding is amplified on its way" in " ".join(report.notes)
    monkeypatch.setattr(comparison, "family_of", lambda config: replace(GPT2, suspects=None))  # whose search takes long
    assert pl.compare(deep, monolith(deep, "erf gelu", only=12), long).verdict == "different"
    monkeypatch.setattr(runs, "BLURRED", 1e-9)
    report = pl.compare(deep, monolith(deep), long)
    assert report.verdict == "inconclusive"
    assert "too much to tell it from an error" in " ".join(report.notes)


def test_two_mistakes_are_not_one(one: pl.CkptedTransformer) -> None:
    made = with_gelu(course(one, "eps 1e-6"), 0.8)
    found = cause_of(pl.compare(one, made, IDS))
    assert found == "" or "more differs later" in found


# Windows, rows of a batch, heads


def seeing(mask: Any) -> Any:
    """A forward of the course's attention in which `mask(query, key)` says what is seen."""

    def forward(self: Any, x: Tensor, cache: Any = None) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv_proj(x).chunk(3, -1))
        query, key = torch.arange(x.size(1))[:, None], torch.arange(x.size(1))
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=(key <= query) & mask(query, key))
        return self.output_proj(z.transpose(1, 2).flatten(2))

    return forward


MASKS = {
    "attention to the last 3 tokens only": lambda q, k: q - k < 3,
    "attention within blocks of 4 tokens only": lambda q, k: q // 4 == k // 4,
    "attention to all but the first token": lambda q, k: (k > 0) | (q == 0),
}


@pytest.mark.parametrize(
    ("words", "apart"),
    support.few_of(
        itertools.product(MASKS, [False, True]),
        *((words, False) for words in MASKS), ("attention to the last 3 tokens only", True),
    ),
)  # fmt: skip
def test_attention_to_some_tokens(
    words: str, apart: bool, small: pl.CkptedTransformer, one: pl.CkptedTransformer
) -> None:
    model, blocks = (small, (1,)) if apart else (one, None)
    found = cause_of(pl.compare(model, with_attention(course(model), seeing(MASKS[words]), blocks), IDS))
    assert words in found
    assert ("in block 1 only" in found) == apart
    assert "the logits agree too" in found


def test_a_cause_that_other_ids_contradict(one: pl.CkptedTransformer) -> None:
    """On seven tokens, a first one that is not seen from the seventh on is a window of six; on more it is none."""
    made = with_attention(course(one), seeing(lambda q, k: (k > 0) | (q < 6)))
    assert cause_of(pl.compare(one, made, IDS)) == ""


class Segments(torch.nn.Module):
    """The course's program, in which a token hides all that stands before it, as between packed texts."""

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        self.inner, self.ends = course(model), 41
        for block in self.inner.blocks:
            block.attn.forward = functools.partial(self.attend, block.attn)

    def attend(self, attn: Any, x: Tensor, cache: Any = None) -> Tensor:
        q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in attn.qkv_proj(x).chunk(3, -1))
        seen = (self.text[:, :, None] == self.text[:, None]).tril()[:, None]
        return attn.output_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2))

    def forward(self, ids: Tensor) -> Tensor:
        self.text = (ids == self.ends).cumsum(1)
        return self.inner(ids)


@pytest.mark.parametrize("ids", [[[5, 41, 7, 8]], [[5, 6, 41, 7]], [[5, 6, 7, 8]]])
def test_a_cause_of_one_text_is_none_of_others(ids: list[list[int]], one: pl.CkptedTransformer) -> None:
    """In one row, a hidden beginning is a pad, a window, or a first token that is not seen."""
    assert cause_of(pl.compare(one, Segments(one), ids)) == ""


def test_values_that_skip_a_norm_are_no_missing_norm(one: pl.CkptedTransformer) -> None:
    """What enters q and k is normalized, so that the norm is there."""
    made = RIGHTS["split"](one)
    layer = made.layers[0]
    layer.norms[0].register_forward_pre_hook(lambda _, args: setattr(layer, "kept", args[0].clone()))
    layer.attention.to_v.register_forward_pre_hook(lambda _, args: (layer.kept,))
    assert cause_of(pl.compare(one, made, IDS)) == ""


def test_a_window_that_only_a_probe_shows(one: pl.CkptedTransformer) -> None:
    made = with_attention(course(one), seeing(lambda q, k: q - k < 11))
    assert "attention to the last 11 tokens only" in cause_of(pl.compare(one, made, IDS))


class Placed(torch.nn.Module):
    """The course's program with positions of its own."""

    def __init__(self, model: pl.CkptedTransformer, rows: Any) -> None:
        super().__init__()
        self.inner, self.rows = course(model), rows

    def forward(self, ids: Tensor) -> Tensor:
        inner = self.inner
        x = inner.token_embedding(ids) + inner.pos_embedding(self.rows(ids))
        return inner.ln(inner.blocks(x)) @ inner.token_embedding.weight.T


PLACES = {
    "positions run on over the batch": lambda ids: torch.arange(ids.numel()).view(ids.shape) % 16,
    "the number of the batch row for the position": lambda ids: torch.arange(len(ids))[:, None].expand(ids.shape),
    "token ids taken for positions": lambda ids: ids % 16,
}


@pytest.mark.parametrize("words", PLACES)
def test_positions_of_another_axis(words: str, one: pl.CkptedTransformer) -> None:
    report = pl.compare(one, Placed(one, PLACES[words]), IDS)
    assert words in cause_of(report), report


def test_positions_of_its_own_accuse_nobody(one: pl.CkptedTransformer) -> None:
    assert pl.compare(one, Placed(one, lambda ids: torch.arange(ids.size(1))), IDS)


def mixing(change: Any) -> Any:
    """A forward of the course's attention that does something to q, k and v [B, H, P, K]."""

    def forward(self: Any, x: Tensor, cache: Any = None) -> Tensor:
        parts = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv_proj(x).chunk(3, -1))
        z = F.scaled_dot_product_attention(*change(*parts), is_causal=True)
        return self.output_proj(z.transpose(1, 2).flatten(2))

    return forward


MIXES = {
    "keys and values of the batch row before": lambda q, k, v: (q, k.roll(1, 0), v.roll(1, 0)),
    "heads 0 and 1 exchanged in q (": lambda q, k, v: (q[:, [1, 0, 2]], k, v),
    "heads in another order (1, 2, 0) in k (": lambda q, k, v: (q, k[:, [1, 2, 0]], v),
    "heads 1 and 2 exchanged in v, in block 1 only": lambda q, k, v: (q, k, v[:, [0, 2, 1]]),
}


@pytest.mark.parametrize("words", MIXES)
def test_rows_and_heads_that_are_mixed_up(words: str, small: pl.CkptedTransformer, one: pl.CkptedTransformer) -> None:
    model, blocks = (small, (1,)) if "block 1" in words else (one, None)
    assert words in cause_of(pl.compare(model, with_attention(course(model), mixing(MIXES[words]), blocks), IDS))


def test_heads_exchanged_in_the_parameters_of_q(small: pl.CkptedTransformer) -> None:
    made = course(small)
    for parameter in (made.blocks[1].attn.qkv_proj.weight, made.blocks[1].attn.qkv_proj.bias):
        with torch.no_grad():
            parameter[:24].copy_(torch.cat([parameter[8:16], parameter[:8], parameter[16:24]]))
    report = pl.compare(small, made, IDS)
    assert cause_of(report) == "W_Q and b_Q: heads 0 and 1 exchanged, in block 1"
    assert "with the other model's values in the reference, everything agrees" in report.notes


@pytest.mark.parametrize("n_head", [3, 6])
def test_a_scale_that_is_folded_into_q(n_head: int) -> None:
    """Other parameters by definition; with d_head = 4 the factor is exact, with 8 it is rounded to float32."""
    model = support.glass(**{**SMALL, "n_head": n_head})
    made, factor = course(model, "no scale"), (24 // n_head) ** -0.5
    for block in made.blocks:
        with torch.no_grad():
            block.attn.qkv_proj.weight[:24] *= factor
            block.attn.qkv_proj.bias[:24] *= factor
    alone = support.glass(**{**SMALL, "n_head": n_head, "n_layer": 1})
    large = RIGHTS["split"](alone)  # far from the reference's where W_Q is a tensor of its own
    with torch.no_grad():
        large.layers[0].attention.to_q.weight *= factor
    assert f"W_Q: {factor:.6g} times" in cause_of(pl.compare(alone, large, IDS))
    report = pl.compare(model, made, IDS)
    assert cause_of(report) == f"W_Q and b_Q: {factor:.6g} times the reference's values, in blocks 0, 1, 2"
    nearly = "" if n_head == 6 else "nearly "
    assert f"other parameters, {nearly}the same logits" in " ".join(report.notes)


# Constants


def test_the_other_constants_of_gelu(one: pl.CkptedTransformer) -> None:
    exact = support.glass(**{**SMALL, "activation_function": "gelu", "n_layer": 1})

    def cubic(c: float) -> Any:
        return lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + c * x**3)))

    def root(c: float) -> Any:
        return lambda x: 0.5 * x * (1 + torch.erf(x * c))

    for model, function, words in (
        (one, cubic(0.0447), "GELU's constant is 0.0447 for 0.044715"),
        (one, cubic(0.44715), "GELU's constant is 0.44715 for 0.044715"),
        (exact, root(0.7071), "GELU's constant is 0.7071 for 1/sqrt(2)"),
        (exact, root(1 / 1.4142), "GELU's constant is 1 / 1.4142 for 1/sqrt(2)"),
    ):
        assert words in cause_of(pl.compare(model, with_activation(course(model), function), IDS))
    for model, function in (
        (one, cubic(float(torch.tensor(0.044715)))),
        (exact, root(0.70710678)),
        (exact, root(1 / 1.41421356)),
    ):
        report = pl.compare(model, with_activation(course(model), function), IDS)
        assert report.verdict == "equivalent", report
        assert "so that this is rounding" in " ".join(report.notes)


def test_half_a_block_is_the_first_half_of_it(one: pl.CkptedTransformer) -> None:
    weights = PlainWeights(Sizes.of(one.config), units_of(one))
    span = Span(IDS, 0, 0, torch.randn(2, 7, 24))
    whole, half = (run_parts(RIGHT, weights, replace(span, half=half)) for half in (False, True))
    assert all(torch.equal(value, whole[name]) for name, value in half.items())
    kinds = {name.removeprefix("blocks.0.") for name in whole.keys() - half.keys()}
    assert kinds == {"mid", "ln2<", "ln2>", "mlp<", "in<", "in>", "out<", "out>", "mlp>", "block>"}


def test_another_name_for_the_same_function_is_no_cause(small: pl.CkptedTransformer) -> None:
    weights = PlainWeights(Sizes.of(small.config), units_of(small))
    words = " ".join(mistake.report for mistake in known_mistakes(weights))
    assert "activation function gelu instead" in words
    assert "gelu_python_tanh instead" not in words
    assert "gelu_pytorch_tanh instead" not in words


class Again(torch.nn.Module):
    """Another module, once more, without owning it."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.held = [module]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.held[0](x)


class Boxed(torch.nn.Module):
    """A module around all that an MLP is, as the one inside it is."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_what_enters_two_modules_at_once_is_its_own_value(one: pl.CkptedTransformer) -> None:
    """The outer one is forced to the reference's value, which must not hide what it was given."""
    made = RIGHTS["nano"](one)
    for block in made.transformer["h"]:
        block.mlp, block.spare = Boxed(block.mlp), block.ln_2
    assert pl.compare(one, made, IDS)
    for block in made.transformer["h"]:
        block.ln_2 = Again(block.ln_1)
    report = pl.compare(one, made, IDS)
    assert report.verdict == "different", report
    assert report.first_divergence is not None
    assert report.first_divergence.where == "blocks.0.ln2.ckpt_normalized"
    assert "ln1 is used in the place of ln2" in cause_of(report)


def test_a_constant_does_not_stand_for_a_mistake_behind_it(one: pl.CkptedTransformer) -> None:
    """This program keeps sqrt(d_head) in float32, which is a note: what is named is the mistake."""
    made = RIGHTS["split"](one)
    made.layers[-1].feed_in.register_forward_pre_hook(lambda _, args: (args[0] * 1.01,))
    report = pl.compare(one, made, IDS)
    assert report.first_divergence is not None
    assert report.first_divergence.where == f"blocks.{len(made.layers) - 1}.ln2.ckpt_normalized"
    assert report.first_divergence.cause is None
    assert any("which is harmless by itself" in note for note in report.notes)


def test_a_mistake_beside_a_constant_is_named(one: pl.CkptedTransformer) -> None:
    made = RIGHTS["split"](one)

    def blind(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        seen = kwargs["seen"] & ~torch.eye(IDS.size(1), dtype=torch.bool)
        seen[..., 0, 0] = True
        return args, {**kwargs, "seen": seen}

    for layer in made.layers:
        layer.attention.register_forward_pre_hook(blind, with_kwargs=True)
    assert "does not see itself, the first position excepted" in cause_of(pl.compare(one, made, IDS))


def test_heads_in_modules_of_their_own_hide_nothing(one: pl.CkptedTransformer) -> None:
    """What is put into one head's place is no value of the others."""
    made = RIGHTS["per head"](one)
    made.stack[-1].up.register_forward_pre_hook(lambda _, args: (args[0] * 1.01,))
    found = pl.compare(one, made, IDS).first_divergence
    assert found is not None
    assert found.where == f"blocks.{len(made.stack) - 1}.ln2.ckpt_normalized"


def test_a_constant_keeps_no_probe_away(one: pl.CkptedTransformer) -> None:
    """This program's scale is rounded, and its second row is wrong: one row shows the former alone."""
    made = RIGHTS["split"](one)
    assert pl.compare(one, made, IDS[:1])

    def leaking(_: Any, args: Any) -> Any:
        return (torch.cat([args[0][:1], args[0][1:] * 1.01]), *args[1:])

    made.last.register_forward_pre_hook(leaking)
    found = pl.compare(one, made, IDS[:1]).first_divergence
    assert found is not None
    assert "shown on a probe of 2 x " in found.detail


def test_few_mistakes_are_tried_beside_a_constant(one: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no more than 1e-8 differs, nearly every mistake that changes nothing leaves no more than that."""
    made = RIGHTS["split"](one)
    made.layers[-1].feed_in.register_forward_pre_hook(lambda _, args: (args[0] * (1 + 1e-8),))
    tried: list[Any] = []
    outcome = causes.Trials.outcome
    monkeypatch.setattr(causes.Trials, "outcome", lambda self, suspect: tried.append(suspect) or outcome(self, suspect))
    assert pl.compare(one, made, IDS).verdict == "different"
    assert len(tried) < 2000
