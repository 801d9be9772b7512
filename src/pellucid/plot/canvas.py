"""Where a figure is drawn: on the axes that are given or on a new figure, and what is remembered of it."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pellucid.axes import Axis
from pellucid.errors import InputError
from pellucid.plot.extras import matplotlib
from pellucid.plot.labels import is_x, label_numbers
from pellucid.plot.themes import SMALL, Colour, Theme, drawn_in, theme_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as Side
    from matplotlib.figure import Figure

Size = tuple[float, float]
"""Width and height, in inches."""

HANDLE = 2.1
"""Of a legend's text size: the width of a sample of the line, and the space behind it."""

BETWEEN = 1.2
"""Of a legend's text size: the space between columns."""

_DRAWN: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


@contextmanager
def canvas(ax: Axes | None, size: Size) -> Generator[tuple[Axes, Theme], None, None]:
    """The axes to draw on, and their theme: those given as they are, or the only ones of a new figure.

    A new figure belongs to pyplot where the program or the notebook uses pyplot, so that it is shown as any other;
    elsewhere it is a plain `Figure`, which nobody else holds.
    """
    if ax is not None and not hasattr(ax, "transData"):
        raise InputError(
            f"plot: ax={type(ax).__name__}, expected matplotlib axes.",
            code="not-axes",
            remedy="Pass one of the axes that pyplot.subplots returns, or leave ax= out.",
        )
    look = theme_for(ax)
    if ax is not None:
        yield ax, look
        return
    with drawn_in(look):
        yield _new_figure(size).add_subplot(), look


def _new_figure(size: Size) -> Figure:
    if _uses_pyplot():
        import matplotlib.pyplot as plt

        return plt.figure(figsize=size, layout="constrained")
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _uses_pyplot() -> bool:
    if "matplotlib.pyplot" in sys.modules:
        return True
    shell = sys.modules.get("IPython")
    return shell is not None and shell.get_ipython() is not None


def data(ax: Axes) -> Any:
    """The numbers behind a figure: what a function of this module drew last on these axes.

    Args:
        ax: Axes that such a function returned.

    Returns:
        A labelled array (xarray) or a table (pandas), as the function's documentation says.

    Raises:
        InputError: Nothing of this module was drawn on them.

    Example:
        >>> import pellucid as pl
        >>> ax = pl.plot.head_scores([[0.1, 0.9], [0.4, 0.2]])
        >>> pl.plot.data(ax).sel(layer=0, head=1).item()
        0.9
    """
    try:
        return _DRAWN[ax]
    except (KeyError, TypeError):
        raise InputError(
            f"plot.data: nothing of pellucid.plot was drawn on this {type(ax).__name__}.",
            code="nothing-drawn",
            remedy="Pass the axes that a function of pellucid.plot returned.",
        ) from None


def remember(ax: Axes, drawn: Any) -> Axes:
    """Note what `data` gives for the axes, for as long as they exist."""
    _DRAWN[ax] = drawn
    return ax


def extent(ax: Axes) -> Size:
    """Width and height of the axes in points, before a layout has moved them: about 0.8 of a new figure's."""
    box = ax.get_window_extent()
    dots = ax.get_figure(root=True).dpi  # pyright: ignore[reportOptionalMemberAccess]
    return 72 * box.width / dots, 72 * box.height / dots


def layer_axis(side: Side, numbers: Sequence[Any], name: str = str(Axis.LAYER)) -> None:
    """Name an axis's places 0, 1, 2 ... after the layers; a single place without a number stays without a name."""
    if list(numbers) == [""]:
        side.set_ticks([])
        return
    width, height = extent(side.axes)
    label_numbers(side, numbers, width if is_x(side) else height)
    side.set_label_text(name)


