"""Positions are columns of the batch: whoever chooses a pad of a text that would be changed is told, by every verb."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

import pellucid as pl
import support
from pellucid import patching

RAGGED = support.ragged_ids(3, 5)
METRIC = pl.metrics.logit(7)


def swept(model: Any, side: Any, pos: int) -> None:
    texts = model.tokenize(RAGGED, padding_side=side)
    patching.sweep(model, texts, texts, "resid_pre", over=("layer",), metric=METRIC, pos=pos)


def evaluated(model: Any, side: Any, pos: int) -> None:
    texts = model.tokenize(RAGGED, padding_side=side)
    about: dict[str, Any] = {"metric": METRIC, "value": "zero", "pos": pos, "subsets": 1, "random": 1}
    pl.circuits.evaluate(model, pl.circuits.Circuit(nodes=[(0, 1)]), texts, texts, **about)


def edited(model: Any, side: Any, pos: Any, rows: Any = None) -> None:
    edit = pl.Edit.zero("blocks.0.resid_pre", pos=pos, rows=rows)
    model.run(model.tokenize(RAGGED, padding_side=side), edits=edit)


@pytest.fixture(scope="module")
def model() -> pl.CkptedTransformer:
    return support.glass()


@pytest.mark.parametrize(
    ("verb", "given", "said", "right"),
    [
        (swept, ("left", 0), "column 0 .* in text 0: its tokens are in columns 2 to 4.*'right'", ("right", 0)),
        (swept, ("right", -1), "column 4 .* in text 0: its tokens are in columns 0 to 2.*'left'", ("left", -1)),
        (evaluated, ("left", 0), "circuits: pos=0", ("right", 0)),
        (edited, ("left", [1, 4]), r"Edit.zero.*pos=\[1, 4\] chooses column 1", ("left", [3, 4])),
        (edited, ("left", slice(0, 2)), "rows= chooses texts", ("left", slice(0, 2), 1)),
    ],
)
def test_a_chosen_pad_is_told(
    verb: Callable[..., None], given: tuple[Any, ...], said: str, right: tuple[Any, ...], model: pl.CkptedTransformer
) -> None:
    with pytest.warns(pl.PellucidWarning, match=said):
        verb(model, *given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verb(model, *right)
