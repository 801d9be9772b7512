"""Values by layer: as points or quantiles, as histograms, and as densities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.extras import need
from pellucid.html.listing import counted
from pellucid.measure.distributions import distribution
from pellucid.plot.canvas import (
    canvas,
    colour_bar,
    extent,
    layer_axis,
    layer_bar,
    legend_above,
    place_of,
    remember,
    say_what,
)
from pellucid.plot.inputs import Layers, Numbers, by_layer
from pellucid.plot.themes import COLUMN, Theme, pandas
from pellucid.schema import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataArray

CROWDED = 5
"""Times the square of a layer's width, in points of 1/72 inch: of more values quantiles are drawn, as they would merge.

At a column's width that is about 1,100 values of each of 12 layers, and 70 of each of 48.
"""

RASTER = 2000
"""Points beyond which they are one picture inside of vector output, which stays small."""

BINS_AT_MOST = 100
"""The most bins of a histogram: one value far away from all others would ask for any number."""

LEGEND_AT_MOST, OUTLINES_AT_MOST = 4, 16
"""Layers of histograms that a legend names, more get a bar; and that are outlines, more become a row each."""

Bars = tuple[Numbers, Numbers]
"""Heights and edges of a histogram."""


def norms(norms: DataArray, *, skip: int = 0, ax: Axes | None = None) -> Axes:
    """Draw the norm of every token, layer by layer: a point each, spread sideways if many are alike.

    A short line is the median. If points would merge, at a column's width beyond about 1,100 values of each of 12
    layers or 70 of each of 48, a layer is drawn as its quantiles: a bar over the middle half, a line from the 1st to
    the 99th percentile, and a dot for each value beyond.

    Args:
        norms: Labelled values with an axis `layer`, such as `pl.measure.norms(...)`, (layer, batch, pos); nan at
            pads. Other axes are pooled. Any other measure of a token will do too.
        skip: First tokens of each text to leave out; GPT-2's first token has a norm unlike all others.
        ax: Axes to draw on; new ones by default, as wide as a journal's column.

    Returns:
        The axes. `pl.plot.data` of them is the array, nan where a value was left out.

    Raises:
        ShapeError: If it is no labelled array.
        InputError: If a value is infinite, or none is left to draw.
        MissingExtraError: If matplotlib or xarray is not installed.

    Example:
        >>> import numpy as np, xarray, pellucid as pl
        >>> values = xarray.DataArray(np.random.default_rng(0).normal(size=(3, 1, 40)), dims=("layer", "batch", "pos"))
        >>> ax = pl.plot.norms(values, skip=1)
        >>> pl.plot.data(ax).count().item()
        117
    """
    layers = by_layer("plot.norms", norms, skip)
    with canvas(ax, (COLUMN, 2.3)) as (axes, look):
        slot = extent(axes)[0] / len(layers.values)
        if layers.most > CROWDED * slot**2:
            _quantile_bars(axes, look, layers, slot)
        else:
            _points(axes, look, layers, slot)
        axes.set_xlim(-0.6, len(layers.values) - 0.4)
        layer_axis(axes.xaxis, layers.numbers)
        axes.set_ylabel(layers.label)
        say_how_many(axes, f"{layers.label} by layer", layers)
        return remember(axes, layers.array)


def say_how_many(axes: Axes, what: str, layers: Layers) -> None:
    """Set the title: what is drawn, of which model, and how many values there are."""
    fewest = min(map(len, layers.values))
    count = f"{counted(layers.most, 'value')} a layer"
    say_what(axes, what, place_of(layers.array), count if fewest == layers.most else f"{fewest:,} to {count}")


def _points(axes: Axes, look: Theme, layers: Layers, slot: float) -> None:
    size = float(np.clip(1.7 * slot / layers.most**0.5, 1.1, 3.0))
    alpha = float(np.clip(20 * slot / layers.most, 0.5, 0.8))
    colours = look.layer_colours(len(layers.values))
    for i, (values, colour) in enumerate(zip(layers.values, colours, strict=True)):
        axes.scatter(
            i + 0.8 * spread(values), values, s=size**2, color=[colour], alpha=alpha, linewidths=0,
            rasterized=layers.array.size > RASTER,
        )  # fmt: skip
    if layers.most < 3:
        return
    medians = layers.quantiles([0.5])[0]
    places = np.arange(len(medians))
    for colour, width in ((look.paper, 2.2), (look.ink, 1.2)):  # a rim, so it shows on points of any colour
        axes.hlines(medians, places - 0.3, places + 0.3, color=colour, linewidth=width)


def spread(values: Numbers) -> Numbers:
    """Return sideways places within -0.5 and 0.5, as wide as values are dense; the same for the same values.

    A sina plot (Sidiropoulos et al. 2018, doi:10.1080/10618600.2017.1366914) with the van der Corput sequence in
    place of random numbers, so neighbours stay apart.
    """
    order = np.argsort(values, kind="stable")
    bins = int(np.clip(len(values) ** 0.5, 1, 40))
    told_apart = np.ptp(values) > bins * np.spacing(np.abs(values).max())
    counts, edges = np.histogram(values, bins=bins if told_apart else 1)
    smooth = np.convolve(np.pad(counts, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    centres = (edges[1:] + edges[:-1]) / 2
    density = np.interp(values, centres, smooth)
    places = np.empty(len(values))
    numbers = need("scipy.stats.qmc", "pellucid.plot").Halton(1, scramble=False)  # of one dimension: van der Corput's
    places[order] = numbers.random(len(values) + 1)[1:, 0] - 0.5
    return places * density / density.max()


def _quantile_bars(axes: Axes, look: Theme, layers: Layers, slot: float) -> None:
    places = np.arange(len(layers.values))
    low, q1, median, q3, high = layers.quantiles([0.01, 0.25, 0.5, 0.75, 0.99])
    colours = look.layer_colours(len(places))
    axes.vlines(places, low, high, colors=colours, linewidth=max(0.08 * slot, 0.6))
    axes.vlines(places, q1, q3, colors=colours, linewidth=0.55 * slot)
    axes.hlines(median, places - 0.27, places + 0.27, color=look.paper, linewidth=min(1.0, 0.2 * slot))
    for i, values in enumerate(layers.values):
        beyond = values[(values < low[i]) | (values > high[i])]
        axes.scatter(
            np.full(len(beyond), i), beyond, s=1.2**2, color=[colours[i]], linewidths=0,
            rasterized=layers.array.size > 100 * RASTER,
        )  # fmt: skip


def norm_histograms(norms: DataArray, *, skip: int = 0, density: bool = False, ax: Axes | None = None) -> Axes:
    """Draw a histogram of each layer's values, as the outline of its bins.

    The width of a layer's bins is that of Freedman and Diaconis (1981, doi:10.1007/BF01025868), twice the
    interquartile range over the cube root of the count, with 100 bins at most. More than 16 layers would hide one
    another, and are drawn as a row each, whose colour is the height of the bin.

    Args:
        norms: Labelled values with an axis `layer`, such as `pl.measure.norms(...)`, (layer, batch, pos); nan at
            pads. Other axes are pooled.
        skip: First tokens of each text to leave out.
        density: Divide counts by their number and the width of the bins, so layers of unequal bins compare.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is a table with a row for each bin: layer, left, right, count (or density).

    Raises:
        ShapeError: If it is no labelled array.
        InputError: If a value is infinite, or none is left to draw.
        MissingExtraError: If matplotlib or xarray is not installed.

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
        if len(bars) > OUTLINES_AT_MOST:
            _draw_strips(axes, look, layers, bars, height)
        else:
            _draw_outlines(axes, look, layers, bars, height)
        axes.set_xlabel(layers.label)
        say_how_many(axes, f"histograms of {layers.label} by layer", layers)
        return remember(axes, _table(layers, ({"left": at[:-1], "right": at[1:], height: many} for many, at in bars)))


