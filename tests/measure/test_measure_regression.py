"""Autoregressions against statsmodels and numpy, field by field; texts, skips, regressors, and degenerate series."""

from __future__ import annotations

import re
from typing import Any

import measure_cases as cases
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import xarray as xr
from statsmodels.stats.diagnostic import acorr_ljungbox
from statsmodels.stats.multitest import multipletests

import pellucid as pl
from pellucid.measure import HAC, autoregression, select_lags

RTOL = 1e-9
"""What is promised of every number that statsmodels gives too."""

COURSE_TEXT = (
    "Hungarian rock has been a part of the popular music of Hungary since the early 1960s. The first major bands were "
    "Illés, Metró and Omega. At the time, rock was not approved of by the Hungarian Communist authorities. In the "
    "1970s, the Communists cracked down on rock, and Illés was banned from recording. Some members of the other bands "
    "formed a supergroup called Locomotiv GT, while the band Omega became very popular in Germany."
)


def close(a: Any, b: Any, rtol: float = RTOL, atol: float = 0.0) -> None:
    np.testing.assert_allclose(np.asarray(a, dtype=float), np.asarray(b, dtype=float), rtol=rtol, atol=atol)


def stacked(rows: list[np.ndarray], lags: int, skip: int) -> tuple[np.ndarray, np.ndarray]:
    """(y, X) of several texts' series, by a loop."""
    y, x = [], []
    for row in rows:
        for t in range(skip + lags, len(row)):
            y.append(row[t])
            x.append([1.0, *(row[t - i] for i in range(1, lags + 1))])
    return np.array(y), np.array(x)


def texts_of_layer(norms: xr.DataArray, layer: int) -> list[np.ndarray]:
    """Each text's own series, without pads."""
    return [row[~np.isnan(row)] for row in norms.sel(layer=layer).values]


def check_against_statsmodels(fit: pl.measure.AutoregressionFit, row: Any, y: np.ndarray, x: np.ndarray) -> None:
    """Every field of one row of the tables."""
    real = sm.OLS(y, x).fit()
    close(fit.params.loc[row], real.params)
    close(fit.bse.loc[row], real.bse)
    close(fit.tvalues.loc[row], real.tvalues)
    close(fit.pvalues.loc[row], real.pvalues)
    close(fit.conf_int.loc[row].to_numpy().reshape(-1, 2), real.conf_int())
    close(fit.interval(0.9).loc[row].to_numpy().reshape(-1, 2), real.conf_int(alpha=0.1))
    close(fit.rsquared.loc[row], real.rsquared)
    close(fit.rsquared_adj.loc[row], real.rsquared_adj)
    close(fit.aic.loc[row], real.aic)
    close(fit.bic.loc[row], real.bic)
    close(fit.condition.loc[row], real.condition_number)
    assert (fit.nobs, fit.df_resid) == (real.nobs, real.df_resid)


def test_the_procedure_of_the_course_gives_the_same_numbers() -> None:
    """The design matrix of the course's own loop, on the bundled model: t from 3, the first token enters nowhere."""
    _, ckpts = pl.load().run_with_ckpts(COURSE_TEXT, names="blocks.*.attn.ckpt_attn_out")
    norms = pl.measure.norms(ckpts, "attn.ckpt_attn_out", log=True)
    fit = autoregression(norms, lags=2, skip=1)
    n_tokens = ckpts.batch.ids.size(1)
    for layer in range(4):
        adjustments = ckpts[f"blocks.{layer}.attn.ckpt_attn_out"].double().numpy()
        series = np.log(np.linalg.norm(adjustments[0, :, :], axis=-1))
        design_mat, y = np.zeros((n_tokens - 3, 3)), np.zeros(n_tokens - 3)
        for t in range(3, n_tokens):
            y[t - 3] = series[t]
            design_mat[t - 3, :] = [1, series[t - 1], series[t - 2]]
        check_against_statsmodels(fit, layer, y, design_mat)
        close(fit.params.loc[layer], np.linalg.lstsq(design_mat, y, rcond=None)[0])
    assert fit.nobs == n_tokens - 3
    assert list(fit.params.columns) == ["const", "lag1", "lag2"]
    assert fit.params.index.tolist() == [0, 1, 2, 3]
    assert fit.params.index.name == "layer"


