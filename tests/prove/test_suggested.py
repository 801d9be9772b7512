"""Causes with numbers of their own, solved for from what was seen: heads, scores, fills, masks, logits."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from course import course, monolith
from test_causes import IDS, SMALL, cause_of, with_attention
from torch import Tensor, nn

import pellucid as pl
import samples
import support
from pellucid.family import suspicions
from pellucid.gpt2 import suspects

THIRD = torch.tensor([1.0, 1.0, 0.3])[:, None, None]


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


@pytest.fixture(scope="module")
def one() -> pl.CkptedTransformer:
    """Of one block, which is enough where blocks do not matter."""
    return support.glass(**{**SMALL, "n_layer": 1})


def attending(**changes: Any) -> Any:
    """A forward of the course's attention; `changes` replace a part of it by a function of what is there."""

    def forward(self: Any, x: Tensor, cache: Any = None) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv_proj(x).chunk(3, -1))
        scores = changes.get("scores", lambda s: s)(q @ k.mT / q.size(-1) ** 0.5)
        seen = changes.get("seen", lambda m: m)(torch.ones(x.size(1), x.size(1)).tril().bool())
        pattern = scores.masked_fill(~seen, changes.get("fill", -1e9)).softmax(-1)
        z = changes.get("z", lambda z: z)(pattern @ changes.get("v", lambda v: v)(v))
        return self.output_proj(z.transpose(1, 2).flatten(2))

    return forward


def interleaved(v: Tensor) -> Tensor:
    return v.transpose(1, 2).flatten(2).unflatten(2, (-1, v.size(1))).permute(0, 3, 1, 2)


ATTENTIONS: dict[str, tuple[dict[str, Any], tuple[int, ...] | None]] = {
    "z of head 2 multiplied by 0.3 (": ({"z": lambda z: z * THIRD}, None),
    "z of head 2 multiplied by 0.3, in block 1 only (": ({"z": lambda z: z * THIRD}, (1,)),
    "scores of head 2 multiplied by 0.3 (": ({"scores": lambda s: s * THIRD}, None),
    "scores are 0.7 times what they should be (": ({"scores": lambda s: s * 0.7}, None),
    "scores are 1.0328 times what they should be, in block 1 only (": ({"scores": lambda s: s * 8 / 60**0.5}, (1,)),
    "z is 0.957427 times what it should be, in block 1 only (": ({"z": lambda z: z * (11 / 12) ** 0.5}, (1,)),
    "masked scores set to -12 (": ({"fill": -12.0}, None),
    "masked scores set to -7.3, in block 2 only (": ({"fill": -7.3}, (2,)),
    "heads of v split as (d_head, head) (": ({"v": interleaved}, None),
}


TRIED = ("z of head 2 multiplied by 0.3, in block 1 only (", "scores of head 2 multiplied by 0.3 (",
         "scores are 1.0328 times what they should be, in block 1 only (",
         "masked scores set to -12 (", "heads of v split as (d_head, head) (")  # fmt: skip
"""One for each part of attention."""


@pytest.mark.parametrize("words", support.few_of(ATTENTIONS, *TRIED))
def test_attention_with_a_number_of_its_own(words: str, small: pl.CkptedTransformer, one: pl.CkptedTransformer) -> None:
    changes, blocks = ATTENTIONS[words]
    model = small if blocks else one
    found = cause_of(pl.compare(model, with_attention(course(model), attending(**changes), blocks), IDS))
    assert found.startswith(words), found
    assert "the logits agree too" in found


def test_a_right_one_of_these_is_not_accused(one: pl.CkptedTransformer) -> None:
    for fill in (-1e9, -1e4, -100.0):
        report = pl.compare(one, with_attention(course(one), attending(fill=fill)), IDS)
        assert report.verdict == "equivalent", report


class Padding(nn.Module):
    """The course's program, in which one token is taken for padding."""

    def __init__(self, model: pl.CkptedTransformer, token: int, *, sees_itself: bool) -> None:
        super().__init__()
        self.inner, self.token, self.sees_itself = course(model), token, sees_itself
        with_attention(self.inner, attending(seen=self.seen))

    def seen(self, mask: Tensor) -> Tensor:
        kept = (self.ids != self.token)[:, None, None]
        return mask & (kept | torch.eye(len(mask)).bool() if self.sees_itself else kept)

    def forward(self, ids: Tensor) -> Tensor:
        self.ids = ids
        return self.inner(ids)


@pytest.mark.parametrize(
    ("token", "sees_itself"), [(0, True), (52, False), pytest.param(0, False, marks=pytest.mark.long)]
)
def test_a_token_that_is_taken_for_padding(token: int, sees_itself: bool, one: pl.CkptedTransformer) -> None:
    """No text of the caller's holds it; the probe does."""
    found = cause_of(pl.compare(one, Padding(one, token, sees_itself=sees_itself), IDS[:, :5] % 50 + 1))
    words = f"token {token} is masked as padding"
    assert found.startswith(f"{words}, from others than itself (" if sees_itself else f"{words} ("), found


