"""The rows of a regression of a series on its own past: which values enter, and never across two texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.errors import InputError
from pellucid.extras import need
from pellucid.measure.labelled import Array, positions_of, require_entries
from pellucid.measure.sums import Factor, Solution, centred
from pellucid.schema import POSITIONS, coordinate

if TYPE_CHECKING:
    import pandas as pd
    import xarray

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


def panel_of(array: xarray.DataArray, what: str) -> Panel:
    """Read a labelled array: `pos` (or `query`) is time, `batch` the texts, all other axes are series.

    Raise `InputError` if it is none, has an empty axis or no single one of positions, or these are not adjacent.
    """
    if not isinstance(array, need("xarray", what).DataArray):
        raise InputError(
            f"{what}: {type(array).__name__} given, expected a labelled array with an axis of positions.",
            code="not-measurable",
            remedy="Pass what norms returned, or xarray.DataArray(numbers, dims=('layer', 'batch', 'pos')).",
        )
    require_entries(array.sizes, what)
    time = [str(axis) for axis in POSITIONS if axis in array.dims]
    if len(time) != 1:
        raise InputError(
            f"{what}: the axes are ({', '.join(map(str, array.dims))}), expected one of positions, pos or query.",
            code="no-such-axis",
            remedy="Pass norms, with their positions: (layer, batch, pos).",
        )
    texts = [dim for dim in array.dims if dim == "batch"]
    dims = tuple(str(dim) for dim in array.dims if dim not in (*texts, *time))
    ordered = array.transpose(*dims, *texts, *time)
    shape = ordered.shape[: len(dims)]
    values = np.asarray(ordered.values, dtype=np.float64)
    values = values.reshape(int(np.prod(shape)), values.shape[-2] if texts else 1, values.shape[-1])
    given = array.coords.get(coordinate(time[0], "position"))
    if given is None or set(given.dims) != {*texts, *time}:
        position = _counted(values)
    else:
        position = positions_of(given, *map(str, texts), *time).reshape(values.shape[1:])
    require_adjacent(position, what)
    return Panel(values, position, index_of(dims, shape, array.coords))


def _counted(values: Array) -> Array:
    """Count positions in an array that does not give them: from each text's first value to its last."""
    columns = np.arange(values.shape[2])
    real = np.asarray(~np.isnan(values).all(axis=0))
    first, last = real.argmax(1)[:, None], columns[-1] - real[:, ::-1].argmax(1)[:, None]
    inside = (first <= columns) & (columns <= last) & real.any(axis=1, keepdims=True)
    return np.where(inside, columns - first, -1)


def require_adjacent(position: Array, what: str) -> None:
    """Raise `InputError` if a column's left neighbour is not the token before, as pads between columns make it."""
    for text, row in enumerate(position):
        columns = np.flatnonzero(row >= 0)
        apart = np.flatnonzero((np.diff(columns) != 1) | (np.diff(row[columns]) != 1))
        if len(apart):
            before, after = columns[apart[0]], columns[apart[0] + 1]
            raise InputError(
                f"{what}: in text {text}, position {row[after]} (column {after}) follows position {row[before]} "
                f"(column {before}), expected adjacent ones.",
                code="positions-not-adjacent",
                remedy="Capture all positions, or a slice of step 1, in order; measure.aligned closes gaps of pads.",
            )


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