@pytest.mark.parametrize("lags", [0, 1, 2, 5])
@pytest.mark.parametrize("skip", [0, 3])
def test_many_series_equal_a_loop_over_statsmodels(lags: int, skip: int) -> None:
    norms = cases.series(6, 60)
    fit = autoregression(norms, lags, skip)
    for layer in range(6):
        y, x = stacked([norms.values[layer]], lags, skip)
        if lags:
            check_against_statsmodels(fit, layer, y, x)
        else:
            close(fit.params.loc[layer], [y.mean()])


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_pooled_without_joining_them(side: str) -> None:
    norms = cases.several_texts([40, 25, 33, 3], side)
    fit = autoregression(norms, lags=2, skip=1)
    for layer in range(cases.LAYERS):
        check_against_statsmodels(fit, layer, *stacked(texts_of_layer(norms, layer), 2, 1))
    assert fit.nobs == 37 + 22 + 30
    assert (fit.basis.texts, fit.basis.short) == (3, 1)
    assert "89 rows of 3 texts (1 more too short), t from 3" in repr(fit)


def test_skipped_tokens_enter_nowhere() -> None:
    norms = cases.several_texts([40, 25], "left")
    changed = norms.copy()
    changed.values[np.broadcast_to(changed.position.values == 0, changed.shape)] = 1e6
    plain, other = (autoregression(one, lags=2, skip=1) for one in (norms, changed))
    assert np.array_equal(plain.solution.params, other.solution.params)
    assert not np.allclose(autoregression(changed, 2, skip=0).params, autoregression(norms, 2, skip=0).params)


def test_the_first_point_fitted_is_skip_plus_lags_and_lags_are_in_order() -> None:
    norms = cases.several_texts([12, 9], "left")
    for lags, skip in ((0, 0), (2, 1), (3, 2), (1, 4)):
        design = autoregression(norms, lags, skip).design(1)
        assert design.index.get_level_values("t").min() == skip + lags
        assert design.index.tolist() == [(b, t) for b, length in ((0, 12), (1, 9)) for t in range(skip + lags, length)]
        assert list(design.columns) == ["y", "const", *(f"lag{i}" for i in range(1, lags + 1))]
        close(design.to_numpy(), np.column_stack(stacked(texts_of_layer(norms, 1), lags, skip)))


def test_an_array_without_positions_counts_from_its_first_number() -> None:
    norms = cases.several_texts([40, 25], "left")
    bare = norms.drop_vars(["position", "token"])
    assert np.array_equal(autoregression(norms, 2, 1).params, autoregression(bare, 2, 1).params)
    one = norms.sel(batch=1, drop=True)
    close(autoregression(one, 2, 1).params, autoregression(one.dropna("pos"), 2, 1).params, rtol=1e-12)
    close(autoregression(pl.measure.aligned(norms), 2, 1).params, autoregression(norms, 2, 1).params, rtol=1e-12)


def test_a_part_of_the_positions_keeps_counting_from_the_texts_beginning() -> None:
    norms = cases.several_texts([40, 25], "right")
    without_first = norms.isel(pos=slice(1, None))
    whole, part = autoregression(norms, 2, skip=1), autoregression(without_first, 2, skip=1)
    assert whole.nobs == part.nobs == 37 + 22
    close(whole.params, part.params, rtol=1e-12)
    for columns in (slice(None, None, 2), [3, 2, 1, 0], [0, 1, 2, 4, 5, 6, 7, 8]):
        with pytest.raises(pl.InputError) as caught:
            autoregression(norms.isel(pos=columns), 2)
        assert caught.value.code == "positions-not-adjacent"


def test_heads_are_further_series() -> None:
    run = cases.run_of(cases.texts_of([30, 20]), ["blocks.*.attn.ckpt_z", "blocks.*.attn.ckpt_scores"])
    fit = autoregression(pl.measure.norms(run, "attn.ckpt_z"), 1, 1)
    assert fit.params.index.names == ["layer", "head"]
    norms = pl.measure.norms(run, "attn.ckpt_z").sel(layer=2, head=1)
    y, x = stacked([row[~np.isnan(row)] for row in norms.values], 1, 1)
    check_against_statsmodels(fit, (2, 1), y, x)
    assert fit.design((2, 1)).shape == (46, 3)
    assert fit.to_dataframe().columns[:3].tolist() == ["layer", "head", "parameter"]
    by_query = autoregression(pl.measure.norms(run, "attn.ckpt_scores"), 1, 1)
    assert by_query.nobs == fit.nobs
    single = autoregression(norms, 1, 1)
    close(single.params.iloc[0], fit.params.loc[(2, 1)], rtol=1e-12)
    assert "OLS Regression Results" in str(single.summary())


