"""Figures of some positions show the tokens and numbers of those positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray

import pellucid as pl
from noticed import must_be_noticed
from pellucid.plot import patterns

TEXT = "Lily had a red ball. One day, the red ball"


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize("draw", [pl.plot.attention, pl.plot.attention_grid])
def test_tokens_given_for_some_queries_are_theirs(draw: Any, bundled: pl.CkptedTransformer):
    _, ckpts = bundled.run_with_ckpts(TEXT, names="blocks.*.attn.ckpt_pattern", pos=slice(1, 4))
    array = ckpts.to_xarray()["attn.ckpt_pattern"].sel(batch=0)
    array = array.sel(layer=2, head=0) if draw is pl.plot.attention else array
    strings = ckpts.batch.strings[0]
    drawn = pl.plot.data(draw(array, tokens=strings))
    assert drawn.query_token.values.tolist() == strings[1:4]
    assert drawn.key_token.values.tolist() == strings[: drawn.sizes["key"]]


def test_labels_of_some_queries_say_their_positions():
    weights = np.tril(np.ones((200, 200)))
    weights /= weights.sum(1, keepdims=True)
    axes = pl.plot.attention(weights[-100:], tokens=[f"t{i}" for i in range(200)])
    for side in (axes.yaxis, axes.xaxis):
        assert len(labels(side)) > 2
        assert all(label == f"t{label.split()[1]} {label.split()[1]}" for label in labels(side))
    assert labels(axes.yaxis)[0] == "t100 100"
    assert labels(pl.plot.attention(weights[-100:]).yaxis)[0] == "100"


def test_the_first_tokens_are_not_those_that_were_captured_first(bundled: pl.CkptedTransformer):
    _, ckpts = bundled.run_with_ckpts(TEXT, names="blocks.*.resid_post", pos=slice(4, None))
    array = ckpts.to_xarray()["resid_post"]
    norms = (array**2).sum("d_model", skipna=False) ** 0.5
    assert not pl.plot.data(pl.plot.norms(norms, skip=1)).isnull().any()
    assert pl.plot.data(pl.plot.norms(norms, skip=5)).isnull().sum() == 4  # one token in each of four layers


def test_values_a_few_ulps_apart_are_drawn():
    values = 1 - 1.1e-16 * (np.arange(50) % 2)
    pl.plot.norms(xarray.DataArray(values.reshape(1, 1, 50), dims=("layer", "batch", "pos")))
    pl.plot.norm_histograms(xarray.DataArray(values.reshape(1, 1, 50), dims=("layer", "batch", "pos")))


@pytest.mark.parametrize("given", ["one term", "an array"])
def test_pvalues_of_another_shape_are_refused(given: str, bundled: pl.CkptedTransformer):
    _, ckpts = bundled.run_with_ckpts(TEXT * 3, names="blocks.*.resid_post")
    fit = pl.measure.autoregression(pl.measure.norms(ckpts, "resid_post"), lags=2)
    corrected = fit.corrected("holm")
    pl.plot.autoregression(fit, pvalues=corrected)
    with pytest.raises(pl.InputError) as caught:
        pl.plot.autoregression(fit, pvalues=corrected[["lag1"]] if given == "one term" else corrected.to_numpy())
    assert caught.value.code == "not-a-fit"


def without(*names: str) -> Callable[..., Any]:
    """Labelled captures that do not say this."""
    plain = pl.ActivationCkpts.to_xarray
    return lambda self, *given, **options: plain(self, *given, **options).drop_vars(names, errors="ignore")


MUTANTS: dict[str, tuple[Any, str, Any, Callable[[], None]]] = {
    "queries are the last": (
        pl.ActivationCkpts, "to_xarray", without("query", "query_position"),
        lambda: test_tokens_given_for_some_queries_are_theirs(pl.plot.attention, pl.load()),
    ),
    "labels count from 0": (
        patterns, "positions_of", lambda array, dim: list(range(array.sizes[dim])),
        test_labels_of_some_queries_say_their_positions,
    ),
    "columns have no positions": (
        pl.ActivationCkpts, "to_xarray", without("position"),
        lambda: test_the_first_tokens_are_not_those_that_were_captured_first(pl.load()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str) -> None:
    must_be_noticed(MUTANTS[name], by=[KeyError])
