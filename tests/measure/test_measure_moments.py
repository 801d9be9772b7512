"""Moments against scipy, group by group; pads, axes, merging, and what does not vary."""

from __future__ import annotations

from typing import Any

import measure_cases as cases
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import pellucid as pl
from pellucid.measure import groups as merging
from pellucid.measure.groups import Sums, grouped

TEXTS = cases.texts_of([3, 7, 5])
OVERS: list[Any] = [None, ["batch", "pos"], "d_model", ["pos", "layer"], ["layer", "batch", "pos", "d_model"]]


def of_scipy(numbers: np.ndarray) -> list[float]:
    return [len(numbers), numbers.mean(), numbers.var(), stats.skew(numbers), stats.kurtosis(numbers)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("over", OVERS)
def test_moments_are_those_of_scipy(over: Any, side: str) -> None:
    """To 1e-11: fourth powers of a hundred numbers lose four of sixteen digits at most."""
    run = cases.run_of(TEXTS, side=side)
    found = pl.measure.moments(run, "resid_post", over=over)
    raw = pl.measure.values(run, "resid_post")
    chosen = ["batch", "pos"] if over is None else [over] if isinstance(over, str) else over
    if "pos" not in chosen and "batch" in chosen:
        raw = pl.measure.aligned(raw)
    kept = [dim for dim in raw.dims if dim not in chosen]
    assert set(found["mean"].dims) == set(kept)
    for at in np.ndindex(*(raw.sizes[dim] for dim in kept)):
        where = dict(zip(kept, at, strict=True))
        numbers = raw.isel(where).values.ravel()
        numbers = numbers[~np.isnan(numbers)]
        row = [float(found[name].isel(where)) for name in ("count", "mean", "variance", "skewness", "kurtosis")]
        if len(numbers):
            assert np.allclose(row, of_scipy(numbers), rtol=1e-11, atol=1e-11)
        else:
            assert np.array_equal(row, [0, *[np.nan] * 4], equal_nan=True)


def test_positions_that_are_kept_are_counted_from_each_texts_first_token() -> None:
    runs = (cases.run_of(TEXTS, side=side) for side in ("left", "right"))
    left, right = (pl.measure.moments(run, "resid_post", over=["batch"]) for run in runs)
    assert left.equals(right)
    assert left["count"].isel(layer=0, d_model=0).values.tolist() == [3, 3, 3, 2, 2, 1, 1]


def test_of_norms_scores_and_around_the_blocks() -> None:
    run = cases.run_of(TEXTS)
    norms = pl.measure.norms(run, "attn.ckpt_z")
    found = pl.measure.moments(norms)
    assert found["mean"].dims == ("layer", "head")
    assert np.allclose(found["mean"], norms.mean(["batch", "pos"]), rtol=1e-14)
    assert pl.measure.moments(run, "attn.ckpt_scores")["count"].values.tolist() == [[6 + 28 + 15] * 2] * 3
    assert pl.measure.moments(run, "ckpt_embed").sizes == {"d_model": 6}


def test_units_and_provenance() -> None:
    found = pl.measure.moments(cases.run_of(TEXTS), "resid_post")
    assert found["mean"].units == "residual-stream units"
    assert found["variance"].units == "(residual-stream units)^2"
    assert found["kurtosis"].long_name == "excess kurtosis"
    assert found.attrs["over"] == "batch, pos"
    assert "text" in found.attrs
    assert set(found.to_dataframe()) == {"count", "mean", "variance", "skewness", "kurtosis"}


def test_what_does_not_vary_has_no_skewness() -> None:
    norms = pl.measure.norms(cases.run_of(TEXTS), "resid_post")
    for constant in (0.0, 0.1, -1e9):
        found = pl.measure.moments(xr.full_like(norms, constant).where(norms.notnull()))
        assert np.allclose(found["mean"], constant, rtol=1e-15)
        assert found["skewness"].isnull().all()
        assert found["kurtosis"].isnull().all()


def test_rounding_of_a_constant_is_no_variation() -> None:
    """Means of equal numbers come out with other last digits, which a merge would take for a spread."""
    for count in range(1, 60):
        merged = Sums.of(np.full((1, count), 1 / 3)).merge(Sums.of(np.full((1, 7), 1 / 3 * (1 + 2**-52))))
        assert np.isnan(merged.moments()["skewness"][0])


NUMBERS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12)


def close(a: Any, b: Any) -> bool:
    """To 1e-9 of what the powers of numbers up to a thousand reach."""
    return all(
        np.allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-9 * 1e3**power)
        for power, name in ((0, "count"), (1, "mean"), (2, "m2"), (3, "m3"), (4, "m4"))
    )


def sums(*parts: list[float]) -> Any:
    return Sums.of(np.array([[x for part in parts for x in part]]))