def test_further_regressors() -> None:
    norms = cases.several_texts([40, 25, 33], "left")
    frequency = np.random.default_rng(1).normal(size=norms.shape[1:])
    given = {"frequency": frequency, "position": norms.position, "previous_layer": norms.shift(layer=1)}
    fit = autoregression(norms, 2, 1, regressors=given)
    assert list(fit.params) == ["const", "lag1", "lag2", "frequency", "position", "previous_layer"]
    assert fit.params.loc[0].isna().all()
    assert fit.problems[0] == "previous_layer is not finite at text 0, t = 3"
    for layer in (1, 2):
        y, x = stacked(texts_of_layer(norms, layer), 2, 1)
        more = []
        for text in range(3):
            real = norms.position.values[text] >= 3
            columns = (frequency[text], norms.position.values[text], norms.values[layer - 1, text])
            more.append(np.column_stack([column[real] for column in columns]))
        x = np.column_stack([x, np.concatenate(more)])
        check_against_statsmodels(fit, layer, y, x)
        close(fit.design(layer).drop(columns="y"), x)
    shared = autoregression(norms, 2, 1, regressors={"frequency": frequency})
    assert (shared.problems == "").all()
    by_position = xr.DataArray(np.arange(40.0) ** 2, dims="pos", coords={"pos": range(40)})
    assert autoregression(norms, 1, regressors={"square": by_position}).params.shape == (3, 3)
    assert "previous_layer previous_layer[t]" in repr(fit)


@pytest.mark.parametrize(
    ("regressors", "code"),
    [
        ({"lag1": np.zeros((2, 12))}, "name-taken"),
        ({"const": np.zeros((2, 12))}, "name-taken"),
        ({"x": np.zeros((2, 11))}, "regressor-misfit"),
        ({"x": np.zeros(12)}, "regressor-misfit"),
        ({"x": ["a", "b"]}, "regressor-misfit"),
        ({"x": xr.DataArray(np.zeros(3), dims="head")}, "regressor-misfit"),
        ({"x": xr.DataArray(np.zeros(12), dims="pos", coords={"pos": range(1, 13)})}, "regressor-misfit"),
        ({"x": np.ones((2, 12))}, "not-fitted"),
        ({"x": np.full((2, 12), np.nan)}, "not-fitted"),
    ],
)
def test_regressors_that_do_not_fit(regressors: dict[str, Any], code: str) -> None:
    with pytest.raises(pl.InputError) as caught:
        autoregression(cases.several_texts([12, 9], "left"), 2, regressors=regressors)
    assert caught.value.code == code


@pytest.mark.parametrize("maxlags", [0, 1, 4, None])
def test_robust_errors_are_statsmodels(maxlags: int | None) -> None:
    norms = cases.series(4, 80)
    fit = autoregression(norms, 2, 1, cov=HAC(maxlags))
    used = int(4 * (77 / 100) ** (2 / 9)) if maxlags is None else maxlags
    assert fit.maxlags == used
    for layer in range(4):
        real = sm.OLS(*stacked([norms.values[layer]], 2, 1)).fit().get_robustcov_results("HAC", maxlags=used)
        close(fit.bse.loc[layer], real.bse)
        close(fit.pvalues.loc[layer], real.pvalues)
        close(fit.conf_int.loc[layer].to_numpy().reshape(-1, 2), real.conf_int())
        close(fit.covariance[layer], real.cov_params())
    assert np.array_equal(fit.params, autoregression(norms, 2, 1).params)
    close(autoregression(norms, 2, 1).robust(maxlags).bse, fit.bse)
    assert f"Newey-West, {used} lags" in repr(fit)


