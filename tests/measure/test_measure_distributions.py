"""Histograms, quantiles and densities against numpy and scipy; outlier dimensions against planted ones."""

from __future__ import annotations

from typing import Any

import measure_cases as cases
import numpy as np
import pytest
import xarray as xr
from scipy import stats

import pellucid as pl

TEXTS = cases.texts_of([30, 50, 40])


def groups(side: str = "left") -> tuple[Any, list[np.ndarray]]:
    """Log norms, and each layer's numbers without pads."""
    norms = pl.measure.norms(cases.run_of(TEXTS, "blocks.*.resid_post", side=side), "resid_post", log=True)
    return norms, [row[~np.isnan(row)] for row in norms.values.reshape(cases.LAYERS, -1)]


def test_histograms_are_numpys_with_the_rule_of_freedman_and_diaconis() -> None:
    norms, rows = groups()
    found = pl.measure.distribution(norms)
    assert found["count"].values.tolist() == [120] * 3
    for layer, row in enumerate(rows):
        counts, edges = np.histogram(row, bins="fd")
        kept = ~np.isnan(found.bin_count.values[layer])
        assert np.array_equal(found.bin_count.values[layer][kept], counts)
        assert np.array_equal(found.bin_edge.values[layer][: len(edges)], edges)
        assert np.isnan(found.bin_edge.values[layer][len(edges) :]).all()
    assert len({int((~np.isnan(c)).sum()) for c in found.bin_count.values}) > 1, "groups of unequal numbers of bins"


def test_other_bins() -> None:
    norms, rows = groups()
    found = pl.measure.distribution(norms, bins=7)
    assert found.bin_count.shape == (3, 7)
    assert np.array_equal(found.bin_count.values[1], np.histogram(rows[1], bins=7)[0])
    with pytest.raises(pl.InputError) as caught:
        pl.measure.distribution(norms, bins="fdd")
    assert caught.value.code == "bins"


def test_quantiles_are_numpys() -> None:
    norms, rows = groups()
    found = pl.measure.distribution(norms, quantiles=[0, 0.1, 0.5, 1])
    assert found["quantile"].values.tolist() == [0, 0.1, 0.5, 1]
    for layer, row in enumerate(rows):
        assert np.array_equal(found.quantile_value.values[layer], np.quantile(row, [0, 0.1, 0.5, 1]))


def test_densities_are_scipys() -> None:
    """To 1e-12: both add 120 exponentials."""
    norms, rows = groups()
    for rule in ("scott", 0.3, "silverman"):
        found = pl.measure.distribution(norms, bandwidth=rule)
        for layer, row in enumerate(rows):
            h = float(found.bandwidth[layer])
            kernel = stats.gaussian_kde(row, bw_method="scott" if rule == "scott" else h / row.std(ddof=1))
            at = found["at"].values[layer]
            assert np.allclose(found.density.values[layer], kernel(at), rtol=1e-12, atol=1e-300)
            assert np.trapezoid(found.density.values[layer], at) == pytest.approx(1, abs=3e-3), "three h hold 99.7 %"


def test_the_bandwidth_is_stated() -> None:
    norms, rows = groups()
    found = pl.measure.distribution(norms)
    for layer, row in enumerate(rows):
        low, high = np.quantile(row, [0.25, 0.75])
        expected = 0.9 * min(row.std(ddof=1), (high - low) / 1.34) * len(row) ** -0.2
        assert float(found.bandwidth[layer]) == pytest.approx(expected, rel=1e-14)
    assert found.attrs["kernel"] == "Gaussian, silverman"
    assert found.bandwidth.units == "log of residual-stream units"
    assert "density" not in pl.measure.distribution(norms, bandwidth=None)


def test_the_side_of_the_pads_changes_nothing() -> None:
    left, right = (pl.measure.distribution(groups(side)[0]) for side in ("left", "right"))
    assert left.drop_attrs().equals(right.drop_attrs())


