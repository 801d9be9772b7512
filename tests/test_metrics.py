"""Metrics are what their names say, at the place that is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pellucid as pl
import support
from pellucid import metrics

LOGITS = torch.randn(3, 5, 211, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def batch_of(side: str) -> pl.Batch:
    """Texts of five, three and two tokens."""
    return support.glass().tokenize(support.ragged_ids(5, 3, 2), padding_side=side)


COLUMNS = {"left": {-1: [4, 4, 4], -2: [3, 3, 3], 0: [0, 2, 3], 1: [1, 3, 4]},
           "right": {-1: [4, 2, 1], -2: [3, 1, 0], 0: [0, 0, 0], 1: [1, 1, 1]}}  # fmt: skip
"""Where a position of each text stands in the batch."""


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pos", [-1, -2, 0, 1])
def test_positions_are_those_of_each_text(side: str, pos: int) -> None:
    batch = batch_of(side)
    at = LOGITS[torch.arange(3), torch.tensor(COLUMNS[side][pos])]
    assert torch.equal(pl.metrics.logit(7, pos=pos)(LOGITS, batch), at[:, 7])
    assert torch.equal(pl.metrics.logit([7, 8, 9], pos=pos)(LOGITS, batch), at[torch.arange(3), [7, 8, 9]])
    assert torch.allclose(pl.metrics.logprob(7, pos=pos)(LOGITS, batch), at[:, 7] - at.logsumexp(-1))
    assert torch.equal(pl.metrics.logit_difference(7, 9, pos=pos)(LOGITS, batch), at[:, 7] - at[:, 9])
    pairs = [(1, 2), (3, 4), (5, 6)]
    assert torch.equal(
        pl.metrics.logit_difference(pairs, pos=pos)(LOGITS, batch),
        at[torch.arange(3), [1, 3, 5]] - at[torch.arange(3), [2, 4, 6]],
    )
    other = torch.randn(LOGITS.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    known = other[torch.arange(3), torch.tensor(COLUMNS[side][pos])]
    expected = torch.nn.functional.kl_div(
        at.log_softmax(-1), known.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert torch.allclose(pl.metrics.kl(other, pos=pos)(LOGITS, batch), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_is_that_of_each_text_alone(side: str) -> None:
    model = support.glass(dtype=torch.float64)
    rows = support.ragged_ids(5, 3, 2)
    batch = model.tokenize(rows, padding_side=side)
    with torch.no_grad():
        each = torch.stack([model.loss([row]) for row in rows])
        assert torch.allclose(pl.metrics.loss()(model(batch), batch), each, rtol=0, atol=1e-12)


def test_tokens_are_ids_or_strings() -> None:
    model = pl.load()
    batch = model.tokenize("Once upon a")
    logits = model(batch).detach()
    number = model.tokenizer.token_id(" time")  # pyright: ignore[reportOptionalMemberAccess]
    given: Any = (" time", number, torch.tensor(number), [" time"])
    assert len({float(pl.metrics.logit(token)(logits, batch)) for token in given}) == 1


def test_names_are_short_enough_for_a_title() -> None:
    pairs = [(token, token + 1) for token in range(40)]
    assert repr(metrics.logit_difference(pairs)) == "logit difference of 40 pairs at -1"
    assert repr(metrics.logit_difference(pairs[:2])) == "logit difference of [(0, 1), (1, 2)] at -1"
    assert repr(metrics.logit_difference(" a", " b")) == "logit difference of ' a', ' b' at -1"
    assert repr(metrics.logit_difference(" several words", 3)) == "logit difference of ' several words', 3 at -1"
    assert repr(metrics.logit(range(40))) == "logit of 40 tokens at -1"
    assert repr(metrics.logprob([5, 6])) == "log-probability of [5, 6] at -1"


def test_half_precision_is_summed_in_float32() -> None:
    model = support.glass(dtype=torch.bfloat16)
    batch = model.tokenize(support.some_ids(2, 4))
    logits = model(batch).detach()
    assert pl.metrics.logprob(3)(logits, batch).dtype == torch.float32
    expected = logits[:, -1].float().log_softmax(-1)[:, 3]
    assert torch.equal(pl.metrics.logprob(3)(logits, batch), expected)


def test_what_they_promise_to_read() -> None:
    positions = metrics.positions_of
    assert positions(pl.metrics.logit(3)) == (-1,)
    assert positions(pl.metrics.kl(LOGITS, pos=-2)) == (-2,)
    assert positions(pl.metrics.logit(3, pos=0)) is None, "the beginning of a text is not counted from its end"
    assert positions(pl.metrics.loss()) is None