def test_robust_errors_of_several_texts_have_no_products_across() -> None:
    norms = cases.several_texts([20, 14, 9], "left")
    fit = autoregression(norms, 1, 1, cov=HAC(3))
    for layer in range(cases.LAYERS):
        rows = texts_of_layer(norms, layer)
        y, x = stacked(rows, 1, 1)
        residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
        lengths = [len(row) - 2 for row in rows]
        meat, begin = np.zeros((2, 2)), 0
        for length in lengths:
            for s in range(begin, begin + length):
                for t in range(begin, begin + length):
                    if abs(s - t) <= 3:
                        weight = 1 - abs(s - t) / 4
                        meat += weight * residual[s] * residual[t] * np.outer(x[s], x[t])
            begin += length
        bread = np.linalg.inv(x.T @ x)
        close(fit.covariance[layer], bread @ meat @ bread)


@pytest.mark.parametrize("mean", [1e3, 2.0**23, 2.0**40])
def test_robust_errors_are_right_far_from_zero(mean: float) -> None:
    """A mean moves the constant alone: its error is that of the old constant less the slope times the mean."""
    near = cases.series(2, 40, mean=0.0)
    near.values[:] = np.round(near.values * 2.0**10) / 2.0**10  # so the mean is added without rounding
    plain, moved = (autoregression(series, 1, cov=HAC(2)) for series in (near, near + mean))
    close(moved.bse["lag1"], plain.bse["lag1"], rtol=1e-12)
    back = np.array([[1.0, -mean], [0.0, 1.0]])
    close(moved.covariance, back @ plain.covariance @ back.T, rtol=1e-9)


def test_corrections_are_statsmodels() -> None:
    fit = autoregression(cases.series(30, 60, seed=3), 2, 1)
    for ours, theirs in (("holm", "holm"), ("bh", "fdr_bh")):
        for name in fit.params:
            close(fit.corrected(ours)[name], multipletests(fit.pvalues[name], method=theirs)[1], rtol=1e-13)
    values = cases.series(30, 60, seed=3)
    values[4] = 1.0
    with_gap = autoregression(values, 2, 1)
    kept = with_gap.pvalues["lag1"].drop(4)
    assert np.isnan(with_gap.corrected("holm")["lag1"][4])
    close(with_gap.corrected("bh")["lag1"].drop(4), multipletests(kept, method="fdr_bh")[1], rtol=1e-13)
    with pytest.raises(pl.InputError) as caught:
        fit.corrected("bonferoni")
    assert caught.value.code == "unknown-correction"


def test_tied_p_values_are_corrected_alike() -> None:
    values = cases.series(5, 60, seed=3)
    values = xr.concat([values, values, values.isel(layer=[0])], "layer")
    fit = autoregression(values, 2, 1)
    p = fit.pvalues["lag2"]
    assert len(set(p)) == 5
    for ours, theirs in (("holm", "holm"), ("bh", "fdr_bh")):
        close(fit.corrected(ours)["lag2"], multipletests(p, method=theirs)[1], rtol=1e-14)


def test_ljung_box_is_statsmodels() -> None:
    norms = cases.series(4, 80)
    fit = autoregression(norms, 2, 1)
    for lags, model_df in ((10, 2), (10, 0), (5, 3), (2, 2)):
        found = fit.ljung_box(lags, model_df)
        for layer in range(4):
            residual = sm.OLS(*stacked([norms.values[layer]], 2, 1)).fit().resid
            close(found.loc[layer], acorr_ljungbox(residual, [lags], model_df=model_df).iloc[0])
    assert fit.ljung_box().equals(fit.ljung_box(10, 2)), "as many degrees of freedom are used as there are lags"
    for lags in (0, 77):
        with pytest.raises(pl.InputError) as caught:
            fit.ljung_box(lags)
        assert caught.value.code == "lags-range"


def test_ljung_box_of_several_texts_has_no_products_across() -> None:
    norms = cases.several_texts([20, 14], "right")
    fit = autoregression(norms, 1, 1)
    residual = [row[~np.isnan(row)] for row in fit.residuals.sel(layer=2).values]
    total = sum(float((r**2).sum()) for r in residual)
    q = sum(
        (sum(float((r[lag:] * r[:-lag]).sum()) for r in residual) / total) ** 2 / sum(len(r) - lag for r in residual)
        for lag in range(1, 5)
    )
    n = sum(map(len, residual))
    assert fit.ljung_box(4).statistic[2] == pytest.approx(n * (n + 2) * q, rel=1e-9)


