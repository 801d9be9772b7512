"""The quantile sketch keeps its stated error, and merges exactly, in any order."""

from __future__ import annotations

import measure_cases as cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pellucid as pl
from pellucid.measure.groups import Sketch

SHARES = np.array([0, 0.01, 0.25, 0.5, 0.75, 0.99, 1])
NUMBERS = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), min_size=1, max_size=40)


def sketch_of(numbers: np.ndarray, error: float = 0.01) -> Sketch:
    return Sketch.of(numbers, error)


def assert_within(numbers: np.ndarray, error: float) -> None:
    """As the paper states it: relative to the true one of rank floor(q (n - 1)); below 2.3e-308 it counts as zero."""
    estimate = sketch_of(numbers[None], error).quantiles(SHARES, error)[0]
    true = np.quantile(numbers, SHARES, method="lower")
    assert np.all(np.abs(estimate - true) <= error * np.abs(true) + 2.3e-308)


@given(NUMBERS, st.sampled_from([0.1, 0.01, 0.001]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_error_is_as_stated(numbers: list[float], error: float) -> None:
    assert_within(np.array(numbers), error)


@pytest.mark.parametrize("error", [0.3, 0.02, 0.0001])
def test_the_error_is_as_stated_on_many_numbers(error: float) -> None:
    draw = np.random.default_rng(0)
    for numbers in (draw.standard_normal(5000), draw.lognormal(0, 2, 5000), -draw.pareto(1, 5000), np.zeros(5)):
        assert_within(numbers, error)


def test_edges_of_buckets_keep_it_too() -> None:
    """Powers of gamma, which the logarithm may round to either side."""
    error = 0.01
    gamma = (1 + error) / (1 - error)
    for exponent in range(-2000, 2000, 7):
        for number in np.nextafter(gamma**exponent, [0, gamma**exponent, np.inf]):
            assert_within(np.array([number / 2, number, number * 2]), error)


def same(a: Sketch, b: Sketch) -> bool:
    """Equal counts, whatever room was made for them."""

    def trimmed(s: Sketch) -> list[object]:
        held = np.argwhere(s.counts)
        return [(int(k), int(g), int(i) + s.low, int(s.counts[k, g, i])) for k, g, i in held]

    return (
        trimmed(a) == trimmed(b)
        and np.array_equal(a.zeros, b.zeros)
        and np.array_equal(a.least, b.least)
        and np.array_equal(a.greatest, b.greatest)
    )


@given(st.lists(NUMBERS, min_size=2, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_merging_is_exact_in_any_order(parts: list[list[float]], random: object) -> None:
    whole = sketch_of(np.array([[x for part in parts for x in part]]))
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    merged = sketch_of(np.empty((1, 0)))
    for part in shuffled:
        merged = merged.merge(sketch_of(np.array([part])))
    assert same(merged, whole)
    assert np.array_equal(merged.quantiles(SHARES, 0.01), whole.quantiles(SHARES, 0.01))


def test_merging_leaves_the_other_as_it_was() -> None:
    a, b = sketch_of(np.array([[1.0, 2.0]])), sketch_of(np.array([[1e-5, 1e5]]))
    before = [part.counts.copy() for part in (a, b)]
    whole = sketch_of(np.empty((1, 0))).merge(b).merge(a).merge(sketch_of(np.array([[3.0]])))
    assert all(np.array_equal(part.counts, held) for part, held in zip((a, b), before, strict=True))
    assert (a.count.tolist(), b.count.tolist(), whole.count.tolist()) == ([2], [2], [5])


def test_groups_stay_apart_and_missing_numbers_are_left_out() -> None:
    sketch = sketch_of(np.array([[1.0, np.nan, 5.0], [np.nan, np.nan, np.nan], [-2.0, 0.0, 1e-320]]))
    assert sketch.count.tolist() == [2, 0, 3]
    found = sketch.quantiles(np.array([0, 1]), 0.01)
    assert np.isnan(found[1]).all()
    assert np.allclose(found[0], [1, 5], rtol=0.01)
    assert np.allclose(found[2], [-2, 0], rtol=0.01)


def test_memory_follows_the_range_not_the_number() -> None:
    draw = np.random.default_rng(0)
    sketch = sketch_of(draw.uniform(1, 1000, (1, 100)))
    sizes = set()
    for _ in range(20):
        sketch = sketch.merge(sketch_of(draw.uniform(1, 1000, (1, 1000))))
        sizes.add(sketch.counts.nbytes)
    assert max(sizes) <= 2 * 8 * (np.log(1000) / 0.02 + 2)


def test_a_state_goes_on() -> None:
    runs = [cases.run_of(texts) for texts in (cases.texts_of([9, 4]), cases.texts_of([12], seed=1))]
    first, again, whole = (pl.measure.Quantiles("resid_post") for _ in range(3))
    first.update(runs[0])
    again.load(first.state())
    for statistic, rest in ((again, runs[1:]), (whole, runs)):
        for run in rest:
            statistic.update(run)
    assert again.result().identical(whole.result())
    assert same(again.gathered(), whole.gathered())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("low", np.asarray(-(10**6))),
        ("low", np.asarray(0.0)),
        ("counts", np.zeros((2, 1, 3), dtype=np.int64)),
        ("zeros", np.full(3 * 6, -1)),
        ("least", np.zeros(18, dtype=np.float32)),
        ("shape", np.asarray([2, 6])),
        ("about", np.zeros(3, dtype=np.int8)),
    ],
)
def test_a_state_that_no_sketch_has_is_refused(name: str, value: np.ndarray) -> None:
    gathered = pl.measure.Quantiles("resid_post")
    gathered.update(cases.run_of(cases.texts_of([9])))
    with pytest.raises(
        ValueError, match="it has buckets" if value.ndim == 0 and value < 0 else f"^{name} is|^{name} h"
    ):
        pl.measure.Quantiles("resid_post").load({**gathered.state(), name: value})
