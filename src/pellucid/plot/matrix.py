"""Any two-dimensional array of numbers as a picture, and a score for each head."""

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
from pellucid.plot.inputs import Numbers, as_array, labelled, quantity, require_some, sizes
from pellucid.plot.themes import COLUMN, SMALL, Theme, luminance
from pellucid.plot.ticks import Ticks
from pellucid.schema import Axis, coordinate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as Side
    from xarray import DataArray

    from pellucid.plot.canvas import Size

WIDE = 72 * COLUMN - 70
"""Points: the width of the cells and the labels beside them; the colour bar takes the rest of a column."""

BELOW = 32.0
"""Points that the labels of a figure of scores take of its height."""

ROOM_FOR_A_NUMBER = 19.0
"""Points of a cell's width in which its number is written."""

UNCHANGED = "unchanged"
"""The attribute of an array of effects that says at which value nothing changed."""

SCORES = (str(Axis.LAYER), str(Axis.HEAD))


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
    middle = _centre(found, centre)
    reach = float(np.nanmax(np.abs(found.to_numpy() - middle))) or 1.0
    beside, below = (longest(labels) if words else 0.0 for labels, words in (_labels(found, dim) for dim in found.dims))
    heading = _heading(found, quantity(found)) if title is None else str(title)
    rows, columns = found.shape
    room = WIDE - beside
    height = float(np.clip(rows * min(room / columns, 22), 24, 400))
    size = (COLUMN, (height + below + 34 + SMALL * 1.3 * wrapped([heading], WIDE).count("\n")) / 72)
    bar = f"{_units(found)}, centre {middle:.3g}"
    return _draw(found, ax, size, (room, height), (middle - reach, middle + reach, True), bar, heading, WIDE)


def _read(given: Any) -> DataArray:
    where = "plot.heatmap"
    array = as_array(where, given, ("row", "column"))
    single = [dim for dim, size in array.sizes.items() if size == 1]
    single.sort(key=lambda dim: dim in (*SCORES, str(Axis.POS)))  # which stay if there are more than have to go
    array = array.squeeze(single[: max(array.ndim - 2, 0)])
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


def head_scores(scores: Any, *, ax: Axes | None = None) -> Axes:
    """Draw a score of every head as a heat map: a row for each layer, a column for each head.

    Colours begin at zero; of scores on both sides of zero, they go as far to either side. If cells are wide
    enough their numbers are written in them. A head without a score (nan) is paper.

    Args:
        scores: (layer, head), labelled, as the measures of attention in `pl.measure` give them, or an array.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is the labelled array (layer, head).

    Raises:
        ShapeError: If it has other axes.
        InputError: If a value is infinite, or there is no score.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.attn.ckpt_pattern")
        >>> first = ckpts.stack("attn.ckpt_pattern")[:, 0, :, :, 0].mean(-1)  # weight on the first token
        >>> ax = pl.plot.head_scores(first)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('head', 'layer')
    """
    array = _read_scores(scores)
    rows, columns = array.shape
    height = float(np.clip(rows * min(WIDE / columns, 22), 24, 320))
    low, high = colour_limits(array.to_numpy())
    heading = _heading(array, f"{_with_units(array)} of each head")
    size = (COLUMN, (height + BELOW) / 72)
    return _draw(array, ax, size, (WIDE, height), (low, high, low < 0), _with_units(array), heading, WIDE + 40)


def _draw(
    found: DataArray,
    ax: Axes | None,
    size: Size,
    cells: Size,
    limits: tuple[float, float, bool],
    bar: str,
    heading: str,
    room: float,
) -> Axes:
    """Draw an array of two axes in colours.

    Args:
        found: The array.
        ax: Axes to draw on; new ones if None.
        size, cells: The inches of a new figure, and the points of its cells together.
        limits: The ends of the colours, and whether these are for values on both sides of one.
        bar: What stands beside the colour bar.
        heading, room: What the figure shows, and in how many points that is wrapped above new axes.
    """
    numbers, (rows, columns), (low, high, signed) = found.to_numpy(), found.shape, limits
    with canvas(ax, size) as (axes, look):
        width, height = cells if ax is None else extent(axes)
        image = axes.imshow(numbers, cmap=look.heat_map(signed=signed), vmin=low, vmax=high, aspect="auto")
        for dim, side in zip(map(str, found.dims), (axes.yaxis, axes.xaxis), strict=True):
            _put_labels(side, found, dim)
            side.set_label_text(dim)
        axes.tick_params(length=0)
        frame(axes, look.soft)
        if width / columns >= ROOM_FOR_A_NUMBER and height / rows >= SMALL * 1.3:
            write_numbers(axes, look, numbers, image)
        colour_bar(axes, image, bar)
        say_what(axes, heading, room=room if ax is None else None)
        return remember(axes, found)