def test_by_position_and_by_head() -> None:
    run = cases.run_of(TEXTS, "blocks.*.attn.ckpt_z")
    found = pl.measure.distribution(pl.measure.norms(run, "attn.ckpt_z"), over=["batch"])
    assert dict(found["count"].sizes) == {"layer": 3, "pos": 50, "head": 2}
    assert found["count"].isel(layer=0, head=0).values.tolist() == [3] * 30 + [2] * 10 + [1] * 10
    assert found.density.isel(pos=45).isnull().all(), "one value has no density"
    assert (
        pl.measure.distribution(run, "attn.ckpt_z", over=["batch", "pos", "d_head"])["count"].values.tolist()
        == [[360, 360]] * 3
    )


def test_what_does_not_vary_has_no_density() -> None:
    norms = groups()[0]
    found = pl.measure.distribution(xr.full_like(norms, 2.0).where(norms.notnull()))
    assert found.density.isnull().all()
    assert found.bandwidth.isnull().all()
    assert np.nansum(found.bin_count.values, axis=1).tolist() == [120] * 3


def test_outliers_that_would_make_too_many_bins_are_an_error() -> None:
    norms = groups()[0].copy()
    norms.values[1, 1, 3] = 1e9
    with pytest.raises(pl.InputError) as caught:
        pl.measure.distribution(norms)
    assert caught.value.code == "too-many-bins"
    assert pl.measure.distribution(norms, bins=10).bin_count.sum() == 360


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"quantiles": [0.5, 50]}, "quantile-range"),
        ({"bandwidth": "scot"}, "bandwidth"),
        ({"bandwidth": 0.0}, "bandwidth"),
        ({"bandwidth": float("nan")}, "bandwidth"),
        ({"over": "head"}, "no-such-axis"),
    ],
)
def test_what_is_refused(options: dict[str, Any], code: str) -> None:
    with pytest.raises(pl.InputError) as caught:
        pl.measure.distribution(groups()[0], **options)
    assert caught.value.code == code


def test_a_planted_outlier_dimension_is_found_with_its_share() -> None:
    run = cases.run_of(TEXTS, "blocks.*.mlp.ckpt_post")
    for block, factor in ((0, 1.0), (1, 100.0)):
        run[f"blocks.{block}.mlp.ckpt_post"][..., 4] *= factor
    found = pl.measure.outliers(run, "mlp.ckpt_post")
    assert found.outlier_count.values.tolist() == [0, 1, 0]
    assert found.outlier.sel(layer=1).values.nonzero()[0].tolist() == [4]
    raw = np.concatenate([run["blocks.1.mlp.ckpt_post"][i][run.batch.mask[i]].double().numpy() for i in range(3)])
    squares = (raw**2).mean(0)
    assert np.allclose(found.rms.sel(layer=1), np.sqrt(squares), rtol=1e-13)
    assert np.allclose(found.share.sel(layer=1), squares / squares.sum(), rtol=1e-13)
    assert float(found.outlier_share.sel(layer=1)) == pytest.approx(squares[4] / squares.sum(), rel=1e-13)
    assert np.allclose(found.share.sum("d_mlp"), 1)
    away = np.abs(np.sqrt(squares) - np.median(np.sqrt(squares)))
    score = (np.sqrt(squares) - np.median(np.sqrt(squares))) / (1.4826 * np.median(away))
    assert np.allclose(found.score.sel(layer=1), score, rtol=1e-12)
    assert pl.measure.outliers(run, "mlp.ckpt_post", threshold=1e9).outlier_count.sum() == 0


def test_equal_dimensions_have_no_score() -> None:
    run = cases.run_of(TEXTS, "blocks.*.resid_post")
    for name in run:
        run[name][..., :4] = 1.0
    found = pl.measure.outliers(run, "resid_post")
    assert found.score.isnull().all()
    assert found.outlier_count.sum() == 0


@pytest.mark.parametrize("over", [None, ["d_model"]])
def test_outliers_need_dimensions(over: Any) -> None:
    run = cases.run_of(TEXTS)
    given = pl.measure.norms(run, "resid_post") if over is None else pl.measure.values(run, "resid_post")
    with pytest.raises(pl.InputError) as caught:
        pl.measure.outliers(given, over=over)
    assert caught.value.code == "no-such-axis"
