"""A number for each head: layers down, heads across."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.axes import Axis
from pellucid.errors import InputError, ShapeError
from pellucid.plot.canvas import canvas, colour_bar, extent, remember, say_what
from pellucid.plot.extras import xarray
from pellucid.plot.heat import frame
from pellucid.plot.inputs import Numbers, as_numbers, labelled, sizes
from pellucid.plot.labels import label_numbers
from pellucid.plot.themes import COLUMN, SMALL, Theme, luminance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataArray

DIMS = (str(Axis.LAYER), str(Axis.HEAD))

ROOM_FOR_A_NUMBER = 19.0
"""Points of a cell's width in which its number is written."""


def head_scores(scores: Any, *, ax: Axes | None = None) -> Axes:
    """Draw a score of every head as a heat map: a row for each layer, a column for each head.

    Colours begin at zero; of scores on both sides of zero, they go as far to either side. Where cells are wide
    enough their numbers are written in them. A head without a score (nan) is paper.

    Args:
        scores: (layer, head), labelled, as the measures of attention in `pl.measure` give them, or an array.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is the labelled array (layer, head).

    Raises:
        ShapeError: Other axes.
        InputError: Infinite values, or no scores.
        MissingExtraError: matplotlib or xarray is not installed.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.attn.ckpt_pattern")
        >>> first = ckpts.stack("attn.ckpt_pattern")[:, 0, :, :, 0].mean(-1)  # weight on the first token
        >>> ax = pl.plot.head_scores(first)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('head', 'layer')
    """
    array = _read(scores)
    rows, columns = array.shape
    cell = (72 * COLUMN - 70) / columns
    height = float(np.clip(rows * min(cell, 22), 24, 320)) + 32
    with canvas(ax, (COLUMN, height / 72)) as (axes, look):
        width, height = (72 * COLUMN - 70, height - 32) if ax is None else extent(axes)
        numbers = array.to_numpy()
        low, high = _limits(numbers)
        image = axes.imshow(numbers, cmap=look.heat_map(signed=low < 0), vmin=low, vmax=high, aspect="auto")
        label_numbers(axes.yaxis, array[DIMS[0]].values.tolist(), height)
        label_numbers(axes.xaxis, array[DIMS[1]].values.tolist(), width)
        axes.set(xlabel=DIMS[1], ylabel=DIMS[0])
        axes.tick_params(length=0)
        frame(axes, look.soft)
        if width / columns >= ROOM_FOR_A_NUMBER and height / rows >= SMALL * 1.3:
            _write(axes, look, numbers, image)
        colour_bar(axes, image, _label(array))
        say_what(axes, array)
        return remember(axes, array)


def _read(scores: Any) -> DataArray:
    where = "plot.head_scores"
    array = scores
    if not isinstance(scores, xarray().DataArray):
        numbers = as_numbers(where, scores)
        array = xarray().DataArray(numbers, dims=DIMS if numbers.ndim == 2 else None, name="score")
    array = array.squeeze([dim for dim, size in array.sizes.items() if size == 1 and dim not in DIMS])
    if set(array.dims) != set(DIMS):
        raise ShapeError(
            f"{where}: axes {sizes(array)}, expected (layer, head).",
            code="score-axes",
            remedy="Take the mean over, or choose one entry of, each other axis: scores.mean('batch').",
        )
    array = labelled(where, array.transpose(*DIMS))
    if not bool(array.notnull().any()):
        raise InputError(
            f"{where}: no numbers in {sizes(array)}, expected at least one.",
            code="nothing-to-draw",
            remedy="Measure a longer text.",
        )
    named = {dim: range(array.sizes[dim]) for dim in DIMS if dim not in array.coords}
    return array.assign_coords(named)


def _label(array: DataArray) -> str:
    """`entropy (nats)`."""
    units = str(array.attrs.get("units", "1"))
    name = str(array.attrs.get("long_name") or array.name or "score").replace("_", " ")
    return name if units in ("1", "", "probability") else f"{name} ({units})"


def _limits(numbers: Numbers) -> tuple[float, float]:
    """From zero to the largest, or to 1 where that is near; as far to both sides of zero where some are negative."""
    low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
    if low < 0:
        return -max(-low, high), max(-low, high)
    return 0.0, 1.0 if 0.5 < high <= 1 else high or 1.0


def _write(axes: Axes, look: Theme, numbers: Numbers, image: Any) -> None:
    """Each cell's number, in whichever of ink and paper is further from its colour."""
    decimals = 2 if np.nanmax(np.abs(numbers)) < 10 else 0 if np.nanmax(np.abs(numbers)) >= 100 else 1
    for (row, column), number in np.ndenumerate(numbers):
        if not np.isnan(number):
            ground = luminance(image.to_rgba(number))
            colours = sorted((look.ink, look.paper), key=lambda c: -_contrast(ground, luminance(c)))
            axes.text(column, row, f"{number:.{decimals}f}", color=colours[0], fontsize=SMALL, ha="center", va="center")


def _contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
