"""Attention patterns as pictures: that of one head, and those of all heads side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.html.listing import counted
from pellucid.plot.canvas import (
    BAR_AT_MOST,
    LINE,
    canvas,
    colour_bar,
    extent,
    keep_above,
    label_of,
    longest,
    place_of,
    put_numbers,
    put_tokens,
    remember,
    say_what,
    wrapped,
)
from pellucid.plot.inputs import HEADS, ONE_HEAD, Numbers, positions_of, read_patterns, tokens_of
from pellucid.plot.matrix import frame
from pellucid.plot.themes import COLUMN, PAGE, SMALL, Theme
from pellucid.plot.ticks import step_for
from pellucid.schema import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataArray

    from pellucid.plot.canvas import Size

BAR = 56.0
"""Points: what the colour bar and the names of the axes take of the width of attention patterns."""

LEFT = 16.0
"""Points of these that are left of the pattern, and so of its title."""

CELLS_AT_MOST = 256
"""Rows or columns of a picture; more are merged."""

GAP = 0.1
"""Between two patterns, as a part of a pattern's side."""

NAME = 11.0
"""Points: the height of a name above a pattern."""

TALLEST = 620.0
"""Points: the height that all patterns take at most."""

TOKENS_AT_LEAST = 3
"""Labels beside one pattern; if fewer fit there are none."""

HEADS_IN_A_COLUMN = 12
"""Heads of a row that a journal's column holds; more take both columns."""


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
    about = "attention", place_of(array), counted(columns, "token")
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
        say_what(axes, *about, room=side[0] + BAR - LEFT if ax is None else None)
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
    title = SMALL * 1.3 * (wrapped(about, width + BAR - LEFT).count("\n") + 1)
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