@given(NUMBERS, NUMBERS, NUMBERS)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_merging_gives_the_whole_in_any_order(a: list[float], b: list[float], c: list[float]) -> None:
    whole = sums(a, b, c)
    assert close(sums(a).merge(sums(b)).merge(sums(c)), whole)
    assert close(sums(c).merge(sums(a).merge(sums(b))), whole)
    assert close(sums(a, b, c).merge(sums([])), whole)
    assert close(sums([]).merge(whole), whole)


@given(NUMBERS, st.floats(-1e3, 1e3))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_shift_moves_the_mean_only(numbers: list[float], shift: float) -> None:
    before, after = sums(numbers), sums([x + shift for x in numbers])
    assert np.allclose(after.mean - before.mean, shift, rtol=0, atol=1e-9)
    for power, name in ((2, "m2"), (3, "m3"), (4, "m4")):
        assert np.allclose(getattr(after, name), getattr(before, name), rtol=1e-9, atol=1e-9 * 2e3**power)


def test_groups_one_after_the_other_are_the_groups_together(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).normal(size=(3, 4, 50))
    whole = Sums.of(data)
    monkeypatch.setattr(merging, "AT_ONCE", 10)
    parts = Sums.of(data)
    assert all(np.array_equal(a, b) for a, b in zip(vars(whole).values(), vars(parts).values(), strict=True))


def test_a_large_mean_does_not_cancel() -> None:
    """Integers far from zero, whose variance is known exactly."""
    numbers = 1e9 + np.arange(1000.0)
    moments = Sums.of(numbers[None, :400]).merge(Sums.of(numbers[None, 400:])).moments()
    assert moments["variance"][0] == pytest.approx((1000**2 - 1) / 12, rel=1e-12)
    assert moments["skewness"][0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("source", "name", "options", "code"),
    [
        ("norms", None, {"over": ["d_model"]}, "no-such-axis"),
        ("norms", None, {"over": []}, "no-such-axis"),
        ("norms", "resid_post", {}, "not-measurable"),
        ("run", None, {}, "not-measurable"),
        ("array", None, {}, "not-measurable"),
        ("run", "resid", {}, "unknown-checkpoint"),
        ("run", "attn.ckpt_q", {"over": ["d_model"]}, "no-such-axis"),
    ],
)
def test_what_cannot_be_measured(source: str, name: Any, options: dict[str, Any], code: str) -> None:
    run = cases.run_of(TEXTS)
    given = {"run": run, "norms": pl.measure.norms(run, "resid_post"), "array": np.zeros(3)}[source]
    for measure in (pl.measure.moments, pl.measure.distribution):
        with pytest.raises(pl.PellucidError) as caught:
            measure(given, name, **options)
        assert caught.value.code == code


def test_groups_keep_the_labels_of_what_is_kept() -> None:
    groups = grouped(pl.measure.norms(cases.run_of(TEXTS), "attn.ckpt_z"), None, ["layer", "head"], "test")
    assert groups.dims == ("batch", "pos")
    assert groups.data.shape == (3, 7, 6)
    assert {"token", "position", "batch", "pos"} <= set(groups.coords)


@pytest.mark.parametrize("side", ["left", "right"])
def test_kept_positions_are_those_of_each_text(side: str) -> None:
    """Also where the columns that were kept hold no pad."""
    texts = cases.texts_of([12, 4])
    whole = pl.measure.values(cases.run_of(texts, "blocks.*.resid_post", side=side), "resid_post")
    run = cases.run_of(texts, "blocks.*.resid_post", side=side)
    part = pl.measure.values(run, "resid_post").isel(pos=slice(-2, None) if side == "left" else slice(0, 2))
    found = pl.measure.moments(part, over=["batch", "d_model"])
    expected = pl.measure.aligned(whole)
    for at in found.pos.values.tolist():
        texts_at = [text for text in range(2) if at in part.position.values[text]]
        if texts_at:
            own = expected.isel(batch=texts_at).sel(pos=at).mean(["batch", "d_model"])
            assert np.allclose(found["mean"].sel(pos=at), own)
        else:
            assert (found["count"].sel(pos=at) == 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_kept_keys_are_those_of_each_text(side: str) -> None:
    texts = cases.texts_of([6, 3])
    found = pl.measure.moments(cases.run_of(texts, side=side), "attn.ckpt_pattern", over="batch")["mean"]
    alone = [pl.measure.values(cases.run_of([text]), "attn.ckpt_pattern") for text in texts]
    raw = pl.measure.aligned(pl.measure.values(cases.run_of(texts, side=side), "attn.ckpt_pattern"), "query")
    keyed = pl.measure.aligned(raw, "key")
    assert keyed.key_token.values[1].tolist()[3:] == [""] * 3
    assert found.sizes["key"] == found.sizes["query"] == 6
    assert np.allclose(found, keyed.mean("batch", skipna=True), equal_nan=True)
    assert np.allclose(keyed.isel(batch=1, query=slice(3), key=slice(3)).isnull(), alone[1].isel(batch=0).isnull())
