"""How numbers are distributed: moments, histogram, quantiles, kernel density, and dimensions that lie apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pellucid.check import as_number, as_python
from pellucid.errors import InputError, shown
from pellucid.extras import need
from pellucid.measure.groups import TEXTS_AND_POSITIONS, Groups, Result, Source, Sums, array_of, axes_in, grouped
from pellucid.measure.labelled import Array
from pellucid.names import aliases
from pellucid.schema import NEURONS

if TYPE_CHECKING:
    import xarray

QUARTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
POINTS = 200
"""At how many points the density is given."""

MOST_BINS = 10_000

APART = 6.0
"""The score above which a dimension is an outlier."""

_NORMAL = 1.4826
"""A normal distribution's standard deviation, as a multiple of its median absolute deviation."""


def moments(source: Source, name: aliases.Name | None = None, *, over: Collection[str] | None = None) -> xarray.Dataset:
    """Compute mean, variance, skewness and excess kurtosis over texts and positions, or over any axes.

    With n values x and mean m, the k-th central moment is m_k = sum((x - m)^k) / n; variance is m_2, skewness
    m_3 / m_2^1.5, excess kurtosis m_4 / m_2^2 - 3 (population moments, as `numpy.var` and `scipy.stats.skew` and
    `kurtosis` give by default). Pads are left out.

    Args:
        source: What `run_with_ckpts` captured, with `name`; or what `norms` or `values` returned, without.
        name: The checkpoint.
        over: The axes to sum over; None for batch, pos, query and key, as far as they are there. Positions that are
            kept are counted from each text's own first real token.

    Returns:
        `count`, `mean`, `variance`, `skewness`, `kurtosis` over the axes that are kept. Skewness and kurtosis
        are NaN if nothing varies, and all but `count` if nothing is measured.

    Raises:
        InputError: If an axis is not there.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.resid_post")
        >>> pl.measure.moments(pl.measure.norms(ckpts, "resid_post")).sizes
        Frozen({'layer': 4})
        >>> pl.measure.moments(ckpts, "resid_post", over=["batch", "pos", "d_model"])["count"].values.tolist()
        [1024, 1024, 1024, 1024]
    """
    groups = grouped(source, name, over, "moments")
    return moments_dataset(Sums.of(groups.data), groups)


def moments_dataset(sums: Sums, groups: Groups) -> xarray.Dataset:
    """Return the moments with labels."""
    about = {
        "count": ("1", "values"),
        "mean": (groups.units, "mean"),
        "variance": (f"({groups.units})^2", "population variance"),
        "skewness": ("1", "skewness"),
        "kurtosis": ("1", "excess kurtosis"),
    }
    return groups.dataset({name: Result(data, *about[name]) for name, data in sums.moments().items()})


