"""What follows from a least-squares fit: p-values, corrections for many tests, robust errors, checks of residuals."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from pellucid.errors import InputError
from pellucid.extras import need
from pellucid.measure.design import Design
from pellucid.measure.labelled import Array
from pellucid.measure.solve import Solution


def two_sided(t: Array, df: int) -> Array:
    """p-values of t statistics against Student's distribution, two-sided."""
    return 2 * need("scipy.special", "p-values").stdtr(df, -np.abs(t))


def holm(p: Array) -> Array:
    """Holm's step-down adjustment (1979), which bounds the chance of any false rejection.

    With m p-values in ascending order, the i-th becomes the largest of (m - j + 1) p_j over j <= i, at most 1.
    """
    m = len(p)
    return np.minimum(np.maximum.accumulate((m - np.arange(m)) * p), 1.0)


def benjamini_hochberg(p: Array) -> Array:
    """Benjamini and Hochberg's step-up adjustment (1995), which bounds the share of false rejections.

    With m p-values in ascending order, the i-th becomes the smallest of m p_j / j over j >= i, at most 1.
    """
    m = len(p)
    return np.minimum(np.minimum.accumulate((m / np.arange(1, m + 1) * p)[::-1])[::-1], 1.0)


CORRECTIONS: dict[str, Callable[[Array], Array]] = {"holm": holm, "bh": benjamini_hochberg}
"""Method -> adjustment of ascending p-values."""


def corrected(p: Array, method: str) -> Array:
    """p-values [S, k] adjusted over the S tests of each column; NaN stays out.

    Raises:
        InputError: An unknown method.
    """
    if not isinstance(method, str) or method not in CORRECTIONS:
        raise InputError(
            f"corrected: {method!r}, expected one of {', '.join(map(repr, CORRECTIONS))}.",
            code="unknown-correction",
            remedy="'holm' bounds the chance of any false rejection, 'bh' the share of false ones.",
        )
    out = np.full_like(p, np.nan)
    for column in range(p.shape[1]):
        held = np.flatnonzero(~np.isnan(p[:, column]))
        order = held[np.argsort(p[held, column], kind="stable")]
        out[order, column] = CORRECTIONS[method](p[order, column])
    return out


def newey_west_lags(rows: int) -> int:
    """How many lags Newey & West (1994) take for so many rows: floor(4 (n / 100)^(2/9))."""
    return int(4 * (rows / 100) ** (2 / 9))


def plain_covariance(solution: Solution) -> Array:
    """[S, k, k]: the residual variance times the inverse of X'X."""
    df = solution.count - solution.params.shape[1]
    return solution.inverse * (solution.ssr / df)[:, None, None]


def hac_covariance(design: Design, solution: Solution, maxlags: int) -> Array:
    """[S, k, k]: covariance that allows for heteroskedasticity and autocorrelation (Newey & West 1987).

    (X'X)^-1 (G_0 + sum_l w_l (G_l + G_l')) (X'X)^-1 with G_l = sum_t x_t e_t e_(t-l) x_(t-l)' and Bartlett's weights
    w_l = 1 - l / (maxlags + 1). Products of two texts do not enter.
    """
    out = np.empty_like(solution.inverse)
    for block, columns, residual in _centred_blocks(design, solution):
        scores = np.stack([residual, *(column * residual for column in columns[1:])], axis=1)
        size = np.abs(scores).max(2, keepdims=True)  # their products would leave the range of numbers before they do
        size[size == 0] = 1.0
        scores /= size
        meat = scores @ scores.transpose(0, 2, 1)
        for lag in range(1, maxlags + 1):
            same = design.text[lag:] == design.text[:-lag]
            product = (scores[:, :, lag:] * same) @ scores[:, :, :-lag].transpose(0, 2, 1)
            meat += (1 - lag / (maxlags + 1)) * (product + product.transpose(0, 2, 1))
        bread = solution.inverse[block].copy()
        # Of centred regressors the inverse has the constant apart; the constant's row is put back afterwards.
        shift = np.zeros_like(bread)
        shift[:, range(shift.shape[1]), range(shift.shape[1])] = 1.0
        shift[:, 0, 1:] = -_means(design, block)
        bread[:, 0, :] = bread[:, :, 0] = 0.0
        bread[:, 0, 0] = 1 / solution.count
        half = shift @ bread * size.transpose(0, 2, 1)
        out[block] = half @ meat @ half.transpose(0, 2, 1)
    return out


def ljung_box(design: Design, solution: Solution, lags: int, model_df: int) -> tuple[Array, Array]:
    """(Q, p): whether the residuals' first autocorrelations are zero together (Ljung & Box 1978).

    Q = n (n + 2) sum_l r_l^2 / n_l, with r_l the autocorrelation at lag l and n_l how many products it has (n - l
    for one text; those of two texts do not enter); chi-square with lags - model_df degrees of freedom.

    Returns:
        [S] each; p is NaN where no degree of freedom is left.
    """
    n = solution.count
    statistic = np.empty(len(solution.params))
    for block, _, residual in _centred_blocks(design, solution):
        total = np.zeros(len(residual))
        for lag in range(1, lags + 1):
            same = design.text[lag:] == design.text[:-lag]
            correlation = (residual[:, lag:] * same * residual[:, :-lag]).sum(1) / (residual**2).sum(1)
            total += correlation**2 / same.sum()
        statistic[block] = n * (n + 2) * total
    if lags <= model_df:
        return statistic, np.full_like(statistic, np.nan)
    return statistic, need("scipy.special", "ljung_box").chdtrc(lags - model_df, statistic)


def residuals(design: Design, solution: Solution) -> Iterator[tuple[slice, Array]]:
    """(series, [s, R]) block by block."""
    for block, _, residual in _centred_blocks(design, solution):
        yield block, residual


def _centred_blocks(design: Design, solution: Solution) -> Iterator[tuple[slice, list[Array], Array]]:
    """(series, columns less their means, residuals)."""
    rows = slice(0, len(design.at))
    with np.errstate(invalid="ignore", over="ignore"):  # series with a problem come out as NaN
        for block in design.blocks():
            columns = [design.column(number, block, rows) for number in range(len(design.names))]
            columns = [column - column.mean(1, keepdims=True) for column in columns]
            slopes = solution.params[block, 1:]
            residual = columns[0].copy()
            for number, column in enumerate(columns[1:]):
                residual -= slopes[:, number, None] * column
            yield block, columns, residual


def _means(design: Design, block: slice) -> Array:
    """[s, k - 1] of the regressors."""
    rows = slice(0, len(design.at))
    size = block.stop - block.start
    means = [design.column(number, block, rows).mean(1) for number in range(1, len(design.names))]
    return np.stack([np.broadcast_to(mean, (size,)) for mean in means], axis=1) if means else np.empty((size, 0))