def test_residuals_keep_the_axes() -> None:
    norms = cases.several_texts([20, 14], "left").transpose("pos", "layer", "batch")
    fit = autoregression(norms, 2, 1)
    assert fit.residuals.dims == norms.dims
    assert fit.residuals.name == "residual"
    real = sm.OLS(*stacked(texts_of_layer(norms.transpose("layer", "batch", "pos"), 1), 2, 1)).fit()
    found = fit.residuals.sel(layer=1).transpose("batch", "pos").values
    close(found[~np.isnan(found)], real.resid, rtol=1e-7, atol=1e-12)
    assert (~np.isnan(found)).sum() == fit.nobs
    assert autoregression(norms.sel(batch=0), 2).residuals.dims == ("pos", "layer")


def test_lags_are_selected_on_the_same_rows() -> None:
    norms = cases.several_texts([60, 50], "left")
    found = select_lags(norms, 4, skip=1)
    assert found.nobs == 55 + 45
    for layer in range(cases.LAYERS):
        for order in range(5):
            y, x = [], []
            for row in texts_of_layer(norms, layer):
                for t in range(5, len(row)):
                    y.append(row[t])
                    x.append([1.0, *(row[t - i] for i in range(1, order + 1))])
            real = sm.OLS(np.array(y), np.array(x)).fit()
            close(found.aic.loc[layer, order], real.aic)
            close(found.bic.loc[layer, order], real.bic)
        assert found.best_aic[layer] == found.aic.loc[layer].idxmin()
        assert found.best_bic[layer] == found.bic.loc[layer].idxmin()
    assert "orders 0 to 4 on 100 rows" in repr(found)


def test_the_true_order_is_selected() -> None:
    """Of long series, whose second lag is far from zero; BIC is consistent, AIC may take more."""
    draw = np.random.default_rng(5)
    values = np.zeros((3, 3000))
    for t in range(2, 3000):
        values[:, t] = 0.3 * values[:, t - 1] + 0.4 * values[:, t - 2] + draw.standard_normal(3)
    found = select_lags(xr.DataArray(values, dims=("layer", "pos")), 6)
    assert found.best_bic.tolist() == [2, 2, 2]
    assert (found.best_aic >= 2).all()


def test_a_layer_without_selection_is_marked() -> None:
    norms = cases.series(3, 40)
    norms.values[1] = 2.0
    found = select_lags(norms, 2)
    assert found.best_bic.isna().tolist() == [False, True, False]


def summary_lines(summary: Any) -> list[str]:
    """Without the date and the time."""
    return [line for line in str(summary).splitlines() if not re.match(r"(Date|Time):", line)]


def test_the_summary_is_statsmodels_own() -> None:
    norms = cases.series(3, 60)
    fit = autoregression(norms, 2, 1)
    y, x = stacked([norms.values[1]], 2, 1)
    frame = pd.DataFrame(x, columns=["const", "lag1", "lag2"])
    real = sm.OLS(pd.Series(y, name="y"), frame).fit()
    assert summary_lines(fit.summary(1)) == summary_lines(real.summary())
    robust = real.get_robustcov_results("HAC", maxlags=3)
    ours = summary_lines(fit.robust(3).summary(1))
    assert ours[12:17] == summary_lines(robust.summary())[12:17]
    assert "using 3 lags" in ours[-1]
    for layer in (7, None, "1", (1, 2), slice(0, 2)):
        with pytest.raises(pl.InputError) as caught:
            fit.summary(layer)
        assert caught.value.code == "no-such-row"


def test_regressors_mean_the_same_however_the_axes_stand() -> None:
    norms = cases.several_texts([20, 14])
    turned = norms.transpose("pos", "layer", "batch")
    plain = norms.fillna(0.0).isel(layer=0, drop=True) ** 2
    for given in (norms.position, plain, plain.values):
        one, other = (autoregression(each, 1, regressors={"x": given}) for each in (norms, turned))
        assert np.allclose(one.params, other.params, rtol=1e-10)


def test_orders_of_what_cannot_be_fitted() -> None:
    constant = cases.series(2, 20) * 0 + 1.5
    with pytest.raises(pl.InputError) as caught:
        pl.measure.select_lags(constant, 3)
    assert caught.value.code == "not-fitted"


