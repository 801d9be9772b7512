"""Numbers in groups: some axes are summed over, the others are kept with their labels."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

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
        return _finite(source if source.dtype == np.float64 else source.astype(np.float64), what)
    wanted = "a checkpoint's name beside the run" if isinstance(source, ActivationCkpts) else "a run or a DataArray"
    raise InputError(
        f"{what}: {type(source).__name__} given{'' if name is None else f' with {name!r}'}, expected {wanted}.",
        code="not-measurable",
        remedy="Pass the ActivationCkpts of run_with_ckpts and a name, or what norms or values returned, without one.",
    )


def _finite(array: xarray.DataArray, what: str) -> xarray.DataArray:
    """Return a caller's array, in which NaN stands for no entry; raise `InputError` if a value is infinite."""
    infinite = np.isinf(array.values)
    if infinite.any():
        at, where = first_place(array.dims, infinite)
        raise InputError(
            f"{what}: {float(array.values[at])} at {where}, expected finite numbers, or NaN for none.",
            code="not-finite",
            remedy="Find where it comes from, or leave it out: array.where(np.isfinite(array)).",
        )
    return array


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
    names = [str(axis) for axis in over] if isinstance(over, Iterable) and not isinstance(over, str) else [str(over)]
    absent = [axis for axis in names if axis not in dims]
    if absent:
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