def distribution(
    source: Source,
    name: aliases.Name | None = None,
    *,
    over: Collection[str] | None = None,
    bins: int | str = "fd",
    quantiles: Sequence[float] = QUARTILES,
    bandwidth: float | str | None = "silverman",
) -> xarray.Dataset:
    """Compute histogram, quantiles and kernel density of each group of numbers.

    With n values, interquartile range Q and s = sqrt(sum((x - m)^2) / (n - 1)):

    - bins are 2 Q n^(-1/3) wide (Freedman & Diaconis 1981) and equal those of `numpy.histogram(x, bins="fd")`;
    - quantiles interpolate linearly (Hyndman & Fan 1996, type 7), as `numpy.quantile` does;
    - the density is the mean of Gaussians of standard deviation h at the values; h = 0.9 min(s, Q / 1.34) n^(-1/5)
      for "silverman" (Silverman 1986, eq. 3.31, as R's bw.nrd0), s n^(-1/5) for "scott" (as
      `scipy.stats.gaussian_kde`), or a number.

    Args:
        source: What `run_with_ckpts` captured, with `name`; or what `norms` or `values` returned, without.
        name: The checkpoint.
        over: The axes to sum over; None for batch, pos, query and key, as far as they are there.
        bins: How many bins, or a rule of `numpy.histogram_bin_edges`.
        quantiles: Which quantiles, from 0 to 1.
        bandwidth: "silverman", "scott", h itself in the units of the values, or None for no density.

    Returns:
        Over the axes that are kept: `count`; `bin_count` (…, bin) between `bin_edge` (…, edge), NaN behind a group's
        last bin; `quantile_value` (…, quantile); `density` (…, point) at `at` (…, point), from 3 h below the least
        to 3 h above the greatest value, and `bandwidth`. The density is NaN if nothing varies.

    Raises:
        InputError: If an axis is not there, a quantile is outside of 0 to 1, a rule is unknown, or it asks for more
            than 10,000 bins, as outliers make it do.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time there was a cat", names="blocks.*.resid_post")
        >>> shape = pl.measure.distribution(pl.measure.norms(ckpts, "resid_post", log=True))
        >>> shape.bin_count.sum("bin").values.tolist()
        [8.0, 8.0, 8.0, 8.0]
    """
    bandwidth, shares = as_python(bandwidth), require_shares(quantiles, "distribution")
    _require_bandwidth(bandwidth)
    groups = grouped(source, name, over, "distribution")
    rows = [groups.data[at][~np.isnan(groups.data[at])] for at in np.ndindex(groups.data.shape[:-1])]
    units = groups.units

    def result(columns: Sequence[Array], units: str, words: str, *dims: str) -> Result:
        table = _rectangle(columns)
        return Result(table.reshape(*groups.data.shape[:-1], *table.shape[1:]), units, words, dims)

    counts, edges = zip(*(_histogram(row, bins) for row in rows), strict=True)
    levels = [np.quantile(row, shares) if len(row) else np.full(len(shares), np.nan) for row in rows]
    arrays = {
        "count": result([np.asarray(len(row)) for row in rows], "1", "values"),
        "bin_count": result(counts, "1", "values in the bin", "bin"),
        "bin_edge": result(edges, units, "edge of bins", "edge"),
        "quantile_value": result(levels, units, "quantile", "quantile"),
    }
    if bandwidth is not None:
        widths = [_bandwidth(row, bandwidth) for row in rows]
        points, densities = zip(*map(_density, rows, widths), strict=True)
        arrays["at"] = result(points, units, "where the density is given", "point")
        arrays["density"] = result(densities, f"1 / ({units})", "kernel density", "point")
        arrays["bandwidth"] = result(widths, units, "standard deviation of the kernel")
    dataset = groups.dataset(arrays).assign_coords(quantile=list(shares))
    return dataset.assign_attrs(bins=str(bins), kernel="none" if bandwidth is None else f"Gaussian, {bandwidth}")


def require_shares(quantiles: Sequence[float], what: str) -> tuple[float, ...]:
    """Return quantiles as Python's numbers; raise `InputError` if one is not from 0 to 1."""
    try:
        shares = tuple(map(float, quantiles))
    except (TypeError, ValueError):
        shares = (np.nan,)
    if not all(0 <= share <= 1 for share in shares):
        raise InputError(
            f"{what}: quantiles={shown(quantiles)}, expected numbers from 0 to 1.",
            code="quantile-range",
            remedy="Give shares, not %, in a list.",
        )
    return shares


def _require_bandwidth(given: float | str | None) -> None:
    width = as_number(given)
    is_width = width is not None and width > 0
    if not (is_width or given is None or (isinstance(given, str) and given in ("silverman", "scott"))):
        raise InputError(
            f"distribution: bandwidth={shown(given)}, expected 'silverman', 'scott', a positive number or None.",
            code="bandwidth",
            remedy="Give bandwidth='silverman', or a width in the units of the values.",
        )


def _rectangle(rows: Sequence[Array]) -> Array:
    """Return rows of unequal length as one table, NaN at their ends."""
    longest = max(row.size for row in rows)
    return np.stack([np.pad(row, (0, longest - row.size), constant_values=np.nan) if row.ndim else row for row in rows])


