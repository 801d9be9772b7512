"""Inference beyond the plain fit, most of it by statsmodels: robust covariances, corrections, residuals, summaries.

statsmodels takes one series at a time, which is fast enough for questions that are asked of a few layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.errors import InputError, shown
from pellucid.extras import need
from pellucid.measure.labelled import Array
from pellucid.measure.regression.least_squares import Solution
from pellucid.measure.regression.rows import Design

if TYPE_CHECKING:
    import pandas as pd

CORRECTIONS = {"holm": "holm", "bh": "fdr_bh"}
"""The names of corrections for many tests, here and in statsmodels."""


def corrected(p: Array, method: str) -> Array:
    """Adjust p-values [S, k] for the S tests of each column; NaN stays out.

    Raises:
        InputError: If the method is unknown.
    """
    if not isinstance(method, str) or method not in CORRECTIONS:
        raise InputError(
            f"corrected: {shown(method)}, expected one of {', '.join(map(repr, CORRECTIONS))}.",
            code="unknown-correction",
            remedy="Give 'holm' to bound the chance of any false rejection, or 'bh' to bound the share of false ones.",
        )
    correct = need("statsmodels.stats.multitest", "corrected").multipletests
    out = np.full_like(p, np.nan)
    for column in range(p.shape[1]):
        held = ~np.isnan(p[:, column])
        out[held, column] = correct(p[held, column], method=CORRECTIONS[method])[1]
    return out


def newey_west(design: Design, solution: Solution, maxlags: int) -> Array:
    """Return the covariance [S, k, k] of Newey & West (1987) with Bartlett's kernel, without products of two texts.

    It is (X'X)^-1 (G_0 + sum_l w_l (G_l + G_l')) (X'X)^-1, with G_l = sum_t x_t e_t e_(t-l) x_(t-l)' and weights
    w_l = 1 - l / (maxlags + 1).
    """
    sandwich = need("statsmodels.stats.sandwich_covariance", "a robust covariance")
    weights = _bartlett(design.text)(maxlags)
    ends = np.flatnonzero(np.diff(design.text, append=-1)) + 1
    texts = list(zip([0, *ends[:-1]], ends, strict=True))
    out = np.full_like(solution.inverse, np.nan)
    residuals = design.residuals(solution).reshape(len(out), -1)[:, design.at]
    for series in np.flatnonzero(solution.problems == ""):
        scores = design.matrix(int(series))[1] * residuals[series, :, None]
        # Scaled, because products of scores leave the range of float64 before the scores do.
        size = np.abs(scores).max(0)
        size[size == 0] = 1.0
        half = solution.inverse[series] * size
        out[series] = half @ sandwich.S_nw_panel(scores / size, weights, texts) @ half.T
    return out


def _bartlett(text: Array) -> Callable[[int], Array]:
    """Return Bartlett's weights, as many as the longest text has rows: statsmodels refuses lags without a product."""
    weights = need("statsmodels.stats.sandwich_covariance", "a robust covariance").weights_bartlett
    return lambda maxlags: weights(maxlags)[: int(np.bincount(text).max())]


def ljung_box(design: Design, solution: Solution, lags: int, model_df: int) -> dict[str, Array]:
    """Return Q and its p-value [S] of Ljung & Box (1978), by name.

    Q = n (n + 2) sum_l r_l^2 / n_l, with r_l the autocorrelation at lag l and n_l how many products it has. Products of
    two texts do not enter; statsmodels' `acorr_ljungbox` knows one text only, for which n_l is n - l.
    """
    real = np.zeros(design.panel.position.shape, dtype=bool)
    real.flat[design.at] = True
    residual = np.where(real, design.residuals(solution), 0.0)
    total = np.zeros(len(residual))
    for lag in range(1, lags + 1):
        correlation = (residual[:, :, lag:] * residual[:, :, :-lag]).sum((1, 2)) / (residual**2).sum((1, 2))
        total += correlation**2 / (real[:, lag:] & real[:, :-lag]).sum()
    statistic = solution.count * (solution.count + 2) * total
    if lags <= model_df:
        return {"statistic": statistic, "pvalue": np.full_like(statistic, np.nan)}
    return {"statistic": statistic, "pvalue": need("scipy.special", "ljung_box").chdtrc(lags - model_df, statistic)}


def summary(rows: pd.DataFrame, text: Array, maxlags: int | None) -> Any:
    """Return statsmodels' summary of one regression.

    Args:
        rows: The response "y" and the regressors.
        text: Which text each row is of.
        maxlags: Lags of a robust covariance; None for a plain one.
    """
    model = need("statsmodels.api", "summary").OLS(rows["y"], rows.drop(columns="y"))
    robust: dict[str, Any] = {}
    if maxlags is not None:
        several = {"groups": text, "weights_func": _bartlett(text), "use_correction": False, "df_correction": False}
        kind, options = ("hac-panel", several) if len(np.unique(text)) > 1 else ("HAC", {})
        robust = {"cov_type": kind, "cov_kwds": {"maxlags": maxlags, **options}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # short series make its tests of normality warn; the summary says so itself
        return model.fit(use_t=True, **robust).summary()
