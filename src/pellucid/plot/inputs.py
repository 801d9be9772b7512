"""What figures are drawn from: labelled arrays, checked and sorted by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pellucid.axes import POSITIONS, Axis, coordinate
from pellucid.check import require_whole
from pellucid.errors import InputError, ShapeError
from pellucid.plot.themes import xarray

if TYPE_CHECKING:
    from xarray import DataArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Layers:
    """The values of each layer, what was left out (pads and what `skip` skips) taken away.

    Attributes:
        numbers: The layers' numbers; one empty text if the array has no layer axis.
        values: Per layer, all its values.
        array: The array with nan where a value was left out.
        label: What the values are.
    """

    numbers: list[Any]
    values: list[Numbers]
    array: DataArray
    label: str

    @property
    def most(self) -> int:
        """Values of the layer that has most."""
        return max(map(len, self.values))

    def quantiles(self, at: Sequence[float]) -> Numbers:
        """[len(at), L]: quantiles of each layer."""
        return np.stack([np.quantile(values, at) for values in self.values], axis=1)


def by_layer(where: str, array: DataArray, skip: int = 0) -> Layers:
    """Sort a labelled array by layer; whatever other axes it has are pooled.

    Raises:
        ShapeError: Not a labelled array, or no axis to skip along.
        InputError: A value that is infinite, a negative skip, or nothing left to draw.
    """
    array = without_first(where, labelled(where, array), skip)
    layer = str(Axis.LAYER)
    stacked = array if layer in array.dims else array.expand_dims({layer: [""]})
    numbers = list(stacked[layer].values.tolist()) if layer in stacked.coords else list(range(stacked.sizes[layer]))
    values = [rows[~np.isnan(rows)] for rows in stacked.transpose(layer, ...).to_numpy()]
    empty = [str(number) for number, of_layer in zip(numbers, values, strict=True) if not len(of_layer)]
    if empty or not numbers:
        raise InputError(
            f"{where}: no values are left in layer {', '.join(empty) or '(there is none)'} "
            f"of {sizes(array)}, pads and skip={skip} left out; expected at least one a layer.",
            code="nothing-to-draw",
            remedy="Give a longer text, or a smaller skip=.",
        )
    return Layers(numbers, values, array, quantity(array))


def labelled(where: str, array: DataArray) -> DataArray:
    """The array in float64, nan where a value is missing; infinite values are refused."""
    if not isinstance(array, xarray().DataArray):
        raise ShapeError(
            f"{where}: {type(array).__name__} given, expected an xarray.DataArray with a layer axis.",
            code="not-labelled",
            remedy="Pass what pellucid.measure returns, or xarray.DataArray(values, dims=('layer', 'batch', 'pos')).",
        )
    numbers = array.astype("float64")
    infinite = int(np.isinf(numbers.to_numpy()).sum())
    if infinite:
        raise InputError(
            f"{where}: {infinite} infinite values in {sizes(array)}, expected finite ones, or nan at pads.",
            code="not-finite",
            remedy="Draw the norms themselves (log=False): the logarithm of a norm of zero is infinite.",
        )
    return numbers


def without_first(where: str, array: DataArray, skip: int) -> DataArray:
    """The array with nan at the first `skip` real positions of each text, wherever its pads are.

    They are counted by the array's coordinate `position`, if it has one (-1 at pads), else by what is not nan.
    """
    skip = require_whole(f"{where}: skip", skip, code="skip")
    if skip == 0:
        return array
    position = next((str(axis) for axis in POSITIONS if axis in array.dims), None)
    if position is None:
        raise ShapeError(
            f"{where}: skip={skip} with {sizes(array)}, expected an axis 'pos' or 'query' to skip along.",
            code="no-such-axis",
            remedy="Leave skip= out, or give an array that has positions.",
        )
    counted = array.coords.get(coordinate(position, "position"))
    if counted is None:
        others = [dim for dim in array.dims if dim not in (position, str(Axis.BATCH))]
        counted = array.notnull().any(others).cumsum(position) - 1
    return array.where(counted >= skip)


def sizes(array: DataArray) -> str:
    """The axes of an array with their lengths, for messages."""
    return "(" + ", ".join(f"{dim} {size}" for dim, size in array.sizes.items()) + ")"


def quantity(array: DataArray) -> str:
    """What an array holds, for an axis: `log norm of attn_out`."""
    name = str(array.attrs.get("long_name") or array.name or "value").replace("_", " ")
    if is_log(array) and not name.startswith("log"):
        name = f"log {name}"
    checkpoint = str(array.attrs.get("checkpoint", "")).rsplit(".", 1)[-1].removeprefix("ckpt_")
    return f"{name} of {checkpoint}" if checkpoint and checkpoint not in name else name


def is_log(array: DataArray) -> bool:
    """Whether an array says that its values are logarithms."""
    return str(array.attrs.get("units", "")).startswith("log")


def as_numbers(where: str, given: Any) -> Numbers:
    """An array of numbers from lists, numpy or torch: in float32 where they are no wider, else in float64."""
    try:
        if isinstance(given, Tensor):  # which hands out neither gradients nor bfloat16
            narrow = given.is_floating_point() and given.element_size() <= 4
            given = (given.float() if narrow else given.double()).detach().cpu().numpy()
        numbers = np.asarray(given)
        return numbers if numbers.dtype == np.float32 else numbers.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"{where}: {type(given).__name__} cannot be read as a rectangle of numbers ({error}).",
            code="not-numbers",
            remedy="Pass a tensor, an array, or lists of equal length; of captured values one, as in ckpts[name][0].",
        ) from error
