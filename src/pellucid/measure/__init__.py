"""Captured values as labelled arrays and fitted models: norms, moments, distributions, attention, autoregressions.

Measures return an `xarray.DataArray` or `Dataset` (with `.to_dataframe()`), regressions return tables by layer.
Everything is computed in float64. Pads are left out of every number, and positions are counted from each text's own
first real token.
"""

from pellucid.corpus.sink import Saving
from pellucid.measure.autoregression import HAC, LagSelection, autoregression, select_lags
from pellucid.measure.distributions import distribution, moments, outliers
from pellucid.measure.fit import AutoregressionFit
from pellucid.measure.groups import aligned
from pellucid.measure.head_scores import distance, entropy, first_token, induction, previous_token
from pellucid.measure.labelled import norms, values
from pellucid.measure.statistics import Autoregression, Covariance, Moments, Quantiles, covariance
from pellucid.measure.stream import Streamed, stream
from pellucid.names.calls import name_arguments

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

name_arguments(globals())
