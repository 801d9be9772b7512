"""The rows of a regression of a series on its own past, which never cross two texts, and their least squares.

The columns of a regression, the response last, are centred and reduced to the triangular factor R of their Householder
QR factorization, which holds all that least squares needs: slopes, residual and total sum of squares. R is as accurate
as the columns; sums of their products would square the condition number (Golub & Van Loan 2013, section 5.3). Two
factors merge when they are stacked and factored again (Demmel, Grigori, Hoemmen & Langou 2012), with one more row for
the distance between the means.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.extras import need
from pellucid.measure.labelled import Array

if TYPE_CHECKING:
    import pandas as pd

AT_ONCE = 1 << 16
"""How many values are factored at once, 512 KB: with their copies they stay in a core's second-level cache."""


@dataclass(frozen=True)
class Panel:
    """Series of several texts, side by side."""

    values: Array  # the series, [S, B, P]
    position: Array  # [B, P], counted from each text's own first real token; -1 if there is no value
    index: Any = None  # the labels of the S series (a pandas Index); None if they are not needed


def index_of(dims: Sequence[str], sizes: Sequence[int], coords: Mapping[Any, Any]) -> pd.Index:
    """Return the labels of series that came from these axes, 0 if there is no axis."""
    pandas = need("pandas", "autoregression")
    if not dims:
        return pandas.Index([0], name="series")
    labels = [np.asarray(coords.get(dim, range(size))) for dim, size in zip(dims, sizes, strict=True)]
    index = pandas.MultiIndex.from_product(labels, names=dims)
    return index if len(dims) > 1 else index.get_level_values(0)


