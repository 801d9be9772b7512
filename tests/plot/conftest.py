"""Figures are drawn without a screen, from matplotlib's own defaults, and none outlives its test."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

mpl = pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _plain_matplotlib() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.use("Agg")
        yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
