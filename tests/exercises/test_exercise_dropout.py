"""Dropout is found by what is dropped: at another place, or at another rate, it is named; in any style it passes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from exercise_solution import variant
from torch import Tensor, nn

from pellucid.exercises import check_attention, check_block, check_gpt2, course
from pellucid.exercises.course import RIGHT, gpt2, training
from pellucid.exercises.watch import Marked, apart, marked
from pellucid.gpt2.formulas import Sizes
from pellucid.gpt2.mistakes import ATTENTION_DROPOUT, BLOCK_DROPOUT, GPT2_DROPOUT

PATTERN = "self.attn_dropout(scores.softmax(-1))"
OUTPUT = "self.resid_dropout(self.output_proj(z))"
MLP = "return x + self.dropout(self.linear2(hidden))"
SUM = "self.dropout(self.token_embedding(x) + self.pos_embedding(positions))"
ATTENDED = "x = x + self.attn(self.ln1(x), cache)"
HEAD = "self.ln(h), self.token_embedding.weight"

NO_PATTERN, NO_OUTPUT = (PATTERN, "scores.softmax(-1)"), (OUTPUT, "self.output_proj(z)")
ON_V = NO_PATTERN, ("(pattern @ v)", "(pattern @ self.attn_dropout(v))")
ON_Z = NO_PATTERN, ("self.output_proj(z)", "self.output_proj(self.attn_dropout(z))")
TWICE = ((OUTPUT, "self.resid_dropout(self.resid_dropout(self.output_proj(z)))"),)
NO_MLP = (MLP, "return x + self.linear2(hidden)")

WRONG: list[tuple[Any, str, tuple[tuple[str, str], ...], str]] = [
    (check_attention, "UnidirectionalAttention", ON_V, "attn_dropout is applied to v"),
    (check_attention, "UnidirectionalAttention", ON_Z, "attn_dropout is applied to z"),
    (check_attention, "UnidirectionalAttention", TWICE, "attention's output is dropped twice"),
    (check_attention, "UnidirectionalAttention", ((PATTERN, "self.attn_dropout(scores).softmax(-1)"),),
     "attn_dropout is applied to the scores, before softmax"),
    (check_attention, "UnidirectionalAttention",
     (NO_PATTERN, ("q @ k.transpose(-1, -2) /", "self.attn_dropout(q @ k.transpose(-1, -2)) /")),
     "attn_dropout is applied to the scores, before they are scaled"),
    (check_attention, "UnidirectionalAttention",
     (NO_PATTERN, ("q @ k.transpose(-1, -2) /", "self.attn_dropout(q) @ k.transpose(-1, -2) /")),
     "attn_dropout is applied to q"),
    (check_attention, "UnidirectionalAttention",
     (NO_PATTERN, ("q @ k.transpose(-1, -2) /", "q @ self.attn_dropout(k).transpose(-1, -2) /")),
     "attn_dropout is applied to k"),
    (check_attention, "UnidirectionalAttention", ((PATTERN, f"self.attn_dropout({PATTERN})"),),
     "the pattern is dropped twice"),
    (check_attention, "UnidirectionalAttention", (("self.qkv_proj(x)", "self.qkv_proj(self.resid_dropout(x))"),),
     "attention's input is dropped, too"),
    (check_block, "GPT2Block", (("self.linear1(self.ln2(x))", "self.linear1(self.dropout(self.ln2(x)))"),),
     "linear1's input is dropped, too"),
    (check_block, "GPT2Block", ((ATTENDED, f"x = self.dropout(x)\n        {ATTENDED}"),),
     "the block's input is dropped, too"),
    (check_gpt2, "GPT2", (("return torch.einsum(", "return self.dropout(torch.einsum("), (f"{HEAD})", f"{HEAD}))")),
     "the logits are dropped, too"),
    (check_gpt2, "GPT2", ((HEAD, HEAD.replace("(h)", "(self.dropout(h))")),),
     "dropout is applied before the final LayerNorm, too"),
    (check_block, "GPT2Block", ((ATTENDED, "x = x + self.dropout(self.attn(self.ln1(x), cache))"),),
     "attention's output is dropped twice"),
    (check_block, "GPT2Block", ((MLP, "return self.dropout(x + self.linear2(hidden))"),),
     "the block's output is dropped"),
    (check_block, "GPT2Block", ((MLP, "return x + self.linear2(self.dropout(hidden))"),),
     "dropout is applied between linear1 and linear2;"),
    (check_block, "GPT2Block", ((MLP, "return x + self.dropout(self.linear2(self.dropout(hidden)))"),),
     "dropout is applied between linear1 and linear2, too"),
    (check_gpt2, "GPT2", ((HEAD, "self.dropout(self.ln(h)), self.token_embedding.weight"),),
     "dropout is applied before the unembedding, too"),
    (check_block, "GPT2Block",
     ((ATTENDED, "x = self.dropout(x + self.attn(self.ln1(x), cache))"),
      (MLP, "return self.dropout(x + self.linear2(hidden))")),
     "the two sums are dropped"),
    (check_block, "GPT2Block", (NO_OUTPUT, ("self.output_proj(z)", "self.output_proj(self.resid_dropout(z))")),
     "z, the weighted sum, is dropped in the place of output_proj's output"),
    (check_attention, "UnidirectionalAttention",
     (("self.output_proj(z)", "self.output_proj(self.attn_dropout(z))"),), "z, the weighted sum, is dropped, too"),
    (check_block, "GPT2Block", ((MLP, "return self.dropout(x + self.dropout(self.linear2(hidden)))"),),
     "the block's output is dropped, too"),
    (check_block, "GPT2Block", ((ATTENDED, "x = self.dropout(x + self.attn(self.ln1(x), cache))"),),
     "the sum with attention's output is dropped, too"),
    (check_block, "GPT2Block", ON_V, "attn_dropout is applied to v"),
    (check_block, "GPT2Block", (NO_PATTERN,), "the pattern is not dropped"),
    (check_block, "GPT2Block", (NO_OUTPUT,), "attention's output is not dropped"),
    (check_block, "GPT2Block", (NO_PATTERN, NO_OUTPUT), "nothing is dropped in attention"),
    (check_block, "GPT2Block", ((MLP, "return x + self.dropout(self.dropout(self.linear2(hidden)))"),),
     "linear2's output is dropped twice"),
    (check_block, "GPT2Block", (("num_heads, dropout=dropout)", "num_heads)"),),
     "`attn.attn_dropout` has p=0.1, not the dropout=0.4 given"),
    (check_gpt2, "GPT2", ON_Z, "attn_dropout is applied to z"),
    (check_gpt2, "GPT2", (NO_MLP,), "linear2's output is not dropped"),
    (check_gpt2, "GPT2", (NO_PATTERN, NO_OUTPUT, NO_MLP), "nothing is dropped"),
    (check_gpt2, "GPT2", ((MLP, "return self.dropout(x + self.linear2(hidden))"),), "the block's output is dropped"),
    (check_gpt2, "GPT2", ((SUM, "self.dropout(self.token_embedding(x)) + self.pos_embedding(positions)"),),
     "applied to the token embedding alone"),
    (check_gpt2, "GPT2", ((SUM, "self.token_embedding(x) + self.dropout(self.pos_embedding(positions))"),),
     "applied to the position embedding alone"),
    (check_gpt2, "GPT2",
     ((SUM, "self.dropout(self.token_embedding(x)) + self.dropout(self.pos_embedding(positions))"),),
     "the two embeddings are dropped one by one"),
    (check_gpt2, "GPT2",
     ((SUM, SUM.removeprefix("self.dropout")), (HEAD, "self.dropout(self.ln(h)), self.token_embedding.weight")),
     "dropout is applied before the unembedding"),
    (check_gpt2, "GPT2", ((SUM, f"self.dropout({SUM})"),), "the embeddings are dropped twice"),
]  # fmt: skip


def first_of_each() -> Iterator[Any]:
    """Every row; what an earlier one tells of a smaller module is left to the long run."""
    seen: set[str] = set()
    for row in WRONG:
        yield pytest.param(*row, id=f"{row[1]}: {row[3]}", marks=[pytest.mark.long] if row[3] in seen else [])
        seen.add(row[3])


@pytest.mark.parametrize(("check", "name", "changes", "words"), [*first_of_each()])
def test_dropout_at_another_place_or_rate_is_named(
    check: Any, name: str, changes: tuple[tuple[str, str], ...], words: str
) -> None:
    result = check(getattr(variant(*changes), name))
    assert not result
    assert words in str(result.mistake), result
    assert str(result.step).startswith("dropout")
    assert not any("at the rate given" in text for text in result.proved), result


def test_every_mistake_of_the_tables_is_made_above() -> None:
    for one in (*ATTENTION_DROPOUT, *BLOCK_DROPOUT, *GPT2_DROPOUT):
        assert any(words in one.learner for *_, words in WRONG), one.learner


def test_a_place_that_no_table_has_is_not_given_a_name() -> None:
    changed = variant((PATTERN, f"{PATTERN} ** (1.5 if self.training else 1.0)"))
    result = check_attention(changed.UnidirectionalAttention)
    assert "no known mistake gives it" in str(result.mistake), result


DROPPED = "self.attn_dropout.p, self.training"
RIGHT_STYLES = {
    "functional": (PATTERN, f"F.dropout(scores.softmax(-1), {DROPPED})"),
    "functional, by name": (
        PATTERN,
        "F.dropout(input=scores.softmax(-1), p=self.attn_dropout.p, training=self.training)",
    ),
    "torch.dropout": (PATTERN, f"torch.dropout(scores.softmax(-1), {DROPPED})"),
    "in place": (PATTERN, f"F.dropout(scores.softmax(-1), {DROPPED}, True)"),
    "only in training": (PATTERN, "self.attn_dropout(scores.softmax(-1)) if self.training else scores.softmax(-1)"),
    "fused": (
        "z = (pattern @ v)",
        "z = F.scaled_dot_product_attention(q, k, v, ~future, self.attn_dropout.p if self.training else 0.0)",
    ),
    "fused, causal": (
        "z = (pattern @ v)",
        "z = F.scaled_dot_product_attention(q, k, v, None, self.attn_dropout.p * self.training, is_causal=True)",
    ),
}


@pytest.mark.parametrize("name", RIGHT_STYLES)
def test_right_dropout_passes_in_any_style(name: str) -> None:
    result = check_attention(variant(RIGHT_STYLES[name]).UnidirectionalAttention)
    assert result, result
    assert any("at the rate given" in text for text in result.proved), result


@pytest.mark.parametrize(
    "change",
    [
        (PATTERN, "F.dropout(scores.softmax(-1), 0.25 * self.training, self.training)"),
        ("z = (pattern @ v)", "z = F.scaled_dot_product_attention(q, k, v, ~future, 0.25 if self.training else 0.0)"),
    ],
)
def test_a_rate_of_its_own_is_refused(change: tuple[str, str]) -> None:
    assert not check_attention(variant(change).UnidirectionalAttention)


class Drawn(nn.Dropout):
    """Dropout by hand."""

    def forward(self, x: Tensor) -> Tensor:
        keep = (torch.rand_like(x) >= self.p) / max(1 - self.p, 1e-9)
        return x * keep if self.training else x


def test_dropout_by_hand_passes_and_its_place_is_not_claimed() -> None:
    class ByHand(variant().UnidirectionalAttention):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.attn_dropout = Drawn(self.attn_dropout.p)

    result = check_attention(ByHand)
    assert result, result
    assert any("which tensors are dropped was not checked" in note for note in result.notes)
    assert not any("drops the pattern" in text for text in result.proved)


def test_dropouts_whose_names_are_exchanged_pass_and_are_told() -> None:
    changed = (PATTERN, PATTERN.replace("attn", "resid")), (OUTPUT, OUTPUT.replace("resid", "attn"))
    result = check_attention(variant(*changed).UnidirectionalAttention)
    assert result, result
    assert any("the two are exchanged" in note for note in result.notes), result


def test_dropouts_of_other_names_pass_and_are_told() -> None:
    text = variant().UnidirectionalAttention

    class Other(text):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.first, self.second = self.attn_dropout, self.resid_dropout
            del self.attn_dropout, self.resid_dropout

        def __getattr__(self, name: str) -> Any:
            if name in ("attn_dropout", "resid_dropout") and sys._getframe(1).f_code.co_name == "forward":
                return self.first if name == "attn_dropout" else self.second
            return super().__getattr__(name)

    result = check_attention(Other)
    assert result, result
    assert any("no nn.Dropout `attn_dropout` and `resid_dropout`, as the course calls it" in n for n in result.notes)


def test_one_dropout_module_for_all_passes() -> None:
    class Shared(variant().GPT2):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for block in self.blocks:
                block.dropout = self.dropout

    assert check_gpt2(Shared), check_gpt2(Shared)


def test_mistakes_differ_from_one_another_and_from_what_is_right() -> None:
    sizes = Sizes(12, 3, 4, layers=2, vocabulary=23, positions=7)
    generator = torch.Generator().manual_seed(0)
    p = {
        n: torch.randn(s, generator=generator).double() for n, s in course.shapes_of(course.gpt2_layers, sizes).items()
    }
    ids = course.texts(sizes)[0]
    rows = [{}, *(one.changes for one in (*ATTENTION_DROPOUT, *BLOCK_DROPOUT, *GPT2_DROPOUT))]
    run = gpt2(p, sizes)
    made = [run(ids, training(replace(RIGHT, **row), sizes))["logits"] for row in rows]
    for number, one in enumerate(made):
        assert all(apart(one, other) > 1e-9 for other in made[:number]), rows[number]
    still = run(ids, RIGHT)["logits"]
    assert all(torch.equal(run(ids, replace(RIGHT, **row))["logits"], still) for row in rows)


def test_the_stand_in_is_that_of_every_dropout_in_training_and_of_none_elsewhere() -> None:
    x, dropout = torch.randn(2, 3, 4, 4), nn.Dropout(0.3)
    with Marked():
        assert torch.equal(dropout(x), marked(x, 0.3))
        assert torch.equal(dropout.eval()(x), x)
        assert torch.equal(nn.functional.dropout(x), marked(x, 0.5))
        changed = x.clone()
        nn.functional.dropout(changed, 0.3, inplace=True)
        assert torch.equal(changed, marked(x, 0.3))
        fused = nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.2)
        still = nn.functional.scaled_dot_product_attention(x, x, x)
    assert torch.equal(still, nn.functional.scaled_dot_product_attention(x, x, x))
    assert torch.allclose(fused, marked((x @ x.mT / 2).softmax(-1), 0.2) @ x, atol=1e-5)