@dataclass(frozen=True)
class Design:
    """The response, its lags and further regressors, read off a panel on demand."""

    panel: Panel
    at: Array  # which cells of a series, all texts in one row of B * P, are responses, in order, [R]
    lags: int  # how many past values enter
    # further regressors by name, each [S, B * P], or [1, B * P] if it is the same for every series
    extra: Mapping[str, Array] = field(default_factory=dict[str, Array])

    @classmethod
    def of(cls, panel: Panel, lags: int, skip: int, extra: Mapping[str, Array] | None = None) -> Design:
        """Take a row wherever a text has values at t >= skip + lags and at the `lags` positions before."""
        fits = panel.position >= skip + lags
        # Positions are adjacent, so all lags are there if the earliest is.
        fits[:, :lags] = False
        fits[:, lags:] &= panel.position[:, : max(0, fits.shape[1] - lags)] >= 0
        return cls(panel, np.flatnonzero(fits.ravel()), lags, extra or {})

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, the constant first."""
        return ("const", *(f"lag{i}" for i in range(1, self.lags + 1)), *self.extra)

    @property
    def text(self) -> Array:
        """The text that each row is of, [R]."""
        return self.at // self.panel.position.shape[1]

    @property
    def t(self) -> Array:
        """The position of each row's response in its text, [R]."""
        return self.panel.position.ravel()[self.at]

    @cached_property
    def _flat(self) -> Array:
        return self.panel.values.reshape(len(self.panel.values), -1)

    def columns(self, series: slice) -> Array:
        """Return the regressors without the constant and then the response of some series, [s, k, R]."""
        flat = self._flat[series]
        past = [flat.take(self.at - lag, axis=1) for lag in range(1, self.lags + 1)]
        further = [(one if len(one) == 1 else one[series]).take(self.at, axis=1) for one in self.extra.values()]
        response = flat.take(self.at, axis=1)
        columns = np.stack([*past, *(np.broadcast_to(one, response.shape) for one in further), response], axis=1)
        # NumPy sums in an order that follows memory; in this one a series has the same bits whatever its neighbours.
        return np.ascontiguousarray(columns)

    def matrix(self, series: int) -> tuple[Array, Array]:
        """Return y [R] and X [R, k], the constant first, of one series."""
        *regressors, response = self.columns(slice(series, series + 1))[0]
        return response, np.column_stack([np.ones(len(self.at)), *regressors])

    def factor(self) -> Factor:
        """Factor the columns of every series."""
        parts = [Factor.of(self.columns(block)) for block in self._blocks()]
        mean, triangle = (np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "triangle"))
        texts = len(np.unique(self.text))
        short = int((self.panel.position >= 0).any(1).sum()) - texts
        return Factor(len(self.at), mean, triangle, texts, short)

    def residuals(self, solution: Solution) -> Array:
        """Return the residuals [S, B, P]: NaN in cells of no row and in series with a problem."""
        out = np.full(self._flat.shape, np.nan)
        with np.errstate(invalid="ignore", over="ignore"):
            for block in self._blocks():
                away = centred(self.columns(block))[1]
                out[block, self.at] = away[:, -1] - np.einsum("si,sir->sr", solution.params[block, 1:], away[:, :-1])
        return out.reshape(self.panel.values.shape)

    def by_statsmodels(self, y: Any, x: Any, maxlags: int | None) -> Any:
        """Return statsmodels' results of one series on these rows, of the response and regressors with the constant.

        With `maxlags` the covariance is robust and has no products of two texts; with None it is plain.
        """
        model = need("statsmodels.api", "summary").OLS(y, x)
        robust: dict[str, Any] = {}
        if maxlags is not None:
            bartlett = need("statsmodels.stats.sandwich_covariance", "a robust covariance").weights_bartlett
            rows = int(np.bincount(self.text).max())  # statsmodels refuses weights of lags at which there is no product
            several = {"groups": self.text, "use_correction": False, "df_correction": False}
            kind, options = ("hac-panel", several) if len(np.unique(self.text)) > 1 else ("HAC", {})
            options = {**options, "maxlags": maxlags, "weights_func": lambda lags: bartlett(lags)[:rows]}
            robust = {"cov_type": kind, "cov_kwds": options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a short series makes its tests of normality warn; the summary says so too
            return model.fit(use_t=True, **robust)

    def newey_west(self, solution: Solution, maxlags: int) -> Array:
        """Return the covariances [S, k, k] of Newey & West (1987) with Bartlett's kernel, by statsmodels."""
        out = np.full_like(solution.inverse, np.nan)
        for series in np.flatnonzero(solution.problems == ""):
            # Columns are centred, because far from zero all digits of the scores would be those of the mean; and in
            # units of their own size, because products of scores leave the range of float64 before the scores do.
            (mean,), (away,) = centred(self.columns(slice(series, series + 1)))
            size = np.abs(away).max(1)
            scaled = away / size[:, None]
            fitted = self.by_statsmodels(scaled[-1], np.column_stack([np.ones(len(self.at)), *scaled[:-1]]), maxlags)
            back = np.diag(size[-1] / np.append(1.0, size[:-1]))
            back[0] -= np.append(0.0, mean[:-1]) @ back  # the constant is the mean less the slopes times the means
            out[series] = back @ fitted.cov_params() @ back.T
        return out

    def ljung_box(self, solution: Solution, lags: int, model_df: int) -> dict[str, Array]:
        """Return Q and its p-value [S] of Ljung & Box (1978), by name.

        Products of two texts do not enter; statsmodels' `acorr_ljungbox` knows one text only, for which n_l is n - l.
        """
        real = np.zeros(self.panel.position.shape, dtype=bool)
        real.flat[self.at] = True
        residual = np.where(real, self.residuals(solution), 0.0)
        total = np.zeros(len(residual))
        for lag in range(1, lags + 1):
            correlation = (residual[:, :, lag:] * residual[:, :, :-lag]).sum((1, 2)) / (residual**2).sum((1, 2))
            total += correlation**2 / (real[:, lag:] & real[:, :-lag]).sum()
        statistic = solution.count * (solution.count + 2) * total
        tail = need("scipy.special", "ljung_box").chdtrc
        return {"statistic": statistic, "pvalue": tail(lags - model_df if lags > model_df else np.nan, statistic)}

    def _blocks(self) -> Iterator[slice]:
        step = max(1, AT_ONCE // max(1, len(self.at) * len(self.names)))
        for start in range(0, len(self._flat), step):
            yield slice(start, min(start + step, len(self._flat)))


@dataclass(frozen=True)
class Basis:
    """The regression that was fitted, whether in memory or over a stream."""

    lags: int  # how many past values enter
    skip: int  # how many first tokens of each text were left out
    names: tuple[str, ...]  # the parameters, the constant first
    texts: int  # how many texts gave rows
    short: int  # how many texts are too short to give one
    index: pd.Index  # the labels of the rows of every table
    attrs: dict[str, Any]  # provenance and units

    def equation(self) -> str:
        """Return the equation with the names of its parameters."""
        terms = [self.names[0], *(f"{name} y[t-{i}]" for i, name in enumerate(self.names[1 : self.lags + 1], 1))]
        further = [f"{name} {name}[t]" for name in self.names[self.lags + 1 :]]
        measured = f"{self.attrs.get('checkpoint', 'series')} ({self.attrs.get('units', 'no units')})"
        return f"{measured}: y[t] = {' + '.join([*terms, *further])}"


_EPS = float(np.finfo(np.float64).eps)

CONSTANT = "the series is constant"
COLLINEAR = "the columns of the design are linearly dependent"
NOT_FINITE = "a value is not finite"
TOO_SMALL = "its values are too small to square"


def centred(columns: Array) -> tuple[Array, Array]:
    """Return the means [...] of the last axis and the columns [..., R] less their means."""
    mean = columns.mean(-1)
    away = columns - mean[..., None]
    # The mean is rounded by up to eps |mean|, which is no small share of the spread of a series far from zero.
    left = away.mean(-1)
    return mean + left, away - left[..., None]


@dataclass(frozen=True)
class Factor:
    """Means and triangular factors of S series with K columns each, the response last."""

    count: int  # how many rows were factored
    mean: Array  # the columns' means, [S, K]
    triangle: Array  # the triangular factors of the centred columns, [S, K, K]
    texts: int = 0  # how many texts gave rows
    short: int = 0  # how many texts are too short to give one

    @classmethod
    def of(cls, columns: Array) -> Factor:
        """Factor columns [S, K, R]; series that are not finite come out as NaN."""
        size, width, count = columns.shape
        if not count:
            return cls(0, np.zeros((size, width)), np.zeros((size, width, width)))
        with np.errstate(invalid="ignore", over="ignore"):
            mean, away = centred(columns)
        return cls(count, mean, _triangle(away.transpose(0, 2, 1)))

    def merge(self, other: Factor) -> Factor:
        """Return the factor of both sets of rows."""
        texts, short = self.texts + other.texts, self.short + other.short
        if not self.count or not other.count:
            return replace(self if self.count else other, texts=texts, short=short)
        count = self.count + other.count
        with np.errstate(invalid="ignore", over="ignore"):
            apart = (other.mean - self.mean)[:, None]
            between = apart * np.sqrt(self.count * (other.count / count))
            mean = self.mean + apart[:, 0] * (other.count / count)
        triangle = _triangle(np.concatenate([self.triangle, other.triangle, between], axis=1))
        return Factor(count, mean, triangle, texts, short)


def _triangle(rows: Array) -> Array:
    """Return the triangular factors [S, K, K] of rows [S, R, K]."""
    missing = max(0, rows.shape[2] - rows.shape[1])
    padded = np.pad(rows, ((0, 0), (0, missing), (0, 0))) if missing else rows
    return np.asarray(np.linalg.qr(padded, mode="r"))


@dataclass(frozen=True)
class Solution:
    """Ordinary least squares with a constant, for S series; NaN if a series has a problem."""

    count: int  # how many rows were fitted
    params: Array  # the estimates, the constant first, [S, k]
    inverse: Array  # the inverse of X'X, [S, k, k]
    ssr: Array  # the sum of squared residuals, [S]
    tss: Array  # the sum of squared deviations of the response from its mean, [S]
    condition: Array  # the condition number of X, constant included, [S]
    problems: Array  # why a series has no solution, "" if it has one, [S]


def solve(factor: Factor) -> Solution:
    """Solve the regression of every series; it has to have more rows than columns."""
    n, last = factor.count, factor.mean.shape[1] - 1
    problems = _problems(factor)
    good = problems == ""
    # Series with a problem are solved with a stand-in, because LAPACK refuses a whole stack that holds one NaN.
    triangle = np.where(good[:, None, None], factor.triangle, np.eye(last + 1))
    mean = np.where(good[:, None], factor.mean, 0.0)
    sizes = np.linalg.norm(triangle[:, :last, :last], axis=1)
    inner = np.linalg.inv(triangle[:, :last, :last] / sizes[:, None]) / sizes[:, :, None]
    # The triangular factor of X itself has the constant's row (sqrt(n), sqrt(n) mean) above R; `root` is its inverse.
    root = np.zeros((len(mean), last + 1, last + 1))
    root[:, 0, 0] = 1 / np.sqrt(n)
    root[:, 1:, 1:] = inner
    root[:, :1, 1:] = -mean[:, None, :last] @ inner
    response = np.concatenate([np.sqrt(n) * mean[:, last:], triangle[:, :last, last]], axis=1)
    spectrum = np.linalg.svd(root, compute_uv=False)
    with np.errstate(over="ignore"):
        inverse = root @ root.transpose(0, 2, 1)
    problems[good & ~np.isfinite(inverse).all((1, 2))] = TOO_SMALL
    numbers = (
        (root @ response[:, :, None])[:, :, 0],
        inverse,
        triangle[:, last, last] ** 2,
        (triangle[:, :, last] ** 2).sum(1),
        spectrum[:, 0] / spectrum[:, -1],
    )
    for table in numbers:
        table[problems != ""] = np.nan
    return Solution(n, *numbers, problems)


def _problems(factor: Factor) -> Array:
    """Say for every series why it cannot be solved, "" if it can."""
    n, mean, last = factor.count, factor.mean, factor.mean.shape[1] - 1
    with np.errstate(invalid="ignore", over="ignore"):
        squares = (factor.triangle**2).sum(1)
    finite = np.isfinite(squares).all(1) & np.isfinite(mean).all(1)
    flat = is_constant(squares, mean, n)
    problems = np.full(len(mean), "", dtype=object)
    problems[flat[:, :last].any(1)] = COLLINEAR
    problems[flat[:, last]] = CONSTANT
    problems[~finite] = NOT_FINITE
    held = np.flatnonzero(problems == "")
    if not last or not len(held):
        return problems
    sizes = np.sqrt(squares[held, :last])
    spectrum = np.linalg.svd(factor.triangle[held, :last, :last] / sizes[:, None], compute_uv=False)
    # Rounding of the values themselves moves a column by a share eps |mean| / sd of its spread.
    blur = 1 + np.max(np.abs(mean[held, :last]) / sizes * np.sqrt(n), axis=1)
    problems[held[spectrum[:, -1] <= 4 * last * _EPS * blur * spectrum[:, 0]]] = COLLINEAR
    return problems


def is_constant(squares: Array, mean: Array, n: int) -> Array:
    """Return whether squared deviations from the mean of n values sum to no more than rounding leaves."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(squares / n) <= 16 * _EPS * np.abs(mean)