def attention_grid(patterns: Any, *, tokens: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the attention patterns of all heads side by side: those of one layer, or a row for each layer.

    One layer's heads are wrapped into rows and each is named; of several layers each is a row and each head a
    column. Colours, merging and labels are those of `attention`; tokens are named along the left and lower edge if
    three or more of them fit beside one pattern.

    Args:
        patterns: Weights [head, query, key] or [layer, head, query, key] as a tensor or an array, such as
            `ckpts.stack("attn.ckpt_pattern")` of one text, numbered from 0; or labelled, as `ckpts.to_xarray()` gives
            them, which know their numbers if only some layers or heads were captured.
        tokens: A string for each key; the last of them are the queries, unless the array says which they are.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes, one for all patterns. `pl.plot.data` of them is the labelled array (layer, head, query, key).

    Raises:
        ShapeError: If it has other axes, or there is another number of tokens.
        InputError: If the values are no attention weights.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.attn.ckpt_pattern")
        >>> ax = pl.plot.attention_grid(ckpts.stack("attn.ckpt_pattern"), tokens=ckpts.batch.strings[0])
        >>> dict(pl.plot.data(ax).sizes)
        {'layer': 4, 'head': 4, 'query': 4, 'key': 4}
    """
    array = read_patterns("plot.attention_grid", patterns, tokens, HEADS)
    with canvas(ax, Plan.of(array).size) as (axes, look):
        plan = Plan.of(array, None if ax is None else extent(axes))
        weights, style = array.to_numpy(), weights_style(look)
        block = block_size(max(weights.shape[2:]), plan.side * axes.figure.dpi / 72)
        image: Any = None
        for layer, head, left, top in plan:
            image = show_weights(axes, weights[layer, head], block, (left, top, 1, 1), style)
        axes.set(xlim=(0, plan.width), ylim=(plan.height, 0))
        axes.spines[:].set_visible(False)
        if plan.layered:
            _name_rows_and_columns(axes, plan)
        else:
            for layer, head, left, top in plan:
                name = plan.name(layer, head)
                axes.annotate(name, (left, top), (0, 1), textcoords="offset points", va="bottom", fontsize=SMALL)
            keep_above(axes, NAME - 2)
        _name_tokens(axes, plan, array)
        weights_bar(axes, image, plan.height * plan.side, after=plan.beside)
        columns = array.sizes[ONE_HEAD[1]]
        about = "attention of every head", place_of(array), counted(columns, "token")
        say_what(axes, *about, room=plan.width * plan.side + BAR if ax is None else None)
        return remember(axes, array)


@dataclass(frozen=True)
class Plan:
    """Where each pattern stands, in units of a pattern's side, and what is written beside it."""

    layers: list[Any]  # numbers of the layers; one None if it is not known
    heads: list[Any]  # numbers of the heads
    across: int  # patterns in a row
    # labels of all queries and keys; none if fewer than three fit beside a pattern
    tokens: tuple[list[str], list[str]] = ([], [])
    side: float = 1.0  # about how many points a pattern's side has

    @classmethod
    def of(cls, array: DataArray, given: Size | None = None) -> Plan:
        """Return the plan for a new figure, or for given axes of this extent in points."""
        layers, heads = (array[dim].values.tolist() for dim in HEADS[:2])
        layered = len(layers) > 1
        across = len(heads) if layered or len(heads) <= 3 else int(np.ceil(len(heads) ** 0.5))
        width = PAGE if across > HEADS_IN_A_COLUMN else COLUMN
        bare = cls(layers if layered or str(Axis.LAYER) in array.coords else [None], heads, across)
        queries, keys = ([label_of(token) for token in tokens_of(array, dim) or ()] for dim in ONE_HEAD)
        most, fewest = max(array.shape[2:]), min(len(queries), len(keys))
        for plan in (replace(bare, tokens=(queries, keys)), bare):  # labels take room, and how many fit depends on it
            room = (72 * width - plan.around) / plan.width
            side = min(room, TALLEST / len(layers), max(60.0, 30.0 * most))  # the last: of a few tokens
            if given is not None:  # a layout makes axes smaller for what stands beside them
                side = 0.8 * min(given[0] / plan.width, given[1] / (bare.rows * 1.2))
            if fewest and -(-fewest // step_for(fewest, side, SMALL * LINE)) >= min(TOKENS_AT_LEAST, most):
                break
        return replace(plan, side=side)

    @property
    def layered(self) -> bool:
        """True if each row is a layer."""
        return len(self.layers) > 1

    @property
    def down(self) -> float:
        """From one row to the next; there are names between those of one layer."""
        return 1 + (GAP if self.layered else NAME / self.side)

    @property
    def rows(self) -> int:
        """Rows of patterns."""
        return len(self.layers) if self.layered else -(-len(self.heads) // self.across)

    @property
    def width(self) -> float:
        """Width of all patterns together."""
        return self.across * (1 + GAP) - GAP

    @property
    def height(self) -> float:
        """Height of all patterns together."""
        return (self.rows - 1) * self.down + 1

    @property
    def beside(self) -> float:
        """Points between the patterns and the colour bar, which the names of layers take if tokens are at the left."""
        if not self.layered or not self.tokens[0]:
            return 6.0
        return longest([f"{Axis.LAYER} {number}" for number in self.layers]) + 10

    @property
    def around(self) -> float:
        """Points that all else takes of the width."""
        return BAR + longest(self.tokens[0]) + self.beside

    @property
    def size(self) -> Size:
        """Inches of a new figure."""
        below = longest(self.tokens[1]) + 28 + (0 if self.layered and not self.tokens[1] else NAME)
        return (self.width * self.side + self.around) / 72, (self.height * self.side + below) / 72

    def __iter__(self) -> Iterator[tuple[int, int, float, float]]:
        """Give layer, head, and the upper left corner of each pattern."""
        for layer in range(len(self.layers)):
            for head in range(len(self.heads)):
                row, column = (layer, head) if self.layered else divmod(head, self.across)
                yield layer, head, column * (1 + GAP), row * self.down

    def name(self, layer: int, head: int) -> str:
        """Return what stands above a pattern of one layer."""
        if self.layers[layer] is None:
            return f"head {self.heads[head]}"
        long = f"layer {self.layers[layer]}, head {self.heads[head]}"
        return long if longest([long]) < self.side else f"{self.layers[layer]}.{self.heads[head]}"


def _name_rows_and_columns(axes: Axes, plan: Plan) -> None:
    """Write heads above their columns and layers beside their rows, at the right if tokens are at the left."""
    tokens = bool(plan.tokens[0])
    above, beside = axes.secondary_xaxis("top"), axes.secondary_yaxis("right" if tokens else "left")
    for along, side, dim, numbers, step in (
        (above, above.xaxis, HEADS[1], plan.heads, 1 + GAP), (beside, beside.yaxis, HEADS[0], plan.layers, plan.down),
    ):  # fmt: skip
        spelled = [f"{dim} {number}" for number in numbers]
        whole = tokens and (along is beside or longest(spelled) < plan.side)
        along.tick_params(length=0, pad=1.5, labelsize=SMALL, labelcolor=axes.xaxis.label.get_color())
        put_numbers(side, spelled if whole else numbers, 0.5, step)
        along.spines[:].set_visible(False)
        side.set_label_text("" if whole else dim, color=axes.xaxis.label.get_color())


def _name_tokens(axes: Axes, plan: Plan, array: DataArray) -> None:
    """Write tokens, or nothing, along the left and lower edge."""
    columns = range(min(plan.across, len(plan.heads)))
    starts = [row * plan.down for row in range(plan.rows)], [column * (1 + GAP) for column in columns]
    for side, dim, begin in zip((axes.yaxis, axes.xaxis), ONE_HEAD, starts, strict=True):
        strings, spacing = tokens_of(array, dim), 1 / array.sizes[dim]
        if strings is None or not plan.tokens[0]:
            side.set_ticks([])
        else:
            places = [start + spacing / 2 for start in begin]
            put_tokens(side, strings, positions_of(array, dim), places, spacing, TOKENS_AT_LEAST)
        if plan.tokens[0] or not plan.layered:
            side.set_label_text(dim)
