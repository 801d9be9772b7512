"""Programs of strangers: arguments that a forward demands, which are right, and inputs at which a program is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from course import course
from torch import Tensor, nn

import pellucid as pl
import support
from pellucid.prove import calling, probes

SIZES = {"vocab_size": 53, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
IDS = support.some_ids(1, 6, 53)


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SIZES)


class Demanding(nn.Module):
    """The course's program; classes below say what else its forward demands."""

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        self.inner = course(model)
        self.mask: Tensor | None = None
        for block in self.inner.blocks:
            block.attn.__class__ = type("Masked", (type(block.attn),), {"forward": self.attention()})

    def attention(self) -> Any:
        def forward(attn: Any, x: Tensor, cache: Any = None) -> Tensor:
            q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in attn.qkv_proj(x).chunk(3, -1))
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, is_causal=self.mask is None)
            return attn.output_proj(z.transpose(1, 2).flatten(2))

        return forward

    def run(self, ids: Tensor, mask: Tensor | None = None, first: int = 0) -> Tensor:
        inner, self.mask = self.inner, mask
        x = inner.token_embedding(ids) + inner.pos_embedding(first + torch.arange(ids.size(1)))
        return inner.ln(inner.blocks(x)) @ inner.token_embedding.weight.T


class Seeing(Demanding):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.run(x, mask.bool())


class Hiding(Demanding):
    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        if attn_mask.shape != (x.size(1), x.size(1)):
            raise ValueError("a mask is [P, P]")
        return self.run(x, ~attn_mask.bool())


class Adding(Demanding):
    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return self.run(x, mask) if mask.is_floating_point() else self.run(x, torch.zeros(1))


class Starting(Demanding):
    def forward(self, tokens: Tensor, start_pos: int) -> Tensor:
        return self.run(tokens, first=start_pos)


class Offset(Demanding):
    def forward(self, tokens: Tensor, offset: Any, training: bool) -> Tensor:
        assert not training
        return self.run(tokens, first=offset)


