"""Quantiles of any number of values in little memory, with a stated error: DDSketch, for many groups at once.

Masson, Rim & Lee (2019), "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees",
arXiv:1908.10693. Values are counted in buckets whose edges are powers of gamma = (1 + error) / (1 - error); the
estimate for bucket i, which holds gamma^(i-1) < |x| <= gamma^i, is 2 gamma^i / (gamma + 1), no further than `error`
times |x| from any x in it. Merging adds counts, so it is exact, in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pellucid.measure.labelled import Array

_GREATEST = float(np.finfo(np.float64).max)
_LEAST = float(np.finfo(np.float64).tiny)
"""Magnitudes below the smallest normal number count as zero."""


@dataclass(frozen=True)
class Sketch:
    """Counts of values in logarithmic buckets, for each group.

    Attributes:
        low: The number of the first bucket.
        counts: How many positive and how many negative values each bucket holds, [2, groups, buckets].
        zeros: How many values are zero, [groups].
        least: The least value, [groups].
        greatest: The greatest value, [groups].
    """

    low: int
    counts: Array
    zeros: Array
    least: Array
    greatest: Array

    @classmethod
    def of(cls, data: Array, error: float) -> Sketch:
        """Count values [groups, n], NaN left out, in buckets for a relative error between 0 and 1."""
        size = np.abs(data)
        group, column = np.nonzero(size >= _LEAST)
        chosen = data[group, column]
        bucket = np.ceil(np.log(np.abs(chosen)) / math.log(gamma(error))).astype(np.int64)
        low, end = (int(bucket.min()), int(bucket.max()) + 1) if len(bucket) else (0, 0)
        shape = (2, len(data), end - low)
        flat = ((chosen < 0) * len(data) + group) * (end - low) + bucket - low
        counts = np.bincount(flat, minlength=math.prod(shape)).reshape(shape)
        least = np.fmin.reduce(data, axis=1, initial=np.inf)
        return cls(low, counts, (size < _LEAST).sum(1), least, np.fmax.reduce(data, axis=1, initial=-np.inf))

    def merge(self, other: Sketch) -> Sketch:
        """Add another's counts; exact."""
        held = [part for part in (self, other) if part.counts.shape[2]]
        low = min((part.low for part in held), default=0)
        end = max((part.low + part.counts.shape[2] for part in held), default=0)
        counts = np.zeros((*self.counts.shape[:2], end - low), dtype=np.int64)
        for part in held:
            counts[:, :, part.low - low : part.low - low + part.counts.shape[2]] += part.counts
        extremes = np.fmin(self.least, other.least), np.fmax(self.greatest, other.greatest)
        return Sketch(low, counts, self.zeros + other.zeros, *extremes)

    @property
    def count(self) -> Array:
        """How many values were counted, [groups]."""
        return self.zeros + self.counts.sum((0, 2))

    def quantiles(self, shares: Array, error: float) -> Array:
        """Return quantiles [groups, len(shares)]: of n values in order, the one numbered floor(q (n - 1)) from 0.

        Each is within `error` times its magnitude of the true one; NaN if nothing was counted.
        """
        positive, negative = self.counts
        columns = np.concatenate([negative[:, ::-1], self.zeros[:, None], positive], axis=1).cumsum(1)
        base = gamma(error)
        edges = np.power(base, self.low - 1 + np.arange(positive.shape[1], dtype=float))
        with np.errstate(over="ignore"):  # beyond the largest number, which then is as near as need be
            middle = np.minimum(edges * (2 * base / (base + 1)), _GREATEST)
        estimates = np.concatenate([-middle[::-1], [0.0], middle])
        count = self.count
        out = np.full((len(count), len(shares)), np.nan)
        for group in np.flatnonzero(count):
            ranks = np.floor(np.asarray(shares) * (count[group] - 1))
            found = estimates[np.searchsorted(columns[group], ranks, side="right")]
            out[group] = np.clip(found, self.least[group], self.greatest[group])
        return out


def gamma(error: float) -> float:
    """Return the ratio of a bucket's edges."""
    lowered = error * (1 - 1e-9)  # leaves room for the logarithm's rounding
    return (1 + lowered) / (1 - lowered)


def require_buckets(sketch: Sketch, error: float) -> None:
    """Raise `ValueError` if a sketch has buckets of numbers that float64 does not hold."""
    furthest, size = math.log(_GREATEST) / math.log(gamma(error)) + 2, sketch.counts.shape[2]
    if size and not -furthest <= sketch.low <= sketch.low + size <= furthest:
        raise ValueError("it has buckets of numbers that float64 does not hold")