def _histogram(row: Array, bins: int | str) -> tuple[Array, Array]:
    """Return the counts and the edges of the bins."""
    if not len(row):
        return np.full(1, np.nan), np.full(2, np.nan)
    low, high = np.quantile(row, [0.25, 0.75])
    width = 2 * (high - low) * len(row) ** (-1 / 3)
    freedman = isinstance(bins, str) and bins == "fd"
    if freedman and width > 0 and np.ptp(row) / width > MOST_BINS:  # numpy would try to make them
        raise InputError(
            f"distribution: the rule of Freedman and Diaconis asks for {np.ptp(row) / width:,.0f} bins, because "
            f"values lie as far as {np.abs(row).max():.4g} from a middle half {high - low:.2g} wide.",
            code="too-many-bins",
            remedy="Take logarithms, leave the first token out, or say how many bins: bins=100.",
        )
    try:
        counts, edges = np.histogram(row, bins=bins)
        if not len(counts):
            raise ValueError("no bin")
    except (ValueError, TypeError, MemoryError) as error:
        raise InputError(
            f"distribution: bins={shown(bins)}: {error}",
            code="bins",
            remedy="Give how many, or a rule of numpy.histogram_bin_edges, such as 'fd'.",
        ) from error
    return counts.astype(float), edges.astype(float)


def _bandwidth(row: Array, rule: float | str) -> Array:
    """Return the kernel's standard deviation, NaN if nothing varies."""
    if len(row) < 2 or np.ptp(row) == 0:
        return np.asarray(np.nan)
    if not isinstance(rule, str):
        return np.asarray(rule, dtype=float)
    deviation = row.std(ddof=1)
    if rule == "silverman":
        low, high = np.quantile(row, [0.25, 0.75])
        robust = (high - low) / 1.34
        deviation = 0.9 * (min(deviation, robust) if robust > 0 else deviation)
    return np.asarray(deviation * len(row) ** (-1 / 5))


def _density(row: Array, width: Array) -> tuple[Array, Array]:
    """Return points and the density at each."""
    h = float(width)
    if np.isnan(h):
        return np.full(POINTS, np.nan), np.full(POINTS, np.nan)
    at = np.linspace(row.min() - 3 * h, row.max() + 3 * h, POINTS)
    scaled = (row - row.mean()) / h  # in kernel widths, because scipy squares what it is given
    kernel = need("scipy.stats", "distribution").gaussian_kde(scaled, bw_method=1 / scaled.std(ddof=1))
    return at, kernel((at - row.mean()) / h) / h


def outliers(
    source: Source,
    name: aliases.Name | None = None,
    *,
    over: Collection[str] | None = None,
    threshold: float = APART,
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
    if score is None or np.isnan(score):
        raise InputError(
            f"outliers: threshold={shown(threshold)}, expected a number.",
            code="level",
            remedy="Give a score such as 6.",
        )
    array = array_of(source, name, "outliers")
    neurons = [str(axis) for axis in NEURONS if axis in array.dims]
    dims = tuple(map(str, array.dims))
    summed = [axis for axis in TEXTS_AND_POSITIONS if axis in dims] if over is None else axes_in(over, dims, "outliers")
    if not neurons or neurons[0] in summed:
        raise InputError(
            f"outliers: the axes are ({', '.join(map(str, array.dims))}), expected dimensions to compare: "
            f"{', '.join(NEURONS)}.",
            code="no-such-axis",
            remedy="Measure a checkpoint of vectors, such as resid_post, over texts and positions.",
        )
    others = [dim for dim in array.dims if dim != neurons[0]]
    return _found(grouped(array.transpose(*others, neurons[0]), None, summed, "outliers"), score)


def scores(rms: Array) -> Array:
    """Return how far each root mean square lies above the median of the last axis, as `outliers` says."""
    middle = np.median(rms, axis=-1, keepdims=True)
    spread = _NORMAL * np.median(np.abs(rms - middle), axis=-1, keepdims=True)
    return (rms - middle) / np.where(spread == 0, np.nan, spread)


def _found(groups: Groups, threshold: float) -> xarray.Dataset:
    """Score the dimensions, which are the last of the kept axes."""
    real = ~np.isnan(groups.data)
    count = real.sum(-1)
    squares = np.where(real, groups.data, 0.0) ** 2
    rms = np.sqrt(squares.sum(-1) / np.where(count == 0, np.nan, count))
    total = (rms**2).sum(-1, keepdims=True)
    share = rms**2 / np.where(total == 0, np.nan, total)
    score = scores(rms)
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
