"""Pads that betray themselves: told from ends of texts by where they stand and how often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.text import ids

E = 9


@pytest.mark.parametrize("ids", [[[1, 2, 0, 0]], [[0, 0, 1, 2]], [[1, 2, 0], [3, 0, 0]], [[1, 2, 3], [0, 1, 2]]])
def test_pads_that_are_ends_of_text_need_a_mask(ids: list[list[int]]):
    facts = {"vocab_size": 50, "n_positions": 16, "n_embd": 24, "n_layer": 1, "n_head": 3}
    config = pl.TransformerConfig(**facts, eos_token_id=0, bos_token_id=0, pad_token_id=0)
    with pytest.raises(pl.InputError) as caught:
        pl.CkptedTransformer(config).tokenize(torch.tensor(ids))
    assert caught.value.code == "pad-without-mask"
    assert pl.CkptedTransformer(config).tokenize(torch.tensor([[0, 1, 2]])).ids.shape == (1, 3)


TEXT: dict[str, list[list[int]]] = {
    "no end id": [[1, 2, 3], [4, 5, 6]],
    "one before every prompt": [[E, 1, 2], [E, 3, 4]],
    "one before the only prompt": [[E, 1, 2]],
    "one after the only text": [[1, 2, E]],
    "one after every text": [[1, 2, E], [3, 4, E]],
    "one before and after": [[E, 1, 2, E]],
    "an end id alone": [[E]],
    "an end id alone beside another": [[E], [1]],
    "packed": [[1, E, 2, 3], [4, 5, E, 6]],
    "packed, and one row begins with an end": [[E, 2, 3, 4], [4, 5, E, 6]],
    "packed, and one row ends with an end": [[1, E, 2, 3], [4, 5, 6, E]],
    "packed with empty texts": [[E, E, 1, 2, 3], [4, E, E, 5, 6]],
    "packed in one row": [[E, 1, 2, E, 3, 4, E]],
}


PADS: dict[str, list[list[int]]] = {
    "left": [[E, E, 1, 2], [3, 4, 5, 6]],
    "right": [[1, 2, E, E], [3, 4, 5, 6]],
    "one on the left": [[E, 1, 2], [3, 4, 5]],
    "one on the right": [[1, 2, E], [3, 4, 5]],
    "left, with a beginning of text": [[E, E, 1], [E, 2, 3]],
    "right, with an end of text": [[1, E, E], [2, 3, E]],
    "one row, padded to a length": [[E, E, E, 1]],
    "one row, padded to a length on the right": [[1, 2, E, E]],
    "every row, padded to a length": [[E, E, 1], [E, E, 2]],
    "packed, the last row filled up": [[1, E, 2, 3, 4], [5, E, 6, E, E]],
    "packed with empty texts, the last row filled up": [[1, E, E, 2, 3], [5, 6, E, E, E]],
    "a row of pads": [[E, E, E], [1, 2, 3]],
}


@pytest.mark.parametrize("facts", [{}, {"pad_token_id": E}, {"bos_token_id": None}], ids=["end", "pad", "no bos"])
@pytest.mark.parametrize("what", TEXT)
def test_end_ids_of_texts_are_text(facts: dict[str, Any], what: str) -> None:
    model = support.glass(**{"eos_token_id": E, "bos_token_id": E, "n_layer": 0, **facts})
    for given in (torch.tensor(TEXT[what]), TEXT[what], np.array(TEXT[what])):
        assert model.tokenize(given).mask.all()


@pytest.mark.parametrize("facts", [{}, {"pad_token_id": E}, {"eos_token_id": [E, 12]}], ids=["end", "pad", "ends"])
@pytest.mark.parametrize("what", PADS)
def test_end_ids_that_fill_up_rows_are_pads(facts: dict[str, Any], what: str) -> None:
    model = support.glass(**{"eos_token_id": E, "bos_token_id": E, "n_layer": 0, **facts})
    ids = PADS[what]
    for given in (torch.tensor(ids), ids, np.array(ids), {"input_ids": ids}):
        with pytest.raises(pl.InputError) as caught:
            model.tokenize(given)
        assert caught.value.code == "pad-without-mask"
    said = f"mask=torch.ones({len(ids)}, {len(ids[0])})"
    assert said in caught.value.remedy
    assert model.tokenize(ids, mask=torch.ones(len(ids), len(ids[0]))).mask.all(), "the remedy works"


def refuses_padding() -> None:
    for what in PADS:
        test_end_ids_that_fill_up_rows_are_pads({}, what)


def accepts_texts() -> None:
    for what in TEXT:
        test_end_ids_of_texts_are_text({}, what)


def _only_runs(ids: Tensor, pad: int) -> int | None:
    found = ((ids == pad)[:, :2].all(1) | (ids == pad)[:, -2:].all(1)).nonzero()
    return int(found[0]) if ids.size(1) > 1 and len(found) else None


@pytest.mark.parametrize(("broken", "check"), [
    (lambda ids, pad: None, refuses_padding),
    (_only_runs, refuses_padding),
    (_only_runs, accepts_texts),
    (lambda ids, pad: 0 if bool((ids == pad).any()) else None, accepts_texts),
])  # fmt: skip
def test_what_is_broken_is_noticed(broken: Callable[..., int | None], check: Callable[[], None]) -> None:
    must_be_noticed((ids, "padded_row", broken, check), by=[pl.InputError] if check is accepts_texts else [])


def settings(pad: int | None = None, *ends: int) -> pl.GenerationSettings:
    return pl.GenerationSettings({"pad_token_id": pad, "eos_token_id": list(ends)})


@pytest.mark.parametrize(
    ("given", "vocabulary", "first", "expected"),
    [
        (settings(), 10, None, 0), (settings(3, 4), 10, None, 3), (settings(None, 4, 5), 10, None, 4),
        (settings(3, 4), 10, 2, 2), (settings(3, 4), 10, 0, 0), (settings(10, 4), 10, 11, 4), (settings(9), 10, -1, 9),
        (settings(0, 4), 10, None, 0), (settings(-1, 10), 10, None, 0),
    ],
)  # fmt: skip
def test_what_stands_where_there_is_no_text(
    given: pl.GenerationSettings, vocabulary: int, first: int | None, expected: int
) -> None:
    assert ids.pad_id(given, vocabulary, first) == expected


def test_the_first_row_that_was_filled_up_is_named() -> None:
    assert ids.padded_row(torch.tensor([[1, 2, 3], [E, 4, 5], [E, 6, 7]]), E) == 1
    assert ids.padded_row(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, E]]), E) == 2
    assert ids.padded_row(torch.tensor([[E, 1, E, E], [E, 2, 3, 4]]), E) == 0
    assert ids.padded_row(torch.tensor([[E, 1, 2], [E, 3, 4]]), E) is None
    assert ids.padded_row(torch.tensor([[E], [1]]), E) is None
    assert ids.padded_row(torch.tensor([[E, 1], [2, 3]]), E) == 0, "of two columns one may be a pad"


def test_runs_inside_a_row_are_counted_one_by_one() -> None:
    assert ids.padded_row(torch.tensor([[E, E, 1, E, 2, E, 3], [1, 2, 3, 4, 5, 6, 7]]), E) == 0
    assert ids.padded_row(torch.tensor([[E, E, E, 1, E, 2, E, E, E, 3]]), E) is None
    assert ids.padded_row(torch.tensor([[1, 2, 3, 4, 5, E, E, 6, E], [1, 2, 3, 4, 5, 6, 7, 8, 1]]), E) is None


def test_the_first_id_that_occurs_at_all_is_named() -> None:
    rows = torch.tensor([[1, 2], [3, 4], [2, 3]])
    assert ids.first_row_with(rows, [7, 3, 1]) == (1, 3)
    assert ids.first_row_with(rows, [2]) == (0, 2)
    assert ids.first_row_with(torch.tensor([[1, 5], [3, 4]]), [3]) == (1, 3)
    assert ids.first_row_with(rows, [7]) is None
    assert ids.first_row_with(rows, []) is None
