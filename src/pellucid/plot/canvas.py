"""Where a figure is drawn, on given axes or on a new figure, and what stands around its axes: labels, legends, bars."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pellucid.errors import InputError, printable, visible
from pellucid.plot.themes import SMALL, Colour, Theme, drawn_in, matplotlib, theme_for
from pellucid.plot.ticks import Ticks
from pellucid.schema import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as Side
    from matplotlib.figure import Figure

Size = tuple[float, float]
"""Width and height, in inches."""

BAR_AT_MOST = 160.0
"""Points: a longer colour bar is no easier to read."""

LONGEST = 12
"""Characters of a label; longer tokens end in an ellipsis."""

NO_GLYPH = "□"
"""Stands for a character that none of the fonts has, which matplotlib would warn about at every drawing."""

LINE = 1.1
"""The room that a line of text takes from top to bottom, relative to its size."""

LETTER = 0.6
"""The room that a letter takes along the line, relative to its size: about that of a digit in DejaVu Sans."""

_DRAWN = "_pellucid_data"
"""The attribute of axes that holds what `data` gives for them, so a copy of a figure has it too."""


@contextmanager
def canvas(ax: Axes | None, size: Size) -> Generator[tuple[Axes, Theme], None, None]:
    """Give the axes to draw on, and their theme: the given ones as they are, or those of a new figure.

    A new figure belongs to pyplot where the program or the notebook uses pyplot, so it is shown like any other;
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
    """Return the numbers behind a figure: what a function of this module drew last on these axes.

    Args:
        ax: Axes that such a function returned.

    Returns:
        A labelled array (xarray) or a table (pandas), as the function's documentation says.

    Raises:
        InputError: If nothing of this module was drawn on them.

    Example:
        >>> import pellucid as pl
        >>> ax = pl.plot.head_scores([[0.1, 0.9], [0.4, 0.2]])
        >>> pl.plot.data(ax).sel(layer=0, head=1).item()
        0.9
    """
    try:
        return vars(ax)[_DRAWN]
    except (KeyError, TypeError):
        raise InputError(
            f"plot.data: nothing of pellucid.plot was drawn on this {type(ax).__name__}.",
            code="nothing-drawn",
            remedy="Pass the axes that a function of pellucid.plot returned.",
        ) from None


def remember(ax: Axes, drawn: Any) -> Axes:
    """Note what `data` gives for the axes."""
    setattr(ax, _DRAWN, drawn)
    return ax


def extent(ax: Axes) -> Size:
    """Return the axes' width and height in points, before a layout has moved them: about 0.8 of a new figure's."""
    box = ax.get_window_extent()
    dots = ax.get_figure(root=True).dpi  # pyright: ignore[reportOptionalMemberAccess]
    return 72 * box.width / dots, 72 * box.height / dots


def label_of(token: str) -> str:
    """Return a token with spaces as `·`, control characters spelled out, and `□` for what the fonts lack."""
    shown = drawable(visible(token))
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def drawable(text: str) -> str:
    """Return a text with `□` in the place of each character that none of the fonts has."""
    known = _characters(tuple(matplotlib().rcParams["font.family"]))
    return "".join(character if ord(character) in known else NO_GLYPH for character in text)


@lru_cache
def _characters(families: tuple[str, ...]) -> frozenset[int]:
    """Return the code points that at least one of the fonts has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known: set[int] = set()
    for family in families:
        try:
            path = findfont(FontProperties(family=[family]), fallback_to_default=False)
        except ValueError:  # not installed: matplotlib passes over it too
            continue
        known |= set(get_font(path).get_charmap())
    return frozenset(known)


def put_tokens(
    side: Side, tokens: Sequence[str], positions: Sequence[Any], starts: Sequence[float], spacing: float, least: int = 1
) -> None:
    """Label an axis with as many tokens as fit, with their positions if these are not all; see `ticks.Ticks`.

    Labels of an x axis stand upright.
    """
    labels = [label_of(token).replace("$", r"\$") for token in tokens]  # a `$` begins no formula
    placed = [f"{label} {position}" for label, position in zip(labels, positions, strict=True)]
    Ticks(labels, placed, SMALL * LINE, starts, spacing, min(least, len(labels))).put(side)
    side.set_tick_params(length=2, pad=1.5, labelsize=SMALL, labelrotation=90 * (side is side.axes.xaxis))
    for tick in side.get_major_ticks():  # later ones are copies of the first
        tick.label1.set_usetex(False)


def put_numbers(side: Side, numbers: Sequence[Any], start: float = 0.0, spacing: float = 1.0) -> None:
    """Label an axis with as many of the numbers, layers or heads, as fit side by side."""
    size = float(side.get_major_ticks(1)[0].label1.get_fontsize())
    labels = [str(number) for number in numbers]
    room = size * (LETTER * max(map(len, labels)) + 0.5 if side is side.axes.xaxis else 1.0)
    Ticks(labels, labels, room, [start], spacing).put(side)


def longest(labels: Iterable[str], size: float = SMALL) -> float:
    """Return about how many points the longest label takes."""
    return LETTER * size * max(map(len, labels), default=0)


def layer_axis(side: Side, numbers: Sequence[Any], name: str = str(Axis.LAYER)) -> None:
    """Name an axis's places 0, 1, 2 ... after the layers; a single place without a number stays without a name."""
    if list(numbers) == [""]:
        side.set_ticks([])
        return
    put_numbers(side, numbers)
    side.set_label_text(name)


