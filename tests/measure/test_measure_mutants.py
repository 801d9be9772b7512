"""Each mutant breaks one thing in `measure`; the test that guards it passes unbroken and must fail broken."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_measure_attention as attention
import test_measure_distributions as distributions
import test_measure_moments as moments
import test_measure_norms as norms
import test_measure_regression as regression
import test_measure_sketch as sketch
import test_measure_solve as solving
import test_measure_stream as streaming
import torch

import pellucid as pl
from pellucid import atomic, corpus
from pellucid.measure.groups import Sketch
from pellucid.measure.labelled import Captured
from pellucid.measure.series import Design, Factor, Solution
from pellucid.measure.statistic import Statistic

Patch = pytest.MonkeyPatch
Breaks = Callable[[Patch], None]


def module(name: str) -> Any:
    """A module of `measure`; the package's attribute of the same name may be a function."""
    return importlib.import_module(f"pellucid.measure.{name}")


@dataclass(frozen=True)
class Mutant:
    """One thing broken, and the test that must notice."""

    what: str
    breaks: Breaks
    check: Callable[[], None]


@contextmanager
def mutated(breaks: Breaks) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        breaks(patch)
        yield


def put(owner: Any, name: str, value: Any) -> Breaks:
    return lambda patch: patch.setattr(module(owner) if isinstance(owner, str) else owner, name, value)


def wrapped(owner: Any, name: str, make: Callable[[Any], Any]) -> Breaks:
    def breaks(patch: Patch) -> None:
        held = module(owner) if isinstance(owner, str) else owner
        patch.setattr(held, name, make(getattr(held, name)))

    return breaks


