"""Packing: texts that share a row give what they give alone, and nothing of one is in another."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pellucid as pl
import samples
import support
from noticed import must_be_noticed
from pellucid.corpus import part_making, plan
from pellucid.family.attend import Visible

LENGTHS = (5, 2, 7, 3, 1, 12, 2, 9, 4, 6)


def captured(path: Path, model: Any, texts: Any, **changes: Any) -> Any:
    return pl.corpus.capture(
        model, texts, **{"names": "**.resid_*", "path": path, "packing": True, "batch_tokens": 30, **changes}
    )


@pytest.mark.parametrize("family", samples.SAMPLES)
def test_a_text_gives_what_it_gives_alone(family: str, tmp_path: Path) -> None:
    """In every family; in float64, so that rounding hides nothing."""
    model, texts = copy.deepcopy(samples.shared(family)).double(), samples.ragged_ids(*LENGTHS)
    store = captured(tmp_path / "a.zarr", model, texts, names=["resid_post", "attn.ckpt_z"], dtype="float64")
    assert store.plan.saved_rows > 3
    chunks = {name: store.chunk(name, 0) for name in store}
    for text, stored in zip(texts, store.texts, strict=True):
        _, alone = model.run_with_ckpts([text], names=list(store))
        for name in store:
            found = chunks[name][stored.rows.start : stored.rows.stop]
            torch.testing.assert_close(found, alone[name][0], rtol=1e-10, atol=1e-10, msg=name)
    assert store.verify()


def test_no_text_sees_another(tmp_path: Path) -> None:
    """The rows of the other texts are the same to the bit, whatever one text says; with attention explicit, too."""
    texts = support.ragged_ids(*LENGTHS)
    for attention in ("auto", "eager"):
        model = support.glass(attention=attention)
        one = captured(tmp_path / f"{attention}.zarr", model, texts)
        other = captured(tmp_path / f"{attention}2.zarr", model, [*texts[:2], [9] * 7, *texts[3:]])
        for name in one:
            changed = np.flatnonzero((one[name][:] != other[name][:]).any(-1))
            assert set(changed) == set(one.texts[2].rows), name


def test_a_text_that_is_not_finite_is_alone_so(tmp_path: Path) -> None:
    """A NaN of one text would be in every text of its row, by way of weights that are zero."""
    model = support.glass()
    with torch.no_grad():
        model.embed.W_E[3] = torch.nan
    texts = [[3, 3], [1, 2, 1], [4, 5, 6, 7, 8]]
    store = captured(tmp_path / "a.zarr", model, texts)
    assert store.plan.saved_rows == 1
    finite = np.isfinite(store["blocks.1.resid_post"][:]).all(-1)
    assert finite.tolist() == [False] * 2 + [True] * 8
    assert store.verify()


def test_the_plan_says_what_it_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are counted over all parts; a batch is at most so many tokens; each token is run once for its part."""
    monkeypatch.setattr(plan, "PART_BYTES", 1)
    monkeypatch.setattr(plan, "TEXTS_IN_A_PART", 2)
    texts = support.ragged_ids(*LENGTHS)
    store = captured(tmp_path / "a.zarr", support.glass(), texts)
    every = [batch for part in range(store.plan.parts) for batch in store.corpus.batches(part)]
    rows = sum(len({span.row for span in batch}) for batch in every)
    assert (store.plan.packed_rows, store.plan.saved_rows) == (rows, sum(map(len, every)) - rows)
    assert store.plan.parts > 1
    assert f"packed into {rows} rows ({store.plan.saved_rows} saved)" in repr(store)
    for batch in every:
        places = [(span.row, column) for span in batch for column in range(span.column, span.column + len(span))]
        assert len(set(places)) == len(places), "no two texts are in one place"
        assert (1 + max(row for row, _ in places)) * (1 + max(column for _, column in places)) <= 30
    assert pl.corpus.open(tmp_path / "a.zarr").plan == store.plan
    assert store.verify()


def test_a_packed_store_is_another_one(tmp_path: Path) -> None:
    model, texts = support.glass(), support.ragged_ids(*LENGTHS)
    for given in (True, False):
        path = tmp_path / f"{given}.zarr"
        captured(path, model, texts, packing=given)
        assert captured(path, model, texts, packing=given).provenance["packing"] is given
        with pytest.raises(pl.InputError, match=re.escape("packing differs")) as caught:
            captured(path, model, texts, packing=not given)
        assert caught.value.code == "corpus-misfit"


_packed = part_making.packed


def _going_on(*given: Any) -> Any:
    run = _packed(*given)
    return replace(run, positions=torch.arange(run.ids.size(1)).expand_as(run.ids))


MUTANTS: dict[str, tuple[Any, str, Any, Callable[[Path], None]]] = {
    "texts see each other": (Visible, "is_causal", True, test_no_text_sees_another),
    "positions go on": (
        part_making, "packed", _going_on, lambda path: test_a_text_gives_what_it_gives_alone("llama", path)
    ),
    "a NaN stays in the row": (
        torch.Tensor, "isfinite", lambda value: torch.ones(()), test_a_text_that_is_not_finite_is_alone_so
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MUTANTS)
def test_a_mistake_is_noticed(what: str, tmp_path: Path) -> None:
    must_be_noticed(MUTANTS[what], tmp_path)
