"""The attention patterns of all heads side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.plot.canvas import (
    LINE,
    canvas,
    extent,
    keep_above,
    label_of,
    longest,
    place_of,
    put_numbers,
    put_tokens,
    remember,
    say_what,
)
from pellucid.plot.heatmaps import BAR, block_size, show_weights, weights_bar, weights_style
from pellucid.plot.inputs import HEADS, ONE_HEAD, positions_of, read_patterns, tokens_of
from pellucid.plot.themes import COLUMN, PAGE, SMALL
from pellucid.plot.ticks import step_for
from pellucid.schema import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataArray

    from pellucid.plot.canvas import Size

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
    with canvas(ax, Plan.of(array, COLUMN).size) as (axes, look):
        plan = Plan.of(array, COLUMN, None if ax is None else extent(axes))
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
        about = "attention of every head", place_of(array), f"{columns} token{'s' * (columns != 1)}"
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
    def of(cls, array: DataArray, width: float, given: Size | None = None) -> Plan:
        """Return the plan for a figure of this width in inches, or for given axes of this extent in points.

        Over a dozen heads in a row take both columns.
        """
        layers, heads = (array[dim].values.tolist() for dim in HEADS[:2])
        layered = len(layers) > 1
        across = len(heads) if layered or len(heads) <= 3 else int(np.ceil(len(heads) ** 0.5))
        width = PAGE if across > HEADS_IN_A_COLUMN else width
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
