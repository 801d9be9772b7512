"""Numbers that merge, for many groups at once: sums of powers and products, counts in buckets, factors of regressions.

Sums merge by the formulas of Chan, Golub & LeVeque (1983) and, for the third and fourth power, Pébay (2008, Sandia
report SAND2008-6212), which do not cancel. Quantiles come from a DDSketch (Masson, Rim & Lee 2019,
arXiv:1908.10693): values are counted in buckets whose edges are powers of gamma = (1 + error) / (1 - error); the
estimate for bucket i, which holds gamma^(i-1) < |x| <= gamma^i, is 2 gamma^i / (gamma + 1), no further than `error`
times |x| from any x in it. Merging adds counts, so it is exact, in any order.

The columns of a regression, the response last, are centred and reduced to the triangular factor R of their Householder
QR factorization, which holds all that least squares needs: slopes, residual and total sum of squares. R is as accurate
as the columns; sums of their products would square the condition number (Golub & Van Loan 2013, section 5.3). Two
factors merge when they are stacked and factored again (Demmel, Grigori, Hoemmen & Langou 2012), with one more row for
the distance between the means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pellucid.measure.labelled import Array

_ROUNDING = 16 * np.finfo(np.float64).eps
"""A spread below this share of the mean is what rounding leaves of a constant."""

AT_ONCE = 1 << 22
"""How many numbers are worked on at once; more are taken group by group, which bounds the temporary arrays."""

_GREATEST = float(np.finfo(np.float64).max)
_LEAST = float(np.finfo(np.float64).tiny)
"""Magnitudes below the smallest normal number count as zero."""


@dataclass(frozen=True)
class Sums:
    """Count, mean, and sums of the second to fourth power of deviations from the mean, for each group."""

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


@dataclass(frozen=True)
class Comoments:
    """Sums of products of S groups of D dimensions."""

    count: int  # how many vectors there are
    mean: Array  # their means, [S, D]
    comoment: Array  # sums of products of deviations from the mean, [S, D, D]

    @classmethod
    def of(cls, columns: Array) -> Comoments:
        """Sum products of vectors [S, D, n]."""
        mean = columns.mean(2)
        away = columns - mean[:, :, None]
        return cls(columns.shape[2], mean, away @ away.transpose(0, 2, 1))

    def merge(self, other: Comoments) -> Comoments:
        """Return the sums of both together."""
        count = self.count + other.count
        apart = other.mean - self.mean
        between = apart[:, :, None] * apart[:, None, :] * (self.count * (other.count / count))
        mean = self.mean + apart * (other.count / count)
        return Comoments(count, mean, self.comoment + other.comoment + between)


@dataclass(frozen=True)
class Sketch:
    """Counts of values in logarithmic buckets, for each group."""

    low: int  # the number of the first bucket
    counts: Array  # how many positive and how many negative values each bucket holds, [2, groups, buckets]
    zeros: Array  # how many values are zero, [groups]
    least: Array  # the least value, [groups]
    greatest: Array  # the greatest value, [groups]

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


_EPS = float(np.finfo(np.float64).eps)

CONSTANT = "the series is constant"
COLLINEAR = "the columns of the design are linearly dependent"
NOT_FINITE = "a value is not finite"
TOO_SMALL = "its values are too small to square"


def centred(columns: Array) -> tuple[Array, Array]:
    """Return the means [...] of the last axis and the columns [..., R] less their means."""
    mean = columns.mean(-1)
    away = columns - mean[..., None]
    # The mean is rounded by up to eps |mean|, which is no small share of the spread of a series far from zero.
    left = away.mean(-1)
    return mean + left, away - left[..., None]


@dataclass(frozen=True)
class Factor:
    """Means and triangular factors of S series with K columns each, the response last."""

    count: int  # how many rows were factored
    mean: Array  # the columns' means, [S, K]
    triangle: Array  # the triangular factors of the centred columns, [S, K, K]
    texts: int = 0  # how many texts gave rows
    short: int = 0  # how many texts are too short to give one

    @classmethod
    def of(cls, columns: Array) -> Factor:
        """Factor columns [S, K, R]; series that are not finite come out as NaN."""
        size, width, count = columns.shape
        if not count:
            return cls(0, np.zeros((size, width)), np.zeros((size, width, width)))
        with np.errstate(invalid="ignore", over="ignore"):
            mean, away = centred(columns)
        return cls(count, mean, _triangle(away.transpose(0, 2, 1)))

    def merge(self, other: Factor) -> Factor:
        """Return the factor of both sets of rows."""
        texts, short = self.texts + other.texts, self.short + other.short
        if not self.count or not other.count:
            return replace(self if self.count else other, texts=texts, short=short)
        count = self.count + other.count
        with np.errstate(invalid="ignore", over="ignore"):
            apart = (other.mean - self.mean)[:, None]
            between = apart * np.sqrt(self.count * (other.count / count))
            mean = self.mean + apart[:, 0] * (other.count / count)
        triangle = _triangle(np.concatenate([self.triangle, other.triangle, between], axis=1))
        return Factor(count, mean, triangle, texts, short)


def _triangle(rows: Array) -> Array:
    """Return the triangular factors [S, K, K] of rows [S, R, K]."""
    missing = max(0, rows.shape[2] - rows.shape[1])
    padded = np.pad(rows, ((0, 0), (0, missing), (0, 0))) if missing else rows
    return np.asarray(np.linalg.qr(padded, mode="r"))


@dataclass(frozen=True)
class Solution:
    """Ordinary least squares with a constant, for S series; NaN if a series has a problem."""

    count: int  # how many rows were fitted
    params: Array  # the estimates, the constant first, [S, k]
    inverse: Array  # the inverse of X'X, [S, k, k]
    ssr: Array  # the sum of squared residuals, [S]
    tss: Array  # the sum of squared deviations of the response from its mean, [S]
    condition: Array  # the condition number of X, constant included, [S]
    problems: Array  # why a series has no solution, "" if it has one, [S]


def solve(factor: Factor) -> Solution:
    """Solve the regression of every series; it has to have more rows than columns."""
    n, last = factor.count, factor.mean.shape[1] - 1
    problems = _problems(factor)
    good = problems == ""
    # Series with a problem are solved with a stand-in, because LAPACK refuses a whole stack that holds one NaN.
    triangle = np.where(good[:, None, None], factor.triangle, np.eye(last + 1))
    mean = np.where(good[:, None], factor.mean, 0.0)
    sizes = np.linalg.norm(triangle[:, :last, :last], axis=1)
    inner = np.linalg.inv(triangle[:, :last, :last] / sizes[:, None]) / sizes[:, :, None]
    # The triangular factor of X itself has the constant's row (sqrt(n), sqrt(n) mean) above R; `root` is its inverse.
    root = np.zeros((len(mean), last + 1, last + 1))
    root[:, 0, 0] = 1 / np.sqrt(n)
    root[:, 1:, 1:] = inner
    root[:, :1, 1:] = -mean[:, None, :last] @ inner
    response = np.concatenate([np.sqrt(n) * mean[:, last:], triangle[:, :last, last]], axis=1)
    spectrum = np.linalg.svd(root, compute_uv=False)
    with np.errstate(over="ignore"):
        inverse = root @ root.transpose(0, 2, 1)
    problems[good & ~np.isfinite(inverse).all((1, 2))] = TOO_SMALL
    numbers = (
        (root @ response[:, :, None])[:, :, 0],
        inverse,
        triangle[:, last, last] ** 2,
        (triangle[:, :, last] ** 2).sum(1),
        spectrum[:, 0] / spectrum[:, -1],
    )
    for table in numbers:
        table[problems != ""] = np.nan
    return Solution(n, *numbers, problems)


def _problems(factor: Factor) -> Array:
    """Say for every series why it cannot be solved, "" if it can."""
    n, mean, last = factor.count, factor.mean, factor.mean.shape[1] - 1
    with np.errstate(invalid="ignore", over="ignore"):
        squares = (factor.triangle**2).sum(1)
    finite = np.isfinite(squares).all(1) & np.isfinite(mean).all(1)
    flat = is_constant(squares, mean, n)
    problems = np.full(len(mean), "", dtype=object)
    problems[flat[:, :last].any(1)] = COLLINEAR
    problems[flat[:, last]] = CONSTANT
    problems[~finite] = NOT_FINITE
    held = np.flatnonzero(problems == "")
    if not last or not len(held):
        return problems
    sizes = np.sqrt(squares[held, :last])
    spectrum = np.linalg.svd(factor.triangle[held, :last, :last] / sizes[:, None], compute_uv=False)
    # Rounding of the values themselves moves a column by a share eps |mean| / sd of its spread.
    blur = 1 + np.max(np.abs(mean[held, :last]) / sizes * np.sqrt(n), axis=1)
    problems[held[spectrum[:, -1] <= 4 * last * _EPS * blur * spectrum[:, 0]]] = COLLINEAR
    return problems


def is_constant(squares: Array, mean: Array, n: int) -> Array:
    """Return whether squared deviations from the mean of n values sum to no more than rounding leaves."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(squares / n) <= 16 * _EPS * np.abs(mean)
