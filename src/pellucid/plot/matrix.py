"""Any two-dimensional array of numbers as a picture, in colours that part at a centre."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.check import as_number
from pellucid.errors import InputError, ShapeError, shown
from pellucid.plot.canvas import (
    canvas,
    colour_bar,
    extent,
    label_of,
    longest,
    place_of,
    put_numbers,
    put_tokens,
    remember,
    say_what,
    wrapped,
)
from pellucid.plot.heatmaps import BESIDE, ROOM_FOR_A_NUMBER, frame, write_numbers
from pellucid.plot.inputs import as_array, labelled, quantity, require_some, sizes
from pellucid.plot.themes import COLUMN, SMALL
from pellucid.plot.ticks import Ticks
from pellucid.schema import coordinate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as Side
    from xarray import DataArray

UNCHANGED = "unchanged"
"""The attribute of an array of effects that says at which value nothing changed."""


def heatmap(array: Any, *, centre: float | None = None, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw a two-dimensional array: a row for each entry of its first axis, a column for each of its second.

    Colours part at the centre, which is near the paper, and reach as far to either side as the value farthest from it;
    the colour bar says which value that is. If cells are wide enough their numbers are written in them. What is
    missing (nan) is paper.

    Args:
        array: A labelled array, such as `pl.patching.sweep` returns; axes of one entry are left out. Axes with tokens
            are labelled by them. Or plain numbers [row, column].
        centre: The value in the middle of the colours; that of the run without a change if the array says it, else 0.
        title: What the figure shows; what the array says if None.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is the labelled array that is drawn.

    Raises:
        ShapeError: If it has another number of axes.
        InputError: If a value is infinite, there is none, or the centre is no finite number.

    Example:
        >>> import pellucid as pl
        >>> swept = pl.patching.sweep(
        ...     pl.load(), "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the", "resid_pre",
        ...     over=("layer", "pos"), metric=pl.metrics.logit_difference(" ball", " cat"))
        >>> ax = pl.plot.heatmap(swept)
        >>> ax.get_xlabel(), ax.get_ylabel(), ax.get_title(loc="left").splitlines()[0]
        ('pos', 'layer', 'resid_pre, clean into corrupted, bundled')
    """
    found = _read(array)
    numbers, (rows, columns) = found.to_numpy(), found.shape
    middle = _centre(found, centre)
    names = {str(dim): _labels(found, str(dim)) for dim in found.dims}
    beside, below = (longest(names[str(dim)][0]) if names[str(dim)][1] else 0.0 for dim in found.dims)
    heading, wide = _heading(found, title), 72 * COLUMN - BESIDE
    room = wide - beside
    height = float(np.clip(rows * min(room / columns, 22), 24, 400))
    size = (COLUMN, (height + below + 34 + SMALL * 1.3 * wrapped([heading], wide).count("\n")) / 72)
    with canvas(ax, size) as (axes, look):
        width, height = (room, height) if ax is None else extent(axes)
        reach = float(np.nanmax(np.abs(numbers - middle))) or 1.0
        image = axes.imshow(
            numbers, cmap=look.heat_map(signed=True), vmin=middle - reach, vmax=middle + reach, aspect="auto"
        )
        for dim, side in zip(map(str, found.dims), (axes.yaxis, axes.xaxis), strict=True):
            _put_labels(side, found, dim, *names[dim])
            side.set_label_text(dim)
        axes.tick_params(length=0)
        frame(axes, look.soft)
        if width / columns >= ROOM_FOR_A_NUMBER and height / rows >= SMALL * 1.3:
            write_numbers(axes, look, numbers, image)
        colour_bar(axes, image, f"{_units(found)}, centre {middle:.3g}")
        say_what(axes, heading, room=wide if ax is None else None)
        return remember(axes, found)


def _read(given: Any) -> DataArray:
    where = "plot.heatmap"
    array = as_array(where, given, ("row", "column"))
    if array.ndim > 2:
        array = array.squeeze([dim for dim, size in array.sizes.items() if size == 1])
    if array.ndim != 2:
        raise ShapeError(
            f"{where}: axes {sizes(array)}, expected two.",
            code="matrix-axes",
            remedy="Take the mean over, or choose one entry of, each axis but two: array.mean('batch').",
        )
    array = labelled(where, array)
    require_some(where, array, "Give an array in which something was measured.")
    return array


def _centre(array: DataArray, given: float | None) -> float:
    if given is None:
        return float(array.attrs.get(UNCHANGED, 0.0))
    found = as_number(given)
    if found is None or not np.isfinite(found):
        raise InputError(
            f"plot.heatmap: centre={shown(given)}, expected a finite number.",
            code="heatmap-centre",
            remedy="Give the value of no effect, such as centre=0.0, or leave it out.",
        )
    return float(found)


def _labels(array: DataArray, dim: str) -> tuple[list[str], bool]:
    """What the entries along an axis are called, and whether that is words, whose room has to be known."""
    tokens = coordinate(dim, "token")
    if tokens in array.coords:
        return [label_of(str(token)) for token in array[tokens].values], True
    entries = array[dim].values.tolist() if dim in array.coords else list(range(array.sizes[dim]))
    return [str(entry) for entry in entries], any(isinstance(entry, str) for entry in entries)


def _put_labels(side: Side, array: DataArray, dim: str, labels: list[str], words: bool) -> None:
    """Label an axis: tokens as tokens, with their positions if not all fit; names whole, upright along x."""
    if coordinate(dim, "token") in array.coords:
        positions = array[dim].values.tolist() if dim in array.coords else range(len(labels))
        put_tokens(side, labels, list(positions), [0.0], 1.0)
    elif words:
        names = [label.replace("$", r"\$") for label in labels]
        Ticks(names, names, SMALL * 1.1).put(side)
        side.set_tick_params(labelsize=SMALL, labelrotation=90 * (side is side.axes.xaxis))
    else:
        put_numbers(side, labels)


def _units(array: DataArray) -> str:
    units = str(array.attrs.get("units", "1"))
    return quantity(array) if units == "1" else units


def _heading(array: DataArray, title: str | None) -> str:
    """What the figure shows and of what model, and on a line of its own the metric that it is about."""
    if title is not None:
        return str(title)
    what = ", ".join(filter(None, (str(array.attrs.get("title") or quantity(array)), place_of(array))))
    return "\n".join(filter(None, (what, str(array.attrs.get("metric") or ""))))
