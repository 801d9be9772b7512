"""Numbers in groups: some axes are summed over, the others are kept with their labels; and sums of them that merge.

Sums merge by the formulas of Chan, Golub & LeVeque (1983) and, for the third and fourth power, Pébay (2008, Sandia
report SAND2008-6212), which do not cancel. Quantiles come from a DDSketch (Masson, Rim & Lee 2019,
arXiv:1908.10693): values are counted in buckets whose edges are powers of gamma = (1 + error) / (1 - error); the
estimate for bucket i, which holds gamma^(i-1) < |x| <= gamma^i, is 2 gamma^i / (gamma + 1), no further than `error`
times |x| from any x in it. Merging adds counts, so it is exact, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.check import is_several
from pellucid.errors import InputError
from pellucid.extras import need
from pellucid.measure.labelled import Array, first_place, positions_of, require_entries, values
from pellucid.names import aliases
from pellucid.run.activations import ActivationCkpts
from pellucid.schema import POSITIONS, Axis, coordinate

if TYPE_CHECKING:
    import xarray

Source = Any
"""Measures take the captured values of a run (with a checkpoint's name), or a labelled array of such values."""

TEXTS_AND_POSITIONS = (str(Axis.BATCH), *map(str, POSITIONS), str(Axis.KEY))
"""The axes that measures sum over unless told otherwise, as far as an array has them."""


@dataclass(frozen=True)
class Result:
    """One array of results: values, units, a name in words, and its axes behind those of the groups."""

    data: Array
    units: str
    words: str
    dims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Groups:
    """Numbers with the axes that are summed over flattened into the last one."""

    data: Array  # [kept axes..., n], NaN where an entry is missing
    dims: tuple[str, ...]  # the names of the kept axes
    coords: Mapping[str, Any]  # the labels of the kept axes, as xarray takes them
    attrs: Mapping[str, Any]  # provenance, units, and the axes that are summed over

    def dataset(self, arrays: Mapping[str, Result]) -> xarray.Dataset:
        """Return results for each group, by name."""
        xarray = need("xarray", "pellucid.measure")
        made = {
            name: ((*self.dims, *one.dims), one.data, {"long_name": one.words, "units": one.units or "1"})
            for name, one in arrays.items()
        }
        attrs = {key: value for key, value in self.attrs.items() if key != "units"}
        return xarray.Dataset(made, coords=self.coords, attrs=attrs)

    @property
    def units(self) -> str:
        """The units of the numbers."""
        return str(self.attrs.get("units", ""))


def array_of(source: Source, name: aliases.Name | None, what: str) -> xarray.DataArray:
    """Return the array that a measure is asked about; raise `InputError` without a run and a name, or an array."""
    if isinstance(source, ActivationCkpts):
        if name is not None:
            return values(source, name)
    elif isinstance(source, need("xarray", what).DataArray) and name is None:
        array = source if source.dtype == np.float64 else source.astype(np.float64)
        if not (infinite := np.isinf(array.values)).any():  # NaN stands for no entry
            return array
        at, where = first_place(array.dims, infinite)
        raise InputError(
            f"{what}: {float(array.values[at])} at {where}, expected finite numbers, or NaN for none.",
            code="not-finite",
            remedy="Find where it comes from, or leave it out: array.where(np.isfinite(array)).",
        )
    wanted = "a checkpoint's name beside the run" if isinstance(source, ActivationCkpts) else "a run or a DataArray"
    raise InputError(
        f"{what}: {type(source).__name__} given{'' if name is None else f' with {name!r}'}, expected {wanted}.",
        code="not-measurable",
        remedy="Pass the ActivationCkpts of run_with_ckpts and a name, or what norms or values returned, without one.",
    )


def grouped(source: Source, name: aliases.Name | None, over: Collection[str] | None, what: str) -> Groups:
    """Flatten the axes that are summed over, by default texts and positions, of a run's checkpoint or an array.

    Positions that are kept are counted from each text's own first real token. Raise `InputError` if the array does
    not have one of the axes, none was named, or one that is kept has no entry; `what` is the measure, for messages.
    """
    array = array_of(source, name, what)
    dims = tuple(map(str, array.dims))
    chosen = tuple(d for d in TEXTS_AND_POSITIONS if d in dims) if over is None else axes_in(over, dims, what)
    if not chosen:
        raise InputError(
            f"{what}: no axis to sum over, expected some of ({', '.join(dims)}).",
            code="no-such-axis",
            remedy="Name one or more axes in over=.",
        )
    for axis in map(str, (*POSITIONS, Axis.KEY)):
        if axis in dims and axis not in chosen and "batch" in chosen and _begins_apart(array, axis):
            array = aligned(array, axis)
    kept = tuple(d for d in dims if d not in chosen)
    require_entries({dim: array.sizes[dim] for dim in kept}, what)
    coords = {str(n): c for n, c in array.coords.items() if not set(map(str, c.dims)) & set(chosen)}
    attrs = {**array.attrs, "over": ", ".join(chosen)}
    data = array.transpose(*kept, *chosen).values
    return Groups(data.reshape(*data.shape[: len(kept)], math.prod(data.shape[len(kept) :])), kept, coords, attrs)


def _begins_apart(array: xarray.DataArray, axis: str) -> bool:
    """Return whether a column is not the position that its label says; without labels, whether there are pads."""
    position = array.coords.get(coordinate(axis, "position"))
    if position is None or not {"batch", axis} <= set(position.dims):
        return bool(array.isnull().any())
    columns = positions_of(position, "batch", axis)
    return bool(((columns >= 0) & (columns != array[axis].values)).any())


def axes_in(over: Collection[str], dims: Collection[str], what: str) -> tuple[str, ...]:
    """Return the axes named; raise `InputError` if one is not there."""
    names = [str(axis) for axis in over] if is_several(over) else [str(over)]
    if absent := [axis for axis in names if axis not in dims]:
        raise InputError(
            f"{what}: over={absent[0]!r}, but the axes are ({', '.join(dims)}).",
            code="no-such-axis",
            remedy=f"Name some of {', '.join(dims)}.",
        )
    return tuple(dict.fromkeys(names))


def aligned(array: xarray.DataArray, axis: str = "pos") -> xarray.DataArray:
    """Return the same numbers with each text's own first real token in column 0, whatever side the pads were on.

    Args:
        array: What `norms` or `values` returned, with axes batch and pos (or query).
        axis: "pos", "query" or "key".

    Returns:
        An array of the same axes; NaN behind the end of each text.

    Raises:
        InputError: If the array has no texts, does not say their positions, or has an axis without entries.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts(["The end", "Once upon a time"], names="ckpt_embed")
        >>> pl.measure.aligned(pl.measure.norms(ckpts, "ckpt_embed")).token.values.tolist()
        [['The', ' end', '', ''], ['Once', ' upon', ' a', ' time']]
    """
    if not isinstance(array, need("xarray", "aligned").DataArray):
        raise InputError(
            f"aligned: {type(array).__name__} given, expected a labelled array.",
            code="not-measurable",
            remedy="Pass what norms or values returned.",
        )
    require_entries(array.sizes, "aligned")
    label, tokens = coordinate(axis, "position"), coordinate(axis, "token")
    if label not in array.coords or not {"batch", axis} <= set(array.coords[label].dims):
        raise InputError(
            f"aligned: no coordinate {label!r} over (batch, {axis}), which says where each text begins.",
            code="no-positions",
            remedy="Pass what norms or values returned, texts and positions whole.",
        )
    position = positions_of(array.coords[label], "batch", axis)
    text, column = np.nonzero(position >= 0)
    at, length = position[text, column], int(position.max()) + 1

    def moved(data: Array, empty: Any) -> Array:
        out = np.full((*data.shape[:-1], length), empty, dtype=data.dtype)
        out[..., text, at] = data[..., text, column]
        return out

    labels = {label: moved(position, -1)}
    if tokens in array.coords:
        labels[tokens] = moved(array.coords[tokens].transpose("batch", axis).fillna("").values, "")
    coords: dict[str, Any] = {str(n): c for n, c in array.coords.items() if axis not in c.dims}
    coords |= {axis: range(length), **{n: (("batch", axis), data) for n, data in labels.items()}}
    last = array.transpose(..., "batch", axis)
    data = moved(last.values.astype(np.float64), np.nan)
    made = need("xarray", "aligned").DataArray(data, dims=last.dims, coords=coords, name=array.name, attrs=array.attrs)
    return made.transpose(*array.dims)


_ROUNDING = 16 * np.finfo(np.float64).eps
"""A spread below this share of the mean is what rounding leaves of a constant."""

AT_ONCE = 1 << 22
"""How many numbers are worked on at once; more are taken group by group, which bounds the temporary arrays."""

_GREATEST = float(np.finfo(np.float64).max)
_LEAST = float(np.finfo(np.float64).tiny)  # magnitudes below the smallest normal number count as zero


@dataclass(frozen=True)
class Sums:
    """Count, mean, and sums of the second to fourth power of deviations from the mean, for each group."""

    count: Array
    mean: Array
    m2: Array
    m3: Array
    m4: Array

    @classmethod
    def of(cls, data: Array) -> Sums:
        """Sum over the last axis, NaN left out, in two passes; the rounding of the mean is taken back."""
        if data.ndim > 1 and data.size > AT_ONCE:
            return cls(*(np.stack(rows) for rows in zip(*(vars(cls.of(part)).values() for part in data), strict=True)))
        real = ~np.isnan(data)
        count = real.sum(-1)
        some = np.maximum(count, 1)
        mean = np.where(real, data, 0.0).sum(-1) / some
        away = np.where(real, data - mean[..., None], 0.0)
        correction = away.sum(-1) / some
        mean = mean + correction
        away = np.where(real, away - correction[..., None], 0.0)
        square = away * away
        return cls(count, mean, square.sum(-1), (square * away).sum(-1), (square * square).sum(-1))

    def merge(self, other: Sums) -> Sums:
        """Return the sums of both together."""
        a, b = self.count.astype(float), other.count.astype(float)
        n = np.maximum(a + b, 1.0)
        d = np.where(self.count == 0, 0.0, np.where(other.count == 0, 0.0, other.mean - self.mean))
        mean = np.where(self.count == 0, other.mean, self.mean + d * b / n)
        m2 = self.m2 + other.m2 + d**2 * a * b / n
        m3 = self.m3 + other.m3 + d**3 * a * b * (a - b) / n**2 + 3 * d * (a * other.m2 - b * self.m2) / n
        fourth = d**4 * a * b * (a**2 - a * b + b**2) / n**3
        second = 6 * d**2 * (a**2 * other.m2 + b**2 * self.m2) / n**2
        m4 = self.m4 + other.m4 + fourth + second + 4 * d * (a * other.m3 - b * self.m3) / n
        return Sums(self.count + other.count, mean, m2, m3, m4)

    def moments(self) -> dict[str, Array]:
        """Return count, mean, variance, skewness, excess kurtosis; NaN if there is nothing, or nothing varies."""
        count = np.where(self.count == 0, np.nan, self.count)
        mean = np.where(self.count == 0, np.nan, self.mean)
        variance = self.m2 / count
        spread = np.where(np.sqrt(variance) <= _ROUNDING * np.abs(mean), np.nan, np.sqrt(variance))
        spread = np.where(spread == 0, np.nan, spread)
        skewness, kurtosis = self.m3 / count / spread**3, self.m4 / count / spread**4 - 3
        return {"count": self.count, "mean": mean, "variance": variance, "skewness": skewness, "kurtosis": kurtosis}


@dataclass(frozen=True)
class Comoments:
    """Sums of products of S groups of D dimensions."""

    count: int  # how many vectors there are
    mean: Array  # their means, [S, D]
    comoment: Array  # sums of products of deviations from the mean, [S, D, D]

    @classmethod
    def of(cls, columns: Array) -> Comoments:
        """Sum products of vectors [S, D, n]."""
        mean = columns.mean(2)
        away = columns - mean[:, :, None]
        return cls(columns.shape[2], mean, away @ away.transpose(0, 2, 1))

    def merge(self, other: Comoments) -> Comoments:
        """Return the sums of both together."""
        count = self.count + other.count
        apart = other.mean - self.mean
        between = apart[:, :, None] * apart[:, None, :] * (self.count * (other.count / count))
        mean = self.mean + apart * (other.count / count)
        return Comoments(count, mean, self.comoment + other.comoment + between)


@dataclass(frozen=True)
class Sketch:
    """Counts of values in logarithmic buckets, for each group."""

    low: int  # the number of the first bucket
    counts: Array  # how many positive and how many negative values each bucket holds, [2, groups, buckets]
    zeros: Array  # how many values are zero, [groups]
    least: Array  # the least value, [groups]
    greatest: Array  # the greatest value, [groups]

    @classmethod
    def of(cls, data: Array, error: float) -> Sketch:
        """Count values [groups, n], NaN left out, in buckets for a relative error between 0 and 1."""
        size = np.abs(data)
        group, column = np.nonzero(size >= _LEAST)
        chosen = data[group, column]
        bucket = np.ceil(np.log(np.abs(chosen)) / math.log(gamma(error))).astype(np.int64)
        low, end = (int(bucket.min()), int(bucket.max()) + 1) if len(bucket) else (0, 0)
        shape = (2, len(data), end - low)
        flat = ((chosen < 0) * len(data) + group) * (end - low) + bucket - low
        counts = np.bincount(flat, minlength=math.prod(shape)).reshape(shape)
        least = np.fmin.reduce(data, axis=1, initial=np.inf)
        return cls(low, counts, (size < _LEAST).sum(1), least, np.fmax.reduce(data, axis=1, initial=-np.inf))

    def merge(self, other: Sketch) -> Sketch:
        """Add another's counts; exact."""
        held = [part for part in (self, other) if part.counts.shape[2]]
        low = min((part.low for part in held), default=0)
        end = max((part.low + part.counts.shape[2] for part in held), default=0)
        counts = np.zeros((*self.counts.shape[:2], end - low), dtype=np.int64)
        for part in held:
            counts[:, :, part.low - low : part.low - low + part.counts.shape[2]] += part.counts
        extremes = np.fmin(self.least, other.least), np.fmax(self.greatest, other.greatest)
        return Sketch(low, counts, self.zeros + other.zeros, *extremes)

    @property
    def count(self) -> Array:
        """How many values were counted, [groups]."""
        return self.zeros + self.counts.sum((0, 2))

    def quantiles(self, shares: Array, error: float) -> Array:
        """Return quantiles [groups, len(shares)]: of n values in order, the one numbered floor(q (n - 1)) from 0.

        Each is within `error` times its magnitude of the true one; NaN if nothing was counted.
        """
        positive, negative = self.counts
        columns = np.concatenate([negative[:, ::-1], self.zeros[:, None], positive], axis=1).cumsum(1)
        base = gamma(error)
        edges = np.power(base, self.low - 1 + np.arange(positive.shape[1], dtype=float))
        with np.errstate(over="ignore"):  # beyond the largest number, which then is as near as need be
            middle = np.minimum(edges * (2 * base / (base + 1)), _GREATEST)
        estimates = np.concatenate([-middle[::-1], [0.0], middle])
        count = self.count
        out = np.full((len(count), len(shares)), np.nan)
        for group in np.flatnonzero(count):
            ranks = np.floor(np.asarray(shares) * (count[group] - 1))
            found = estimates[np.searchsorted(columns[group], ranks, side="right")]
            out[group] = np.clip(found, self.least[group], self.greatest[group])
        return out


def gamma(error: float) -> float:
    """Return the ratio of a bucket's edges."""
    lowered = error * (1 - 1e-9)  # leaves room for the logarithm's rounding
    return (1 + lowered) / (1 - lowered)


def require_buckets(sketch: Sketch, error: float) -> None:
    """Raise `ValueError` if a sketch has buckets of numbers that float64 does not hold."""
    furthest, size = math.log(_GREATEST) / math.log(gamma(error)) + 2, sketch.counts.shape[2]
    if size and not -furthest <= sketch.low <= sketch.low + size <= furthest:
        raise ValueError("it has buckets of numbers that float64 does not hold")
