"""How numbers are distributed: histogram, quantiles, kernel density."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pellucid import aliases
from pellucid.check import as_number, as_python
from pellucid.errors import InputError
from pellucid.measure.groups import Result, Source, grouped
from pellucid.measure.labelled import Array

if TYPE_CHECKING:
    import xarray

QUARTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
POINTS = 200
"""At which the density is given."""

MOST_BINS = 10_000
_CHUNK = 1 << 12  # values at once, so that values times points stay in memory


@dataclass(frozen=True)
class _Shape:
    """What `distribution` was asked for."""

    bins: int | str
    quantiles: tuple[float, ...]
    bandwidth: float | str | None


def distribution(
    source: Source,
    name: aliases.Name | None = None,
    *,
    over: Collection[str] | None = None,
    bins: int | str = "fd",
    quantiles: Sequence[float] = QUARTILES,
    bandwidth: float | str | None = "silverman",
) -> xarray.Dataset:
    """Histogram, quantiles and kernel density of each group of numbers.

    With n values, interquartile range Q and s = sqrt(sum((x - m)^2) / (n - 1)):

    - bins are 2 Q n^(-1/3) wide (Freedman & Diaconis 1981) and equal those of `numpy.histogram(x, bins="fd")`;
    - quantiles interpolate linearly (Hyndman & Fan 1996, type 7), as `numpy.quantile` does;
    - the density is the mean of Gaussians of standard deviation h at the values; h = 0.9 min(s, Q / 1.34) n^(-1/5)
      for "silverman" (Silverman 1986, eq. 3.31, as R's bw.nrd0), s n^(-1/5) for "scott" (as
      `scipy.stats.gaussian_kde`), or a number.

    Args:
        source: What `run_with_ckpts` captured, with `name`; or what `norms` or `values` returned, without.
        name: The checkpoint.
        over: The axes to sum over; batch, pos, query and key, as far as they are there, where None.
        bins: A rule of `numpy.histogram_bin_edges`, or how many.
        quantiles: From 0 to 1.
        bandwidth: "silverman", "scott", h itself in the units of the values, or None for no density.

    Returns:
        Over the axes that are kept: `count`; `bin_count` (…, bin) between `bin_edge` (…, edge), NaN behind a group's
        last bin; `quantile_value` (…, quantile); `density` (…, point) at `at` (…, point), from 3 h below the least
        to 3 h above the greatest value, and `bandwidth`. Where nothing varies there is no density (NaN).

    Raises:
        InputError: An axis that is not there, quantiles outside of 0 to 1, an unknown rule, or a rule that asks
            for more than 10,000 bins, as outliers make it do.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time there was a cat", names="blocks.*.resid_post")
        >>> shape = pl.measure.distribution(pl.measure.norms(ckpts, "resid_post", log=True))
        >>> shape.bin_count.sum("bin").values.tolist()
        [8.0, 8.0, 8.0, 8.0]
    """
    bandwidth = as_python(bandwidth)
    shape = _Shape(bins, require_shares(quantiles, "distribution"), bandwidth)
    _require_bandwidth(bandwidth)
    groups = grouped(source, name, over, "distribution")
    flat = groups.data.reshape(-1, groups.data.shape[-1])
    rows = [row[~np.isnan(row)] for row in flat]
    kept = groups.data.shape[:-1]

    def result(columns: Sequence[Array], units: str, words: str, *dims: str) -> Result:
        table = _rectangle(columns)
        return Result(table.reshape(*kept, *table.shape[1:]), units, words, dims)

    histograms = [_histogram(row, shape.bins) for row in rows]
    units = groups.units
    arrays = {
        "count": result([np.asarray(len(row)) for row in rows], "1", "values"),
        "bin_count": result([counts for counts, _ in histograms], "1", "values in the bin", "bin"),
        "bin_edge": result([edges for _, edges in histograms], units, "edge of bins", "edge"),
        "quantile_value": result([_quantiles(row, shape) for row in rows], units, "quantile", "quantile"),
    }
    if bandwidth is not None:
        widths = [_bandwidth(row, shape.bandwidth) for row in rows]
        curves = [_density(row, float(h)) for row, h in zip(rows, widths, strict=True)]
        arrays["at"] = result([at for at, _ in curves], units, "where the density is given", "point")
        arrays["density"] = result([d for _, d in curves], f"1 / ({units})", "kernel density", "point")
        arrays["bandwidth"] = result(widths, units, "standard deviation of the kernel")
    dataset = groups.dataset(arrays).assign_coords(quantile=list(shape.quantiles))
    return dataset.assign_attrs(bins=str(bins), kernel="none" if bandwidth is None else f"Gaussian, {bandwidth}")


def require_shares(quantiles: Sequence[float], what: str) -> tuple[float, ...]:
    """Quantiles as numbers from 0 to 1.

    Raises:
        InputError: Others.
    """
    try:
        shares = tuple(map(float, quantiles))
    except (TypeError, ValueError):
        shares = (np.nan,)
    if not all(0 <= share <= 1 for share in shares):
        raise InputError(
            f"{what}: quantiles={quantiles!r}, expected numbers from 0 to 1.",
            code="quantile-range",
            remedy="Give shares, not %, in a list.",
        )
    return shares


def _require_bandwidth(given: float | str | None) -> None:
    width = as_number(given)
    is_width = width is not None and width > 0
    if not (is_width or given is None or (isinstance(given, str) and given in ("silverman", "scott"))):
        raise InputError(
            f"distribution: bandwidth={given!r}, expected 'silverman', 'scott', a positive number or None.",
            code="bandwidth",
            remedy="Give one of these.",
        )


def _rectangle(rows: Sequence[Array]) -> Array:
    """Rows of unequal length as one table, NaN at their ends."""
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    table = np.full((len(rows), max(len(row) for row in rows)), np.nan)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


def _histogram(row: Array, bins: int | str) -> tuple[Array, Array]:
    if not len(row):
        return np.full(1, np.nan), np.full(2, np.nan)
    low, high = np.quantile(row, [0.25, 0.75])
    width = 2 * (high - low) * len(row) ** (-1 / 3)
    if bins == "fd" and width > 0 and np.ptp(row) / width > MOST_BINS:  # numpy would try to make them
        raise InputError(
            f"distribution: the rule of Freedman and Diaconis asks for {np.ptp(row) / width:,.0f} bins, because "
            f"values lie as far as {np.abs(row).max():.4g} from a middle half {high - low:.2g} wide.",
            code="too-many-bins",
            remedy="Take logarithms, leave the first token out, or say how many bins: bins=100.",
        )
    try:
        counts, edges = np.histogram(row, bins=bins)
    except (ValueError, TypeError, MemoryError) as error:
        raise InputError(
            f"distribution: bins={bins!r}: {error}",
            code="bins",
            remedy="Give how many, or a rule of numpy.histogram_bin_edges, such as 'fd'.",
        ) from error
    return counts.astype(float), edges


def _quantiles(row: Array, shape: _Shape) -> Array:
    return np.quantile(row, shape.quantiles) if len(row) else np.full(len(shape.quantiles), np.nan)


def _bandwidth(row: Array, rule: float | str | None) -> Array:
    """h, NaN where nothing varies."""
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


def _density(row: Array, h: float) -> tuple[Array, Array]:
    """(where, how dense)."""
    if np.isnan(h):
        return np.full(POINTS, np.nan), np.full(POINTS, np.nan)
    at = np.linspace(row.min() - 3 * h, row.max() + 3 * h, POINTS)
    total = np.zeros(POINTS)
    for start in range(0, len(row), _CHUNK):
        z = (at[:, None] - row[None, start : start + _CHUNK]) / h
        total += np.exp(-0.5 * z * z).sum(1)
    return at, total / (len(row) * h * np.sqrt(2 * np.pi))
