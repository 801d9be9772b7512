"""Least squares from triangular factors: against numpy, against exact arithmetic, and what it must not fit."""

from __future__ import annotations

from fractions import Fraction

import measure_cases as cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.measure import series as rows
from pellucid.measure.series import COLLINEAR, CONSTANT, NOT_FINITE, Design, Factor, Panel, Solution, solve


def design_of(values: np.ndarray, lags: int, skip: int = 0) -> Design:
    """Of one text each, [S, P]."""
    position = np.arange(values.shape[1])[None]
    return Design.of(Panel(values[:, None], position), lags, skip)


def exact(response: np.ndarray, matrix: np.ndarray) -> tuple[list[float], list[float], float]:
    """(parameters, diagonal of (X'X)^-1, residual sum of squares), in rational numbers."""
    x = [[Fraction(float(v)) for v in row] for row in matrix]
    y = [Fraction(float(v)) for v in response]
    size = len(x[0])
    gram = [[sum(row[i] * row[j] for row in x) for j in range(size)] for i in range(size)]
    table = [
        [*gram[i], sum(row[i] * v for row, v in zip(x, y, strict=True)), *(Fraction(i == j) for j in range(size))]
        for i in range(size)
    ]
    for i in range(size):
        pivot = table[i][i]
        table[i] = [v / pivot for v in table[i]]
        for j in range(size):
            if j != i:
                table[j] = [a - table[j][i] * b for a, b in zip(table[j], table[i], strict=True)]
    params = [table[i][size] for i in range(size)]
    ssr = sum((v - sum(p * c for p, c in zip(params, row, strict=True))) ** 2 for row, v in zip(x, y, strict=True))
    return [float(p) for p in params], [float(table[i][size + 1 + i]) for i in range(size)], float(ssr)


def assert_exact(values: np.ndarray, lags: int, tolerance: float) -> Solution:
    design = design_of(values, lags)
    solution = solve(design.factor())
    for series in range(len(values)):
        response, matrix = design.matrix(series)
        params, diagonal, ssr = exact(response, matrix)
        # The constant is a difference of terms as large as the mean, so its error is measured against these.
        unit = np.maximum(np.abs(params), np.r_[np.abs(response).max(), np.zeros(lags)])
        assert np.all(np.abs(solution.params[series] - params) <= tolerance * unit)
        assert np.allclose(np.diag(solution.inverse[series]), diagonal, rtol=tolerance, atol=0)
        assert solution.ssr[series] == pytest.approx(ssr, rel=tolerance)
        assert solution.tss[series] == pytest.approx(((response - response.mean()) ** 2).sum(), rel=1e-12)
    return solution


def test_the_numbers_are_those_of_exact_arithmetic() -> None:
    """To 1e-9, what the documentation promises."""
    for mean in (0.0, 4.0, 1e4):
        assert_exact(cases.series(3, 30, mean=mean).values, 2, 1e-9)


