"""A series of norms regressed on its own past, for every layer at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.check import require_whole
from pellucid.errors import InputError, shown
from pellucid.extras import need
from pellucid.measure.fit import AutoregressionFit
from pellucid.measure.labelled import Array, positions_of, require_entries
from pellucid.measure.series import NOT_FINITE, Basis, Design, Factor, Panel, index_of, solve
from pellucid.schema import POSITIONS, coordinate

if TYPE_CHECKING:
    import pandas as pd
    import xarray


@dataclass(frozen=True)
class HAC:
    """Standard errors that allow for heteroskedasticity and autocorrelation (Newey & West 1987, Bartlett's kernel).

    Attributes:
        maxlags: How many lags enter; None for floor(4 (n / 100)^(2/9)) (Newey & West 1994).
    """

    maxlags: int | None = None


def autoregression(
    norms: xarray.DataArray,
    lags: int = 2,
    skip: int = 0,
    *,
    regressors: Mapping[str, Any] | None = None,
    cov: str | HAC = "plain",
) -> AutoregressionFit:
    """Fit y[t] = const + lag1 y[t-1] + ... + lagp y[t-p] by ordinary least squares, for every layer at once.

    Several texts make one regression for each layer, whose rows never reach from one text into another. t counts
    from each text's own first real token, whatever side the pads are on, and the first point fitted is
    t = skip + lags: with skip=1 the first token's norm, which is far from all others in GPT-2, enters nowhere.

    Args:
        norms: What `norms` returned, [layer, batch, pos]. Other axes beside batch and pos (or query), such as head,
            are further series.
        lags: How many past values enter; 0 for none.
        skip: How many first tokens of each text to leave out.
        regressors: Further columns by name, each an array [batch, pos] or a labelled one over axes of `norms`. Their
            values at t enter: the logarithm of a token's frequency, `norms.position`, or `norms.shift(layer=1)`.
        cov: "plain" standard errors, or "HAC" (or HAC(maxlags=...)) for heteroskedasticity- and
            autocorrelation-consistent ones.

    Returns:
        Estimates with their tests, which equal those of `statsmodels.OLS` on the same rows. Layers that cannot be
        fitted (constant, dependent columns, a value that is not finite) are NaN, and `problems` says why.

    Raises:
        InputError: If the texts have too few rows for the parameters, positions are not adjacent, or no layer can
            be fitted.

    Example:
        >>> import pellucid as pl
        >>> text = "Once upon a time there was a little cat who lived with her mother in a big house."
        >>> _, ckpts = pl.load().run_with_ckpts(text, names="blocks.*.attn.ckpt_attn_out")
        >>> norms = pl.measure.norms(ckpts, "attn.ckpt_attn_out", log=True)
        >>> fit = pl.measure.autoregression(norms, lags=2, skip=1)
        >>> fit.params.shape, fit.nobs, list(fit.params)
        ((4, 3), 16, ['const', 'lag1', 'lag2'])
    """
    lags = require_whole("autoregression: lags", lags, code="lags-range")
    skip = require_whole("autoregression: skip", skip, code="lags-range")
    if not isinstance(cov, HAC) and not (isinstance(cov, str) and cov in ("plain", "HAC")):
        raise InputError(
            f"autoregression: cov={shown(cov)}, expected 'plain', 'HAC' or HAC(maxlags=...).",
            code="unknown-covariance",
            remedy="Give cov='plain', cov='HAC' or cov=pl.measure.HAC(maxlags=4).",
        )
    fit = _fitted(norms, _design(norms, lags, skip, regressors), skip)
    if cov == "plain":
        return fit
    return fit.robust(cov.maxlags if isinstance(cov, HAC) else None)


@dataclass(frozen=True, repr=False)
class LagSelection:
    """Information criteria of autoregressions of several orders, all on the same rows.

    Attributes:
        aic: Akaike's criterion; a row for each layer, a column for each order.
        bic: Schwarz's criterion.
        nobs: How many rows every regression has.
    """

    aic: pd.DataFrame
    bic: pd.DataFrame
    nobs: int

    @cached_property
    def best_aic(self) -> pd.Series:
        """The order with the lowest AIC, by layer."""
        return _best(self.aic)

    @cached_property
    def best_bic(self) -> pd.Series:
        """The order with the lowest BIC, by layer."""
        return _best(self.bic)

    def __repr__(self) -> str:
        pandas = need("pandas", "select_lags")
        best = pandas.DataFrame({"AIC": self.best_aic, "BIC": self.best_bic})
        return f"lags of the lowest criterion, orders 0 to {self.aic.columns[-1]} on {self.nobs} rows\n{best}"


def select_lags(
    norms: xarray.DataArray, max_lags: int, skip: int = 0, *, regressors: Mapping[str, Any] | None = None
) -> LagSelection:
    """Compare the orders 0 to `max_lags` by AIC (Akaike 1974) and BIC (Schwarz 1978).

    Every order is fitted to the same rows, t >= skip + max_lags, because criteria of different data cannot be
    compared. They are -2 log L + 2 k and -2 log L + k log n, with Gaussian residuals, n rows and k parameters, as
    statsmodels has them.

    Args:
        norms: The series, as for `autoregression`.
        max_lags: The highest order.
        skip: How many first tokens of each text to leave out.
        regressors: Further columns, as for `autoregression`; every order has them.

    Returns:
        `aic` and `bic` by layer and order, and `best_aic`, `best_bic`; 0 lags is the mean alone.

    Raises:
        InputError: As for `autoregression`.

    Example:
        >>> import pellucid as pl
        >>> text = "Once upon a time there was a little cat who lived with her mother in a big house."
        >>> _, ckpts = pl.load().run_with_ckpts(text, names="blocks.*.resid_post")
        >>> chosen = pl.measure.select_lags(pl.measure.norms(ckpts, "resid_post", log=True), max_lags=3, skip=1)
        >>> list(chosen.bic), chosen.nobs
        ([0, 1, 2, 3], 15)
    """
    highest = require_whole("select_lags: max_lags", max_lags, code="lags-range")
    skip = require_whole("select_lags: skip", skip, code="lags-range")
    same_rows = _design(norms, highest, skip, regressors)
    fits = {order: _fitted(norms, replace(same_rows, lags=order), skip) for order in range(highest + 1)}
    pandas = need("pandas", "select_lags")
    aic, bic = (pandas.DataFrame({k: getattr(fit, name) for k, fit in fits.items()}) for name in ("aic", "bic"))
    return LagSelection(aic, bic, len(same_rows.at))


def fitted(
    factor: Factor, basis: Basis, texts: str, rows: Design | None = None, array: xarray.DataArray | None = None
) -> AutoregressionFit:
    """Solve every series; raise `InputError` unless there are more rows than parameters and a series can be fitted.

    `texts` says which texts they are, for messages; a stream keeps neither rows nor array.
    """
    if factor.count <= len(basis.names):
        raise InputError(
            f"autoregression: {texts} give {factor.count} rows (t from {basis.skip + basis.lags}) for "
            f"{len(basis.names)} parameters, expected more rows than parameters.",
            code="too-short",
            remedy="Give longer or more texts, fewer lags, or a smaller skip.",
        )
    solution = solve(factor)
    if rows is not None:
        for series in np.flatnonzero(solution.problems == NOT_FINITE):
            solution.problems[series] = _not_finite(rows, int(series))
    if (solution.problems != "").all():
        raise InputError(
            f"autoregression: nothing can be fitted: {solution.problems[0]}.",
            code="not-fitted",
            remedy="Look at the series and the further regressors; a constant series has no autoregression.",
        )
    return AutoregressionFit(basis, solution, rows=rows, array=array)


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


def _design(norms: xarray.DataArray, lags: int, skip: int, regressors: Mapping[str, Any] | None) -> Design:
    """Choose the rows and check what was given."""
    panel = panel_of(norms, "autoregression")
    given = {} if regressors is None else regressors
    if not isinstance(given, Mapping):
        raise InputError(
            f"autoregression: regressors={type(given).__name__}, expected a dict of names and arrays.",
            code="regressor-misfit",
            remedy='Give it a name: regressors={"position": norms.position}.',
        )
    taken = {"y", "const", *(f"lag{i}" for i in range(1, lags + 1))} & set(map(str, given))
    if taken:
        raise InputError(
            f"autoregression: a regressor is called {min(taken)!r}, which is the name of a column of its own.",
            code="name-taken",
            remedy="Give it another name.",
        )
    extra = {str(name): _regressor(name, one, norms, panel) for name, one in given.items()}
    return Design.of(panel, lags, skip, extra)


def _regressor(name: str, given: Any, norms: xarray.DataArray, panel: Panel) -> Array:
    """Return a further regressor as [S, C], or as [1, C] if it is the same for every series."""
    xarray = need("xarray", "autoregression")
    texts_and_time = [dim for dim in ("batch", "pos", "query") if dim in norms.dims]
    try:
        if not isinstance(given, xarray.DataArray):
            given = xarray.DataArray(np.asarray(given, dtype=np.float64), dims=texts_and_time)
        if set(given.dims) - set(norms.dims):
            raise ValueError(f"its axes are {tuple(given.dims)}")
        axes = [dim for dim in norms.dims if dim not in texts_and_time]
        shared = not set(given.dims) & set(axes)
        template = norms.isel(dict.fromkeys(axes, 0), drop=True) if shared else norms
        given, template = xarray.align(given, template, join="exact", copy=False)
        whole = given.broadcast_like(template).transpose(*([] if shared else axes), *texts_and_time)
        return whole.values.astype(np.float64).reshape(1 if shared else len(panel.values), -1)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"autoregression: regressor {name!r} does not fit the series {dict(norms.sizes)}: {error}",
            code="regressor-misfit",
            remedy="Give an array [batch, pos], or a labelled one over axes and labels of the norms.",
        ) from error


def _fitted(norms: xarray.DataArray, design: Design, skip: int) -> AutoregressionFit:
    """Fit every series in memory."""
    lengths = (design.panel.position >= 0).sum(1)
    listed = ", ".join(map(str, lengths[:8].tolist())) + (", ..." if len(lengths) > 8 else "")
    factor = design.factor()
    counts, index, attrs = (factor.texts, factor.short), design.panel.index, dict(norms.attrs)
    basis = Basis(design.lags, skip, design.names, *counts, index, attrs)
    return fitted(factor, basis, f"texts of {listed} tokens", design, norms)


def _not_finite(design: Design, series: int) -> str:
    """Say which value of a series is not finite."""
    response, matrix = design.matrix(series)
    wrong = ~np.isfinite(np.column_stack([response, matrix[:, 1:]]))
    if not wrong.any():
        return "its values are too large to square"
    row, column = map(int, np.argwhere(wrong)[0])
    name = "the series" if column <= design.lags else design.names[column]
    back = column if column <= design.lags else 0
    return f"{name} is not finite at text {int(design.text[row])}, t = {int(design.t[row]) - back}"


def _best(criterion: pd.DataFrame) -> pd.Series:
    some = criterion.notna().any(axis=1)
    return criterion.fillna(np.inf).idxmin(axis=1).astype("Int64").where(some)
