"""How a value is distributed in each layer: histograms over one another, densities below one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pellucid.axes import Axis
from pellucid.measure.histograms import distribution
from pellucid.plot.canvas import canvas, colour_bar, extent, layer_axis, layer_bar, legend_above, remember
from pellucid.plot.extras import pandas
from pellucid.plot.inputs import Layers, Numbers, by_layer
from pellucid.plot.themes import COLUMN, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataArray

Bars = tuple[Numbers, Numbers]
"""Heights and edges of a histogram."""

LEGEND_AT_MOST = 4
"""Layers that a legend names; more get a colour bar."""

LINES_AT_MOST = 16
"""Layers whose histograms are lines over one another; more become a row each."""

STRIP = 256
"""Places along a row."""

BINS_AT_MOST = 100
"""Of a histogram: one value far away from all others would ask for any number."""


def norm_histograms(norms: DataArray, *, skip: int = 0, density: bool = False, ax: Axes | None = None) -> Axes:
    """Draw a histogram of each layer's values, as the outline of its bins.

    The width of a layer's bins is that of Freedman and Diaconis (1981, doi:10.1007/BF01025868), twice the
    interquartile range over the cube root of the count, with 100 bins at most. More than 16 layers would hide one
    another, and are drawn as a row each, whose colour is the height of the bin.

    Args:
        norms: Labelled values with an axis `layer`, such as `pl.measure.norms(...)`, (layer, batch, pos); nan at
            pads. Other axes are pooled.
        skip: First tokens of each text to leave out.
        density: Divide counts by their number and the width of the bins, so that layers of unequal bins compare.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is a table with a row for each bin: layer, left, right, count (or density).

    Raises:
        ShapeError: Not a labelled array.
        InputError: Infinite values, or none left to draw.
        MissingExtraError: matplotlib or xarray is not installed.

    Example:
        >>> import numpy as np, xarray, pellucid as pl
        >>> values = xarray.DataArray(np.random.default_rng(0).normal(size=(3, 1, 40)), dims=("layer", "batch", "pos"))
        >>> int(pl.plot.data(pl.plot.norm_histograms(values))["count"].sum())
        120
    """
    layers = by_layer("plot.norm_histograms", norms, skip)
    height = "density" if density else "count"
    bars = [np.histogram(values, bins=_edges(values), density=density) for values in layers.values]
    with canvas(ax, (COLUMN, 2.3)) as (axes, look):
        if len(bars) > LINES_AT_MOST:
            _draw_strips(axes, look, layers, bars, height)
        else:
            _draw_lines(axes, look, layers, bars, height)
        tables = [
            pandas().DataFrame({"layer": number, "left": edges[:-1], "right": edges[1:], height: heights})
            for number, (heights, edges) in zip(layers.numbers, bars, strict=True)
        ]
        return remember(axes, pandas().concat(tables, ignore_index=True))


def _draw_lines(axes: Axes, look: Theme, layers: Layers, bars: Sequence[Bars], height: str) -> None:
    colours = look.layer_colours(len(bars))
    for number, (heights, edges), colour in zip(layers.numbers, bars, colours, strict=True):
        axes.stairs(heights, edges, color=colour, linewidth=1.0, label=f"layer {number}")
    axes.set_ylim(bottom=0)
    axes.set(xlabel=layers.label, ylabel=height)
    if len(bars) > LEGEND_AT_MOST:
        layer_bar(axes, look, layers.numbers, colours)
    elif layers.numbers != [""]:
        legend_above(axes, columns=4)


def _draw_strips(axes: Axes, look: Theme, layers: Layers, bars: Sequence[Bars], height: str) -> None:
    """A row for each layer, dark where there are many."""
    low, high = min(edges[0] for _, edges in bars), max(edges[-1] for _, edges in bars)
    middles = low + (high - low) * (np.arange(STRIP) + 0.5) / STRIP
    rows = np.full((len(bars), STRIP), np.nan)
    for row, (heights, edges) in zip(rows, bars, strict=True):
        inside = (middles >= edges[0]) & (middles <= edges[-1])
        row[inside] = heights[np.searchsorted(edges[1:-1], middles[inside], side="right")]
    place = (low, high, -0.5, len(bars) - 0.5)
    image = axes.imshow(rows, cmap=look.heat_map(), extent=place, aspect="auto", origin="lower", vmin=0)
    layer_axis(axes.yaxis, layers.numbers)
    axes.set_xlabel(layers.label)
    colour_bar(axes, image, height)


def _edges(values: Numbers) -> Numbers:
    edges = np.histogram_bin_edges(values, bins=1)
    q1, q3 = np.quantile(values, [0.25, 0.75])
    width = 2 * (q3 - q1) / len(values) ** (1 / 3)
    bins = 1 if width == 0 else int(np.ceil((edges[1] - edges[0]) / width))
    return np.linspace(edges[0], edges[1], min(bins, BINS_AT_MOST) + 1)


def ridges(array: DataArray, *, skip: int = 0, ax: Axes | None = None) -> Axes:
    """Draw the distribution of each layer's values as a ridge, the layers above one another.

    A ridge is the kernel density that `pl.measure.distribution` gives (Gaussian, with the bandwidth of Silverman 1986,
    equation 3.31). Every ridge is as high as any other: what compares is place, width and shape.

    Args:
        array: Labelled values with an axis `layer`; nan at pads. Other axes are pooled.
        skip: First tokens of each text to leave out, where there is an axis `pos`.
        ax: Axes to draw on; new ones by default, higher for more layers.

    Returns:
        The axes. `pl.plot.data` of them is a table: layer, value, density.

    Raises:
        ShapeError: Not a labelled array.
        InputError: Infinite values, or none left to draw.
        MissingExtraError: matplotlib or xarray is not installed.

    Example:
        >>> import numpy as np, xarray, pellucid as pl
        >>> values = xarray.DataArray(np.random.default_rng(0).normal(size=(3, 1, 40)), dims=("layer", "batch", "pos"))
        >>> list(pl.plot.data(pl.plot.ridges(values)).columns)
        ['layer', 'value', 'density']
    """
    layers = by_layer("plot.ridges", array, skip)
    count = len(layers.values)
    curves = _densities(layers)
    with canvas(ax, (COLUMN, float(np.clip(0.9 + 0.14 * count, 1.4, 4.2)))) as (axes, look):
        slot = extent(axes)[1] / (count + 1)
        overlap = float(np.clip(0.9 + 4 / max(slot, 1), 1.2, 2.6)) if count > 1 else 0.9
        for i, ((x, y), colour) in enumerate(zip(curves, look.layer_colours(count), strict=True)):
            top, order = i + overlap * y / y.max(), 2.0 - i / count  # a ridge stands before the one above it
            axes.fill_between(x, i, top, color=colour, linewidth=0.0 if len(x) > 3 else 1.0, zorder=order)
            if len(x) > 3:  # not a spike, which the rim would hide
                axes.plot(x, top, color=look.paper, linewidth=0.7, zorder=order)
        axes.set_ylim(-0.15, count - 1 + overlap + 0.1)
        layer_axis(axes.yaxis, layers.numbers)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=look.soft, linewidth=0.4, alpha=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(layers.label)
        tables = [
            pandas().DataFrame({"layer": number, "value": x, "density": y})
            for number, (x, y) in zip(layers.numbers, curves, strict=True)
        ]
        return remember(axes, pandas().concat(tables, ignore_index=True))


def _densities(layers: Layers) -> list[tuple[Numbers, Numbers]]:
    """Places and densities of each layer; where nothing varies, a spike a thousandth of the whole range wide."""
    others = [str(dim) for dim in layers.array.dims if dim != str(Axis.LAYER)]
    shape = distribution(layers.array, over=others, bins=1, quantiles=())
    everything = np.concatenate(layers.values)
    width = 1e-3 * (float(np.ptp(everything)) or abs(float(everything[0])) or 1.0)
    curves: list[tuple[Numbers, Numbers]] = []
    for i, values in enumerate(layers.values):
        x, y = (shape[name].to_numpy().reshape(len(layers.values), -1)[i] for name in ("at", "density"))
        spike = values[0] + width * np.array([-1.0, 0.0, 1.0]), np.array([0.0, 1 / width, 0.0])
        curves.append(spike if np.isnan(y).any() else (x, y))
    return curves
