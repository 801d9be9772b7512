"""The attention pattern of one head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.plot.canvas import canvas, extent, remember, say_what
from pellucid.plot.heat import block_size, frame, largest_of_blocks, weights_bar, weights_scale
from pellucid.plot.labels import label_numbers, longest, put_tokens
from pellucid.plot.patterns import ONE_HEAD, labels_along, positions_of, read_patterns, tokens_of
from pellucid.plot.themes import COLUMN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataArray

    from pellucid.plot.canvas import Size

ROOM = 0.92
"""The part of the estimated side along which labels are put: layouts move axes a little."""


def attention(pattern: Any, *, tokens: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the attention pattern of one head: a row for each query, a column for each key.

    Colours follow the square root of the weight, so that weight which is spread over many tokens is seen too. Keys
    that the causal mask hides are paper. Of a long text every few tokens are labelled, with their positions, and
    neighbours merge into cells that show the largest of their weights, at most 256 a side.

    Args:
        pattern: Weights [query, key] as a tensor, an array or lists; or labelled, as `ckpts.to_xarray()` gives them,
            whose tokens are used and whose pads are left out. Other axes must have one entry.
        tokens: A string for each key; the last of them are the queries, unless the array says which they are.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is the labelled pattern (query, key), nan behind the query.

    Raises:
        ShapeError: Other axes, or another number of tokens.
        InputError: Values that are no attention weights.
        MissingExtraError: matplotlib or xarray is not installed.

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
    size, side = _size_of_one(array)
    with canvas(ax, size) as (axes, look):
        square = 0.4 < rows / columns < 2.5
        width, height = extent(axes) if ax is not None else side
        if square:  # cells are, and the rest of the axes stays empty
            cell = min(width / columns, height / rows)
            width, height = cell * columns, cell * rows
        block = block_size(max(rows, columns), max(width, height) * axes.figure.dpi / 72)
        cells = largest_of_blocks(array.to_numpy(), block)
        edges = (-0.5, cells.shape[1] * block - 0.5, cells.shape[0] * block - 0.5, -0.5)
        image = axes.imshow(
            cells, cmap=look.heat_map(), norm=weights_scale(), extent=edges, interpolation="nearest",
            aspect="equal" if square else "auto",
        )  # fmt: skip
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        for dim, side_of, room in zip(ONE_HEAD, (axes.yaxis, axes.xaxis), (height, width), strict=True):
            _label_side(side_of, array, dim, room * ROOM)
        frame(axes, look.soft)
        weights_bar(axes, image)
        say_what(axes, array)
        return remember(axes, array)


def _size_of_one(array: DataArray) -> tuple[Size, Size]:
    """Inches of a new figure, and the points that the pattern itself will have of them."""
    rows, columns = array.shape
    labels = [labels_along(array, dim, 150).values() for dim in ONE_HEAD]
    left, below = (longest(of_side) or 12 for of_side in labels)
    width = min(72 * COLUMN - left - 56, max(90, 45 * columns))
    height = width * rows / columns if 0.4 < rows / columns < 2.5 else float(np.clip(12 * rows, 30, width))
    return ((width + left + 56) / 72, (height + below + 22) / 72), (width, height)


def _label_side(side: Any, array: DataArray, dim: str, room: float) -> None:
    if tokens_of(array, dim) is None:
        label_numbers(side, positions_of(array, dim), room)
    else:
        labels = labels_along(array, dim, room)
        put_tokens(side, list(labels), list(labels.values()), ticks=len(labels) < array.sizes[dim])
    side.set_label_text(dim)