class Changed(nn.Module):
    """A program whose logits are changed at the end."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, ids: Tensor) -> Tensor:
        out = self.inner(ids)
        return self.change(out if isinstance(out, Tensor) else out.logits)


LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits multiplied by 1.25, as by a temperature of 0.8 (": lambda x: x / 0.8,
    "logits multiplied by 1.42857, as by a temperature of 0.7 (": lambda x: x / 0.7,
    "logits capped softly at 17.5 (": lambda x: 17.5 * (x / 17.5).tanh(),
}


@pytest.mark.parametrize("words", LOGITS)
def test_logits_that_are_changed(words: str, one: pl.CkptedTransformer) -> None:
    last = Changed(course(one), lambda x: LOGITS[words](x)[:, -1:])
    for made in (*(Changed(build(one), LOGITS[words]) for build in (course, monolith)), last):
        found = cause_of(pl.compare(one, made, IDS))
        assert found.startswith(words)
        assert "the logits agree too" in found


@pytest.mark.parametrize(
    ("words", "family"),
    support.few_of(
        itertools.product(LOGITS, ("llama", "gpt_neox")), *((next(iter(LOGITS)), f) for f in ("llama", "gpt_neox"))
    ),
)
def test_logits_that_are_changed_in_other_families(words: str, family: str) -> None:
    ours, theirs = samples.pair(family, num_hidden_layers=1)
    assert cause_of(pl.compare(ours, Changed(theirs, LOGITS[words]), samples.some_ids(1, 5))).startswith(words)


def test_no_cause_is_made_up() -> None:
    model = support.glass(**{**SMALL, "n_layer": 1})
    for change in (lambda x: x + 1, lambda x: x.clamp(-0.5, 0.5), lambda x: x * torch.linspace(0.9, 1.1, 53)):
        assert cause_of(pl.compare(model, Changed(course(model), change), IDS[:1, :4])) == ""


def test_heads_and_windows_of_a_llama() -> None:
    ours, right = samples.pair("llama", num_hidden_layers=2)
    made, width = copy.deepcopy(right), ours.config.d_head
    factors = torch.ones(ours.config.num_attention_heads * width)
    factors[width : 2 * width] = 0.4
    made.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda module, args: (args[0] * factors,))
    found = cause_of(pl.compare(ours, made, samples.some_ids(1, 6)))
    assert found.startswith("z of head 1 multiplied by 0.4, in block 1 only (with")

    def narrow(module: Any, args: Any, named: Any) -> Any:
        length = named["hidden_states"].size(1)
        seen = torch.ones(length, length).tril().triu(-2)
        hidden = torch.zeros(1, 1, length, length).masked_fill(seen == 0, torch.finfo(torch.float32).min)
        return args, {**named, "attention_mask": hidden}

    made = copy.deepcopy(right)
    for layer in made.model.layers:
        layer.self_attn.register_forward_pre_hook(narrow, with_kwargs=True)
    found = cause_of(pl.compare(ours, made, samples.some_ids(1, 6)))
    assert found.startswith("attention to the last 3 tokens only (with")


def test_heads_in_the_parameters(one: pl.CkptedTransformer) -> None:
    """Values that stand in another order, or of which one head is a multiple, are named as what they are."""
    order = torch.arange(24).view(3, 8).T.flatten()
    for changed, words in (
        (lambda rows: rows[order], "in the order (d_head, head), not (head, d_head)"),
        (lambda rows: rows[order.argsort()], "read as (d_head, head), not (head, d_head)"),
        (lambda rows: torch.cat([rows[:8], 0.5 * rows[8:16], rows[16:]]), "head 1 is 0.5 times the reference's values"),
    ):
        made = course(one)
        for block in made.blocks:
            for parameter in (block.attn.qkv_proj.weight, block.attn.qkv_proj.bias):
                with torch.no_grad():
                    parameter[48:] = changed(parameter[48:].clone())
        report = pl.compare(one, made, IDS)
        assert cause_of(report) == f"W_V and b_V: {words}, in block 0"
        assert "with the other model's values in the reference, everything agrees" in report.notes


@pytest.mark.parametrize("name", support.few_of(["suggested", "measured"], "suggested"))
def test_mutants_are_noticed(name: str, one: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, name, lambda seen: ())
    words = {"suggested": "z of head 2 multiplied by 0.3 (", "measured": "scores are 0.7 times what they should be ("}
    with pytest.raises(AssertionError):
        test_attention_with_a_number_of_its_own(words[name], one, one)


def test_measured_numbers_are_taken_for_plain_ones_and_their_roots() -> None:
    """A scale for heads of half the width is off by sqrt(2), which no short text gives to the last digit."""
    for meant in (0.3, -1.25, math.sqrt(2), math.sqrt(0.75)):
        assert suspicions._plain(meant * (1 + 1e-9)) == meant
    assert suspicions._plain(math.pi / 3) == math.pi / 3
