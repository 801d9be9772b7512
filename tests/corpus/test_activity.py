"""Strongest examples and densities, against what a reader of the whole store computes; and their figures."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import pellucid as pl
import support
from following import Case, follow, params
from noticed import must_be_noticed
from pellucid.corpus import activity, place, plan

NAME, HEADS = "blocks.1.resid_post", "blocks.2.attn.ckpt_z"
TEXTS = [*support.ragged_ids(5, 2, 7, 3, 1, 12, 2, 9), *support.ragged_ids(5, 2, 7)]
"""Some occur twice, so that activations are equal."""

ENCODER = torch.randn(48, 20, generator=torch.Generator().manual_seed(0))


@functools.cache
def shared() -> pl.CkptedTransformer:
    """The same model for every test, which must not change it."""
    return support.glass()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Several parts, read in blocks of a few rows."""
    monkeypatch.setattr(plan, "PART_BYTES", 1)
    monkeypatch.setattr(plan, "TEXTS_IN_A_PART", 1)
    monkeypatch.setattr(activity, "ROWS_AT_ONCE", 7)
    return pl.corpus.capture(shared(), TEXTS, [NAME, HEADS], tmp_path / "a.zarr", dtype="bfloat16")


def encode(values: torch.Tensor) -> torch.Tensor:
    """Features of which most are at most tokens exactly zero."""
    return torch.relu(values @ ENCODER - 9)


def whole(store: Any, name: str, encoder: Any) -> np.ndarray[Any, Any]:
    """All activations [N, F], read at once."""
    values = torch.from_numpy(store[name][:]).view(torch.bfloat16).float()
    return (values if encoder is None else encoder(values)).reshape(len(values), -1).numpy()


