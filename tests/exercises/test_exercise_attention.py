"""Attention: wrong answers are named, right ones in any style pass, and nothing is ever raised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from exercise_solution import variant
from torch import nn

from pellucid.exercises import check_attention, check_block, check_gpt2, modules

SCALE = " / self.head_size**0.5  # (batch, head, query, key)"
QKV = "self.qkv_proj(x).view(batch, seq, 3, self.num_heads, self.head_size).unbind(2)"
MASK = "scores = scores.masked_fill(future, -1e4)"
FUTURE = "future = torch.ones(seq, keys, dtype=torch.bool, device=x.device).triu(keys - seq + 1)"
PATTERN = "pattern = self.attn_dropout(scores.softmax(-1))"
MERGE = "z = (pattern @ v).transpose(1, 2).reshape(batch, seq, -1)"
OUT = "return self.resid_dropout(self.output_proj(z))"
HEADS = "q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (batch, head, seq, head_size)"

WRONG_ATTENTION = {
    "minus sign forgotten": (("-1e4", "1e4"), "the minus sign is missing", "pattern"),
    "inf": (("-1e4", "float('inf')"), "+inf (the minus sign is missing) or to NaN", "pattern"),
    "1e-4": (("-1e4", "1e-4"), "set to 1e-4, where -1e4 is meant", "pattern"),
    "over heads": (("scores.softmax(-1)", "scores.softmax(1)"), "over the heads, not over the keys", "pattern"),
    "rounded": ((SCALE, " / int(self.head_size**0.5)"), "sqrt(head_size) is rounded down", "scores"),
    "k with k": (("q @ k.transpose(-1, -2)", "k @ k.transpose(-1, -2)"), "k @ k.T: q is not used", "q, k, v"),
    "times the logarithm of the mask": (
        (MASK, "scores = scores * (~future).log()"),
        "the logarithm of the mask",
        "pattern",
    ),
    "times a mask": ((MASK, "scores = scores * (1 - 10001 * future.to(scores))"), "a mask of 1 and -10000", "pattern"),
    "times -inf": (
        (MASK, "scores = scores * torch.ones_like(scores).masked_fill(future, float('-inf'))"),
        "a mask of 1 and -inf",
        "pattern",
    ),
    "no scaling": ((SCALE, ""), "not divided by sqrt(head_size)", "scores"),
    "scaled by hidden": ((SCALE, " / x.shape[-1]**0.5"), "divided by sqrt(hidden_size), not", "scores"),
    "scaled by heads": ((SCALE, " / self.num_heads**0.5"), "divided by sqrt(num_heads)", "scores"),
    "scaled, not rooted": ((SCALE, " / self.head_size"), "by head_size, not by its square root", "scores"),
    "head_size ignored in the scale": (
        (SCALE, " / (x.shape[-1] // self.num_heads)**0.5"),
        "head_size is ignored",
        "scores",
    ),
    "no mask": ((MASK, ""), "no causal mask", "pattern"),
    "mask sees the next": (("triu(keys - seq + 1)", "triu(keys - seq + 2)"), "sees the next token", "pattern"),
    "mask hides itself": (("triu(keys - seq + 1)", "triu(keys - seq)"), "does not see itself", "pattern"),
    "mask hides itself, -inf": (
        (
            FUTURE + "\n        " + MASK,
            FUTURE.replace(" + 1", "") + "\n        scores = scores.masked_fill(future, float('-inf'))",
        ),
        "does not see itself",
        "pattern",
    ),
    "mask transposed": (("triu(keys - seq + 1)", "tril(-1)"), "transposed", "pattern"),
    "mask by multiplication": ((MASK, "scores = scores * ~future"), "set to 0", "pattern"),
    "mask too weak": (("-1e4", "-10"), "set to -10,", "pattern"),
    "mask far too weak": (("-1e4", "-100"), "set to -100,", "pattern"),
    "mask after softmax": (
        (MASK + "\n        " + PATTERN, "pattern = scores.softmax(-1).masked_fill(future, 0)"),
        "after softmax, so that",
        "pattern",
    ),
    "softmax over queries": (("scores.softmax(-1)", "scores.softmax(-2)"), "over the queries", "pattern"),
    "softmax over heads": (("scores.softmax(-1)", "scores.softmax(1)"), "over the heads", "pattern"),
    "order k, q, v": (("q, k, v = " + QKV, "k, q, v = " + QKV), "in the order k, q, v", "q, k, v"),
    "order v, k, q": (("q, k, v = " + QKV, "v, k, q = " + QKV), "in the order v, k, q", "q, k, v"),
    "interleaved by head": (
        (QKV, "self.qkv_proj(x).view(batch, seq, self.num_heads, 3, self.head_size).unbind(3)"),
        "interleaved inside each head",
        "q, k, v",
    ),
    "innermost part": (
        (QKV, "self.qkv_proj(x).view(batch, seq, self.num_heads, self.head_size, 3).unbind(4)"),
        "innermost axis",
        "q, k, v",
    ),
    "size before head": (
        (QKV, "self.qkv_proj(x).view(batch, seq, 3, self.head_size, self.num_heads).transpose(3, 4).unbind(2)"),
        "split as (head_size, num_heads)",
        "q, k, v",
    ),
    "reshaped without moving": (
        (HEADS, "q, k, v = (t.reshape(batch, self.num_heads, seq, self.head_size) for t in (q, k, v))"),
        "without moving axes",
        "q, k, v",
    ),
    "weighs k": (("(pattern @ v)", "(pattern @ k)"), "weighs k", "z"),
    "merged without moving": (
        (".transpose(1, 2).reshape(batch, seq, -1)", ".reshape(batch, seq, -1)"),
        "not moved behind",
        "z",
    ),
    "merged as size, head": (
        (".transpose(1, 2).reshape(batch, seq, -1)", ".permute(0, 2, 3, 1).reshape(batch, seq, -1)"),
        "merged as (head_size, num_heads)",
        "z",
    ),
    "no output bias": (
        ("self.output_proj(z)", "nn.functional.linear(z, self.output_proj.weight)"),
        "output_proj's bias",
        "output",
    ),
    "output transposed without its bias": (
        ("self.output_proj(z)", "z @ self.output_proj.weight"),
        "output_proj is applied transposed, and its bias is not used",
        "output",
    ),
    "output twice without its bias": (
        ("self.output_proj(z)", "z @ self.output_proj.weight.T @ self.output_proj.weight.T"),
        "output_proj is applied twice, and its bias is not used",
        "output",
    ),
    "mask after a softmax over queries": (
        (MASK + "\n        " + PATTERN, "pattern = scores.softmax(-2).masked_fill(future, 0)"),
        "after softmax, which runs over the queries",
        "pattern",
    ),
    "no qkv bias": (
        ("self.qkv_proj(x).view", "nn.functional.linear(x, self.qkv_proj.weight).view"),
        "qkv_proj's bias",
        "q, k, v",
    ),
}


@pytest.mark.parametrize("name", WRONG_ATTENTION)
def test_wrong_attention_is_named(name: str) -> None:
    change, words, tensor = WRONG_ATTENTION[name]
    result = check_attention(variant(change).UnidirectionalAttention)
    assert not result
    assert words in str(result.mistake), result
    assert str(result.tensor).startswith(tensor + " ["), result
    second = result.hinted(2)
    assert (second.mistake, second.tensor, second.kind) == (None, result.tensor, result.kind)
    assert second.kind, "every mistake of the table has a kind"


def test_what_is_nan_as_a_whole_is_not_given_a_cause() -> None:
    nan = check_attention(
        variant((MASK, "scores = scores + (1 - (~future).to(scores)) * float('-inf')")).UnidirectionalAttention
    )
    assert "the output holds NaN, and none of the known mistakes" in str(nan.mistake), nan
    assert str(nan.tensor).startswith("pattern"), nan


def test_what_is_wrong_in_some_shapes_only_is_shown_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "ATTENTION", ())
    result = check_attention(
        variant((MASK, f"{MASK} if seq > 4 else scores / (1 + future * scores.abs())")).UnidirectionalAttention
    )
    assert "with batch 3 and seq 4, though right with batch 2 and seq 5" in str(result.mistake), result
    assert str(result.tensor).startswith("pattern"), result


def test_two_mistakes_at_once_are_both_named() -> None:
    result = check_attention(variant((SCALE, ""), (MASK, "")).UnidirectionalAttention)
    assert "not divided by sqrt(head_size); and there is no causal mask" in str(result.mistake)


BEYOND_NUMBERS = {
    "created on the CPU": ((", device=x.device).triu", ").triu"), "default device", "creating tensors"),
    "no attn_dropout": (
        ("self.attn_dropout(scores.softmax(-1))", "scores.softmax(-1)"),
        "the pattern is not dropped",
        "dropout",
    ),
    "dropout on the wrong tensor": (
        ("self.attn_dropout(scores.softmax(-1))", "self.attn_dropout(scores).softmax(-1)"),
        "attn_dropout is applied to the scores, before softmax",
        "dropout",
    ),
    "resid_dropout missing": (
        ("        self.resid_dropout = nn.Dropout(dropout)\n", "        self.resid_dropout = nn.Identity()\n"),
        "no nn.Dropout `resid_dropout`",
        "dropout",
    ),
    "another rate": (
        ("self.attn_dropout = nn.Dropout(dropout)", "self.attn_dropout = nn.Dropout(0.1)"),
        "p=0.1, not the dropout=0.4",
        "dropout",
    ),
    "dropout in evaluation": (
        ("self.resid_dropout(self.output_proj(z))", "F.dropout(self.output_proj(z), 0.1)"),
        "dropout is active in evaluation",
        "dropout",
    ),
    "changes its input": (
        ("batch, seq, _ = x.shape\n        q", "batch, seq, _ = x.shape\n        x += 0 * x + 1\n        q"),
        "changes its input in place",
        "running UnidirectionalAttention",
    ),
    "split linears": (
        ("self.qkv_proj = nn.Linear(hidden_size, 3 * inner)", "self.q_proj = nn.Linear(hidden_size, inner)"),
        "no `qkv_proj`",
        "the parameters",
    ),
    "no bias": (
        ("nn.Linear(hidden_size, 3 * inner)", "nn.Linear(hidden_size, 3 * inner, bias=False)"),
        "has no bias",
        "the parameters",
    ),
    "head_size ignored": (
        ("hidden_size // num_heads if head_size is None else head_size", "hidden_size // num_heads"),
        "`qkv_proj.weight` has shape [54, 18], expected [45, 18]",
        "the parameters",
    ),
    "raises": (
        ("batch, seq, _ = x.shape\n        q", "batch, seq = x.shape\n        q"),
        "ValueError: too many values to unpack",
        "running UnidirectionalAttention",
    ),
    "raises when constructed": (("inner = self.num_heads", "inner = self.num_haeds"), "AttributeError", "constructing"),
    "returns None": ((OUT, "self.resid_dropout(self.output_proj(z))"), "returns NoneType", "the output"),
    "returns a tuple": ((OUT, "return self.output_proj(z), pattern"), "returns tuple", "the output"),
    "wrong shape": ((OUT, OUT + "[:, -1]"), "returns shape [2, 12], expected [2, 5, 12]", "the output"),
    "exits": ((OUT, "raise SystemExit(1)"), "SystemExit", "running"),
}


@pytest.mark.parametrize("name", BEYOND_NUMBERS)
def test_what_is_wrong_beyond_the_numbers_is_named(name: str) -> None:
    change, words, step = BEYOND_NUMBERS[name]
    result = check_attention(variant(change).UnidirectionalAttention)
    assert not result
    assert words in str(result.mistake), result
    assert step in str(result.step), result


def test_the_order_of_initialisation_is_named() -> None:
    class Reversed(variant().UnidirectionalAttention):
        def __init__(
            self, hidden_size: int, num_heads: int, head_size: int | None = None, dropout: float = 0.1
        ) -> None:
            super().__init__(hidden_size, num_heads, head_size, dropout)
            torch.manual_seed(7)
            self.output_proj = nn.Linear(self.output_proj.in_features, hidden_size)
            self.qkv_proj = nn.Linear(hidden_size, self.qkv_proj.out_features)

    result = check_attention(Reversed)
    assert "in the order `output_proj`, `qkv_proj`; the order of use is `qkv_proj`, `output_proj`" in str(
        result.mistake
    )


RIGHT_ATTENTION = {
    "as it is": (),
    "-inf": (("-1e4", "float('-inf')"),),
    "finfo.min": (("masked_fill(future, -1e4)", "masked_fill(future, torch.finfo(scores.dtype).min)"),),
    "-1e9 added": ((MASK, "scores = scores + future * -1e9"),),
    "where": ((MASK, "scores = torch.where(future, torch.tensor(-1e4, device=x.device), scores)"),),
    "in place on its own scores": ((MASK, "scores.masked_fill_(future, -1e4)"),),
    "assigned through a mask": ((MASK, "scores[..., future] = -1e4"),),
    "query scaled first": (
        ("scores = q @ k.transpose(-1, -2)" + SCALE, "scores = (q / self.head_size**0.5) @ k.transpose(-1, -2)"),
    ),
    "einsum": (
        ("q @ k.transpose(-1, -2) /", "torch.einsum('bhqd,bhkd->bhqk', q, k) /"),
        ("(pattern @ v).transpose(1, 2)", "torch.einsum('bhqk,bhkd->bqhd', pattern, v)"),
    ),
    "chunks": ((QKV, "(t.view(batch, seq, self.num_heads, -1) for t in self.qkv_proj(x).chunk(3, -1))"),),
    "softmax by hand": (
        (
            "scores.softmax(-1)",
            "(scores - scores.amax(-1, keepdim=True)).exp() / "
            "(scores - scores.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)",
        ),
    ),
    "one head at a time": (
        ("(pattern @ v).transpose(1, 2)", "torch.stack([pattern[:, i] @ v[:, i] for i in range(self.num_heads)], 2)"),
    ),
    "sdpa": (
        (PATTERN, ""),
        (MASK, ""),
        (
            "(pattern @ v)",
            "F.scaled_dot_product_attention(q, k, v, attn_mask=~future, "
            "dropout_p=self.attn_dropout.p if self.training else 0.0)",
        ),
    ),
}


@pytest.mark.parametrize("name", RIGHT_ATTENTION)
def test_right_attention_passes_in_any_style(name: str) -> None:
    result = check_attention(variant(*RIGHT_ATTENTION[name]).UnidirectionalAttention)
    assert result, result
    assert result.proved
    assert result.mistake is None


def test_code_for_float32_only_passes_and_says_so() -> None:
    changed = variant(
        ("scores = q @ k", "scores = (q @ k.transpose(-1, -2)).float() * 0 + q @ k"),
        ("self.output_proj(z))", "self.output_proj(z.float().to(z.dtype)))"),
    )
    result = check_attention(changed.UnidirectionalAttention)
    assert result, result
    assert any("float32" in note for note in result.notes)


def test_a_trained_initialisation_is_noted_not_failed() -> None:
    result = check_attention(variant((
        "        self.resid_dropout = nn.Dropout(dropout)\n",
        "        self.resid_dropout = nn.Dropout(dropout)\n        nn.init.normal_(self.qkv_proj.weight, std=0.02)\n",
    )).UnidirectionalAttention)  # fmt: skip
    assert result
    assert any("initialisation" in note for note in result.notes)


def test_an_unknown_mistake_is_not_given_a_name() -> None:
    result = check_attention(variant(("scores.softmax(-1)", "scores.softmax(-1) ** 1.5")).UnidirectionalAttention)
    assert not result
    assert "none of the known mistakes" in str(result.mistake)
    assert "no cause is confirmed" in str(result.mistake)
    assert result.step == "the weighted sum"
    assert str(result.tensor).startswith("z ["), result


def with_line(line: str) -> tuple[str, str]:
    """A change that adds a line to the constructor."""
    last = "        self.resid_dropout = nn.Dropout(dropout)\n"
    return last, f"{last}        {line}\n"


FUTURE_KEPT = (FUTURE, "future = self.future[:seq, :seq]")


def test_a_mask_that_is_kept_passes_as_a_buffer_and_not_as_an_attribute() -> None:
    made = "torch.ones(64, 64, dtype=torch.bool).triu(1)"
    buffer = variant(FUTURE_KEPT, with_line(f"self.register_buffer('future', {made})"))
    assert check_attention(buffer.UnidirectionalAttention)
    attribute = check_attention(variant(FUTURE_KEPT, with_line(f"self.future = {made}")).UnidirectionalAttention)
    assert "masked_fill is given a tensor [5, 5] on the CPU" in str(attribute.mistake), attribute


def test_a_change_in_place_that_stops_the_gradient_is_noted() -> None:
    changed = variant(
        (
            PATTERN,
            "pattern = scores.softmax(-1)\n        pattern.mul_(1.0)\n        "
            + PATTERN.replace("scores.softmax(-1)", "pattern"),
        )
    )
    result = check_attention(changed.UnidirectionalAttention)
    assert result, result
    assert any("cannot be trained" in note for note in result.notes)


def test_whatever_a_learner_s_object_does_is_a_result() -> None:
    class Weird(nn.Module):
        def __init__(self, *_: object, **__: object) -> None:
            super().__init__()

        def __getattr__(self, name: str) -> object:
            raise RuntimeError("no " + name)

    result = check_attention(Weird)
    assert not result
    assert "RuntimeError: no " in str(result.mistake)


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Modules are made in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    ("check", "name"), [(check_attention, "UnidirectionalAttention"), (check_block, "GPT2Block"), (check_gpt2, "GPT2")]
)
def test_right_modules_of_another_dtype_pass(check: Any, name: str) -> None:
    result = check(getattr(variant(), name))
    assert result, result
    assert not any("trained" in note and "gelu" not in note for note in result.notes), result
    assert any("device" in text for text in result.proved), result
    assert not check(getattr(variant((SCALE, "")), name))


def test_three_mistakes_are_not_guessed() -> None:
    changes = (SCALE, ""), (MASK, ""), ("self.output_proj(z)", "nn.functional.linear(z, self.output_proj.weight)")
    result = check_attention(variant(*changes).UnidirectionalAttention)
    assert "none of the known mistakes" in str(result.mistake)
    assert str(result.tensor).startswith("scores"), result


def test_a_mistake_in_code_for_float32_only_is_named() -> None:
    to_float = ("batch, seq, _ = x.shape\n        q", "x = x.float()\n        batch, seq, _ = x.shape\n        q")
    assert check_attention(variant(to_float).UnidirectionalAttention)
    result = check_attention(variant(to_float, (SCALE, "")).UnidirectionalAttention)
    assert "not divided by sqrt(head_size)" in str(result.mistake), result
