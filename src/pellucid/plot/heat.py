"""Matrices as pictures: what is shown of one that has more rows than there are dots to show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.plot.canvas import colour_bar, extent
from pellucid.plot.inputs import Numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 256
"""Rows or columns of a picture; more are merged."""


def block_size(count: int, dots: float) -> int:
    """How many neighbours merge into one cell, so that a cell takes at least one of `dots` dots."""
    return -(-count // max(1, min(MOST, int(dots))))


def largest_of_blocks(matrix: Numbers, block: int) -> Numbers:
    """[..., q, k] with blocks of neighbours merged into their largest; nan where a block holds nothing else.

    The largest, not the mean: a head that looks at the token before is a line one cell wide, and must stay one.
    """
    if block == 1:
        return matrix
    fill = [(0, 0)] * (matrix.ndim - 2) + [(0, -size % block) for size in matrix.shape[-2:]]
    padded = np.pad(matrix, fill, constant_values=np.nan)
    *front, rows, columns = padded.shape
    blocks = padded.reshape(*front, rows // block, block, columns // block, block)
    merged = np.where(np.isnan(blocks), -np.inf, blocks).max((-3, -1))
    return np.where(np.isneginf(merged), np.nan, merged)


def frame(axes: Axes, colour: str) -> None:
    """A thin frame on all four sides, for pictures that begin near the paper."""
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(colour)


def weights_bar(axes: Axes, image: Any, *, after: float = 6) -> None:
    """The bar of attention weights, which says that its scale is not even where it is long enough to."""
    long = min(extent(axes)[1], 160) > 80
    colour_bar(axes, image, WEIGHTS if long else "attention", WEIGHT_TICKS, after=after)


def weights_scale() -> Any:
    """From 0 to 1 by the square root, so that weight which is spread over many tokens is seen too."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0.0, 1.0)


WEIGHTS = "attention, √ scale"
"""What the bar of attention weights says: its ticks are not evenly spaced."""

WEIGHT_TICKS = (0, 0.05, 0.2, 0.5, 1)
"""Where the bar of attention weights is labelled."""
