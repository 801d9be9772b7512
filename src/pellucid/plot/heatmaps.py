"""Matrices as pictures: the attention pattern of one head, and a score for each head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.errors import ShapeError
from pellucid.plot.canvas import (
    BAR_AT_MOST,
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
from pellucid.plot.inputs import (
    ONE_HEAD,
    Numbers,
    as_array,
    labelled,
    positions_of,
    read_patterns,
    require_some,
    sizes,
    tokens_of,
)  # fmt: skip
from pellucid.plot.themes import COLUMN, SMALL, Theme, luminance
from pellucid.schema import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataArray

    from pellucid.plot.canvas import Size

BAR = 56.0
"""Points: what the colour bar and the names of the axes take of the width of attention patterns."""

NAME = 16.0
"""Points of these that are left of the pattern, and so of its title."""

BESIDE, BELOW = 70.0, 32.0
"""Points that the bar and the labels of a figure of scores take of its width and height."""

ROOM_FOR_A_NUMBER = 19.0
"""Points of a cell's width in which its number is written."""

CELLS_AT_MOST = 256
"""Rows or columns of a picture; more are merged."""

SCORES = (str(Axis.LAYER), str(Axis.HEAD))


def attention(pattern: Any, *, tokens: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the attention pattern of one head: a row for each query, a column for each key.

    Colours follow the square root of the weight, so weight that is spread over many tokens is seen too. Keys
    that the causal mask hides are paper. In a long text every few tokens are labelled, with their positions, and
    neighbours merge into cells that show the largest of their weights, at most 256 a side.

    Args:
        pattern: Weights [query, key] as a tensor, an array or lists; or labelled, as `ckpts.to_xarray()` gives them,
            whose tokens are used and whose pads are left out. Other axes must have one entry.
        tokens: A string for each key; the last of them are the queries, unless the array says which they are.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is the labelled pattern (query, key), nan behind the query.

    Raises:
        ShapeError: If it has other axes, or there is another number of tokens.
        InputError: If the values are no attention weights.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.2.attn.ckpt_pattern")
        >>> pattern = ckpts["blocks.2.attn.ckpt_pattern"][0, 0]
        >>> ax = pl.plot.attention(pattern, tokens=ckpts.batch.strings[0])
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['Once', '·upon', '·a', '·time']
    """
    array = read_patterns("plot.attention", pattern, tokens, ONE_HEAD)
    rows, columns = array.shape
    about = "attention", place_of(array), f"{columns} token{'s' * (columns != 1)}"
    size, side = _size_of_one(array, about)
    with canvas(ax, size) as (axes, look):
        square = _is_square(array)
        width, height = extent(axes) if ax is not None else side
        if square:  # cells are, and the rest of the axes stays empty
            cell = min(width / columns, height / rows)
            width, height = cell * columns, cell * rows
        block = block_size(max(rows, columns), max(width, height) * axes.figure.dpi / 72)
        image = show_weights(axes, array.to_numpy(), block, (-0.5, -0.5, columns, rows), weights_style(look))
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal" if square else "auto")
        for dim, side_of in zip(ONE_HEAD, (axes.yaxis, axes.xaxis), strict=True):
            strings, positions = tokens_of(array, dim), positions_of(array, dim)
            if strings is None:
                put_numbers(side_of, positions)
            else:
                put_tokens(side_of, strings, positions, [0.0], 1.0)
            side_of.set_label_text(dim)
        frame(axes, look.soft)
        weights_bar(axes, image, height)
        say_what(axes, *about, room=side[0] + BAR - NAME if ax is None else None)
        return remember(axes, array)


def _is_square(array: DataArray) -> bool:
    """Return True if queries and keys are about as many, so a pattern can be drawn in square cells."""
    return 0.4 < array.shape[0] / array.shape[1] < 2.5


def _size_of_one(array: DataArray, about: Sequence[str]) -> tuple[Size, Size]:
    """Return the inches of a new figure with this title, and the points that the pattern itself will have of them."""
    rows, columns = array.shape
    left, below = (longest(map(label_of, tokens_of(array, dim) or ())) or 18 for dim in ONE_HEAD)
    width = min(72 * COLUMN - left - BAR, max(90, 45 * columns))
    height = width * rows / columns if _is_square(array) else float(np.clip(12 * rows, 30, width))
    title = SMALL * 1.3 * (wrapped(about, width + BAR - NAME).count("\n") + 1)
    return ((width + left + BAR) / 72, (height + below + 22 + title) / 72), (width, height)


def weights_style(look: Theme) -> dict[str, Any]:
    """Return how weights are coloured: by their square root, so weight spread over many tokens is seen too."""
    from matplotlib.colors import PowerNorm

    return {"cmap": look.heat_map(), "norm": PowerNorm(0.5, 0.0, 1.0), "interpolation": "nearest"}


def show_weights(
    axes: Axes, weights: Numbers, block: int, place: tuple[float, float, float, float], style: dict[str, Any]
) -> Any:
    """Draw one pattern [query, key], merged into blocks: the place is left, top, width and height in data units."""
    left, top, width, height = place
    cells = largest_of_blocks(weights, block)
    right = left + width * cells.shape[1] * block / weights.shape[1]  # the last block may reach beyond the pattern
    bottom = top + height * cells.shape[0] * block / weights.shape[0]
    return axes.imshow(cells, extent=(left, right, bottom, top), **style)


def block_size(count: int, dots: float) -> int:
    """Return how many neighbours merge into one cell, so a cell takes at least one of `dots` dots."""
    return -(-count // max(1, min(CELLS_AT_MOST, int(dots))))


def largest_of_blocks(matrix: Numbers, block: int) -> Numbers:
    """Return [q, k] with blocks of neighbours merged into their largest; nan where a block holds nothing else.

    The largest, not the mean: a head that looks at the token before is a line one cell wide, and must stay one.
    """
    if block == 1:
        return matrix
    padded = np.pad(matrix, [(0, -size % block) for size in matrix.shape], constant_values=np.nan)
    blocks = padded.reshape(padded.shape[0] // block, block, padded.shape[1] // block, block)
    merged = np.where(np.isnan(blocks), -np.inf, blocks).max((1, 3))
    return np.where(np.isneginf(merged), np.nan, merged)


def weights_bar(axes: Axes, image: Any, height: float, *, after: float = 6) -> None:
    """Draw the bar of attention weights, which says that its scale is not even if it is long enough to."""
    ticks = (0, 0.05, 0.2, 0.5, 1) if height >= 60 else (0, 0.2, 1)
    label = "attention, √ scale" if height > BAR_AT_MOST / 2 else "attention"
    colour_bar(axes, image, label, ticks, height=height, after=after)


def frame(axes: Axes, colour: str) -> None:
    """Draw a thin frame on all four sides, since pictures begin near the paper."""
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(colour)


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
    cell = (72 * COLUMN - BESIDE) / columns
    height = float(np.clip(rows * min(cell, 22), 24, 320))
    with canvas(ax, (COLUMN, (height + BELOW) / 72)) as (axes, look):
        width, height = (72 * COLUMN - BESIDE, height) if ax is None else extent(axes)
        numbers = array.to_numpy()
        low, high = colour_limits(numbers)
        image = axes.imshow(numbers, cmap=look.heat_map(signed=low < 0), vmin=low, vmax=high, aspect="auto")
        for dim, side in zip(SCORES, (axes.yaxis, axes.xaxis), strict=True):
            put_numbers(side, array[dim].values.tolist())
            side.set_label_text(dim)
        axes.tick_params(length=0)
        frame(axes, look.soft)
        if width / columns >= ROOM_FOR_A_NUMBER and height / rows >= SMALL * 1.3:
            write_numbers(axes, look, numbers, image)
        colour_bar(axes, image, _with_units(array))
        what = array.attrs.get("title") or f"{_with_units(array)} of each head"
        about = "\n".join(
            filter(None, (", ".join(filter(None, (str(what), place_of(array)))), array.attrs.get("metric")))
        )
        say_what(axes, about, room=width + 40 if ax is None else None)
        return remember(axes, array)


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


def _with_units(array: DataArray) -> str:
    """Return what an array says of its values, such as `entropy (nats)`."""
    units = str(array.attrs.get("units", "1"))
    name = str(array.attrs.get("long_name") or array.name or "score").replace("_", " ")
    return name if units in ("1", "", "probability") else f"{name} ({units})"


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
