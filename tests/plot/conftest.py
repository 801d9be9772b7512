"""Figures are drawn without a screen, from matplotlib's own defaults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

mpl = pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _plain_matplotlib() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.use("Agg")
        yield