class Losing(Demanding):
    def forward(self, idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.run(idx)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


RIGHT = (Seeing, Hiding, Adding, Starting, Offset, Losing)


@pytest.mark.parametrize("kind", RIGHT)
def test_what_a_forward_demands(kind: type[Demanding], small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, kind(small).eval(), IDS)
    assert report.verdict == "equivalent", report
    given = {Seeing: "true where a query sees a key", Hiding: "true where a key is hidden", Adding: "-inf where"}
    assert ("demands a mask, and was given one" in " ".join(report.notes)) == (kind in given)
    assert given.get(kind, "") in " ".join(report.notes)


class Around(nn.Module):
    def __init__(self, model: pl.CkptedTransformer, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.change = course(model), change

    def forward(self, ids: Tensor) -> Tensor:
        return self.change(self.inner(ids), ids)


def again(logits: Tensor, ids: Tensor) -> Tensor:
    return logits + 0.01 * F.pad(ids[:, 1:] == ids[:, :-1], (1, 0))[..., None]


def thrice(logits: Tensor, ids: Tensor) -> Tensor:
    return logits + 0.01 * ((ids[:, :, None] == ids[:, None]).sum(-1) >= 3)[..., None]


WRONG: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "one token": lambda logits, ids: logits + (ids.size(1) == 1),
    "two tokens": lambda logits, ids: logits + 1e-3 * (ids.size(1) == 2),
    "three tokens": lambda logits, ids: logits + 1e-3 * (ids.size(1) == 3),
    "a length that it names": lambda logits, ids: logits + (ids.size(1) == 7),
    "two equal rows": lambda logits, ids: logits + (ids.unique(dim=0).shape != ids.shape),
    "0 in front": lambda logits, ids: logits + (ids[:, :1] == 0)[..., None],
    "an id in front that it names": lambda logits, ids: logits + (ids[:, :1] == 17)[..., None],
    "the token before, again": again,
    "one token three times": thrice,
}


@pytest.mark.parametrize("name", WRONG)
def test_inputs_at_which_a_program_is_wrong(name: str, small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, Around(small, WRONG[name]), IDS)
    assert report.verdict == "different", report


def from_the_third_call(state: dict[str, Any], inner: nn.Module, ids: Tensor) -> Tensor:
    state["calls"] = state.get("calls", 0) + 1
    return inner(ids) + (state["calls"] > 2)


def in_the_second_call_alone(state: dict[str, Any], inner: nn.Module, ids: Tensor) -> Tensor:
    state["calls"] = state.get("calls", 0) + 1
    return inner(ids) + (state["calls"] == 2)


def woken_dropout(state: dict[str, Any], inner: nn.Module, ids: Tensor) -> Tensor:
    state["awake"], awake = True, state.get("awake", False)
    return F.dropout(inner(ids), 0.5, training=awake)


def the_same_answer_again(state: dict[str, Any], inner: nn.Module, ids: Tensor) -> Tensor:
    return state.setdefault(str(ids.shape), inner(ids))


def as_long_as_the_first(state: dict[str, Any], inner: nn.Module, ids: Tensor) -> Tensor:
    return inner(ids) * (torch.arange(ids.size(1)) < state.setdefault("length", ids.size(1)))[:, None]


def no_longer_than_the_first(state: dict[str, Any], inner: nn.Module, ids: Tensor) -> Tensor:
    return inner(ids) + torch.zeros(state.setdefault("length", ids.size(1)))[: ids.size(1), None]


class Turns:
    state: Any = None
    second = False


def by_turns_of_a_class(state: dict[str, Any], inner: nn.Module, ids: Tensor) -> Tensor:
    """Wrong in each second run on the same state, into which nothing is written."""
    Turns.state, Turns.second = state, state is Turns.state and not Turns.second
    return inner(ids) + Turns.second


def by_turns_of_a_closure() -> Callable[..., Tensor]:
    turns: list[Any] = [None, False]

    def run(state: dict[str, Any], inner: nn.Module, ids: Tensor) -> Tensor:
        turns[:] = state, state is turns[0] and not turns[1]
        return inner(ids) + turns[1]

    return run


class Remembering(nn.Module):
    def __init__(self, model: pl.CkptedTransformer, run: Callable[[dict[str, Any], nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.function, self.state = course(model), run, dict[str, Any]()

    def forward(self, ids: Tensor) -> Tensor:
        return self.function(self.state, self.inner, ids)


@pytest.mark.parametrize(
    "run",
    [
        from_the_third_call,
        in_the_second_call_alone,
        woken_dropout,
        the_same_answer_again,
        as_long_as_the_first,
        no_longer_than_the_first,
        by_turns_of_a_class,
        by_turns_of_a_closure(),
    ],
)
def test_what_a_program_keeps_from_one_call_to_the_next(run: Any, small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, Remembering(small, run), IDS)
    assert "run once more, after other runs, the program" in str(report.first_divergence), report


@pytest.mark.parametrize("shape", [(1, 5), (3, 3)])
def test_positions_before_rows_where_there_are_as_many(shape: tuple[int, int]) -> None:
    """Neither a probe nor the caller's ids are taken for the other way round."""
    square = support.glass(**{**SIZES, "vocab_size": 49, "n_positions": 7})
    turned = Around(square, lambda logits, ids: logits.transpose(0, 1))
    assert pl.compare(square, turned, support.some_ids(*shape, 49))


class AtOnce(nn.Module):
    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        self.inner = course(model)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.vmap(lambda row: self.inner(row[None])[0])(ids)


def test_rows_that_run_at_once_show_nothing_on_the_way(small: pl.CkptedTransformer) -> None:
    assert pl.compare(small, AtOnce(small), IDS).verdict == "equivalent"


def test_a_declared_pad_is_an_id_of_probes() -> None:
    """Ids that betray pads are refused without a mask, but not those that a comparison draws."""
    padded = support.glass(**{**SIZES, "pad_token_id": 0})
    for other in (course(padded), copy.deepcopy(padded)):
        assert not pl.compare(padded, other, IDS).reach.partial
    assert not pl.compare(padded, Around(padded, lambda logits, ids: logits + (ids == 0)[..., None]), IDS)


def test_one_token_of_transformers_own_is_identical(small: pl.CkptedTransformer) -> None:
    assert pl.compare(small, pl.to_hf(small), IDS).verdict == "identical"


def test_a_mask_hides_no_mistake(small: pl.CkptedTransformer) -> None:
    class Leaking(Demanding):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.run(x, torch.ones(x.size(1), x.size(1)).bool())

    report = pl.compare(small, Leaking(small).eval(), IDS)
    assert report.verdict == "different"
    assert report.first_divergence is not None
    assert (report.first_divergence.cause or "").startswith("no causal mask")


@pytest.mark.parametrize("name", ["masks", "two tokens"])
def test_mutants_are_noticed(name: str, small: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "masks":
        monkeypatch.setattr(calling, "_looks_ahead", lambda *given: False)
        with pytest.raises(AssertionError):
            test_what_a_forward_demands(Seeing, small)
    else:
        monkeypatch.setattr(probes.Probing, "_short", lambda self: [])
        with pytest.raises(AssertionError):
            test_inputs_at_which_a_program_is_wrong("two tokens", small)