def legend_above(ax: Axes, columns: int, handles: Sequence[Any] | None = None) -> None:
    """A legend above the axes, where no data is, in as many columns as fit; read row by row, as text is."""
    from matplotlib.lines import Line2D

    entries = list(ax.get_legend_handles_labels()[0] if handles is None else handles)
    columns = _columns_that_fit(entries, columns, 1.1 * extent(ax)[0])
    legend = ax.legend(
        handles=[entry for column in range(columns) for entry in entries[column::columns]], ncols=columns,
        loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, borderpad=0.2, frameon=False,
        handlelength=HANDLE - 0.5, handletextpad=0.5, columnspacing=BETWEEN,
    )  # fmt: skip
    for entry in legend.legend_handles:
        if isinstance(entry, Line2D) and entry.get_alpha() is not None:  # one faint line is hard to see
            entry.set(alpha=0.8, linewidth=0.8)
    rows = -(-len(entries) // max(columns, 1))
    _keep_titles_off(ax, (0.6 + 1.7 * rows) * float(legend.get_texts()[0].get_fontsize()))


def _keep_titles_off(ax: Axes, points: float) -> None:
    """Let a title, whenever it is set, stand above the first points over the axes.

    matplotlib puts titles above the axes and what is inset in them, but does not look at legends; so an empty inset
    stands behind one.
    """
    behind = ax.inset_axes((0, 1, 1, points / extent(ax)[1]), zorder=-1)
    behind.set_axis_off()
    behind.set_in_layout(False)


def say_what(ax: Axes, array: Any) -> None:
    """A small title that says what a labelled array is of: "layer 2, head 0 of bundled", as far as it knows.

    Axes that have a title keep it.
    """
    chosen = [f"{name} {array.coords[name].item()}" for name in SINGLED if _is_one(array, name)]
    model = str(array.attrs.get("model", "")).rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    words = " of ".join(filter(None, (", ".join(chosen), model)))
    if words and not any(ax.get_title(loc=place) for place in ("left", "center", "right")):  # pyright: ignore[reportArgumentType]
        ax.set_title(words, loc="left", fontsize=SMALL)


SINGLED = (str(Axis.LAYER), str(Axis.HEAD))


def _is_one(array: Any, name: str) -> bool:
    return name in array.coords and array.coords[name].size == 1 and array.sizes.get(name, 1) == 1


def _columns_that_fit(entries: Sequence[Any], columns: int, room: float) -> int:
    """At most `columns`, and no more than take `room` points; a layout cannot shrink a legend that is too wide."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    size = FontProperties(size=matplotlib().rcParams["legend.fontsize"]).get_size_in_points()
    widths = [TextPath((0, 0), entry.get_label(), size=size).get_extents().width + HANDLE * size for entry in entries]
    for count in range(min(columns, len(entries)), 1, -1):
        taken = sum(max(widths[column::count]) for column in range(count)) + (count - 1) * BETWEEN * size
        if taken <= room:
            return count
    return 1


def layer_bar(ax: Axes, look: Theme, layers: Sequence[Any], colours: Sequence[Colour]) -> None:
    """A narrow bar beside the axes that says which colour is which layer."""
    from matplotlib.colors import ListedColormap

    beside = ax.inset_axes((1.03, 0, 0.03, 1))
    beside.imshow([[i] for i in range(len(layers))], cmap=ListedColormap(list(colours)), aspect="auto", origin="lower")
    step = -(-len(layers) // 12)
    at = range(0, len(layers), step)
    beside.set_yticks(list(at), [str(layers[i]) for i in at])
    beside.set_xticks([])
    beside.yaxis.tick_right()
    beside.yaxis.set_label_position("right")
    beside.set_ylabel("layer")
    beside.tick_params(length=0, pad=2)
    beside.spines[:].set_visible(False)


def colour_bar(ax: Axes, mappable: Any, label: str, ticks: Sequence[float] | None = None, *, after: float = 6) -> Any:
    """A narrow colour bar in a place of its own, some points beside the axes, which keep theirs."""
    width, height = extent(ax)
    part = min(1.0, 160 / height)
    beside = ax.inset_axes((1 + after / width, 1 - part, 6 / width, part))
    if ticks is not None and height < 60:
        ticks = ticks[::2]
    bar = ax.get_figure(root=True).colorbar(mappable, cax=beside, ticks=ticks, format=None if ticks is None else "%g")  # pyright: ignore[reportOptionalMemberAccess]
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.set_label(label)
    bar.ax.minorticks_off()
    bar.ax.tick_params(length=0, pad=3)  # a tick would read as a minus
    return bar