def _edges(values: Numbers) -> Numbers:
    low, high = np.histogram_bin_edges(values, bins=1)
    q1, q3 = np.quantile(values, [0.25, 0.75])
    width = 2 * (q3 - q1) / len(values) ** (1 / 3)
    width = max(width, (high - low) / BINS_AT_MOST / 2) if width else 0.0  # or the quotient may be beyond any number
    bins = int(np.ceil((high - low) / width)) if width else 1
    return np.linspace(low, high, min(bins, BINS_AT_MOST) + 1)


def _draw_outlines(axes: Axes, look: Theme, layers: Layers, bars: Sequence[Bars], height: str) -> None:
    colours = look.layer_colours(len(bars))
    for number, (heights, edges), colour in zip(layers.numbers, bars, colours, strict=True):
        axes.stairs(heights, edges, color=colour, linewidth=1.0, label=f"layer {number}")
    axes.set_ylim(bottom=0)
    axes.set_ylabel(height)
    if len(bars) > LEGEND_AT_MOST:
        layer_bar(axes, layers.numbers, colours)
    elif layers.numbers != [""]:
        legend_above(axes)


def _draw_strips(axes: Axes, look: Theme, layers: Layers, bars: Sequence[Bars], height: str) -> None:
    """Draw a row for each layer; a bin is the darker the more values it holds."""
    strips: Any = None
    most = max(heights.max() for heights, _ in bars)
    for i, (heights, edges) in enumerate(bars):
        strips = axes.pcolormesh(
            edges, [i - 0.5, i + 0.5], heights[None], cmap=look.heat_map(), vmin=0, vmax=most, rasterized=True
        )
    layer_axis(axes.yaxis, layers.numbers)
    colour_bar(axes, strips, height)


def _table(layers: Layers, columns: Iterable[Mapping[str, Numbers]]) -> Any:
    """Return one table of the columns of each layer."""
    tables = (pandas().DataFrame({"layer": n, **some}) for n, some in zip(layers.numbers, columns, strict=True))
    return pandas().concat(list(tables), ignore_index=True)


def ridges(array: DataArray, *, skip: int = 0, ax: Axes | None = None) -> Axes:
    """Draw the distribution of each layer's values as a ridge, the layers above one another.

    A ridge is the kernel density that `pl.measure.distribution` gives (Gaussian, with the bandwidth of Silverman 1986,
    equation 3.31). Every ridge is as high as any other: what compares is place, width and shape.

    Args:
        array: Labelled values with an axis `layer`; nan at pads. Other axes are pooled.
        skip: First tokens of each text to leave out, if there is an axis `pos`.
        ax: Axes to draw on; new ones by default, higher for more layers.

    Returns:
        The axes. `pl.plot.data` of them is a table: layer, value, density.

    Raises:
        ShapeError: If it is no labelled array.
        InputError: If a value is infinite, or none is left to draw.
        MissingExtraError: If matplotlib or xarray is not installed.

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
        say_how_many(axes, f"density of {layers.label} by layer", layers)
        return remember(axes, _table(layers, ({"value": x, "density": y} for x, y in curves)))


def _densities(layers: Layers) -> list[tuple[Numbers, Numbers]]:
    """Return places and densities of each layer; if nothing varies, a spike a thousandth of the whole range wide."""
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
