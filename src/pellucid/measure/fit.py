"""The result of an autoregression: estimates and tests by layer, which print themselves.

statsmodels does what is asked of a few layers: robust covariances and summaries, one series at a time.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pellucid.check import as_number, as_whole, require_one_of, require_whole
from pellucid.errors import InputError, shown
from pellucid.extras import need
from pellucid.html.listing import counted
from pellucid.measure.labelled import Array
from pellucid.measure.series import Basis, Design, Solution

if TYPE_CHECKING:
    import pandas as pd
    import xarray


def _holm(ordered: Array) -> Array:
    return np.maximum.accumulate(ordered * np.arange(len(ordered), 0, -1))


def _benjamini_hochberg(ordered: Array) -> Array:
    scaled = ordered * (len(ordered) / np.arange(1, len(ordered) + 1))
    return np.minimum.accumulate(scaled[::-1])[::-1]


# statsmodels' `multipletests` collects garbage in every call, which takes longer than the regression itself.
CORRECTIONS: dict[str, Callable[[Array], Array]] = {"holm": _holm, "bh": _benjamini_hochberg}
"""Corrections for many tests, of p-values in ascending order."""

SHOWN = 24
"""How many rows a printed fit shows."""


@dataclass(frozen=True, repr=False)
class AutoregressionFit:
    """y[t] = const + lag1 y[t-1] + lag2 y[t-2] + ... + further regressors, by ordinary least squares for every layer.

    Tables have a row for each layer (or layer and head) and a column for each parameter. A layer that could not be
    fitted has NaN in all of them, and `problems` says why.

    Attributes:
        basis: What was fitted.
        solution: Estimates, as plain arrays.
        maxlags: Lags of the Newey-West covariance; None for plain standard errors.
        rows: The rows that were fitted; None for a fit of a stream, which keeps no series.
        array: The labelled array that they are of.
    """

    basis: Basis
    solution: Solution
    maxlags: int | None = None
    rows: Design | None = None
    array: xarray.DataArray | None = None

    @property
    def lags(self) -> int:
        """How many past values enter."""
        return self.basis.lags

    @property
    def skip(self) -> int:
        """How many first tokens of each text were left out."""
        return self.basis.skip

    @property
    def nobs(self) -> int:
        """How many rows each regression has."""
        return self.solution.count

    @property
    def df_resid(self) -> int:
        """How many more rows than parameters there are."""
        return self.nobs - len(self.basis.names)

    @property
    def attrs(self) -> dict[str, Any]:
        """Provenance and units of the series."""
        return self.basis.attrs

    @cached_property
    def covariance(self) -> Array:
        """The covariance of the estimates, [S, k, k], plain or Newey-West."""
        if self.maxlags is None:
            return self.solution.inverse * (self.solution.ssr / self.df_resid)[:, None, None]
        return self._held("a robust covariance").newey_west(self.solution, self.maxlags)

    @cached_property
    def params(self) -> pd.DataFrame:
        """The estimates."""
        return self._table(self.solution.params)

    @cached_property
    def bse(self) -> pd.DataFrame:
        """The standard errors of the estimates."""
        return self._table(np.sqrt(np.einsum("skk->sk", self.covariance)))

    @cached_property
    def tvalues(self) -> pd.DataFrame:
        """The estimates divided by their standard errors."""
        return self.params / self.bse

    @cached_property
    def pvalues(self) -> pd.DataFrame:
        """Two-sided p-values for each coefficient being 0 (Student's t), uncorrected; see `corrected`."""
        student = need("scipy.special", "p-values").stdtr
        return self._table(2 * student(self.df_resid, -np.abs(self.tvalues.to_numpy())))

    @cached_property
    def conf_int(self) -> pd.DataFrame:
        """95 % confidence intervals: columns (parameter, "lower") and (parameter, "upper")."""
        return self.interval(0.95)

    def interval(self, level: float) -> pd.DataFrame:
        """Return confidence intervals at another level, such as 0.99, in the form of `conf_int`.

        Raises:
            InputError: If the level is not between 0 and 1.
        """
        share = as_number(level)
        if share is None or not 0 < share < 1:
            raise InputError(
                f"interval: level={shown(level)}, expected a share between 0 and 1.",
                code="level",
                remedy="Give 0.95 for 95 %.",
            )
        half = need("scipy.special", "interval").stdtrit(self.df_resid, (1 + share) / 2) * self.bse.to_numpy()
        both = np.stack([self.solution.params - half, self.solution.params + half], axis=2)
        pandas = need("pandas", "interval")
        columns = pandas.MultiIndex.from_product([self.basis.names, ["lower", "upper"]])
        return pandas.DataFrame(both.reshape(len(both), -1), index=self.index, columns=columns)

    def corrected(self, method: str = "holm") -> pd.DataFrame:
        """Correct the p-values for as many tests of each parameter as there are layers (rows).

        Args:
            method: "holm" (Holm 1979) bounds the chance of any false rejection, "bh" (Benjamini & Hochberg 1995) the
                expected share of false ones. Rows without a fit do not count as tests.

        Raises:
            InputError: If the method is unknown.
        """
        remedy = "Give 'holm' to bound the chance of any false rejection, or 'bh' for the share of false ones."
        require_one_of("corrected: method", method, CORRECTIONS, code="unknown-correction", remedy=remedy)
        table = np.full(self.pvalues.shape, np.nan)
        for out, p in zip(table.T, self.pvalues.to_numpy().T, strict=True):
            ascending = np.argsort(p)[: int((~np.isnan(p)).sum())]  # NaN sorts last
            out[ascending] = np.minimum(CORRECTIONS[method](p[ascending]), 1)
        return self._table(table)

    @cached_property
    def rsquared(self) -> pd.Series:
        """The share of the response's variance that is explained."""
        return self._column(1 - self.solution.ssr / self.solution.tss)

    @cached_property
    def rsquared_adj(self) -> pd.Series:
        """The explained share, adjusted for the number of parameters."""
        return self._column(1 - (1 - self.rsquared.to_numpy()) * (self.nobs - 1) / self.df_resid)

    @cached_property
    def aic(self) -> pd.Series:
        """Akaike's criterion (1974), -2 log L + 2 k, with Gaussian residuals and k parameters."""
        return self._column(self._deviance() + 2 * len(self.basis.names))

    @cached_property
    def bic(self) -> pd.Series:
        """Schwarz's criterion (1978), -2 log L + k log n, with Gaussian residuals and k parameters."""
        return self._column(self._deviance() + np.log(self.nobs) * len(self.basis.names))

    def _deviance(self) -> Array:
        with np.errstate(divide="ignore"):
            return self.nobs * (np.log(2 * np.pi * self.solution.ssr / self.nobs) + 1)

    @cached_property
    def condition(self) -> pd.Series:
        """The condition number of each design, constant included: largest over smallest singular value."""
        return self._column(self.solution.condition)

    @cached_property
    def problems(self) -> pd.Series:
        """Why a layer could not be fitted, "" if it was."""
        return self._column(self.solution.problems)

    @cached_property
    def residuals(self) -> xarray.DataArray:
        """The residuals, with the axes of the series; NaN if no row was fitted there."""
        whole, array = self._held("residuals").residuals(self.solution), cast("xarray.DataArray", self.array)
        ordered = array.transpose(..., *(dim for dim in ("batch", "pos", "query") if dim in array.dims))
        return ordered.copy(data=whole.reshape(ordered.shape)).rename("residual").transpose(*array.dims)

    def ljung_box(self, lags: int = 10, model_df: int | None = None) -> pd.DataFrame:
        """Test whether the residuals are still correlated with their own past (Ljung & Box 1978).

        Q = n (n + 2) sum_l r_l^2 / n_l, with r_l the autocorrelation at lag l and n_l how many products it has: n - l
        for one text, and fewer for several, because products of two texts do not enter.

        Args:
            lags: How many autocorrelations are tested together.
            model_df: The degrees of freedom that the fit has used up; None for the autoregression's lags.

        Returns:
            `statistic` and `pvalue` by layer; p is NaN if `lags` leaves no degree of freedom.

        Raises:
            InputError: If one is no whole number, or the texts have no more rows than `lags`.
        """
        design = self._held("ljung_box")
        longest = int(np.bincount(design.text).max())
        tested = as_whole(lags)
        if tested is None or not 1 <= tested < longest:
            raise InputError(
                f"ljung_box: lags={shown(lags)}, expected a whole number from 1 to {longest - 1}: the longest text "
                f"gives {longest} rows.",
                code="lags-range",
                remedy="Test fewer lags, or fit longer texts.",
            )
        given = self.lags if model_df is None else model_df
        used = require_whole("ljung_box: model_df", given, code="lags-range")
        columns = design.ljung_box(self.solution, tested, used)
        return need("pandas", "ljung_box").DataFrame(columns, index=self.index)

    def robust(self, maxlags: int | None = None) -> AutoregressionFit:
        """Return the same fit with standard errors that allow for heteroskedasticity and autocorrelation.

        They are those of Newey & West (1987) with Bartlett's kernel; products of two texts do not enter.

        Args:
            maxlags: How many lags enter; None for floor(4 (n / 100)^(2/9)), the rule of Newey & West (1994).

        Raises:
            InputError: If there are fewer than 0 lags or as many as rows, or the fit is of a stream.
        """
        self._held("a robust covariance")
        chosen = int(4 * (self.nobs / 100) ** (2 / 9)) if maxlags is None else maxlags
        chosen = require_whole("HAC: maxlags", chosen, at_most=self.nobs - 1, code="lags-range")
        return replace(self, maxlags=chosen)

    def design(self, layer: Any = None) -> pd.DataFrame:
        """Return the rows of one layer's regression: the response "y" and a column for each parameter.

        Args:
            layer: The layer's label, a tuple if rows have several; may be left out if there is one row.

        Returns:
            A table indexed by text and position of the response.
        """
        design, series = self._held("design"), self._row(layer)
        y, matrix = design.matrix(series)
        pandas = need("pandas", "design")
        index = pandas.MultiIndex.from_arrays([design.text, design.t], names=["batch", "t"])
        return pandas.DataFrame(np.column_stack([y, matrix]), index=index, columns=["y", *self.basis.names])

    def summary(self, layer: Any = None) -> Any:
        """Return statsmodels' own summary of one layer: `OLS(y, X).fit().summary()` on its design matrix.

        Robust standard errors are statsmodels' "HAC", of several texts its "hac-panel" without corrections for few
        groups, as in `bse`.

        Args:
            layer: The layer's label, a tuple if rows have several; may be left out if there is one row.

        Raises:
            InputError: If the layer is not there, or could not be fitted.
            MissingExtraError: If statsmodels is not installed.
        """
        series = self._row(layer)
        if self.solution.problems[series]:
            raise InputError(
                f"summary of {shown(layer)}: {self.solution.problems[series]}.",
                code="not-fitted",
                remedy="Choose a layer that has a fit; fit.problems is empty there.",
            )
        rows = self.design(layer).reset_index(drop=True)
        return self._held("summary").by_statsmodels(rows["y"], rows.drop(columns="y"), self.maxlags).summary()

    def to_dataframe(self) -> pd.DataFrame:
        """Return a row for each layer and parameter: estimate, standard error, t, p, corrected p, 95 % interval."""
        tables = {
            "estimate": self.params, "std_error": self.bse, "t": self.tvalues, "p": self.pvalues,
            "p_holm": self.corrected("holm"), "p_bh": self.corrected("bh"),
            **{side: self.conf_int.xs(side, axis=1, level=1) for side in ("lower", "upper")},
        }  # fmt: skip
        long = {name: table.rename_axis(columns="parameter").stack(future_stack=True) for name, table in tables.items()}
        return need("pandas", "to_dataframe").DataFrame(long).reset_index()

    @property
    def index(self) -> pd.Index:
        """The labels of the rows of every table."""
        return self.basis.index

    def _table(self, numbers: Array) -> pd.DataFrame:
        return need("pandas", "autoregression").DataFrame(numbers, index=self.index, columns=list(self.basis.names))

    def _column(self, numbers: Array) -> pd.Series:
        return need("pandas", "autoregression").Series(numbers, index=self.index)

    def _held(self, what: str) -> Design:
        if self.rows is None:
            raise InputError(
                f"autoregression: {what} needs the series, but this fit is of a stream, which keeps none.",
                code="no-series",
                remedy="Fit norms in memory with pl.measure.autoregression.",
            )
        return self.rows

    def _row(self, layer: Any) -> int:
        if layer is None and len(self.index) == 1:
            return 0
        try:
            return {label: row for row, label in enumerate(self.index)}[layer]
        except (KeyError, TypeError):
            raise InputError(
                f"autoregression: row {shown(layer)}, expected one of {list(self.index)[:8]}.",
                code="no-such-row",
                remedy=f"Give a label of ({', '.join(map(str, self.index.names))}).",
            ) from None

    def _words(self) -> list[str]:
        errors = "plain" if self.maxlags is None else f"Newey-West, {self.maxlags} lags"
        texts = counted(self.basis.texts, "text")
        short = f" ({self.basis.short} more too short)" if self.basis.short else ""
        rows = f"{self.nobs} rows of {texts}{short}, t from {self.skip + self.lags}; standard errors: {errors}"
        return [self.basis.equation(), rows]

    def _overview(self) -> pd.DataFrame:
        p = self.pvalues.rename(columns=lambda name: f"p({name})")
        overview = need("pandas", "autoregression").concat([self.params, p, self.rsquared.rename("R2")], axis=1)
        return overview if not (self.problems != "").any() else overview.assign(problem=self.problems)

    def __repr__(self) -> str:
        table = self._overview().to_string(max_rows=SHOWN, float_format="{:.4g}".format, na_rep="")
        return "\n".join([*self._words(), table])

    def _repr_html_(self) -> str:
        render: Callable[..., str] = self._overview().to_html
        words = "".join(f"<p>{html.escape(line)}</p>" for line in self._words())
        return words + render(max_rows=SHOWN, float_format="{:.4g}".format, na_rep="", border=0)
