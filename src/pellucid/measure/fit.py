"""The result of an autoregression: estimates and tests by layer, which print themselves."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.check import as_number, as_whole
from pellucid.errors import InputError, shown
from pellucid.extras import need
from pellucid.measure import fit_tables, inference
from pellucid.measure.basis import Basis, Data
from pellucid.measure.design import whole_number
from pellucid.measure.labelled import Array
from pellucid.measure.solve import Solution

if TYPE_CHECKING:
    import pandas as pd
    import xarray


@dataclass(frozen=True, repr=False)
class AutoregressionFit:
    """y[t] = const + lag1 y[t-1] + lag2 y[t-2] + ... + further regressors, by ordinary least squares for every layer.

    Tables have a row for each layer (or layer and head) and a column for each parameter. A layer that could not be
    fitted has NaN in all of them, and `problems` says why.

    Attributes:
        basis: What was fitted.
        solution: Estimates, as plain arrays.
        maxlags: Lags of the Newey-West covariance; None for plain standard errors.
        data: The series, None where only sums are left.
    """

    basis: Basis
    solution: Solution
    maxlags: int | None = None
    data: Data | None = None

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
        """Rows of each regression."""
        return self.solution.count

    @property
    def df_resid(self) -> int:
        """Rows less parameters."""
        return self.nobs - len(self.basis.names)

    @property
    def attrs(self) -> dict[str, Any]:
        """Provenance and units of the series."""
        return self.basis.attrs

    @cached_property
    def covariance(self) -> Array:
        """[S, k, k]: of the estimates, plain or Newey-West."""
        if self.maxlags is None:
            return inference.plain_covariance(self.solution)
        return inference.hac_covariance(self._held("a robust covariance").design, self.solution, self.maxlags)

    @cached_property
    def params(self) -> pd.DataFrame:
        """Estimates."""
        return self._table(self.solution.params)

    @cached_property
    def bse(self) -> pd.DataFrame:
        """Standard errors."""
        return self._table(np.sqrt(np.einsum("skk->sk", self.covariance)))

    @cached_property
    def tvalues(self) -> pd.DataFrame:
        """Estimates in standard errors."""
        return self.params / self.bse

    @cached_property
    def pvalues(self) -> pd.DataFrame:
        """Of no effect, two-sided, by Student's distribution; not corrected, see `corrected`."""
        return self._table(inference.two_sided(self.tvalues.to_numpy(), self.df_resid))

    @cached_property
    def conf_int(self) -> pd.DataFrame:
        """95 % confidence intervals: columns (parameter, "lower") and (parameter, "upper")."""
        return self.interval(0.95)

    def interval(self, level: float) -> pd.DataFrame:
        """Confidence intervals at another level, such as 0.99, in the form of `conf_int`.

        Raises:
            InputError: A level outside of 0 to 1.
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
        """p-values corrected for as many tests of each parameter as there are layers (rows).

        Args:
            method: "holm" (Holm 1979), which bounds the chance of any false rejection, or "bh" (Benjamini & Hochberg
                1995), which bounds the expected share of false ones. Rows without a fit do not count as tests.

        Raises:
            InputError: An unknown method.
        """
        return self._table(inference.corrected(self.pvalues.to_numpy(), method))

    @cached_property
    def rsquared(self) -> pd.Series:
        """Share of the response's variance that is explained."""
        return self._column(1 - self.solution.ssr / self.solution.tss)

    @cached_property
    def rsquared_adj(self) -> pd.Series:
        """The same, adjusted for the number of parameters."""
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
        """Condition number of each design, constant included: largest over smallest singular value."""
        design = self._held("the condition number").design
        numbers = np.full(len(self.solution.params), np.nan)
        for series in np.flatnonzero(self.solution.problems == ""):
            spectrum = np.linalg.svd(design.matrix(int(series))[1], compute_uv=False)
            numbers[series] = spectrum[0] / spectrum[-1]
        return self._column(numbers)

    @cached_property
    def problems(self) -> pd.Series:
        """Why a layer could not be fitted, "" where it was."""
        return self._column(self.solution.problems)

    @cached_property
    def residuals(self) -> xarray.DataArray:
        """What is not explained, with the axes of the series; NaN where no row was fitted."""
        held = self._held("residuals")
        flat = np.full(held.design.flat.shape, np.nan)
        for block, residual in inference.residuals(held.design, self.solution):
            flat[block, held.design.at] = residual
        array, panel = held.array, held.panel
        whole = flat.reshape(*panel.shape, *panel.position.shape)
        rest = [dim for dim in ("batch", "pos", "query") if dim in array.dims]
        if "batch" not in rest:
            whole = whole[..., 0, :]
        ordered = array.transpose(*panel.dims, *rest)
        return ordered.copy(data=whole).rename("residual").transpose(*array.dims)

    def ljung_box(self, lags: int = 10, model_df: int | None = None) -> pd.DataFrame:
        """Whether the residuals are still correlated with their own past (Ljung & Box 1978).

        Args:
            lags: Autocorrelations tested together.
            model_df: Degrees of freedom that the fit has used up; the autoregression's lags where None.

        Returns:
            `statistic` and `pvalue` by layer; p is NaN where `lags` leaves no degree of freedom.

        Raises:
            InputError: No whole numbers, or more lags than the texts have rows.
        """
        design = self._held("ljung_box").design
        longest = int(np.bincount(design.text).max())
        tested = as_whole(lags)
        if tested is None or not 1 <= tested < longest:
            raise InputError(
                f"ljung_box: lags={shown(lags)}, expected a whole number from 1 to {longest - 1}: the longest text "
                f"gives {longest} rows.",
                code="lags-range",
                remedy="Test fewer lags, or fit longer texts.",
            )
        used = self.lags if model_df is None else whole_number("model_df", model_df, "ljung_box")
        statistic, pvalue = inference.ljung_box(design, self.solution, tested, used)
        return need("pandas", "ljung_box").DataFrame({"statistic": statistic, "pvalue": pvalue}, index=self.index)

    def robust(self, maxlags: int | None = None) -> AutoregressionFit:
        """The same fit with standard errors that allow for heteroskedasticity and autocorrelation.

        Newey & West (1987) with Bartlett's kernel; products of two texts do not enter.

        Args:
            maxlags: Lags that enter; floor(4 (n / 100)^(2/9)), the rule of Newey & West (1994), where None.

        Raises:
            InputError: Fewer than 0, or as many as rows; or a fit of streamed sums.
        """
        self._held("a robust covariance")
        chosen = inference.newey_west_lags(self.nobs) if maxlags is None else as_whole(maxlags)
        if chosen is None or not 0 <= chosen < self.nobs:
            raise InputError(
                f"HAC: maxlags={shown(maxlags)}, expected a whole number from 0 to {self.nobs - 1}.",
                code="lags-range",
                remedy="Leave it out for the rule of Newey and West.",
            )
        return replace(self, maxlags=chosen)

    def design(self, layer: Any = None) -> pd.DataFrame:
        """The rows of one layer's regression: the response "y" and a column for each parameter.

        Args:
            layer: Its label, a tuple where rows have several; may be left out where there is one row.

        Returns:
            Indexed by text and position of the response.
        """
        held, series = self._held("design"), self._row(layer)
        y, matrix = held.design.matrix(series)
        text, position = held.design.text, held.panel.position.ravel()[held.design.at]
        pandas = need("pandas", "design")
        index = pandas.MultiIndex.from_arrays([text, position], names=["batch", "t"])
        return pandas.DataFrame(np.column_stack([y, matrix]), index=index, columns=["y", *self.basis.names])

    def summary(self, layer: Any = None) -> Any:
        """statsmodels' own summary of one layer: `OLS(y, X).fit().summary()` on its design matrix.

        Robust standard errors are statsmodels' "HAC", of several texts its "hac-panel" without corrections for few
        groups: those of `bse`.

        Args:
            layer: Its label, a tuple where rows have several; may be left out where there is one row.

        Raises:
            InputError: A layer that is not there, or that could not be fitted.
            MissingExtraError: statsmodels is not installed.
        """
        series = self._row(layer)
        if self.solution.problems[series]:
            raise InputError(
                f"summary of {layer!r}: {self.solution.problems[series]}.",
                code="not-fitted",
                remedy="fit.problems says which layers have a fit.",
            )
        table = self.design(layer)
        texts, rows = table.index.get_level_values("batch").to_numpy(), table.reset_index(drop=True)
        model = need("statsmodels.api", "summary").OLS(rows["y"], rows.drop(columns="y"))
        robust: dict[str, Any] = {}
        if self.maxlags is not None:
            panel = {"groups": texts, "use_correction": False, "df_correction": False} if self.basis.texts > 1 else {}
            kind = "hac-panel" if panel else "HAC"
            robust = {"cov_type": kind, "cov_kwds": {"maxlags": self.maxlags, **panel}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # short series make its tests of normality warn; the summary says so itself
            return model.fit(use_t=True, **robust).summary()

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each layer and parameter: estimate, standard error, t, p, corrected p, 95 % interval."""
        return fit_tables.tidy(self)

    @cached_property
    def index(self) -> pd.Index:
        """Labels of the rows of every table."""
        return self.basis.index()

    def _table(self, numbers: Array) -> pd.DataFrame:
        return need("pandas", "autoregression").DataFrame(numbers, index=self.index, columns=list(self.basis.names))

    def _column(self, numbers: Array) -> pd.Series:
        return need("pandas", "autoregression").Series(numbers, index=self.index)

    def _held(self, what: str) -> Data:
        if self.data is None:
            raise InputError(
                f"autoregression: {what} needs the series, but this fit was made of streamed sums.",
                code="no-series",
                remedy="Fit norms in memory with pl.measure.autoregression.",
            )
        return self.data

    def _row(self, layer: Any) -> int:
        if layer is None and len(self.index) == 1:
            return 0
        try:
            return {label: row for row, label in enumerate(self.index)}[layer]
        except (KeyError, TypeError):
            raise InputError(
                f"autoregression: row {layer!r}, expected one of {list(self.index)[:8]}.",
                code="no-such-row",
                remedy=f"Give a label of ({', '.join(self.basis.dims)}).",
            ) from None

    def __repr__(self) -> str:
        return fit_tables.text(self)

    def _repr_html_(self) -> str:
        return fit_tables.page(self)
