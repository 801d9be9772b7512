"""Least squares for many series at once, from triangular factors that merge.

The columns of a regression, the response last, are centred and reduced to the triangular factor R of their Householder
QR factorization, which holds all that least squares needs: slopes, residual and total sum of squares. R is as accurate
as the columns; sums of their products would square the condition number (Golub & Van Loan 2013, section 5.3). Two
factors merge when they are stacked and factored again (Demmel, Grigori, Hoemmen & Langou 2012), with one more row for
the distance between the means.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pellucid.measure.labelled import Array

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
