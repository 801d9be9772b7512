"""How many numbers each part of a model holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from pellucid.counting import ParameterCount, count_parameters
from pellucid.errors import InputError
from pellucid.plot.canvas import canvas, extent, remember
from pellucid.plot.extras import matplotlib, pandas
from pellucid.plot.themes import COLUMN

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def parameters(counted: ParameterCount | nn.Module, *, ax: Axes | None = None) -> Axes:
    """Draw how many parameters each component has, with those that are tied hatched: they are held elsewhere.

    Args:
        counted: What `pl.count_parameters` gives, or a model to count.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is a table, a row for each component: `unique` numbers and `tied` ones.

    Raises:
        InputError: Something else, or a model without parameters.
        MissingExtraError: matplotlib or pandas is not installed.

    Example:
        >>> import pellucid as pl
        >>> ax = pl.plot.parameters(pl.load())
        >>> table = pl.plot.data(ax)
        >>> table.loc["unembed", "tied"] == table.loc["embed", "unique"]
        np.True_
    """
    if isinstance(counted, nn.Module):
        counted = count_parameters(counted)
    if not isinstance(counted, ParameterCount) or counted.unique == 0:
        given = "no parameters" if isinstance(counted, ParameterCount) else type(counted).__name__
        raise InputError(
            f"plot.parameters: {given}, expected a ParameterCount or a model.",
            code="not-counted",
            remedy="Pass pl.count_parameters(model).",
        )
    table = _table(counted)
    with canvas(ax, (COLUMN, 0.4 + 0.2 * len(table))) as (axes, look):
        places = range(len(table))
        axes.barh(places, table["unique"], color=look.marks[0], height=0.7)
        axes.barh(
            places, table["tied"], left=table["unique"], height=0.7, facecolor=look.paper, edgecolor=look.marks[0],
            hatch="/////", linewidth=0.6,
        )  # fmt: skip
        texts = [_text(unique, tied, counted.unique) for unique, tied in table.to_numpy()]
        ends = table.sum(axis=1).to_numpy()
        for place, end, text in zip(places, ends, texts, strict=True):
            axes.annotate(text, (end, place), (3, 0), textcoords="offset points", va="center")
        axes.set_xlim(0, _width(ends, texts, extent(axes)[0]))
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_yticks(list(places), list(table.index))
        axes.set_xticks([])
        axes.set_xlabel(f"parameters: {_short(counted.unique)} in memory", loc="left")
        axes.tick_params(length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        return remember(axes, table)


def _table(counted: ParameterCount) -> Any:
    """A row for each component."""
    return pandas().DataFrame({"unique": counted.components, "tied": counted.tied}).rename_axis("component")


def _text(unique: int, tied: int, everything: int) -> str:
    part = unique / everything
    share = f"{_short(unique)}, {'<1%' if part < 0.005 else f'{part:.0%}'}" if unique else ""
    return ", ".join(text for text in (share, f"{_short(tied)} tied, counted once" if tied else "") if text)


def _width(ends: Sequence[float], texts: Sequence[str], room: float) -> float:
    """Of the axis in parameters, so that each bar and the text behind it fit into `room` points."""
    size = matplotlib().font_manager.FontProperties().get_size_in_points()
    behind = [min(3 + 0.58 * size * len(text), 0.7 * room) for text in texts]
    return max(end * room / (room - taken) for end, taken in zip(ends, behind, strict=True))


def _short(count: float) -> str:
    """A count in three digits: 38.6 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * size:
            return f"{count / size:#.3g}".rstrip(".") + unit
    return f"{count:.0f}"