def _labels(array: DataArray, dim: Any) -> tuple[list[str], bool]:
    """What the entries along an axis are called, and whether that is words, whose room has to be known."""
    tokens = coordinate(dim, "token")
    if tokens in array.coords:
        return [label_of(str(token)) for token in array[tokens].values], True
    entries = array[dim].values.tolist() if dim in array.coords else list(range(array.sizes[dim]))
    return [str(entry) for entry in entries], any(isinstance(entry, str) for entry in entries)


def _put_labels(side: Side, array: DataArray, dim: str) -> None:
    """Label an axis: tokens as tokens, with their positions if not all fit; names whole, upright along x."""
    labels, words = _labels(array, dim)
    if coordinate(dim, "token") in array.coords:
        positions = array[dim].values.tolist() if dim in array.coords else range(len(labels))
        put_tokens(side, labels, list(positions), [0.0], 1.0)
    elif words:
        names = [label.replace("$", r"\$") for label in labels]
        Ticks(names, names, SMALL * 1.1).put(side)
        side.set_tick_params(labelsize=SMALL, labelrotation=90 * (side is side.axes.xaxis))
    else:
        put_numbers(side, labels)


def _heading(array: DataArray, what: str) -> str:
    """What the figure shows and of what model, and on a line of its own the metric that it is about."""
    whole = ", ".join(filter(None, (str(array.attrs.get("title") or what), place_of(array))))
    return "\n".join(filter(None, (whole, str(array.attrs.get("metric") or ""))))


def _units(array: DataArray) -> str:
    units = str(array.attrs.get("units", "1"))
    return quantity(array) if units == "1" else units


def _with_units(array: DataArray) -> str:
    """Return what an array says of its values, such as `entropy (nats)`."""
    units = str(array.attrs.get("units", "1"))
    name = str(array.attrs.get("long_name") or array.name or "score").replace("_", " ")
    return name if units in ("1", "", "probability") else f"{name} ({units})"


def _read_scores(scores: Any) -> DataArray:
    where = "plot.head_scores"
    array = as_array(where, scores, SCORES, "score")
    array = array.squeeze([dim for dim, size in array.sizes.items() if size == 1 and dim not in SCORES])
    if set(array.dims) != set(SCORES):
        raise ShapeError(
            f"{where}: axes {sizes(array)}, expected (layer, head).",
            code="score-axes",
            remedy="Take the mean over, or choose one entry of, each other axis: scores.mean('batch').",
        )
    array = labelled(where, array.transpose(*SCORES))
    require_some(where, array, "Measure a longer text.")
    named = {dim: range(array.sizes[dim]) for dim in SCORES if dim not in array.coords}
    return array.assign_coords(named)


def colour_limits(numbers: Numbers) -> tuple[float, float]:
    """Return the colours' limits: from zero to the largest, or to 1 if that is near; as far to both sides of zero."""
    low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
    if low < 0:
        return -max(-low, high), max(-low, high)
    return 0.0, 1.0 if 0.5 < high <= 1 else high or 1.0


def write_numbers(axes: Axes, look: Theme, numbers: Numbers, image: Any) -> None:
    """Write each cell's number."""
    decimals = 2 if np.nanmax(np.abs(numbers)) < 10 else 0 if np.nanmax(np.abs(numbers)) >= 100 else 1
    for place, number in np.ndenumerate(numbers):
        if not np.isnan(number):
            write_in_cell(axes, look, image, place, f"{number:z.{decimals}f}")


def write_in_cell(axes: Axes, look: Theme, image: Any, place: tuple[int, ...], text: str) -> None:
    """Write into a cell (row, column)."""
    row, column = place
    axes.text(
        column, row, text.replace("$", r"\$"), color=readable(look, image.to_rgba(image.get_array()[row, column])),
        fontsize=SMALL, ha="center", va="center", usetex=False,
    )  # fmt: skip


def readable(look: Theme, ground: Any) -> str:
    """Return ink or paper, whichever contrasts more with the colour of a ground (WCAG 2.1)."""
    light = luminance(ground) + 0.05
    ink, paper = (abs(np.log((luminance(colour) + 0.05) / light)) for colour in (look.ink, look.paper))
    return look.ink if ink >= paper else look.paper


def frame(axes: Axes, colour: str) -> None:
    """Draw a thin frame on all four sides, since pictures begin near the paper."""
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(colour)