def logarithmic(axes: Axes) -> None:
    """Make the axis logarithmic, with plain numbers at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    digits = (1.0,) if high / low > 1e4 else (1.0, 2.0, 5.0) if high / low > 4 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axes.yaxis.set_major_locator(LogLocator(subs=digits))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def legend_above(ax: Axes, handles: Sequence[Any] | None = None, columns: int = 4) -> None:
    """Put a legend above the axes, where no data is, in as many columns as fit; it is read row by row, as text is."""
    from matplotlib.lines import Line2D

    entries = list(ax.get_legend_handles_labels()[0] if handles is None else handles)
    columns, width = min(columns, len(entries)), ax.get_window_extent().width
    legend = _legend(ax, entries, columns)
    while columns > 1 and legend.get_window_extent().width > 1.1 * width:  # a layout cannot shrink it
        columns -= 1
        legend = _legend(ax, entries, columns)
    for entry in legend.legend_handles:
        if isinstance(entry, Line2D) and entry.get_alpha() is not None:  # one faint line is hard to see
            entry.set(alpha=0.8, linewidth=0.8)
    keep_above(ax, 2 + 72 * legend.get_window_extent().height / ax.get_figure(root=True).dpi)  # pyright: ignore[reportOptionalMemberAccess]


def keep_above(ax: Axes, points: float) -> None:
    """Keep a title, even one that is set later, so many points above the axes.

    Matplotlib puts titles above the axes and what is inset in them, but does not look at legends and annotations; an
    empty inset stands behind those.
    """
    behind = ax.inset_axes((0, 0, 1, points), transform=in_points(ax, "y"), zorder=-1)
    behind.set_axis_off()
    behind.set_in_layout(False)


def in_points(ax: Axes, along: Literal["x", "y"]) -> Any:
    """Return coordinates that are points beyond the right or upper edge along one side, and parts of the other.

    The edge is where a layout will put it.
    """
    from matplotlib.transforms import Affine2D, ScaledTranslation, blended_transform_factory

    edge = (1, 0) if along == "x" else (0, 1)
    points = Affine2D().scale(1 / 72) + ax.figure.dpi_scale_trans + ScaledTranslation(*edge, ax.transAxes)  # pyright: ignore[reportArgumentType]
    return blended_transform_factory(*((points, ax.transAxes) if along == "x" else (ax.transAxes, points)))


def _legend(ax: Axes, entries: Sequence[Any], columns: int) -> Any:
    return ax.legend(
        handles=[entry for start in range(columns) for entry in entries[start::columns]], ncols=columns,
        loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, borderpad=0.2, frameon=False,
        handlelength=1.6, handletextpad=0.5, columnspacing=1.2,
    )  # fmt: skip


def place_of(array: Any) -> str:
    """Return what an array is of, as far as it knows: "layer 2, head 0 of bundled"."""
    names = (str(Axis.LAYER), str(Axis.HEAD), "layer_to", "head_to")
    single = [name for name in names if name in array.coords and array[name].size == 1]
    where = ", ".join(f"{name} {array[name].item()}" for name in single)
    return " of ".join(filter(None, (where, model_name(array.attrs))))


def model_name(about: Mapping[str, Any]) -> str:
    """Return the last part of a model's name or path, "" if it is not known."""
    return str(about.get("model", "")).rstrip("/\\").replace("\\", "/").rpartition("/")[2]


def wrapped(parts: Iterable[Any], room: float) -> str:
    """Return the parts of a title that are not empty, in lines of so many points; `$` begins no formula."""
    most = max(int(room / (0.9 * LETTER * SMALL)), 12)  # running text is narrower than digits
    whole = printable(", ".join(str(part) for part in parts if part))
    pieces = (piece for line in whole.splitlines() for piece in textwrap.wrap(drawable(line), most))
    return "\n".join(pieces).replace("$", r"\$")


def say_what(ax: Axes, *parts: Any, title: str | None = None, room: float | None = None) -> None:
    """Set a small title that says what is shown, unless the axes have one; it is wrapped to `room` points.

    A `title` that the caller gave stands in the place of the parts. The room is the width of the axes if None.
    """
    if not any(ax.get_title(loc=place) for place in ("left", "center", "right")):  # pyright: ignore[reportArgumentType]
        said = wrapped(parts if title is None else [title], room or extent(ax)[0])
        ax.set_title(said, loc="left", fontsize=SMALL, usetex=False)


def colour_bar(
    ax: Axes,
    mappable: Any,
    label: str,
    ticks: Sequence[float] | None = None,
    *,
    height: float | None = None,
    after: float = 6,
) -> Any:
    """Draw a narrow colour bar in a place of its own, `after` points beside the axes, which keep theirs.

    `height` is that of the axes in points, if it is known better than by their `extent`.
    """
    tall = height or extent(ax)[1]
    part = min(1.0, BAR_AT_MOST / tall)
    beside = ax.inset_axes((after, 1 - part, 6, part), transform=in_points(ax, "x"))
    bar = ax.get_figure(root=True).colorbar(mappable, cax=beside, ticks=ticks, format=None if ticks is None else "%g")  # pyright: ignore[reportOptionalMemberAccess]
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.set_label(wrapped([label], max(tall, 60)))  # which is as long as the bar, or it would be cut
    bar.ax.minorticks_off()
    bar.ax.tick_params(length=0, pad=3)  # a tick would read as a minus
    return bar


def layer_bar(ax: Axes, layers: Sequence[Any], colours: Sequence[Colour]) -> None:
    """Draw a narrow bar beside the axes that says which colour is which layer."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    shades = ScalarMappable(Normalize(-0.5, len(layers) - 0.5), ListedColormap(list(colours)))
    bar = colour_bar(ax, shades, str(Axis.LAYER))
    put_numbers(bar.ax.yaxis, layers)
