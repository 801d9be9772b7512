"""The attention patterns of all heads side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.axes import Axis
from pellucid.plot.canvas import canvas, extent, remember
from pellucid.plot.heat import block_size, largest_of_blocks, weights_bar, weights_scale
from pellucid.plot.labels import is_x, longest, put_tokens, step_for
from pellucid.plot.patterns import HEADS, ONE_HEAD, labels_along, read_patterns
from pellucid.plot.themes import COLUMN, PAGE, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataArray

    from pellucid.plot.canvas import Size

GAP = 0.1
"""Between two patterns, as a part of a pattern's side."""

NAME = 11.0
"""Points: the height of a pattern's name."""

TALLEST = 620.0
"""Points: the height that all patterns take at most."""

BAR = 62.0
"""Points: what the colour bar and the names of the axes take of the width."""

TOKENS_AT_LEAST = 3
"""Labels beside one pattern; where fewer fit there are none."""

HEADS_IN_A_COLUMN = 12
"""Heads of a row that a journal's column holds; more take both columns."""


def attention_grid(patterns: Any, *, tokens: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the attention patterns of all heads side by side: those of one layer, or a row for each layer.

    One layer's heads are wrapped into rows and each is named; of several layers each is a row and each head a
    column. Colours, merging and labels are those of `attention`; tokens are named along the left and lower edge where
    three or more of them fit beside one pattern.

    Args:
        patterns: Weights [head, query, key] or [layer, head, query, key] as a tensor or an array, such as
            `ckpts.stack("attn.ckpt_pattern")` of one text, numbered from 0; or labelled, as `ckpts.to_xarray()` gives
            them, which know their numbers where only some layers or heads were captured.
        tokens: A string for each key; the last of them are the queries, unless the array says which they are.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes, one for all patterns. `pl.plot.data` of them is the labelled array (layer, head, query, key).

    Raises:
        ShapeError: Other axes, or another number of tokens.
        InputError: Values that are no attention weights.
        MissingExtraError: matplotlib or xarray is not installed.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.attn.ckpt_pattern")
        >>> ax = pl.plot.attention_grid(ckpts.stack("attn.ckpt_pattern"), tokens=ckpts.batch.strings[0])
        >>> dict(pl.plot.data(ax).sizes)
        {'layer': 4, 'head': 4, 'query': 4, 'key': 4}
    """
    array = read_patterns("plot.attention_grid", patterns, tokens, HEADS)
    with canvas(ax, Plan.of(array, COLUMN).size()) as (axes, look):
        plan = Plan.of(array, COLUMN) if ax is None else Plan.of(array, extent(axes)[0] / 72)
        weights, colours, scale = array.to_numpy(), look.heat_map(), weights_scale()
        rows, columns = weights.shape[2:]
        block = block_size(max(rows, columns), plan.side * axes.figure.dpi / 72)
        image: Any = None
        for layer, head, x, y in plan:
            cells = largest_of_blocks(weights[layer, head], block)
            right, bottom = x + cells.shape[1] * block / columns, y + cells.shape[0] * block / rows
            image = axes.imshow(
                cells, cmap=colours, norm=scale, extent=(x, right, bottom, y), interpolation="nearest"
            )  # fmt: skip
        axes.set(xlim=(0, plan.width), ylim=(plan.height, 0))
        axes.spines[:].set_visible(False)
        _name_patterns(axes, plan)
        _name_sides(axes, plan)
        weights_bar(axes, image, after=16 if plan.keys and plan.layered else 6)
        return remember(axes, array)


@dataclass(frozen=True)
class Plan:
    """Where each pattern stands, in units of a pattern's side, and what is written beside it.

    Attributes:
        layers: Numbers of the layers; one None where it is not known.
        heads: Numbers of the heads.
        across: Patterns in a row.
        side: Points of a pattern's side.
        queries: Position -> label, of the tokens that fit beside a pattern.
        keys: The same below one.
        positions: Queries and keys of a pattern.
    """

    layers: list[Any]
    heads: list[Any]
    across: int
    side: float
    queries: dict[int, str]
    keys: dict[int, str]
    positions: tuple[int, int]

    @classmethod
    def of(cls, array: DataArray, width: float) -> Plan:
        """The plan for a figure of this width in inches; more than a dozen heads in a row take both columns."""
        layers, heads = (array[dim].values.tolist() for dim in HEADS[:2])
        count, layered = len(heads), len(layers) > 1
        across = count if layered or count <= 3 else int(np.ceil(count**0.5))
        width = 72 * (PAGE if across > HEADS_IN_A_COLUMN and width == COLUMN else width) - BAR
        labels: list[dict[int, str]] = [{}, {}]
        side = 0.0
        for _ in range(2):  # labels take room, and how many fit depends on the room
            taken = longest(labels[0].values()) + (12 if labels[0] and layered else 0)
            most = max(60.0, 30.0 * max(array.shape[2:]))  # of a few tokens
            side = min((width - taken) / (across + GAP * (across - 1)), TALLEST / len(layers), most)
            labels = [labels_along(array, dim, side) for dim in ONE_HEAD]
            if min(map(len, labels)) < min(TOKENS_AT_LEAST, *array.shape[2:]):
                labels = [{}, {}]
        known = layers if layered or str(Axis.LAYER) in array.coords else [None]
        return cls(known, heads, across, side, labels[0], labels[1], (array.shape[2], array.shape[3]))

    @property
    def layered(self) -> bool:
        """Whether each row is a layer."""
        return len(self.layers) > 1

    @property
    def step(self) -> tuple[float, float]:
        """From one pattern to the next, sideways and down."""
        return 1 + GAP, 1 + (GAP if self.layered else NAME / self.side)

    @property
    def rows(self) -> int:
        """Rows of patterns."""
        return len(self.layers) if self.layered else -(-len(self.heads) // self.across)

    @property
    def width(self) -> float:
        """Of all patterns together."""
        return self.across * self.step[0] - GAP

    @property
    def height(self) -> float:
        """Of all patterns together."""
        return self.rows * self.step[1] - (self.step[1] - 1)

    def size(self) -> Size:
        """Inches of a new figure."""
        around = longest(self.keys.values()) + 20 + (0 if self.layered and not self.keys else NAME)
        beside = longest(self.queries.values()) + (12 if self.keys and self.layered else 0) + BAR
        return (self.width * self.side + beside) / 72, (self.height * self.side + around) / 72

    def __iter__(self) -> Iterator[tuple[int, int, float, float]]:
        """Layer, head, and the upper left corner of its pattern."""
        right, down = self.step
        for layer in range(len(self.layers)):
            for head in range(len(self.heads)):
                row, column = (layer, head) if self.layered else divmod(head, self.across)
                yield layer, head, column * right, row * down

    def name(self, layer: int, head: int) -> str:
        """What stands above a pattern of one layer."""
        if self.layers[layer] is None:
            return f"head {self.heads[head]}"
        long = f"layer {self.layers[layer]}, head {self.heads[head]}"
        return long if longest([long]) < self.side else f"{self.layers[layer]}.{self.heads[head]}"


def _name_patterns(axes: Axes, plan: Plan) -> None:
    """Above each pattern of one layer its name; of several layers, the head above a column, the layer beside a row."""
    beside: dict[str, Any] = {"fontsize": SMALL, "va": "center", "xycoords": "data", "textcoords": "offset points"}
    above: dict[str, Any] = {"fontsize": SMALL, "va": "bottom", "xycoords": "data", "textcoords": "offset points"}
    if not plan.layered:
        for layer, head, x, y in plan:
            axes.annotate(plan.name(layer, head), (x, y), (0, 1), ha="left", **above)
    elif plan.keys:
        for head, number in enumerate(plan.heads):
            text = f"head {number}" if longest(["head 00"]) < plan.side else str(number)
            axes.annotate(text, (head * plan.step[0] + 0.5, 0), (0, 1), ha="center", **above)
        for layer, number in enumerate(plan.layers):
            place = plan.width, layer * plan.step[1] + 0.5
            axes.annotate(f"layer {number}", place, (2, 0), ha="left", rotation=270, **beside)


def _name_sides(axes: Axes, plan: Plan) -> None:
    """Tokens along the left and lower edge; where they do not fit, layers and heads, or what the sides are."""
    right, down = plan.step
    if plan.layered and not plan.keys:
        _number(axes.xaxis, plan.heads, [i * right + 0.5 for i in range(len(plan.heads))], plan.side)
        _number(axes.yaxis, plan.layers, [i * down + 0.5 for i in range(len(plan.layers))], plan.side)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set(xlabel=str(Axis.HEAD), ylabel=str(Axis.LAYER))
        axes.tick_params(length=0, pad=1.5)
        return
    queries, keys = plan.positions
    rows, columns = range(plan.rows), range(min(plan.across, len(plan.heads)))
    for side, labels, starts, count in (
        (axes.yaxis, plan.queries, [i * down for i in rows], queries),
        (axes.xaxis, plan.keys, [i * right for i in columns], keys),
    ):
        places = [start + (position + 0.5) / count for start in starts for position in labels]
        put_tokens(side, places, list(labels.values()) * len(starts), ticks=len(labels) < count)
    axes.set(xlabel=str(Axis.KEY), ylabel=str(Axis.QUERY))


def _number(side: Any, numbers: list[Any], places: list[float], room: float) -> None:
    """As many numbers as fit, each at its pattern."""
    across = 0.62 * max(len(str(number)) for number in numbers) + 0.4 if is_x(side) else 1.1
    step = step_for(len(numbers), room * len(numbers), SMALL * across)
    side.set_ticks(places[::step], [str(number) for number in numbers[::step]], fontsize=SMALL)
