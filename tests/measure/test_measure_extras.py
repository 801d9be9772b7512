"""Optional packages: not imported before they are needed, and named when they are missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import measure_cases as cases
import pytest

import pellucid as pl

RUN = cases.run_of(cases.texts_of([12]))
NORMS = pl.measure.norms(RUN, "resid_post")
FIT = pl.measure.autoregression(NORMS)

USES: list[tuple[str, Callable[[], Any]]] = [
    ("xarray", lambda: pl.measure.norms(RUN, "resid_post")),
    ("xarray", lambda: pl.measure.moments(RUN, "resid_post")),
    ("xarray", lambda: pl.measure.entropy(RUN)),
    ("xarray", lambda: pl.measure.stream(cases.Model(), [[1, 2]], [pl.measure.Moments("resid_post")])[0]),
    ("pandas", lambda: pl.measure.autoregression(NORMS).params),
    ("scipy.special", lambda: pl.measure.autoregression(NORMS).pvalues),
    ("statsmodels.api", lambda: FIT.summary(0)),
]


@pytest.mark.parametrize(("module", "use"), USES)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str, use: Callable[[], Any]) -> None:
    use()
    for name in (module, module.partition(".")[0]):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(pl.MissingExtraError, match=f"{module.partition('.')[0]}, which is not installed") as caught:
        use()
    assert (caught.value.code, caught.value.remedy) == ("missing-extra", "pip install 'pellucid[stats]'")


def test_public_names_are_documented_and_there() -> None:
    assert len(pl.measure.__all__) == len(set(pl.measure.__all__))
    for name in pl.measure.__all__:
        assert getattr(pl.measure, name).__doc__
