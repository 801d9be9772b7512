"""The bundled, trained model: ours, transformers', the course's, and a bare one."""

from __future__ import annotations

import pytest
from course import course, monolith

import pellucid as pl
import support
from pellucid.open import BUNDLED

TEXT = "Once upon a time there was a cat"


@pytest.fixture(scope="module")
def bundled() -> pl.CkptedTransformer:
    return pl.load()


def test_transformers_is_identical(bundled: pl.CkptedTransformer) -> None:
    hf = pl.to_hf(bundled)
    assert pl.compare(bundled, hf, TEXT).verdict == "identical"
    assert pl.compare(hf.transformer, bundled, TEXT).verdict == "identical"
    assert pl.compare(str(BUNDLED), f"hf:{BUNDLED}", TEXT).verdict == "identical"


@pytest.mark.parametrize("build", support.few_of([course, monolith], course))
def test_right_ones_pass(build: type, bundled: pl.CkptedTransformer) -> None:
    report = pl.compare(bundled, build(bundled), TEXT)
    assert report, report


@pytest.mark.parametrize(
    ("wrong", "says"),
    support.few_of([("eps 1e-6", "epsilon 1e-06"), ("no mask", "mask")], "eps 1e-6"),
)
def test_wrong_ones_are_named(wrong: str, says: str, bundled: pl.CkptedTransformer) -> None:
    report = pl.compare(bundled, course(bundled, wrong), TEXT)
    assert report.verdict == "different"
    assert says in str(report.first_divergence), report