CASES: dict[str, tuple[str, Any, Any]] = {
    "all of a stream": (NAME, None, None), "some of the heads": (HEADS, [3, 0, 40], None),
    "features": (NAME, None, encode), "some features": (NAME, [5, 2], encode),
    "a number of torch": (NAME, torch.tensor(5), None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_strongest_examples(case: str, store: Any) -> None:
    name, units, encoder = CASES[case]
    found = pl.corpus.examples(store, name, units, encode=encoder, count=6, around=3)
    activations = whole(store, name, encoder)
    assert found.unit.values.tolist() == ([*range(activations.shape[1])] if units is None else np.ravel(units).tolist())
    borders = np.cumsum([0, *map(len, TEXTS)])
    ids = np.concatenate(TEXTS)
    for unit in found.unit.values:
        column, one = activations[:, unit], found.sel(unit=unit)
        order = [row for row in np.argsort(-column, kind="stable") if column[row] != 0][:6]
        missing = 6 - len(order)
        assert one.row.values.tolist() == [*order, *[-1] * missing]
        assert_allclose(one.activation, [*column[order], *[np.nan] * missing], rtol=1e-5)
        for rank, row in enumerate(order):
            text = int(np.searchsorted(borders, row, side="right")) - 1
            assert (int(one.text[rank]), int(one.position[rank])) == (text, row - borders[text])
            for offset in range(-3, 4):
                at = one.sel(offset=offset).isel(rank=rank)
                there = borders[text] <= row + offset < borders[text + 1]
                assert str(at.token.values) == (str(ids[row + offset]) if there else "")
                assert_allclose(float(at.passage), column[row + offset] if there else np.nan, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_densities(case: str, store: Any) -> None:
    name, units, encoder = CASES[case]
    found = pl.corpus.densities(store, name, units, encode=encoder, bins=5, above=0.5)
    activations = whole(store, name, encoder)[:, found.unit.values]
    assert_array_equal(found.density, (activations > 0.5).mean(0))
    assert_allclose(found["mean"], activations.mean(0), rtol=1e-5, atol=1e-6)
    assert_allclose(found.largest, activations.max(0), rtol=1e-5)
    assert_array_equal(found.histogram.sum("bin"), (activations != 0).sum(0))
    assert_allclose(found.edges[:, 0], activations.min(0), rtol=1e-5)


def test_a_histogram_is_numpys(store: Any) -> None:
    """Of whole numbers, whose bins nobody rounds otherwise."""
    steps = lambda values: (values[:, :3] * 4).floor()  # noqa: E731
    found = pl.corpus.densities(store, NAME, encode=steps, bins=4)
    values = whole(store, NAME, steps)
    for unit in range(3):
        column = values[:, unit][values[:, unit] != 0]
        counts, edges = np.histogram(column, 4, (values[:, unit].min(), values[:, unit].max()))
        assert_allclose(found.edges[unit], edges, rtol=1e-6)
        assert found.histogram[unit].values.tolist() == counts.tolist()


def test_tokens_are_spelled_by_the_model(tmp_path: Path) -> None:
    pl.corpus.capture(pl.load(), ["Tom has a ball."], NAME, tmp_path / "a.zarr")
    found = pl.corpus.examples(pl.corpus.open(tmp_path / "a.zarr"), NAME, [3], count=1, around=9)
    assert "".join(found.token.values.flat) == "Tom has a ball."


def test_the_figure_of_examples(store: Any) -> None:
    table = pl.corpus.examples(store, NAME, [5], encode=encode, count=4, around=2)
    drawn = pl.plot.data(pl.plot.examples(table))
    one = table.sel(unit=5)
    there = ~np.isnan(one.passage.values)
    assert_array_equal(drawn, one.passage.values[there])
    assert drawn.token.values.tolist() == one.token.values[there].tolist()
    assert drawn["row"].values.tolist() == (one.row.values[:, None] + one.offset.values)[there].tolist()
    assert set(drawn["rank"].values.tolist()) == set(np.flatnonzero(one.row.values >= 0).tolist())


def test_the_figure_of_densities(store: Any) -> None:
    table = pl.corpus.densities(store, NAME, encode=encode, bins=6)
    drawn = pl.plot.data(pl.plot.densities(table))
    assert drawn["units"].sum() == (table.density > 0).sum()
    shares = np.log10(table.density.values[table.density.values > 0])
    for _, bar in drawn[drawn["units"] > 0].iterrows():
        assert ((shares >= bar["from"] - 1e-9) & (shares <= bar["to"] + 1e-9)).any()
    unit = int(table.unit[int(table.density.values.argmax())])
    alone = pl.plot.data(pl.plot.densities(table.sel(unit=unit)))
    assert alone["tokens"].tolist() == table.sel(unit=unit).histogram.values.tolist()
    assert alone["from"].tolist() == table.sel(unit=unit).edges.values[:-1].tolist()


def _unfinished(here: Any) -> Any:
    (here.store.place.path / place.chunk_key(NAME, 1, 2)).unlink()
    return pl.corpus.densities(here.store, NAME)


def _finished(here: Any) -> Any:
    pl.corpus.capture(shared(), TEXTS, [NAME, HEADS], here.store.place.path, dtype="bfloat16")
    return pl.corpus.densities(here.store, NAME)


def _examples(here: Any, units: Any = (5,)) -> Any:
    return pl.corpus.examples(here.store, NAME, units, encode=encode)


def _nowhere(here: Any) -> Any:
    dead = pl.corpus.examples(here.store, NAME, [0], encode=lambda values: values * 0)
    return pl.plot.examples(dead)


REMEDIES: dict[str, list[Case]] = {
    "corpus-unfinished": [Case(_unfinished, "Call pl.corpus.capture again", _finished)],
    "corpus-no-units": [Case(lambda h: _examples(h, []), "units=None for all", lambda h: _examples(h, None))],
    "corpus-encode": [
        Case(lambda h: pl.corpus.densities(h.store, NAME, encode=lambda values: encode(values).sum()),
             "a row for each", lambda h: pl.corpus.densities(h.store, NAME, encode=encode)),
        Case(lambda h: pl.corpus.densities(h.store, NAME, encode="sae"),
             "a function of a block", lambda h: pl.corpus.densities(h.store, NAME, encode=encode)),
    ],
    "corpus-above": [
        Case(lambda h: pl.corpus.densities(h.store, NAME, above="0"), "above=0.5",
             lambda h: pl.corpus.densities(h.store, NAME, above=0.5)),
    ],
    "device-not-available": [
        Case(lambda h: h.store.stream(NAME, 2, device="gpu"), "device='cpu'",
             lambda h: next(h.store.stream(NAME, 2, device="cpu"))),
    ],
    "tokenizer-kind": [
        Case(lambda h: pl.corpus.examples(h.store, NAME, [5], tokenizer="gpt2"), "pl.load(name).tokenizer",
             lambda h: pl.corpus.examples(h.store, NAME, [5], tokenizer=pl.load().tokenizer)),
    ],
    "corpus-units": [
        Case(lambda h: pl.plot.examples(_examples(h, [5, 2])), "table.sel(unit=5)",
             lambda h: pl.plot.examples(_examples(h, [5, 2]).sel(unit=5))),
    ],
    "corpus-table": [
        Case(lambda h: pl.plot.densities(_examples(h)), "pl.corpus.densities(store, name)",
             lambda h: pl.plot.densities(pl.corpus.densities(h.store, NAME))),
    ],
    "nothing-to-draw": [
        Case(_nowhere, "a density above zero", lambda h: pl.plot.examples(_examples(h))),
    ],
    "not-a-whole-number": [Case(lambda h: _examples(h, [20]), "", lambda h: _examples(h, [19]))],
}  # fmt: skip


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_what_a_remedy_says(code: str, case: Case, store: Any) -> None:
    follow(code, case, SimpleNamespace(store=store))


def test_what_only_decodes_spells() -> None:
    decodes: Any = SimpleNamespace(decode=lambda ids: f"<{ids[0]}>")
    assert activity._speller(decodes, decodes)(3) == "<3>"


MUTANTS: dict[str, tuple[Any, str, Any, Any]] = {
    "equal ones in any order": (
        activity, "_ordered", lambda values: -values.flip(1).argsort(1).argsort(1), test_the_strongest_examples,
    ),
    "a block too few": (
        activity, "_blocks", lambda *given, plain=activity._blocks: list(plain(*given))[:-1], test_densities,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MUTANTS)
def test_a_mistake_is_noticed(what: str, store: Any) -> None:
    must_be_noticed(MUTANTS[what], "all of a stream", store)
