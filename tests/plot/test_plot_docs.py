"""The page of figures shows what its examples draw, and every figure there is."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import plot_pictures as pictures
import pytest

import pellucid as pl
from pellucid.plot import layers as by_layer

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "plot.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def make_plots() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_plots", DOCS / "figures" / "make_plots.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_can_be_drawn_again(
    make_plots: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a page with one of them; that those of the pages are as large as what is kept, tests/test_docs.py sees."""
    page = tmp_path / "made_up.md"
    page.write_text(
        "```python\nimport pellucid as pl\nax = pl.plot.attention([[1.0]])\n```\n![a](figures/a.png)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(make_plots, "PAGES", (page,))
    (tmp_path / "out").mkdir()
    assert make_plots.main(["--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert (tmp_path / "out" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


def test_no_picture_is_left_over(make_plots: ModuleType) -> None:
    kept = {
        page.parent / "figures" / file
        for page in make_plots.PAGES
        for file in re.findall(r"\]\(figures/(\S+)\)", page.read_text(encoding="utf-8"))
    }
    assert set((DOCS / "readings" / "figures").iterdir()) <= kept


def test_pictures_are_those_of_the_block_above(make_plots: ModuleType) -> None:
    text = (
        "```python\n1\n```\n\n![a](figures/a.png)\n![b](figures/b.png)\n\n"
        "```python\n2\n```\nx ![c](figures/c.png)\n\n```text\n```\n![d](figures/d.png)\n"
    )
    page = make_plots.refresh.Page("made_up.md", text)
    found = [make_plots.pictures_below(page.text, block) for block in page.blocks()]
    assert found == [["a.png", "b.png"], ["c.png"], ["d.png"]]


def test_every_function_is_shown() -> None:
    for name in pl.plot.__all__:
        assert f"pl.plot.{name}(" in PAGE, name


@pytest.mark.parametrize(("layers", "most"), [(12, 1100), (48, 70)])
def test_points_merge_where_the_page_says(layers: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(rf"\b{most:,}\b", PAGE)
    kinds: list[str] = []
    monkeypatch.setattr(by_layer, "_points", lambda *_: kinds.append("points"))
    monkeypatch.setattr(by_layer, "_quantile_bars", lambda *_: kinds.append("quantiles"))
    for count in (most, most + most // 10):
        pl.plot.norms(pictures.measured(layers, count))
    assert kinds == ["points", "quantiles"]
