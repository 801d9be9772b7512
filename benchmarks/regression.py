"""Autoregressions of many series at once, against a loop over statsmodels.

Both read parameters, standard errors, p-values and R² of y[t] = b0 + b1 y[t-1] + b2 y[t-2] for every series. The loop
builds each design matrix from views and fits it with `statsmodels.OLS`; what it reads must equal pellucid's to 1e-9,
relatively, before any time is believed. R² is compared as the share 1 - R² that it leaves unexplained: where next to
nothing is explained, R² itself is the last bit of two numbers near one.
"""

from __future__ import annotations

from harness import compete, require_equal  # before torch and numpy: it pins the threads
from report import FLOAT32, PROCESSOR, Report, Row, Target, arguments

# isort: split
import numpy as np
import statsmodels.api as sm
import torch
import xarray as xr
from numpy.typing import NDArray

import pellucid as pl

LAGS = 2
POINTS = 1000

Numbers = NDArray[np.float64]


def stable(series: int, points: int, seed: int = 0) -> Numbers:
    """Autoregressions of order 2 around 4, as log norms are, [series, points]."""
    draw = np.random.default_rng(seed)
    slopes = draw.uniform(-0.4, 0.45, (2, series))
    values = draw.standard_normal((series, points))
    for t in range(2, points):
        values[:, t] += slopes[0] * values[:, t - 1] + slopes[1] * values[:, t - 2]
    return values + 4.0


def at_once(values: Numbers) -> Numbers:
    """[series, 10]: parameters, standard errors, p-values, R²."""
    fit = pl.measure.autoregression(xr.DataArray(values, dims=("layer", "pos")), LAGS)
    return np.column_stack([fit.params, fit.bse, fit.pvalues, fit.rsquared])


def one_by_one(values: Numbers) -> Numbers:
    """The same by a loop over statsmodels."""
    rows = []
    for series in values:
        n = len(series)
        lagged = [series[LAGS - lag : n - lag] for lag in range(1, LAGS + 1)]
        fit = sm.OLS(series[LAGS:], np.column_stack([np.ones(n - LAGS), *lagged])).fit()
        rows.append(np.concatenate([fit.params, fit.bse, fit.pvalues, [fit.rsquared]]))
    return np.array(rows)


def comparable(numbers: Numbers) -> Numbers:
    """With 1 - R² in place of R²."""
    return np.column_stack([numbers[:, :-1], 1.0 - numbers[:, -1]])


def main() -> None:
    options = arguments(__doc__, PROCESSOR, FLOAT32)
    report = Report("regression", options)
    count = 2_000 if options.quick else 10_000
    values = stable(count, POINTS)
    found = {"statsmodels": comparable(one_by_one(values)), "pellucid": comparable(at_once(values))}
    relative = {name: torch.from_numpy(numbers / found["statsmodels"]) for name, numbers in found.items()}
    report.facts["largest relative difference"] = require_equal(
        relative, within=1e-9, because="QR of centred columns and statsmodels' pseudoinverse round differently"
    )
    calls = {"pellucid": lambda: at_once(values), "statsmodels": lambda: one_by_one(values)}
    samples = compete(calls, rounds=options.rounds(7, quick=1))
    ratio = samples.ratio("statsmodels", "pellucid")
    target = Target(10.0, at_least=True)
    work, shape = f"autoregressions, {LAGS} lags", f"{count}x{POINTS}"
    report.add(Row(work, shape, ratio, target, ours="statsmodels", against="pellucid"), samples)
    report.finish()


if __name__ == "__main__":
    main()