@pytest.mark.parametrize("lags", [2.5, 3.0, True, "2"])
def test_ljung_box_counts_lags_in_whole_numbers(lags: Any) -> None:
    with pytest.raises(pl.InputError, match="whole number"):
        autoregression(cases.series(2, 40), 1).ljung_box(lags)


def test_no_regressor_is_called_as_the_response() -> None:
    norms = cases.series(2, 40)
    with pytest.raises(pl.InputError) as caught:
        autoregression(norms, 1, regressors={"y": np.ones((1, 40))})
    assert caught.value.code == "name-taken"


def test_a_gap_is_named() -> None:
    with pytest.raises(pl.InputError, match=r"in text 0, position 12 \(column 9\) follows position 8 \(column 8\)"):
        autoregression(cases.several_texts([20]).isel(pos=[*range(9), 12]), 1)


def test_the_robust_summary_of_several_texts_has_the_robust_errors() -> None:
    fit = autoregression(cases.several_texts([9] * 12), 2, 1).robust(5)
    rows = [line.split() for line in str(fit.summary(fit.index[0])).splitlines()]
    shown = {row[0]: float(row[2]) for row in rows if row and row[0] in fit.params}
    assert shown == pytest.approx(fit.bse.iloc[0].to_dict(), abs=6e-4)
    across = {"cov_type": "HAC", "cov_kwds": {"maxlags": 5}}
    table = fit.design(fit.index[0]).reset_index(drop=True)
    wrong = sm.OLS(table["y"], table.drop(columns="y")).fit(**across)
    assert shown != pytest.approx(dict(wrong.bse), abs=6e-4), "products of two texts would show"


def test_more_lags_than_a_text_has_rows_are_robust_all_the_same() -> None:
    """The lags without a product add nothing, but the weights are those of all lags."""
    norms = cases.several_texts([9, 6], "left")
    fit = autoregression(norms, 1, 1).robust(10)
    for layer in range(cases.LAYERS):
        meat = np.zeros((2, 2))
        for row in texts_of_layer(norms, layer):
            y, x = stacked([row], 1, 1)
            scores = (y - x @ fit.params.loc[layer])[:, None] * x
            for s, t in np.ndindex(len(y), len(y)):
                meat += (1 - abs(s - t) / 11) * np.outer(scores[s], scores[t])
        bread = np.linalg.inv((x := stacked(texts_of_layer(norms, layer), 1, 1)[1]).T @ x)
        close(fit.covariance[layer], bread @ meat @ bread)
    rows = [line.split() for line in str(fit.summary(0)).splitlines()]
    shown = {row[0]: float(row[2]) for row in rows if row and row[0] in fit.params}
    assert shown == pytest.approx(fit.bse.loc[0].to_dict(), abs=6e-4)


def test_a_short_series_has_a_summary_without_warnings() -> None:
    assert "OLS Regression Results" in str(autoregression(cases.series(1, 9), 1).summary(0))


def test_it_prints_itself() -> None:
    fit = autoregression(cases.several_texts([30, 20]), 2, 1)
    shown = repr(fit)
    assert shown.startswith(
        "resid_post (log of residual-stream units): y[t] = const + lag1 y[t-1] + lag2 y[t-2]\n"
        "44 rows of 2 texts, t from 3; standard errors: plain\n"
    )
    assert f"{fit.params.loc[2, 'lag1']:.4g}" in shown
    page = fit._repr_html_()
    assert "<table" in page
    assert "y[t] = const" in page
    assert "<" not in page.split("<table")[0].replace("<p>", "").replace("</p>", "")
    many = autoregression(cases.series(200, 20), 1)
    assert len(repr(many).splitlines()) < 40


def test_the_tidy_table() -> None:
    fit = autoregression(cases.series(5, 60), 2, 1)
    tidy = fit.to_dataframe()
    assert len(tidy) == 15
    row = tidy[(tidy.layer == 3) & (tidy.parameter == "lag2")].iloc[0]
    assert row.estimate == fit.params.loc[3, "lag2"]
    assert row.std_error == fit.bse.loc[3, "lag2"]
    assert row.p == fit.pvalues.loc[3, "lag2"]
    assert row.p_holm == fit.corrected("holm").loc[3, "lag2"]
    assert row.p_bh == fit.corrected("bh").loc[3, "lag2"]
    assert (row.lower, row.upper) == tuple(fit.conf_int.loc[3, "lag2"])


