"""The norm of the residual stream, which grows from layer to layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pellucid.errors import InputError
from pellucid.plot.canvas import canvas, layer_axis, legend_above, logarithmic, remember
from pellucid.plot.inputs import Layers, by_layer, is_log, sizes, without_first
from pellucid.plot.layers import say_how_many
from pellucid.plot.themes import COLUMN, Theme
from pellucid.schema import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataArray

TOKENS_AT_MOST = 60
"""Tokens that are drawn as a line each; more become a band."""


def residual_growth(norms: DataArray, *, skip: int = 0, ax: Axes | None = None) -> Axes:
    """Draw how the norm of the residual stream grows over the layers: the tokens, their median, the first token.

    Up to 60 tokens are a thin line each; more are bands, from the 5th to the 95th and from the 25th to the 75th
    percentile. The first token of each text, which GPT-2 gives a norm of its own, is a dashed line (the median over
    the texts) and part of neither bands nor median. The axis is logarithmic unless the values are logarithms.

    Args:
        norms: Labelled norms with axes `layer` and `pos`, such as `pl.measure.norms(ckpts, "resid_post")`, (layer,
            batch, pos); nan at pads.
        skip: First tokens of each text to leave out; with one or more the dashed line is left out too.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is the array, nan where a value was left out.

    Raises:
        ShapeError: If it is no labelled array.
        InputError: If a value is infinite or not above zero, or none is left to draw.
        MissingExtraError: If matplotlib or xarray is not installed.

    Example:
        >>> import numpy as np, xarray, pellucid as pl
        >>> values = np.random.default_rng(0).gamma(9, size=(3, 1, 40)).cumsum(0)
        >>> ax = pl.plot.residual_growth(xarray.DataArray(values, dims=("layer", "batch", "pos")))
        >>> ax.get_yscale()
        'log'
    """
    where = "plot.residual_growth"
    layers = by_layer(where, norms, skip)
    logarithms = is_log(layers.array)
    if not logarithms and min(values.min() for values in layers.values) <= 0:
        raise InputError(
            f"{where}: values that are not above zero in {sizes(layers.array)}, expected norms.",
            code="not-norms",
            remedy="Pass norms, or logarithms that say so: array.attrs['units'] = 'log of ...'.",
        )
    first, others = _apart(where, layers) if skip == 0 else (None, layers)
    with canvas(ax, (COLUMN, 2.3)) as (axes, look):
        if others is not None:
            _draw_tokens(axes, look, others)
        if first is not None:
            medians = first.quantiles([0.5])[0]
            axes.plot(medians, color=look.marks[1], linewidth=1.4, linestyle="--", label="first token", zorder=4)
        if not logarithms:
            logarithmic(axes)
        layer_axis(axes.xaxis, layers.numbers)
        axes.set_ylabel(layers.label)
        axes.grid(axis="y", color=look.soft, linewidth=0.4, alpha=0.6)
        axes.set_axisbelow(True)
        legend_above(axes)
        say_how_many(axes, f"{layers.label} from layer to layer", layers)
        return remember(axes, layers.array)


def _apart(where: str, layers: Layers) -> tuple[Layers | None, Layers | None]:
    """Return the first token of each text, and all others; None for what does not exist."""
    if str(Axis.POS) not in layers.array.dims:
        return None, layers
    others = without_first(where, layers.array, 1)
    first = layers.array.where(others.isnull())
    some = [by_layer(where, array) if bool(array.notnull().any()) else None for array in (first, others)]
    return some[0], some[1]


def _draw_tokens(axes: Axes, look: Theme, layers: Layers) -> None:
    colour, places = look.marks[0], np.arange(len(layers.values))
    if 1 < layers.most <= TOKENS_AT_MOST and len({len(values) for values in layers.values}) == 1:
        lines = axes.plot(places, np.stack(layers.values), color=colour, linewidth=0.5, alpha=0.35)
        lines[0].set_label("a token")
    elif layers.most > 1:
        low, q1, q3, high = layers.quantiles([0.05, 0.25, 0.75, 0.95])
        axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0, label="90 %")
        axes.fill_between(places, q1, q3, color=colour, alpha=0.32, linewidth=0, label="50 %")
    medians = layers.quantiles([0.5])[0]
    marker = "o" if len(places) == 1 else ""
    axes.plot(places, medians, color=colour, linewidth=1.8, marker=marker, label="median", zorder=3)
