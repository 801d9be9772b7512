"""Least squares for many series at once, from sums of products that merge.

Normal equations are fast and, formed from centred and scaled columns, accurate as long as these are not nearly
dependent: the relative error of parameters and standard errors grows like the condition number of the regressors'
correlation matrix, times the unit roundoff (Golub & Van Loan 2013, section 5.3). The residual sum of squares is what
is left of the total one by subtraction, so that its error grows further by their ratio. Where condition number and
ratio together exceed `LIMIT`, a series is `doubtful` and has to be solved by QR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pellucid.measure.labelled import Array
from pellucid.measure.state import state_array

LIMIT = 1e6
"""Of the condition number (in the Frobenius norm, which bounds it) times the ratio: 1e6 unit roundoffs are 2e-10."""

_EPS = float(np.finfo(np.float64).eps)

CONSTANT = "the series is constant"
COLLINEAR = "the columns of the design are linearly dependent"
NOT_FINITE = "a value is not finite"


@dataclass(frozen=True)
class CrossProducts:
    """What least squares needs to know of S series with K columns each, the response first.

    Two merge by the formula of Chan, Golub & LeVeque (1983), which does not cancel.

    Attributes:
        count: Rows.
        mean: [S, K].
        comoment: [S, K, K], sums of products of deviations from the mean.
    """

    count: int
    mean: Array
    comoment: Array

    def merge(self, other: CrossProducts) -> CrossProducts:
        """Of both together."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        delta = other.mean - self.mean
        between = delta[:, :, None] * delta[:, None, :] * (self.count * (other.count / count))
        mean = self.mean + delta * (other.count / count)
        return CrossProducts(count, mean, self.comoment + other.comoment + between)

    @classmethod
    def of_state(cls, state: Mapping[str, Array], series: int, columns: int) -> CrossProducts:
        """What a file holds under its fields' names.

        Raises:
            ValueError: Arrays that no sums can be.
        """
        count = int(state_array(state, "count", "i", ()))
        mean = state_array(state, "mean", "f", (series, columns))
        return cls(count, mean, state_array(state, "comoment", "f", (series, columns, columns)))


@dataclass
class Solution:
    """Ordinary least squares with a constant, for S series.

    Attributes:
        count: Rows.
        params: [S, k], the constant first.
        inverse: [S, k, k], the inverse of X'X.
        ssr: [S], sum of squared residuals.
        tss: [S], sum of squared deviations of the response from its mean.
        problems: [S], why a series has no solution, "" where it has one.
        doubtful: [S], whether the numbers are less accurate than `LIMIT` promises.
    """

    count: int
    params: Array
    inverse: Array
    ssr: Array
    tss: Array
    problems: Array
    doubtful: Array

    def put(self, series: int, other: Solution) -> None:
        """Replace one series' solution by that of another computation, of one series."""
        for name in ("params", "inverse", "ssr", "tss", "problems", "doubtful"):
            getattr(self, name)[series] = getattr(other, name)[0]


def solve(products: CrossProducts) -> Solution:
    """Solve the normal equations of every series.

    Args:
        products: Of more rows than columns.

    Returns:
        NaN where there is a problem.
    """
    n, mean, comoment = products.count, products.mean, products.comoment
    scale = np.sqrt(np.einsum("skk->sk", comoment))
    tss, sizes = comoment[:, 0, 0], scale[:, 1:]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        correlation = comoment[:, 1:, 1:] / (sizes[:, :, None] * sizes[:, None, :])
        factor_inverse, pivots = _inverse_of_cholesky(correlation)
        correlation_inverse = np.einsum("ski,skj->sij", factor_inverse, factor_inverse)
        root = factor_inverse / sizes[:, None, :]
        slopes = np.einsum("ski,sk->si", root, np.einsum("skj,sj->sk", root, comoment[:, 1:, 0]))
        ssr = tss - np.einsum("si,si->s", slopes, comoment[:, 1:, 0])
        condition = np.sqrt((correlation**2).sum((1, 2)) * (correlation_inverse**2).sum((1, 2)))
        accurate = (np.maximum(condition, 1.0) * tss <= LIMIT * ssr) & (pivots > 0).all(1)
    finite = np.isfinite(comoment).all((1, 2)) & np.isfinite(mean).all(1)
    problems = np.full(len(mean), "", dtype=object)
    problems[is_constant(tss, mean[:, 0], n)] = CONSTANT
    problems[~finite] = NOT_FINITE
    solution = assemble(n, mean, slopes, root, ssr, tss)
    solution.problems, solution.doubtful = problems, ~accurate & (problems == "")
    clear(solution)
    return solution


