"""Dimensions that are much larger than the others, and how much of the vectors' length they carry."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from pellucid import aliases
from pellucid.axes import NEURONS
from pellucid.check import as_number
from pellucid.errors import InputError, shown
from pellucid.measure.groups import TEXTS_AND_POSITIONS, Groups, Result, Source, array_of, grouped

if TYPE_CHECKING:
    import xarray

_NORMAL = 1.4826
"""A normal distribution's standard deviation, as a multiple of its median absolute deviation."""


def outliers(
    source: Source,
    name: aliases.Name | None = None,
    *,
    over: Collection[str] | None = None,
    threshold: float = 6.0,
) -> xarray.Dataset:
    """Find outlier dimensions, and the share of the squared norm that they carry.

    A few dimensions of the residual stream are many times larger than the rest (Kovaleva et al. 2021,
    arXiv:2105.06990; Timkey & van Schijndel 2021, arXiv:2109.04404; Dettmers et al. 2022, arXiv:2208.07339). With r_d
    the root mean square of dimension d, its score is (r_d - median(r)) / (1.4826 median(|r - median(r)|)): how many
    standard deviations it would lie above the middle if the rest were normal. It is an outlier above `threshold`. Its
    share is r_d^2 / sum(r^2).

    Args:
        source: What `run_with_ckpts` captured, with `name`; or what `values` returned, without.
        name: A checkpoint of vectors.
        over: The axes to average over; None for texts and positions.
        threshold: The score above which a dimension is an outlier.

    Returns:
        `rms`, `share`, `score`, `outlier` over the axes that are kept, the dimensions among them; `outlier_count` and
        `outlier_share` without these. If at least half of the dimensions are equal, there is no score (NaN) and no
        outlier.

    Raises:
        InputError: If there is no axis of dimensions, or an axis of `over` is not there.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.resid_post")
        >>> found = pl.measure.outliers(ckpts, "resid_post")
        >>> found.share.sum("d_model").round(12).values.tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    score = as_number(threshold)
    if score is None:
        raise InputError(
            f"outliers: threshold={shown(threshold)}, expected a number.",
            code="level",
            remedy="Give a score such as 6.",
        )
    array = array_of(source, name, "outliers")
    neurons = [str(axis) for axis in NEURONS if axis in array.dims]
    summed = [axis for axis in TEXTS_AND_POSITIONS if axis in array.dims] if over is None else over
    if not neurons or neurons[0] in summed:
        raise InputError(
            f"outliers: the axes are ({', '.join(map(str, array.dims))}), expected dimensions to compare: "
            f"{', '.join(NEURONS)}.",
            code="no-such-axis",
            remedy="Measure a checkpoint of vectors, such as resid_post, over texts and positions.",
        )
    others = [dim for dim in array.dims if dim != neurons[0]]
    return _found(grouped(array.transpose(*others, neurons[0]), None, summed, "outliers"), score)


def _found(groups: Groups, threshold: float) -> xarray.Dataset:
    """Score the dimensions, which are the last of the kept axes."""
    real = ~np.isnan(groups.data)
    count = real.sum(-1)
    squares = np.where(real, groups.data, 0.0) ** 2
    rms = np.sqrt(squares.sum(-1) / np.where(count == 0, np.nan, count))
    total = (rms**2).sum(-1, keepdims=True)
    share = rms**2 / np.where(total == 0, np.nan, total)
    middle = np.median(rms, axis=-1, keepdims=True)
    spread = _NORMAL * np.median(np.abs(rms - middle), axis=-1, keepdims=True)
    score = (rms - middle) / np.where(spread == 0, np.nan, spread)
    outlier = score > threshold
    found = groups.dataset(
        {
            "rms": Result(rms, groups.units, "root mean square"),
            "share": Result(share, "1", "share of the squared norm"),
            "score": Result(score, "standard deviations", "distance from the median, robust"),
            "outlier": Result(outlier, "1", f"score above {threshold:g}"),
        }
    )
    dimension = groups.dims[-1]
    found["outlier_count"] = found.outlier.sum(dimension).assign_attrs(long_name="outlier dimensions", units="1")
    carried = (found.share * found.outlier).sum(dimension)
    found["outlier_share"] = carried.assign_attrs(long_name="share of the squared norm in outliers", units="1")
    return found.assign_attrs(threshold=threshold)
