"""Captured values as labelled arrays and fitted models: norms, moments, distributions, attention, autoregressions.

What comes back is an `xarray.DataArray` or `Dataset` (with `.to_dataframe()`), or, for regressions, tables by layer.
Everything is computed in float64. Pads are left out of every number, and positions are counted from each text's own
first real token.
"""

from pellucid.measure.attention import distance, entropy, first_token, induction, previous_token
from pellucid.measure.distributions import distribution
from pellucid.measure.fit import AutoregressionFit
from pellucid.measure.groups import aligned
from pellucid.measure.labelled import values
from pellucid.measure.moments import moments
from pellucid.measure.norms import norms
from pellucid.measure.outliers import outliers
from pellucid.measure.regression import HAC, LagSelection, autoregression, select_lags
from pellucid.measure.regression_sums import Autoregression
from pellucid.measure.resume import Saving
from pellucid.measure.statistics import Covariance, Moments, Quantiles, covariance
from pellucid.measure.stream import Streamed, stream

__all__ = [
    "HAC",
    "Autoregression",
    "AutoregressionFit",
    "Covariance",
    "LagSelection",
    "Moments",
    "Quantiles",
    "Saving",
    "Streamed",
    "aligned",
    "autoregression",
    "covariance",
    "distance",
    "distribution",
    "entropy",
    "first_token",
    "induction",
    "moments",
    "norms",
    "outliers",
    "previous_token",
    "select_lags",
    "stream",
    "values",
]
