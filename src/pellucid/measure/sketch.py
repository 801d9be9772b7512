"""Quantiles of any number of values in little memory, with a stated error: DDSketch, for many groups at once.

Masson, Rim & Lee (2019), "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees",
arXiv:1908.10693. Values are counted in buckets whose edges are powers of gamma = (1 + error) / (1 - error); the
estimate for bucket i, which holds gamma^(i-1) < |x| <= gamma^i, is 2 gamma^i / (gamma + 1), no further than `error`
times |x| from any x in it. Merging adds counts, so it is exact, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pellucid.measure.labelled import Array
from pellucid.measure.state import state_array

_GREATEST = float(np.finfo(np.float64).max)
_LEAST = float(np.finfo(np.float64).tiny)
"""Magnitudes below the smallest normal number count as zero."""


class Sketch:
    """Counts of values in logarithmic buckets.

    Args:
        groups: How many sketches.
        error: Largest relative error of a quantile, between 0 and 1.
    """

    def __init__(self, groups: int, error: float) -> None:
        self.error = error
        self._gamma = (1 + error * (1 - 1e-9)) / (1 - error * (1 - 1e-9))  # leaves room for the logarithm's rounding
        self.low = 0
        self.counts = np.zeros((2, groups, 0), dtype=np.int64)  # of positive and of negative values, by bucket
        self.zeros = np.zeros(groups, dtype=np.int64)
        self.least = np.full(groups, np.inf)
        self.greatest = np.full(groups, -np.inf)

    def add(self, data: Array) -> None:
        """Count values [groups, n]; NaN is left out."""
        size = np.abs(data)
        group, column = np.nonzero(size >= _LEAST)
        self.zeros += (size < _LEAST).sum(1)
        self.least = np.fmin(self.least, np.fmin.reduce(data, axis=1, initial=np.inf))
        self.greatest = np.fmax(self.greatest, np.fmax.reduce(data, axis=1, initial=-np.inf))
        if not len(group):
            return
        chosen = data[group, column]
        bucket = np.ceil(np.log(np.abs(chosen)) / np.log(self._gamma)).astype(np.int64)
        self._reach(int(bucket.min()), int(bucket.max()) + 1)
        groups, buckets = self.counts.shape[1:]
        flat = ((chosen < 0) * groups + group) * buckets + bucket - self.low
        self.counts += np.bincount(flat, minlength=self.counts.size).reshape(self.counts.shape)

    def merge(self, other: Sketch) -> None:
        """Add another's counts; exact."""
        self.zeros = self.zeros + other.zeros
        self.least, self.greatest = np.fmin(self.least, other.least), np.fmax(self.greatest, other.greatest)
        if other.counts.shape[2]:
            end = other.low + other.counts.shape[2]
            self._reach(other.low, end)
            self.counts[:, :, other.low - self.low : end - self.low] += other.counts

    def _reach(self, low: int, end: int) -> None:
        """Make room for buckets low to end."""
        held = self.counts.shape[2]
        if not held:
            self.low, self.counts = low, np.zeros((*self.counts.shape[:2], end - low), dtype=np.int64)
            return
        first, last = min(low, self.low), max(end, self.low + held)
        if (first, last) != (self.low, self.low + held):
            before, after = self.low - first, last - self.low - held
            self.counts = np.pad(self.counts, ((0, 0), (0, 0), (before, after)))
            self.low = first

    @property
    def count(self) -> Array:
        """[groups] values."""
        return self.zeros + self.counts.sum((0, 2))

    def quantiles(self, shares: Array) -> Array:
        """[groups, len(shares)]: of n values in ascending order, the one numbered floor(q (n - 1)) from 0.

        Each is within `error` times its magnitude of the true one; NaN where nothing was counted.
        """
        positive, negative = self.counts
        columns = np.concatenate([negative[:, ::-1], self.zeros[:, None], positive], axis=1).cumsum(1)
        edges = np.power(self._gamma, self.low - 1 + np.arange(positive.shape[1], dtype=float))
        with np.errstate(over="ignore"):  # beyond the largest number, which then is as near as need be
            middle = np.minimum(edges * (2 * self._gamma / (self._gamma + 1)), np.finfo(np.float64).max)
        estimates = np.concatenate([-middle[::-1], [0.0], middle])
        count = self.count
        out = np.full((len(count), len(shares)), np.nan)
        for group in np.flatnonzero(count):
            ranks = np.floor(np.asarray(shares) * (count[group] - 1))
            found = estimates[np.searchsorted(columns[group], ranks, side="right")]
            out[group] = np.clip(found, self.least[group], self.greatest[group])
        return out

    def state(self) -> dict[str, Array]:
        """Everything counted, as arrays."""
        return {"low": np.asarray(self.low), "counts": self.counts, "zeros": self.zeros, "least": self.least,
                "greatest": self.greatest}  # fmt: skip

    def load(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: Arrays that `state` cannot have given.
        """
        groups = len(self.zeros)
        counts = state_array(state, "counts", "i", (2, groups, None))
        low, furthest = state.get("low"), math.log(_GREATEST) / math.log(self._gamma) + 2
        if low is None or low.shape or low.dtype.kind != "i":
            raise ValueError("low is not the number of a bucket")
        if counts.shape[2] and not -furthest <= int(low) <= int(low) + counts.shape[2] <= furthest:
            raise ValueError("it has buckets of numbers that float64 does not hold")
        self.low, self.counts = int(low), counts.copy()
        self.zeros = state_array(state, "zeros", "i", (groups,)).copy()
        self.least, self.greatest = (state_array(state, key, "f", (groups,)).copy() for key in ("least", "greatest"))