def assemble(n: int, mean: Array, slopes: Array, root: Array, ssr: Array, tss: Array) -> Solution:
    """The parameters with their constant.

    Args:
        n: Rows.
        mean: [S, k], of the response and the k - 1 regressors.
        slopes: [S, k - 1].
        root: [S, k - 1, k - 1], such that root' root is the inverse of the centred regressors' products; the
            constant's variance is a sum of squares by it, and not a difference of large terms.
        ssr: [S].
        tss: [S].
    """
    centre, size = mean[:, 1:], len(mean)
    columns = centre.shape[1] + 1
    params, inverse = np.empty((size, columns)), np.empty((size, columns, columns))
    params[:, 0] = mean[:, 0] - np.einsum("si,si->s", centre, slopes)
    params[:, 1:] = slopes
    turned = np.einsum("ski,si->sk", root, centre)
    inverse[:, 0, 0] = 1 / n + np.einsum("sk,sk->s", turned, turned)
    inverse[:, 0, 1:] = inverse[:, 1:, 0] = -np.einsum("ski,sk->si", root, turned)
    inverse[:, 1:, 1:] = np.einsum("ski,skj->sij", root, root)
    return Solution(n, params, inverse, ssr, tss.copy(), np.full(size, "", dtype=object), np.zeros(size, dtype=bool))


def clear(solution: Solution) -> None:
    """No number where there is a problem."""
    bad = solution.problems != ""
    for numbers in (solution.params, solution.inverse, solution.ssr, solution.tss):
        numbers[bad] = np.nan


def is_constant(sum_of_squares: Array, mean: Array, n: int) -> Array:
    """Whether what varies is what rounding leaves of a constant."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(sum_of_squares / n) <= 16 * _EPS * np.abs(mean)


def solve_by_qr(response: Array, regressors: Array) -> Solution:
    """One series, by Householder QR of the centred and scaled columns.

    Args:
        response: [R].
        regressors: [R, k - 1], without the constant.
    """
    n = len(response)
    columns = np.column_stack([response, regressors])
    first = columns.mean(0)
    away = columns - first
    second = away.mean(0)  # what rounding left in the first: far from zero it is no small share of the spread
    y, away = away[:, 0] - second[0], away[:, 1:] - second[1:]
    mean = (first + second)[None]
    centre = mean[0, 1:]
    sizes = np.sqrt((away**2).sum(0))
    varies = ~is_constant(sizes**2, centre, n)
    q, r = np.linalg.qr(away[:, varies] / sizes[varies])
    spectrum = np.linalg.svd(r, compute_uv=False)
    # Rounding of the values themselves moves the columns by a share eps * |mean| / sd of their spread.
    blur = 1 + np.max(np.abs(centre[varies]) / sizes[varies] * np.sqrt(n), initial=0.0)
    if not varies.all() or (len(spectrum) and spectrum[-1] <= 4 * len(sizes) * _EPS * blur * spectrum[0]):
        hole = np.full((1, len(sizes)), np.nan)
        empty = assemble(n, mean, hole, np.full((1, len(sizes), len(sizes)), np.nan), hole[:, 0], hole[:, 0])
        empty.problems[:] = COLLINEAR
        clear(empty)
        return empty
    r_inverse = np.linalg.inv(r)
    slopes = r_inverse @ (q.T @ y) / sizes
    residual = y - away @ slopes
    root = r_inverse.T / sizes
    return assemble(n, mean, slopes[None], root[None], np.array([residual @ residual]), np.array([y @ y]))


def _inverse_of_cholesky(matrices: Array) -> tuple[Array, Array]:
    """(inverse of the lower Cholesky factor, pivots), of all matrices at once; NaN where one is not positive."""
    size = matrices.shape[-1]
    factor, inverse = np.zeros_like(matrices), np.zeros_like(matrices)
    pivots = np.ones(matrices.shape[:2])
    for k in range(size):
        rest = matrices[:, k:, k] - np.einsum("sij,sj->si", factor[:, k:, :k], factor[:, k, :k])
        pivots[:, k] = rest[:, 0]
        factor[:, k:, k] = rest / np.sqrt(np.where(rest[:, :1] > 0, rest[:, :1], np.nan))
    for k in range(size):
        unit = np.zeros(size)
        unit[k] = 1.0
        rest = unit - np.einsum("sj,sji->si", factor[:, k, :k], inverse[:, :k])
        inverse[:, k] = rest / factor[:, k, k, None]
    return inverse, pivots
