"""The rows of a regression of a series on its own past: which values enter, and never across two texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.axes import POSITIONS, coordinate
from pellucid.check import require_whole
from pellucid.errors import InputError
from pellucid.extras import need
from pellucid.measure.labelled import Array, positions_of
from pellucid.measure.solve import CrossProducts

if TYPE_CHECKING:
    import xarray

BLOCK_BYTES = 1 << 19
"""Of values worked on at once: with their products they stay in a core's second-level cache."""

ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Panel:
    """Series of several texts, side by side.

    Attributes:
        values: [S, B, P].
        position: [B, P], counted from each text's own first real token; -1 where there is no value.
        dims: What the S series are, such as ("layer", "head").
        shape: How many along each of these; their product is S.
        coords: Their labels.
    """

    values: Array
    position: Array
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    coords: Mapping[str, Any] = field(default_factory=dict[str, Any])


def panel_of(array: xarray.DataArray, what: str) -> Panel:
    """Read a labelled array: `pos` (or `query`) is time, `batch` the texts, all other axes are series.

    Raises:
        InputError: No labelled array, no axis of positions, or positions that are not adjacent.
    """
    if not isinstance(array, need("xarray", what).DataArray):
        raise InputError(
            f"{what}: {type(array).__name__} given, expected a labelled array with an axis of positions.",
            code="not-measurable",
            remedy="Pass what norms returned, or xarray.DataArray(numbers, dims=('layer', 'batch', 'pos')).",
        )
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
    coords = {dim: array.coords[dim].values for dim in dims if dim in array.coords}
    return Panel(values, position, dims, shape, coords)


def _counted(values: Array) -> Array:
    """Positions of an array that has no coordinate of them: from each text's first value to its last."""
    texts, columns = values.shape[1:]
    if not np.isnan(values[:, :, 0]).any() and not np.isnan(values[:, :, -1]).any():
        return np.broadcast_to(np.arange(columns), (texts, columns))
    position = np.full((texts, columns), -1)
    for text, real in enumerate(np.logical_not(np.isnan(values).all(axis=0))):
        held = np.flatnonzero(real)
        if len(held):
            position[text, held[0] : held[-1] + 1] = np.arange(held[-1] + 1 - held[0])
    return position


def require_adjacent(position: Array, what: str) -> None:
    """Refuse columns that were chosen apart, or with pads between them: the one before is not the token before."""
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
    """The response, its lags and further regressors, read off the series on demand.

    Attributes:
        flat: [S, C], the series of all texts, C = B * P.
        at: [R], which cells of these are responses, in order.
        text: [R], of which text.
        lags: How many.
        extra: Further regressors, each [S, C] or [1, C].
        names: Of all columns of X, the constant first.
    """

    flat: Array
    at: Array
    text: Array
    lags: int
    extra: tuple[Array, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, panel: Panel, lags: int, skip: int, extra: Mapping[str, Array] | None = None) -> Design:
        """Rows wherever a text has a value at t >= skip + lags and at the lags before."""
        position = panel.position
        fits = position >= skip + lags
        for lag in range(1, lags + 1):
            fits[:, :lag] = False
            fits[:, lag:] &= position[:, lag:] - position[:, :-lag] == lag
            fits[:, lag:] &= position[:, :-lag] >= 0
        at = np.flatnonzero(fits.ravel())
        flat = panel.values.reshape(len(panel.values), -1)
        names = ("const", *(f"lag{i}" for i in range(1, lags + 1)), *(extra or {}))
        return cls(flat, at, at // position.shape[1], lags, tuple((extra or {}).values()), names)

    @cached_property
    def run(self) -> bool:
        """Whether the responses stand side by side, so that columns are views."""
        return bool(len(self.at)) and int(self.at[-1] - self.at[0]) + 1 == len(self.at)

    def column(self, number: int, series: slice, rows: slice) -> Array:
        """[s, r] of one column: 0 is the response, then the lags, then the further regressors."""
        source = self.flat if number <= self.lags else self.extra[number - self.lags - 1]
        chosen = source[series] if len(source) == len(self.flat) else source
        back = number if number <= self.lags else 0
        if self.run:
            start = int(self.at[0]) + rows.start - back
            return chosen[:, start : start + rows.stop - rows.start]
        return chosen[:, self.at[rows] - back]

    def matrix(self, series: int) -> tuple[Array, Array]:
        """(y [R], X [R, k]) of one series, the constant first."""
        rows, one = slice(0, len(self.at)), slice(series, series + 1)
        columns = [self.column(number, one, rows)[0] for number in range(len(self.names))]
        return columns[0].copy(), np.column_stack([np.ones(len(self.at)), *columns[1:]])

    def blocks(self) -> Iterator[slice]:
        """Series, as many at once as stay in the cache."""
        rows = max(1, min(len(self.at), ROWS_AT_ONCE))
        step = max(1, BLOCK_BYTES // (8 * rows))
        for start in range(0, len(self.flat), step):
            yield slice(start, min(start + step, len(self.flat)))

    def cross_products(self) -> CrossProducts:
        """Means and sums of products of all columns, for every series."""
        size, columns = len(self.flat), len(self.names)
        mean, comoment = np.empty((size, columns)), np.empty((size, columns, columns))
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found in the sums
            for block in self.blocks():
                parts = [self._products(block, rows) for rows in self._chunks()]
                whole = reduce(CrossProducts.merge, parts)
                mean[block], comoment[block] = whole.mean, whole.comoment
        return CrossProducts(len(self.at), mean, comoment)

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, len(self.at), ROWS_AT_ONCE):
            yield slice(start, min(start + ROWS_AT_ONCE, len(self.at)))

    def _products(self, series: slice, rows: slice) -> CrossProducts:
        """Of one block, from columns shifted near their means, so that little cancels."""
        columns, shifts = self._shifted(series, rows)
        n = rows.stop - rows.start
        near = np.stack([column.sum(1) for column in columns], axis=1) / n
        size = len(columns)
        products = np.empty((len(near), size, size))
        for i in range(size):
            for j in range(i, size):
                products[:, i, j] = products[:, j, i] = np.einsum("sr,sr->s", columns[i], columns[j])
        return CrossProducts(n, near + shifts, products - n * near[:, :, None] * near[:, None, :])

    def _shifted(self, series: slice, rows: slice) -> tuple[list[Array], Array]:
        """(the columns less their shifts, shifts [s, K]); lags share the response's shift, and where they can its
        memory."""
        response = self.column(0, series, rows)
        size = series.stop - series.start
        shift = response[:, :: max(1, response.shape[1] // 256)].mean(1, keepdims=True)  # near the mean is enough
        if self.run:
            start = int(self.at[0]) + rows.start
            away = self.flat[series, start - self.lags : start + rows.stop - rows.start] - shift
            n = rows.stop - rows.start
            columns = [away[:, self.lags - lag : self.lags - lag + n] for lag in range(self.lags + 1)]
        else:
            columns = [self.column(lag, series, rows) - shift for lag in range(self.lags + 1)]
        shifts = [shift] * (self.lags + 1)
        for number in range(self.lags + 1, len(self.names)):
            further = self.column(number, series, rows)
            centre = further.mean(1, keepdims=True)
            columns.append(np.broadcast_to(further - centre, response.shape))
            shifts.append(np.broadcast_to(centre, (size, 1)))
        return columns, np.concatenate(shifts, axis=1)


def whole_number(name: str, given: Any, what: str = "autoregression") -> int:
    """A count of lags, tokens or parameters.

    Raises:
        InputError: It is none.
    """
    return require_whole(f"{what}: {name}", given, code="lags-range")
