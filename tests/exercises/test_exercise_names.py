"""Other names for the same layers: what is computed is checked all the same, and the course's names are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exercise_solution import variant
from torch import Tensor, nn

from pellucid.exercises import check_attention, check_block, check_gpt2
from pellucid.exercises.course import gpt2_layers, shapes_of
from pellucid.exercises.names import namings
from pellucid.gpt2.formulas import Sizes

QKV = "self.qkv_proj = nn.Linear(hidden_size, 3 * inner)"
NANO = [
    (QKV, "self.c_attn = nn.Linear(hidden_size, 3 * inner)"),
    ("self.qkv_proj(x).view", "self.c_attn(x).view"),
    ("self.output_proj = nn", "self.c_proj = nn"),
    ("self.output_proj(z)", "self.c_proj(z)"),
]
SCALE = (" / self.head_size**0.5  # (batch", "  # (batch")


class Three(nn.Module):
    """Attention with a matrix each for queries, keys and values, made in an order of its own."""

    scale = True

    def __init__(self, hidden_size: int, num_heads: int, head_size: int | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads, self.size = num_heads, head_size or hidden_size // num_heads
        inner = self.heads * self.size
        self.values, self.queries, self.keys = (nn.Linear(hidden_size, inner) for _ in range(3))
        self.out = nn.Linear(inner, hidden_size)
        self.attn_dropout, self.resid_dropout = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, self.size)).transpose(1, 2) for f in (self.queries, self.keys, self.values)
        )
        scores = q @ k.mT / (self.size**0.5 if self.scale else 1)
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -1e4)
        return self.resid_dropout(self.out((self.attn_dropout(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2)))


class Fused(nn.Module):
    """Torch's own attention, which has no head_size."""

    def __init__(self, hidden_size: int, num_heads: int, head_size: int | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(hidden_size, num_heads, dropout, batch_first=True)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        future = torch.ones(x.size(1), x.size(1), dtype=torch.bool, device=x.device).triu(1)
        return self.resid_dropout(self.mha(x, x, x, attn_mask=future, need_weights=False)[0])


class Turned(nn.Module):
    """A linear layer that keeps its weight as transformers does, [in, out]."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inner, outer)), nn.Parameter(torch.zeros(outer))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class AxisOfHeads(nn.Module):
    """Matrices with an axis for heads, as HookedTransformer keeps them."""

    scale = True

    def __init__(self, hidden_size: int, num_heads: int, head_size: int | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        size = head_size or hidden_size // num_heads
        for letter in "QKV":
            setattr(self, f"W_{letter}", nn.Parameter(torch.randn(num_heads, hidden_size, size)))
            setattr(self, f"b_{letter}", nn.Parameter(torch.zeros(num_heads, size)))
        self.W_O = nn.Parameter(torch.randn(num_heads, size, hidden_size))
        self.b_O = nn.Parameter(torch.zeros(hidden_size))
        self.attn_dropout, self.resid_dropout = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        q, k, v = (
            torch.einsum("bpd,hdk->bhpk", x, getattr(self, f"W_{letter}")) + getattr(self, f"b_{letter}")[:, None]
            for letter in "QKV"
        )
        scores = q @ k.mT / (q.size(-1) ** 0.5 if self.scale else 1)
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -1e4)
        z = self.attn_dropout(scores.softmax(-1)) @ v
        return self.resid_dropout(torch.einsum("bhpk,hkd->bpd", z, self.W_O) + self.b_O)


class OneHead(nn.Module):
    def __init__(self, hidden_size: int, size: int, dropout: float) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(hidden_size, size) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT * self.key.out_features**-0.5
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        return self.dropout(scores.softmax(-1)) @ self.value(x)


class ListOfHeads(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, head_size: int | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        size = head_size or hidden_size // num_heads
        self.heads = nn.ModuleList(OneHead(hidden_size, size, dropout) for _ in range(num_heads))
        self.proj, self.dropout = nn.Linear(num_heads * size, hidden_size), nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        return self.dropout(self.proj(torch.cat([head(x) for head in self.heads], -1)))


def told(result: Any) -> str:
    return "\n".join(note for note in result.notes if note.startswith("names: "))


def test_other_names_pass_and_are_told() -> None:
    result = check_attention(variant(*NANO).UnidirectionalAttention)
    assert result, result
    assert "`c_attn` is what the course calls `qkv_proj`" in told(result), result
    assert "`c_proj` is what the course calls `output_proj`" in told(result)


def test_three_matrices_pass_in_any_order() -> None:
    result = check_attention(Three)
    assert result, result
    assert "`queries`, `keys`, `values` are together what the course calls `qkv_proj`" in told(result), result


def test_heads_with_an_axis_or_layers_of_their_own_pass() -> None:
    result = check_attention(AxisOfHeads)
    assert result, result
    assert "`W_Q`, `W_K`, `W_V` are together what the course calls `qkv_proj`" in told(result), result
    wrong = check_attention(type("Unscaled", (AxisOfHeads,), {"scale": False}))
    assert wrong.mistake == "the scores are not divided by sqrt(head_size)", wrong
    result = check_attention(ListOfHeads)
    assert result, result
    assert "`heads.0.query`, `heads.0.key`, `heads.0.value` are together" in told(result), result


def test_wrong_mathematics_under_other_names_is_named() -> None:
    result = check_attention(variant(*NANO, SCALE).UnidirectionalAttention)
    assert "not divided by sqrt(head_size)" in str(result.mistake), result
    assert "not divided by sqrt(head_size)" in str(check_attention(type("W", (Three,), {"scale": False})).mistake)


def test_a_transposed_matrix_passes_and_is_told() -> None:
    class Conv(variant().UnidirectionalAttention):
        def __init__(self, hidden_size: int, *given: Any, **named: Any) -> None:
            super().__init__(hidden_size, *given, **named)
            self.qkv_proj = Turned(hidden_size, self.qkv_proj.out_features)

    result = check_attention(Conv)
    assert result, result
    assert "`qkv_proj` is kept transposed, [in, out]" in told(result), result


def test_torch_s_attention_is_checked_with_heads_of_the_default_size() -> None:
    result = check_attention(Fused)
    assert str(result.mistake).startswith("with head_size=5, which is not hidden_size // num_heads, "), result
    assert any(
        "with heads of the default size the output is that of causal attention" in text for text in result.proved
    )
    assert "`mha.in_proj` is what the course calls `qkv_proj`" in told(result), result


def test_names_of_blocks_and_models_are_told_once() -> None:
    other = [
        ("self.ln1 = ", "self.norm1 = "), ("self.ln1(x), cache", "self.norm1(x), cache"),
        ("self.ln2 = ", "self.norm2 = "), ("self.linear1(self.ln2(x))", "self.fc1(self.norm2(x))"),
        ("self.linear1 = ", "self.fc1 = "), ("self.linear2 = ", "self.fc2 = "),
        ("self.linear2(hidden)", "self.fc2(hidden)"),
    ]  # fmt: skip
    model = variant(*NANO, *other)
    assert "`fc1` is what the course calls `linear1`" in told(check_block(model.GPT2Block)), check_block(
        model.GPT2Block
    )
    result = check_gpt2(model.GPT2)
    assert result, result
    assert told(result).count("`blocks.0.fc1` is what the course calls `blocks.0.linear1`") == 1
    wrong = check_gpt2(variant(*NANO, *other, SCALE).GPT2)
    assert "not divided by sqrt(head_size)" in str(wrong.mistake), wrong


def test_what_has_another_shape_is_not_taken_for_a_layer() -> None:
    class Small(nn.Module):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__()
            self.a = nn.Linear(7, 7)

        def forward(self, x: Tensor, cache: Any = None) -> Tensor:
            return F.relu(x)

    assert "has no `qkv_proj` with a weight" in str(check_attention(Small).mistake)


@pytest.mark.parametrize("level", [1, 2])
def test_hints_hold_for_modules(level: int) -> None:
    result = check_attention(variant(SCALE).UnidirectionalAttention, hint=level)
    assert (result.mistake, result.step) == (None, "scaling the scores")
    assert ("a number is wrong" in repr(result)) == (level == 2)


def test_the_line_that_makes_the_mistake_is_shown() -> None:
    result = check_attention(type("Unscaled", (Three,), {"scale": False}))
    assert "scores = q @ k.mT / (self.size**0.5 if self.scale else 1)" in str(result.line), result


def holding(**shapes: tuple[int, ...]) -> nn.Module:
    module = nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    return module


def test_a_block_takes_layers_of_its_own_number_alone() -> None:
    """Every block has matrices of the same shapes, and a head's W_Q has as many numbers as the output projection."""
    model = nn.Module()
    model.embed, model.pos, model.norm = holding(W_E=(29, 12)), holding(W_pos=(9, 12)), holding(gain=(12,), bias=(12,))
    model.blocks = nn.ModuleList(nn.Module() for _ in range(3))
    for block in model.blocks:
        block.norm1, block.norm2 = holding(gain=(12,), bias=(12,)), holding(gamma=(12,), beta=(12,))
        heads = {f"W_{letter}": (4, 12, 3) for letter in "QKV"} | {f"b_{letter}": (4, 3) for letter in "QKV"}
        block.attn = holding(**heads, W_O=(4, 3, 12), b_O=(12,))
        block.mlp = holding(W_in=(12, 48), b_in=(48,), W_out=(48, 12), b_out=(12,))
    sizes = Sizes(12, 4, 3, layers=3, vocabulary=29, positions=9)
    found = namings(model, shapes_of(gpt2_layers, sizes))[0].sources
    assert found["ln.bias"].names == ("norm.bias",)
    for name, source in found.items():
        if name.startswith("blocks."):
            assert all(part.startswith(name[:9]) for part in source.names), (name, source)
