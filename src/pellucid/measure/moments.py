"""Mean, variance, skewness and kurtosis, from sums that merge."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pellucid import aliases
from pellucid.measure.groups import Groups, Result, Source, grouped
from pellucid.measure.labelled import Array

if TYPE_CHECKING:
    import xarray

_ROUNDING = 16 * np.finfo(np.float64).eps
"""A spread below this share of the mean is what rounding leaves of a constant."""

AT_ONCE = 1 << 22
"""How many numbers are worked on at once; more are taken group by group, which bounds the temporary arrays."""


@dataclass(frozen=True)
class Sums:
    """Count, mean, and sums of the second to fourth power of deviations from the mean, for each group.

    Two merge by the formulas of Chan, Golub & LeVeque (1983) and, for the third and fourth power, Pébay (2008,
    Sandia report SAND2008-6212).
    """

    count: Array
    mean: Array
    m2: Array
    m3: Array
    m4: Array

    @classmethod
    def of(cls, data: Array) -> Sums:
        """Sum over the last axis, NaN left out, in two passes; the rounding of the mean is taken back."""
        if data.ndim > 1 and data.size > AT_ONCE:
            return cls(*(np.stack(rows) for rows in zip(*(vars(cls.of(part)).values() for part in data), strict=True)))
        real = ~np.isnan(data)
        count = real.sum(-1)
        some = np.maximum(count, 1)
        mean = np.where(real, data, 0.0).sum(-1) / some
        away = np.where(real, data - mean[..., None], 0.0)
        correction = away.sum(-1) / some
        mean = mean + correction
        away = np.where(real, away - correction[..., None], 0.0)
        square = away * away
        return cls(count, mean, square.sum(-1), (square * away).sum(-1), (square * square).sum(-1))

    def merge(self, other: Sums) -> Sums:
        """Return the sums of both together."""
        a, b = self.count.astype(float), other.count.astype(float)
        n = np.maximum(a + b, 1.0)
        d = np.where(self.count == 0, 0.0, np.where(other.count == 0, 0.0, other.mean - self.mean))
        mean = np.where(self.count == 0, other.mean, self.mean + d * b / n)
        m2 = self.m2 + other.m2 + d**2 * a * b / n
        m3 = self.m3 + other.m3 + d**3 * a * b * (a - b) / n**2 + 3 * d * (a * other.m2 - b * self.m2) / n
        fourth = d**4 * a * b * (a**2 - a * b + b**2) / n**3
        second = 6 * d**2 * (a**2 * other.m2 + b**2 * self.m2) / n**2
        m4 = self.m4 + other.m4 + fourth + second + 4 * d * (a * other.m3 - b * self.m3) / n
        return Sums(self.count + other.count, mean, m2, m3, m4)

    def moments(self) -> dict[str, Array]:
        """Return count, mean, variance, skewness, excess kurtosis; NaN if there is nothing, or nothing varies."""
        count = np.where(self.count == 0, np.nan, self.count)
        mean = np.where(self.count == 0, np.nan, self.mean)
        variance = self.m2 / count
        spread = np.where(np.sqrt(variance) <= _ROUNDING * np.abs(mean), np.nan, np.sqrt(variance))
        spread = np.where(spread == 0, np.nan, spread)
        skewness, kurtosis = self.m3 / count / spread**3, self.m4 / count / spread**4 - 3
        return {"count": self.count, "mean": mean, "variance": variance, "skewness": skewness, "kurtosis": kurtosis}


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