@given(
    st.integers(0, 9999),
    st.integers(8, 25),
    st.integers(1, 3),
    st.sampled_from([0.0, 1.0, -1e4, 1e8]),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.sampled_from([0.0, 0.99, 1.0]),
    st.sampled_from([0.0, 10.0, 100.0, 300.0, 1000.0]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_and_so_they_are_of_other_series(
    seed: int, length: int, lags: int, mean: float, scale: float, persistence: float, wave: float
) -> None:
    """Random walks, and waves with little noise; far from zero too, where subtracting the mean is exact.

    To 1e-9, or to what the condition number of the columns leaves of sixteen digits.
    """
    noise = np.random.default_rng(seed).standard_normal((1, length))
    values = np.zeros_like(noise)
    for t in range(length):
        values[:, t] = persistence * values[:, t - 1] + noise[:, t]
    values = mean + scale * (values + wave * np.sin(np.arange(length) / 3))
    columns = design_of(values, lags).matrix(0)[1][:, 1:]
    condition = np.linalg.cond((columns - columns.mean(0)) / columns.std(0))
    assert_exact(values, lags, max(1e-9, 1e-12 * condition))


def test_nearly_dependent_columns_are_solved() -> None:
    """A smooth curve with a little noise: sums of products, whose condition number is 1e10, would not determine it."""
    t = np.arange(40.0)
    noise = np.random.default_rng(0).standard_normal((2, 40))
    values = np.sin(t / 300) + 1e-8 * noise
    design = design_of(values, 3)
    params, _, ssr = exact(*design.matrix(0))
    found = solve(design.factor())
    assert found.problems.tolist() == ["", ""]
    # The error grows with the condition number of the columns: 1e5 times the rounding of columns near 1.
    assert np.allclose(found.params[0], params, rtol=1e-6)
    assert found.ssr[0] == pytest.approx(ssr, rel=1e-6)


def test_a_perfect_fit_is_not_got_by_subtraction() -> None:
    """A recurrence without noise: differences would leave a residual sum of squares of any sign."""
    values = np.empty((1, 60))
    values[0, :2] = 1.0, 0.3
    for t in range(2, 60):
        values[0, t] = 1.6 * values[0, t - 1] - 0.97 * values[0, t - 2] + 0.2
    found = solve(design_of(values, 2).factor())
    assert np.allclose(found.params[0], [0.2, 1.6, -0.97], rtol=1e-12)
    assert 0 <= found.ssr[0] < 1e-25


def test_the_condition_number_is_that_of_the_columns() -> None:
    for lags in (0, 1, 3):
        design = design_of(cases.series(3, 30).values, lags)
        for number, series in zip(solve(design.factor()).condition, range(3), strict=True):
            assert number == pytest.approx(np.linalg.cond(design.matrix(series)[1]), rel=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9])
def test_a_constant_series_is_marked(constant: float) -> None:
    solution = solve(design_of(np.full((1, 20), constant), 2).factor())
    assert solution.problems.tolist() == [CONSTANT]
    assert np.isnan(solution.params).all()


@pytest.mark.parametrize("values", [np.arange(30.0), np.tile([1.0, 2.0], 15), 1e6 + np.arange(30.0) / 3])
def test_dependent_columns_are_marked(values: np.ndarray) -> None:
    """A straight line, whose lags differ by a constant, and an alternation, whose second lag is the response."""
    found = solve(design_of(values[None], 2).factor())
    assert found.problems.tolist() == [COLLINEAR]
    for numbers in (found.params, found.inverse, found.ssr, found.tss, found.condition):
        assert np.isnan(numbers).all()


def test_a_constant_regressor_is_marked() -> None:
    columns = np.stack([np.arange(9.0), np.full(9, 0.1), np.arange(9.0) ** 2])
    assert solve(Factor.of(columns[None])).problems.tolist() == [COLLINEAR]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_what_is_not_finite_is_marked_and_stays_apart(bad: float) -> None:
    values = cases.series(3, 50).values
    values[1, 20] = bad
    solution = solve(design_of(values, 2).factor())
    assert solution.problems.tolist() == ["", NOT_FINITE, ""]
    alone = solve(design_of(values[[0, 2]], 2).factor())
    assert np.array_equal(solution.params[[0, 2]], alone.params)


def products_of(factor: Factor) -> np.ndarray:
    """Sums of products of deviations from the mean."""
    return factor.triangle.transpose(0, 2, 1) @ factor.triangle


@given(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9999))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_merging_gives_the_whole_in_any_order(a: int, b: int, c: int, seed: int) -> None:
    """To 1e-9 of deviations near 1; a part may have fewer rows than columns, or none."""
    data = np.random.default_rng(seed).normal(1e3, 1, (a + b + c, 3))
    parts = [Factor.of(part.T[None]) for part in np.split(data, [a, a + b])]
    away = data - data.mean(0)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        merged = parts[order[0]].merge(parts[order[1]]).merge(parts[order[2]])
        assert merged.count == len(data)
        assert merged.triangle.shape == (1, 3, 3)
        assert np.allclose(merged.mean, data.mean(0), rtol=1e-14)
        assert np.allclose(products_of(merged), away.T @ away, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("at_once", [1, 400, 1 << 30])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    design = design_of(cases.series(5, 60).values, 3, 2)
    whole, residuals = design.factor(), design.residuals(solve(design.factor()))
    monkeypatch.setattr(rows, "AT_ONCE", at_once)
    assert np.allclose(design.factor().triangle, whole.triangle, rtol=1e-12, atol=1e-12)
    assert np.allclose(design.factor().mean, whole.mean, rtol=1e-14)
    assert np.allclose(design.residuals(solve(whole)), residuals, rtol=1e-12, atol=1e-12, equal_nan=True)


@given(st.integers(0, 4), st.integers(0, 3), st.lists(st.integers(1, 9), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_rows_never_cross_texts(lags: int, skip: int, lengths: list[int]) -> None:
    """Every cell holds its text and position, so that a row that reached too far would show."""
    for left in (True, False):
        columns = max(lengths)
        values = np.full((1, len(lengths), columns), np.nan)
        position = np.full((len(lengths), columns), -1)
        for text, length in enumerate(lengths):
            at = slice(columns - length, columns) if left else slice(0, length)
            position[text, at] = np.arange(length)
            values[0, text, at] = 100 * text + np.arange(length)
        design = Design.of(Panel(values, position), lags, skip)
        response, matrix = design.matrix(0) if len(design.at) else (np.empty(0), np.empty((0, lags + 1)))
        expected = [100 * b + t for b, length in enumerate(lengths) for t in range(skip + lags, length)]
        assert response.tolist() == expected
        for lag in range(1, lags + 1):
            assert matrix[:, lag].tolist() == [value - lag for value in expected]