def test_provenance_goes_along() -> None:
    norms = cases.several_texts([30, 20])
    assert autoregression(norms).attrs == norms.attrs


def test_degenerate_layers_are_marked_and_the_others_untouched() -> None:
    norms = cases.series(5, 40)
    alone = autoregression(norms, 2)
    norms.values[1] = 3.0
    norms.values[2, 17] = np.nan
    norms.values[3] = np.arange(40)
    fit = autoregression(norms, 2)
    assert fit.problems.tolist() == [
        "", "the series is constant", "the series is not finite at text 0, t = 17",
        "the columns of the design are linearly dependent", "",
    ]  # fmt: skip
    tables = [getattr(fit, name) for name in ("params", "bse", "pvalues", "conf_int", "rsquared", "aic", "condition")]
    for table in (*tables, fit.robust(2).bse, fit.ljung_box(3), fit.corrected("bh"), fit.interval(0.5)):
        assert np.isnan(table.loc[[1, 2, 3]].to_numpy(dtype=float)).all()
        assert not np.isnan(table.loc[[0, 4]].to_numpy(dtype=float)).any()
    assert fit.residuals.isnull().sel(layer=[1, 2, 3]).all()
    assert np.array_equal(fit.params.loc[[0, 4]], alone.params.loc[[0, 4]])
    assert "the series is constant" in repr(fit)
    with pytest.raises(pl.InputError) as caught:
        fit.summary(1)
    assert caught.value.code == "not-fitted"


DEGENERATE = [
    (lambda: xr.DataArray(np.full((2, 20), 3.0), dims=("layer", "pos")), {}, "not-fitted"),
    (lambda: xr.DataArray(np.full((2, 20), np.nan), dims=("layer", "pos")), {}, "too-short"),
    (lambda: cases.series(2, 5), {}, "too-short"),
    (lambda: cases.series(2, 6), {"skip": 1}, "too-short"),
    *((lambda: cases.series(2, 3), {"lags": lags}, "too-short") for lags in (2, 3, 4, 5, 9)),
    (lambda: cases.several_texts([1, 1, 2]), {}, "too-short"),
    (lambda: cases.several_texts([1]), {}, "too-short"),
    (lambda: cases.series(2, 20), {"lags": -1}, "lags-range"),
    (lambda: cases.series(2, 20), {"lags": 1.5}, "lags-range"),
    (lambda: cases.series(2, 20), {"skip": True}, "lags-range"),
    (lambda: cases.series(2, 20), {"cov": "hac"}, "unknown-covariance"),
    (lambda: cases.series(2, 20), {"cov": HAC(18)}, "lags-range"),
    (lambda: cases.series(2, 20), {"cov": HAC(1.5)}, "lags-range"),  # type: ignore[arg-type]
    (lambda: cases.series(2, 20).values, {}, "not-measurable"),
    (lambda: cases.series(2, 20).rename(pos="time"), {}, "no-such-axis"),
    (
        lambda: pl.measure.values(cases.run_of(cases.texts_of([9])), "attn.ckpt_pattern").sum("query"),
        {},
        "no-such-axis",
    ),
]


@pytest.mark.parametrize(
    ("make", "options", "code"), DEGENERATE, ids=[f"{i} {row[2]}" for i, row in enumerate(DEGENERATE)]
)
def test_what_cannot_be_fitted_raises(make: Any, options: dict[str, Any], code: str) -> None:
    with pytest.raises(pl.InputError) as caught:
        autoregression(make(), **options)
    assert caught.value.code == code


def test_levels_between_0_and_1() -> None:
    with pytest.raises(pl.InputError) as caught:
        autoregression(cases.series(2, 20)).interval(95)
    assert caught.value.code == "level"


def test_six_points_for_three_parameters_are_enough() -> None:
    fit = autoregression(cases.series(2, 6), 2)
    assert (fit.nobs, fit.df_resid) == (4, 1)
    check_against_statsmodels(fit, 0, *stacked([cases.series(2, 6).values[0]], 2, 0))


def test_numbers_of_numpy_are_numbers() -> None:
    assert autoregression(cases.series(2, 20), np.int64(2), np.int32(1)).nobs == 17  # type: ignore[arg-type]
