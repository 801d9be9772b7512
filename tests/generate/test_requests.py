"""What a generation is asked for: forms that others take, what no length bears, and rows with pads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.generate import generating
from pellucid.generate.beams import Beams
from pellucid.generate.generation import TextStream


def test_pads_that_no_prompt_needs_take_no_room(tiny: pl.CkptedTransformer):
    ids = torch.cat([torch.zeros(1, 200, dtype=torch.long), support.ROW], 1)
    padded = tiny.tokenize(ids[:, -14:], mask=(torch.arange(14) >= 8)[None].long())
    expected = tiny.generate(support.ROW, max_new_tokens=8, end_ids=()).new_ids
    for overflow in ("error", "slide"):
        out = tiny.generate(padded, max_new_tokens=8, end_ids=(), overflow=overflow)
        assert out.ids.shape == (1, 14)
        assert torch.equal(out.new_ids, expected)


def test_a_stream_refuses_a_seed_at_once(tiny: pl.CkptedTransformer):
    with pytest.raises(pl.InputError, match="seed"):
        tiny.stream(support.ROW, max_new_tokens=3, seed="zero")


def test_a_stream_of_bytes_that_are_no_character():
    tokenizer = pl.load().tokenizer
    assert tokenizer is not None
    lead, tail = tokenizer.encode("\u00e9")
    for ids in ([lead] * 3 + [lead, tail], [lead] * 9, [tail] * 5 + [lead, tail], [lead, tail, lead]):
        text = TextStream(tokenizer)
        assert "".join([*map(text.push, ids), text.finish()]) == tokenizer.decode(ids), ids


@pytest.mark.parametrize("penalty", [float("nan"), float("inf"), 5000, "1"])
def test_a_length_penalty_that_no_length_bears(penalty: Any, bundled: pl.CkptedTransformer):
    with pytest.raises(pl.InputError) as caught:
        bundled.generate("Once", num_beams=2, length_penalty=penalty, max_new_tokens=2)
    assert caught.value.code == "length-penalty"


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seeds_of_more_than_64_bits(seed: int, bundled: pl.CkptedTransformer):
    with pytest.raises(pl.InputError) as caught:
        bundled.generate("Once", sampler=pl.Sampler(), seed=seed, max_new_tokens=1)
    assert caught.value.code == "seed"
    for allowed in (2**64 - 1, -(2**63)):
        bundled.generate("Once", sampler=pl.Sampler(), seed=allowed, max_new_tokens=1)


def test_forms_that_others_take(bundled: pl.CkptedTransformer):
    plain = bundled.generate("Once upon", max_new_tokens=3)
    assert bundled.generate("Once upon", max_new_tokens=3, stop=None).texts == plain.texts
    unused = {"num_beams": 1, "length_penalty": 1, "early_stopping": False}
    assert bundled.generate("Once upon", max_new_tokens=3, **unused).texts == plain.texts
    assert Beams(2, early_stopping=np.True_).early_stopping is True  # type: ignore[arg-type]
    first = int(plain.new_ids[0, 0])
    assert bundled.generate("Once upon", max_new_tokens=3, end_ids=first).stopped == ["end"]
    greedy = pl.Sampler(temperature=0, repetition_penalty=10**30)  # more than torch divides by
    assert bundled.generate("Once", sampler=greedy, max_new_tokens=1).ids.size(1) > 1
    assert pl.Sampler(suppress_tokens=5).suppress_tokens == (5,)  # pyright: ignore[reportArgumentType]
    with pytest.raises(pl.InputError) as caught:
        pl.Sampler(suppress_tokens="5")  # pyright: ignore[reportArgumentType]
    assert caught.value.code == "sampler-setting"


WRONG: dict[str, Callable[[pl.CkptedTransformer], Any]] = {
    "less than no tokens": lambda model: pl.estimate_generation(model, [[1]], max_new_tokens=-5),
    "tokens in words": lambda model: pl.estimate_generation(model, [[1]], max_new_tokens="a"),
    "less than no rows": lambda model: pl.estimate_generation(model, [[1]], rows_each=-1),
    "a sampler in words": lambda model: model.generate([[1]], sampler="greedy"),
    "half an end": lambda model: model.generate([[1]], end_ids=1.5),
    "stop bytes": lambda model: model.generate([[1]], stop=b"a"),
    "half a stop": lambda model: model.generate([[1]], stop=1.5),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_no_generation_can_do_is_refused(what: str, glass: pl.CkptedTransformer) -> None:
    with pytest.raises(pl.PellucidError):
        WRONG[what](glass)


def test_a_sampler_that_nobody_looks_at_is_noticed(glass: pl.CkptedTransformer) -> None:
    taken = (generating, "sampler_of", lambda given: given, test_what_no_generation_can_do_is_refused)
    must_be_noticed(taken, "a sampler in words", glass, by=[AttributeError])


@pytest.mark.parametrize(
    ("logits", "ids", "code"),
    [
        (torch.zeros(1, 2, 5), (), "logits-shape"), ([0.0, 1.0], (), "logits-shape"),
        (torch.zeros(5), [5], "id-out-of-range"), (torch.zeros(5), [1.5], "ids-dtype"),
        (torch.zeros(5), [[1], [2]], "ids-dtype"),
    ],
)  # fmt: skip
def test_what_cannot_be_explained(logits: Any, ids: Any, code: str):
    """Logits of several positions were explained as if they were of one with a larger vocabulary."""
    with pytest.raises(pl.InputError) as caught:
        pl.Sampler(repetition_penalty=2.0).explain(logits, ids)
    assert caught.value.code == code
    assert caught.value.message.startswith("Sampler")
    assert pl.Sampler().explain(torch.zeros(1, 5))["model"].shape == (5,)


def test_a_row_in_a_list_is_explained() -> None:
    sampler, logits = pl.Sampler(repetition_penalty=2.0), torch.arange(5.0)
    row = sampler.explain(logits, [3, 4])["repetition_penalty"]
    assert not torch.equal(row, logits.softmax(-1))
    for ids in ([[3, 4]], ((3, 4),), [torch.tensor([3, 4])], torch.tensor([[3, 4]])):
        assert torch.equal(sampler.explain(logits, ids)["repetition_penalty"], row)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1e-44}, {"repetition_penalty": 1e-44}, {"frequency_penalty": 1e39}, {"presence_penalty": -1e39}],
)
def test_numbers_that_times_a_logit_are_infinite(settings: dict[str, float]):
    with pytest.raises(pl.InputError) as caught:
        pl.Sampler(**settings)  # pyright: ignore[reportArgumentType]
    assert caught.value.code == "sampler-setting"
