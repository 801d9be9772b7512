"""A measured value by layer: every token as a point, or quantiles where points would merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pellucid.plot.canvas import canvas, extent, layer_axis, remember
from pellucid.plot.inputs import Layers, Numbers, by_layer
from pellucid.plot.themes import COLUMN, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataArray

CROWDED = 5
"""Times the square of a layer's width, in points of 1/72 inch: of more values quantiles are drawn, as they would merge.

At a column's width that is about 1,100 values of each of 12 layers, and 70 of each of 48.
"""

RASTER = 2000
"""Points beyond which they are one picture inside of vector output, which stays small."""


def norms(norms: DataArray, *, skip: int = 0, ax: Axes | None = None) -> Axes:
    """Draw the norm of every token, layer by layer: a point each, spread sideways where there are many alike.

    A short line is the median. Where points would merge, at a column's width beyond about 1,100 values of each of 12
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
        ShapeError: Not a labelled array.
        InputError: Infinite values, or none left to draw.
        MissingExtraError: matplotlib or xarray is not installed.

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
        return remember(axes, layers.array)


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
    for colour, width in ((look.paper, 2.2), (look.ink, 1.2)):  # a rim, so that it shows on points of any colour
        axes.hlines(medians, places - 0.3, places + 0.3, color=colour, linewidth=width)


def spread(values: Numbers) -> Numbers:
    """Sideways places within -0.5 and 0.5, as wide as values are dense; the same for the same values.

    A sina plot (Sidiropoulos et al. 2018, doi:10.1080/10618600.2017.1366914) with the van der Corput sequence in
    place of random numbers, so that neighbours stay apart.
    """
    order = np.argsort(values, kind="stable")
    bins = int(np.clip(len(values) ** 0.5, 1, 40))
    told_apart = np.ptp(values) > bins * np.spacing(np.abs(values).max())
    counts, edges = np.histogram(values, bins=bins if told_apart else 1)
    smooth = np.convolve(np.pad(counts, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    centres = (edges[1:] + edges[:-1]) / 2
    density = np.interp(values, centres, smooth)
    places = np.empty(len(values))
    places[order] = _van_der_corput(len(values)) - 0.5
    return places * density / density.max()


def _van_der_corput(count: int) -> Numbers:
    """The first numbers of the sequence in base 2: the bits of 1, 2, 3 ... behind the point, backwards."""
    numbers = np.arange(1, count + 1)
    bits = np.arange(count.bit_length())
    return ((numbers[:, None] >> bits & 1) / 2.0 ** (bits + 1)).sum(1)


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