def in_folder(check: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    def run() -> None:
        with TemporaryDirectory() as folder:
            check(Path(folder), *arguments)

    return run


def one(check: Any, *arguments: Any) -> Callable[[], None]:
    """One example of a property, without hypothesis' search for a smaller one."""
    return lambda: check.hypothesis.inner_test(*arguments)


# What is read


def pads_are_numbers(patch: Patch) -> None:
    patch.setattr(Captured, "real", property(lambda self: None))


def masked_scores_are_numbers(patch: Patch) -> None:
    mask = lambda self: torch.ones(1, 1, 1, 1, dtype=torch.bool)  # noqa: E731
    plain = Captured.real.func
    patch.setattr(Captured, "real", property(lambda self: mask(self) if self.axes == norms.ATTENTION else plain(self)))


def columns_instead_of_positions(patch: Patch) -> None:
    def position(self: Captured) -> torch.Tensor:
        return torch.arange(self.ckpts.batch.ids.size(1)).expand(self.ckpts.batch.ids.shape)[:, self.ckpts.columns]

    patch.setattr(Captured, "position", property(position))


def labelled_by_column(plain: Any) -> Any:
    def coordinates(self: pl.ActivationCkpts, dims: Any, **given: Any) -> dict[str, Any]:
        labels = plain(self, dims, **given)
        return labels | {"position": (["batch", "pos"], 0 * labels["position"][1] + labels["pos"])}

    return coordinates


def one_norm(plain: Any) -> Any:
    return lambda value, dim, dtype: value.to(dtype).abs().sum(dim)


def norm_in_its_own_dtype(plain: Any) -> Any:
    return lambda value, dim, dtype: plain(value, dim=dim).to(dtype)


READING = [
    Mutant("pads are measured", pads_are_numbers,
           lambda: norms.test_norms_are_lengths_of_every_kind("resid_post", "left")),
    Mutant("masked scores are measured", masked_scores_are_numbers,
           lambda: norms.test_norms_are_lengths_of_every_kind("attn.ckpt_scores", "right")),
    Mutant("positions are columns", wrapped(pl.ActivationCkpts, "coordinates", labelled_by_column), norms.test_labels),
    Mutant("another norm", wrapped(torch.linalg, "vector_norm", one_norm),
           lambda: norms.test_norms_are_lengths_of_every_kind("attn.ckpt_z", "left")),
    Mutant("norms in half precision", wrapped(torch.linalg, "vector_norm", norm_in_its_own_dtype),
           norms.test_half_precision_is_measured_in_float64),
    Mutant("logarithm to base ten", put("labelled", "np", SimpleNamespace(**{**vars(np), "log": np.log10})),
           norms.test_logarithm_is_natural),
    Mutant("nothing is required to be finite", put(Captured, "require_finite", lambda *_: None),
           lambda: norms.test_a_value_that_is_not_finite_is_named("resid_post", torch.nan)),
    Mutant("rows are hashed without their lengths",
           put("labelled", "text_hash", lambda batch: str(batch.ids[batch.mask].tolist())),
           norms.test_provenance),
]  # fmt: skip


# Moments, distributions


def without_last_term(plain: Any) -> Any:
    def merge(self: Any, other: Any) -> Any:
        whole = plain(self, other)
        return replace(whole, m4=whole.m4 - 6 * (other.mean - self.mean) ** 2 * self.m2)

    return merge


def sample_variance(plain: Any) -> Any:
    def moments_of(self: Any) -> Any:
        found = plain(self)
        return {**found, "variance": found["variance"] * self.count / np.maximum(self.count - 1, 1)}

    return moments_of


def one_pass(cls: Any, data: Any) -> Any:
    """Powers summed as they are, which cancels far from zero."""
    n = (~np.isnan(data)).sum(-1)
    a, b, c, d = (np.nansum(data**k, -1) / np.maximum(n, 1) for k in (1, 2, 3, 4))
    return cls(n, a, n * (b - a**2), n * (c - 3 * a * b + 2 * a**3), n * (d - 4 * a * c + 6 * a**2 * b - 3 * a**4))


SUMS = moments.Sums
DESCRIBING = [
    Mutant("a term of the fourth power is lost in merging", wrapped(SUMS, "merge", without_last_term),
           one(moments.test_merging_gives_the_whole_in_any_order, [1.0, 2.0], [5.0, 9.0, 4.0], [-7.0])),
    Mutant("variance with n - 1", wrapped(SUMS, "moments", sample_variance),
           lambda: moments.test_moments_are_those_of_scipy(None, "left")),
    Mutant("powers in one pass", put(SUMS, "of", classmethod(one_pass)), moments.test_a_large_mean_does_not_cancel),
    Mutant("a constant has a skewness", put("groups", "_ROUNDING", -1.0),
           moments.test_rounding_of_a_constant_is_no_variation),
    Mutant("positions are not aligned", put("groups", "aligned", lambda array, axis="pos": array),
           moments.test_positions_that_are_kept_are_counted_from_each_texts_first_token),
    Mutant("bins by another rule", wrapped(np, "histogram", lambda plain: lambda row, bins: plain(row, bins="sturges")),
           distributions.test_histograms_are_numpys_with_the_rule_of_freedman_and_diaconis),
    Mutant("bandwidth from the deviation alone",
           put("distributions", "_bandwidth", lambda row, rule: np.asarray(0.9 * row.std(ddof=1) * len(row) ** -0.2)),
           distributions.test_the_bandwidth_is_stated),
    Mutant("density without its constant",
           wrapped("distributions", "_density", lambda plain: lambda row, h: (plain(row, h)[0], plain(row, h)[1] * h)),
           distributions.test_densities_are_scipys),
    Mutant("outliers by the mean", wrapped(np, "median", lambda plain: np.mean),
           distributions.test_a_planted_outlier_dimension_is_found_with_its_share),
]  # fmt: skip


# Regression


def rows_cross_texts(cls: Any, panel: Any, lags: int, skip: int, extra: Any = None) -> Design:
    fits = panel.position >= skip
    fits.ravel()[:lags] = False
    return cls(panel, np.flatnonzero(fits.ravel()), lags, extra or {})


def skip_by_column(plain: Any) -> Any:
    def of(panel: Any, lags: int, skip: int, extra: Any = None) -> Design:
        columns = np.broadcast_to(np.arange(panel.position.shape[1]), panel.position.shape)
        return plain(replace(panel, position=np.where(panel.position >= 0, columns, -1)), lags, skip, extra)

    return of


def skip_less(plain: Any) -> Any:
    return lambda panel, lags, skip, extra=None: plain(panel, lags, max(0, skip - 1), extra)


def lags_turned(plain: Any) -> Any:
    def columns(self: Design, series: slice) -> Any:
        found = plain(self, series)
        return np.concatenate([found[:, : self.lags][:, ::-1], found[:, self.lags :]], axis=1)

    return columns


def without_between(self: Factor, other: Factor) -> Factor:
    count = self.count + other.count
    mean = (self.count * self.mean + other.count * other.mean) / count
    triangle = np.linalg.qr(np.concatenate([self.triangle, other.triangle], axis=1), mode="r")
    return Factor(count, mean, triangle)


def one_text(plain: Any) -> Any:
    """The rows of all texts are taken for one text's."""

    def joined(design: Design, *given: Any) -> Any:
        values, position = design.panel.values, design.panel.position
        whole = replace(design.panel, values=values.reshape(len(values), 1, -1), position=position.reshape(1, -1))
        return plain(replace(design, panel=whole), *given)

    return joined


def wider_kernel(plain: Any) -> Any:
    return lambda design, solution, maxlags: plain(design, solution, maxlags + 1)


def all_degrees_of_freedom(plain: Any) -> Any:
    return lambda design, solution, lags, model_df: plain(design, solution, lags, 0)


def ddof_in_covariance(plain: Any) -> Any:
    def solved(factor: Factor) -> Solution:
        found = plain(factor)
        return replace(found, inverse=found.inverse * (found.count - 3) / found.count)

    return solved


def normal_instead_of_student(plain: Any) -> Any:
    def need(name: str, by: str) -> Any:
        found = plain(name, by)
        return SimpleNamespace(stdtr=lambda df, t: found.ndtr(t)) if by == "p-values" else found

    return need


def other_rows_for_each_order(patch: Patch) -> None:
    """Every order is fitted to as many rows as it can have."""
    plain = module("autoregression").replace

    def replaced(thing: Any, **changes: Any) -> Any:
        changed = plain(thing, **changes)
        if isinstance(thing, Design):
            begin = thing.at[0] - thing.lags + changed.lags
            return plain(changed, at=np.r_[np.arange(begin, thing.at[0]), thing.at])
        return changed

    patch.setattr(module("autoregression"), "replace", replaced)


def uncentred(columns: Any) -> Any:
    """Sums of products of the columns as they are, from which the means' are subtracted."""
    mean, count = columns.mean(2), columns.shape[2]
    products = columns @ columns.transpose(0, 2, 1) - count * mean[:, :, None] * mean[:, None]
    return Factor(count, mean, np.linalg.cholesky(products).transpose(0, 2, 1))


def marks_nothing(factor: Factor) -> Any:
    return np.full(len(factor.mean), "", dtype=object)


course = regression.test_the_procedure_of_the_course_gives_the_same_numbers
several = lambda: regression.test_texts_are_pooled_without_joining_them("left")  # noqa: E731
FITTING = [
    Mutant("rows cross texts", put(Design, "of", classmethod(rows_cross_texts)), several),
    Mutant("rows cross texts, by the cells", put(Design, "of", classmethod(rows_cross_texts)),
           one(solving.test_rows_never_cross_texts, 2, 1, [5, 7])),
    Mutant("skip counts columns", wrapped(Design, "of", skip_by_column), several),
    Mutant("the first token enters", wrapped(Design, "of", skip_less), regression.test_skipped_tokens_enter_nowhere),
    Mutant("one row too many", wrapped(Design, "of", skip_less), course),
    Mutant("lags in the other order", wrapped(Design, "columns", lags_turned),
           regression.test_the_first_point_fitted_is_skip_plus_lags_and_lags_are_in_order),
    Mutant("means of parts are not merged", put(Factor, "merge", without_between),
           one(solving.test_merging_gives_the_whole_in_any_order, 3, 4, 5, 0)),
    Mutant("columns are not centred", put(Factor, "of", uncentred),
           one(solving.test_and_so_they_are_of_other_series, 0, 20, 2, -1e4, 1.0, 0.0, 0.0)),
    Mutant("standard errors without degrees of freedom",
           wrapped("autoregression", "solve", ddof_in_covariance), course),
    Mutant("p-values of a normal distribution", wrapped("fit", "need", normal_instead_of_student), course),
    Mutant("robust errors across texts", wrapped(Design, "newey_west", one_text),
           regression.test_robust_errors_of_several_texts_have_no_products_across),
    Mutant("another kernel", wrapped(Design, "newey_west", wider_kernel),
           lambda: regression.test_robust_errors_are_statsmodels(4)),
    Mutant("Ljung-Box across texts", wrapped(Design, "ljung_box", one_text),
           regression.test_ljung_box_of_several_texts_has_no_products_across),
    Mutant("Ljung-Box with all degrees of freedom",
           wrapped(Design, "ljung_box", all_degrees_of_freedom),
           regression.test_ljung_box_is_statsmodels),
    Mutant("Holm is Bonferroni",
           lambda patch: patch.setitem(module("fit").CORRECTIONS, "holm", lambda ordered: ordered * len(ordered)),
           regression.test_tied_p_values_are_corrected_alike),
    Mutant("Benjamini-Hochberg is Holm",
           lambda patch: patch.setitem(module("fit").CORRECTIONS, "bh", module("fit").CORRECTIONS["holm"]),
           regression.test_corrections_are_statsmodels),
    Mutant("problems are not marked", put("series", "_problems", marks_nothing),
           regression.test_degenerate_layers_are_marked_and_the_others_untouched),
    Mutant("orders on their own rows", other_rows_for_each_order, regression.test_lags_are_selected_on_the_same_rows),
    Mutant("dependent columns are believed", put("series", "_EPS", 0.0),
           lambda: solving.test_dependent_columns_are_marked(np.arange(30.0))),
    Mutant("a constant series is fitted",
           put("series", "is_constant", lambda ss, mean, n: np.zeros(np.shape(ss), bool)),
           lambda: solving.test_a_constant_series_is_marked(0.1)),
]  # fmt: skip


# Heads


def first_query_counts(plain: Any) -> Any:
    return property(lambda self: plain.func(self) + 1)


def one_key_off(plain: Any) -> Any:
    return lambda self: (torch.roll(pattern, 1, dims=-1) for pattern in plain(self))


HEADS = [
    Mutant("the first query counts", wrapped(Captured, "position", first_query_counts),
           lambda: attention.test_scores_are_those_of_loops("entropy", "left")),
    Mutant("pads are keys", columns_instead_of_positions,
           lambda: attention.test_scores_are_those_of_loops("first_token", "left")),
    Mutant("entropy in bits", wrapped(torch, "xlogy", lambda plain: lambda a, b: plain(a, b) / np.log(2)),
           attention.test_heads_of_known_scores),
    Mutant("induction looks one token off", wrapped(Captured, "float64", one_key_off),
           attention.test_a_perfect_induction_head_scores_nearly_one),
]  # fmt: skip


# Streams


def wider_buckets(plain: Any) -> Any:
    return lambda error: plain(1.05 * error)


def estimate_at_the_edge(plain: Any) -> Any:
    return lambda self, shares, error: plain(self, shares, error) * (1 + error * 0.7)


def loses_zeros(plain: Any) -> Any:
    return lambda self, other: replace(plain(self, other), zeros=self.zeros)


def keeps_runs(plain: Any) -> Any:
    def update(self: Any, ckpts: Any) -> None:
        self.runs = [*getattr(self, "runs", []), pl.measure.norms(ckpts, self.captures)]
        plain(self, ckpts)

    return update


def forgets(name: str) -> Breaks:
    """A statistic goes on without one of the things that it had written down."""

    def make(plain: Any) -> Any:
        def load(self: Any, state: Any) -> None:
            plain(self, {key: np.zeros_like(a) if key == name else a for key, a in state.items()})

        return load

    return wrapped(Statistic, "load", make)


def writes_in_place(folder: Path, writers: Any, **_: Any) -> None:
    for name, write in writers:
        write(folder / f"half-{name}")
        (folder / name).write_bytes((folder / f"half-{name}").read_bytes())


killed = in_folder(streaming.test_a_killed_stream_goes_on_to_the_same_bits, 3, 1)
refused = in_folder(streaming.test_a_file_of_another_stream_is_refused)
STREAMING = [
    Mutant("buckets a twentieth too wide", wrapped("groups", "gamma", wider_buckets),
           lambda: sketch.test_the_error_is_as_stated_on_many_numbers(0.02)),
    Mutant("estimates off the middle", wrapped(Sketch, "quantiles", estimate_at_the_edge),
           lambda: sketch.test_the_error_is_as_stated_on_many_numbers(0.02)),
    Mutant("zeros are lost in merging", wrapped(Sketch, "merge", loses_zeros),
           one(sketch.test_merging_is_exact_in_any_order, [[0.0, 1.0], [0.0]], Random(0))),
    Mutant("runs are kept", wrapped(Statistic, "update", keeps_runs),
           in_folder(streaming.assert_constant_memory, 1000)),
    Mutant("third powers are not written down", forgets("m3"), killed),
    Mutant("counts are not written down", forgets("counts"), killed),
    Mutant("sums of products are not written down", forgets("triangle"), killed),
    Mutant("short texts are not written down", forgets("short"), killed),
    Mutant("a file is overwritten in place", put(atomic, "write_folder", writes_in_place), killed),
    Mutant("texts are not looked at again", put(corpus.sink, "fingerprint", lambda *given: b""), refused),
    Mutant("statistics are not looked at again",
           wrapped("stream", "StateFile", lambda plain: lambda saving, identity: plain(saving, {})), refused),
    Mutant("progress is always drawn",
           wrapped(corpus.sink, "bar", lambda plain: lambda what, total, *, wanted: plain(what, total, wanted=True)),
           lambda: with_capture(streaming.test_nothing_is_drawn_unless_wanted_and_on_a_terminal, False, True)),
]  # fmt: skip


class _NothingPrinted:
    def readouterr(self) -> Any:
        return type("Captured", (), {"out": ""})


def with_capture(check: Callable[..., None], wanted: bool, is_terminal: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        check(patch, _NothingPrinted(), wanted, is_terminal)


MUTANTS = [*READING, *DESCRIBING, *FITTING, *HEADS, *STREAMING]


NOTICED = (AssertionError, pl.PellucidError, pytest.fail.Exception, RuntimeWarning)
"""A division by zero is noticed, too: warnings are errors."""


LONG = (
    "runs are kept", "counts are not written down", "sums of products are not written down",
    "short texts are not written down", "statistics are not looked at again", "Benjamini-Hochberg is Holm",
)  # fmt: skip
"""What a test notices that others of these notice, too, or that takes seconds: left to `make test-all`."""


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, id=m.what, marks=[pytest.mark.long] if m.what in LONG else []) for m in MUTANTS],
)
def test_the_check_notices(mutant: Mutant) -> None:
    with mutated(mutant.breaks), pytest.raises(NOTICED):
        mutant.check()


CHECKS = {id(mutant.check): mutant for mutant in MUTANTS}


@pytest.mark.long  # each is run as a test of its own file, too
@pytest.mark.parametrize("mutant", CHECKS.values(), ids=lambda mutant: mutant.what)
def test_the_check_passes_unbroken(mutant: Mutant) -> None:
    mutant.check()
