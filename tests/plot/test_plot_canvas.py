"""Where figures are drawn: on given axes, on figures that nobody else holds, or on pyplot's; memory, vectors."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import plot_pictures as pictures
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import pellucid as pl
import support
from pellucid.errors import InputError, MissingExtraError
from pellucid.plot import canvas

ON_AXES = {
    "norms": lambda ax: pl.plot.norms(pictures.measured(2, 30), ax=ax),
    "norm_histograms": lambda ax: pl.plot.norm_histograms(pictures.measured(2, 30), ax=ax),
    "ridges": lambda ax: pl.plot.ridges(pictures.measured(2, 30), ax=ax),
    "residual_growth": lambda ax: pl.plot.residual_growth(pictures.measured(2, 30), ax=ax),
    "autoregression": lambda ax: pl.plot.autoregression(pictures.fitted(3), ax=ax),
    "attribution": lambda ax: pl.plot.attribution(pictures.parts(4), ax=ax),
    "lens": lambda ax: pl.plot.lens(pictures.said(2, 3), ax=ax),
    "attention": lambda ax: pl.plot.attention(np.eye(3), ax=ax),
    "attention_grid": lambda ax: pl.plot.attention_grid(np.stack([np.eye(3)] * 2), ax=ax),
    "head_scores": lambda ax: pl.plot.head_scores([[0.5, 0.1]], ax=ax),
    "circuit": lambda ax: pl.plot.circuit(pictures.circuit(3, 2), ax=ax),
    "heatmap": lambda ax: pl.plot.heatmap([[0.5, -0.1]], ax=ax),
    "next_tokens": lambda ax: pl.plot.next_tokens(pictures.stages(9), ax=ax),
    "neuron": lambda ax: pl.plot.neuron(pictures.captured(1, 3), 0, 0, ax=ax),
    "normalization": lambda ax: pl.plot.normalization(pictures.captured(2, 3), "ln2", ax=ax),
    "scatter": lambda ax: pl.plot.scatter(pictures.vectors(5), ax=ax),
    "tokens": lambda ax: pl.plot.tokens(pictures.text_of(5), ax=ax),
    "examples": lambda ax: pl.plot.examples(pictures.found(3), ax=ax),
    "densities": lambda ax: pl.plot.densities(pictures.shares(), ax=ax),
    "parameters": lambda ax: pl.plot.parameters(pictures.COUNTED, ax=ax),
}


def python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_every_figure_is_drawn_here() -> None:
    assert set(ON_AXES) == set(pl.plot.__all__) - {"data", "theme"}


GIVEN = ("attention", "attention_grid", "autoregression", "circuit", "densities", "head_scores", "heatmap", "lens",
         "neuron", "norms", "norm_histograms", "parameters", "ridges", "tokens")  # fmt: skip
"""Those that are quickly drawn, on every run; the others use the same axes."""


@pytest.mark.parametrize("name", support.few_of(ON_AXES, *GIVEN))
def test_given_axes_are_drawn_on_and_returned(name: str) -> None:
    """Also those of a mosaic in a subfigure, whose neighbours keep their places."""
    _, inner = Figure(figsize=(6, 4)).subfigures(1, 2)
    panels = inner.subplot_mosaic("ab;cc")
    ax = panels["c"]
    place = ax.get_position().bounds
    assert ON_AXES[name](ax) is ax
    inner.get_figure(root=True).draw_without_rendering()
    assert inner.axes == [*panels.values()]
    assert ax.has_data()
    assert pl.plot.data(ax) is not None
    assert ax.get_subplotspec().get_position(inner).bounds == place


def test_densities_keep_the_scale_of_given_axes() -> None:
    """Whole numbers cannot be asked of a logarithm's ticks, and it has no zero to begin at."""
    ax = Figure().add_subplot(yscale="log")
    assert ON_AXES["densities"](ax).get_yscale() == "log"
    assert ax.get_ylim()[0] == 0.5


@pytest.mark.parametrize("name", support.few_of(ON_AXES, "attention", "attention_grid", "heatmap", "norms"))
def test_new_axes_have_a_figure_of_their_own(name: str) -> None:
    one, two = ON_AXES[name](None), ON_AXES[name](None)
    assert one.get_figure() is not two.get_figure()


def test_data_is_of_the_last_drawing_and_goes_with_the_axes() -> None:
    ax = pl.plot.head_scores([[0.5]])
    first = weakref.ref(pl.plot.data(ax))
    pl.plot.head_scores([[0.25]], ax=ax)
    assert pl.plot.data(ax).item() == 0.25
    assert first() is None
    with pytest.raises(InputError, match="nothing of pellucid"):
        pl.plot.data(Figure().add_subplot())


def test_figures_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than matplotlib allows pyplot to hold, and none is left."""
    monkeypatch.setattr(canvas, "_uses_pyplot", lambda: False)
    figures = [weakref.ref(pl.plot.head_scores([[0.5]]).get_figure()) for _ in range(25)]
    gc.collect()
    assert [figure() for figure in figures] == [None] * 25
    assert plt.get_fignums() == []


def test_what_is_kept_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(canvas, "_new_figure", lambda size: kept.append(Figure(figsize=size)) or kept[-1])
    figure = weakref.ref(pl.plot.head_scores([[0.5]]).get_figure())
    gc.collect()
    assert figure() is not None


DEEPLY = ("heatmap", "norms", "parameters")
"""Figures that are copied without a file of bytes; both ways ask their parts for the same states."""


def drawn(figure: Any) -> np.ndarray:
    at = FigureCanvasAgg(figure)
    at.draw()
    return np.asarray(at.buffer_rgba()).copy()


@pytest.mark.parametrize("name", support.few_of(ON_AXES, "attention_grid", "circuit", "heatmap"))
def test_figures_are_pickled_and_copied_with_their_numbers(name: str) -> None:
    ax = ON_AXES[name](Figure(figsize=(6, 4), layout="constrained").add_subplot())
    figure = ax.get_figure()
    before = drawn(figure)
    one = copy.deepcopy(figure) if name in DEEPLY else pickle.loads(pickle.dumps(figure))
    assert np.array_equal(drawn(one), before)
    assert type(pl.plot.data(one.axes[0])) is type(pl.plot.data(ax))
    one.set_size_inches(3, 2.5)
    smaller = drawn(one)
    assert np.array_equal(drawn(figure), before), "a copy's size is its own"
    figure.set_size_inches(3, 2.5)
    assert np.array_equal(drawn(figure), smaller), "labels thin to the copy's room"


def test_figures_are_pyplots_where_pyplot_is_used() -> None:
    ax = pl.plot.head_scores([[0.5]])
    assert plt.gcf() is ax.get_figure()
    plt.close(ax.get_figure())


def test_figures_are_nobodys_where_pyplot_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a drawing imports it; that importing `pellucid.plot` does not is tried in tests/test_import.py."""
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    figures = [pl.plot.head_scores([[0.5]]).get_figure() for _ in range(2)]
    figures[0].savefig("/dev/null", format="png")
    assert "matplotlib.pyplot" not in sys.modules
    assert plt.get_fignums() == []


@pytest.mark.long
def test_so_they_are_in_a_process_of_their_own() -> None:
    done = python(
        "import sys, pellucid as pl\n"
        "figures = [pl.plot.head_scores([[0.5]]).get_figure() for _ in range(2)]\n"
        "figures[0].savefig('/dev/null', format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "import matplotlib.pyplot as plt\n"
        "assert plt.get_fignums() == []\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("in_notebook", [True, False])
def test_a_notebook_counts_as_using_pyplot(in_notebook: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class IPython:
        @staticmethod
        def get_ipython() -> object | None:
            return object() if in_notebook else None

    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    monkeypatch.setitem(sys.modules, "IPython", IPython)
    assert canvas._uses_pyplot() == in_notebook


@pytest.mark.parametrize("package", ["matplotlib", "xarray"])
def test_a_missing_package_says_how_to_get_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for draw in (lambda: pl.plot.attention([[1.0]]), lambda: pl.plot.norms(pictures.measured(2, 3))):
        with pytest.raises(MissingExtraError) as caught:
            draw()
        assert caught.value.code == "missing-extra"
        assert package in caught.value.message
        assert "pellucid[stats]" in caught.value.remedy
    if package == "matplotlib":
        with pytest.raises(MissingExtraError):
            pl.plot.theme("dark").__enter__()
        with pytest.raises(MissingExtraError):
            pl.plot.parameters(pictures.COUNTED)


def test_threads_draw_on_axes_of_their_own_in_themes_of_their_own() -> None:
    grounds: dict[str, Any] = {}
    turn = threading.Barrier(2, timeout=60)

    def draw(name: str) -> None:
        turn.wait()
        ax = Figure(facecolor="black" if name == "dark" else "white").add_subplot(facecolor="none")
        for _ in range(5):
            pl.plot.norms(pictures.measured(2, 20), ax=ax)
        grounds[name] = pl.plot.data(ax).sizes

    threads = [threading.Thread(target=draw, args=(name,)) for name in ("light", "dark")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(grounds) == {"light", "dark"}


@pytest.mark.parametrize(
    "name",
    support.few_of(
        ["norms_12_dark", "norms_48_light", "norm_histograms_12_dark", "norm_histograms_48_light", "ridges_48_dark",
         "residual_growth_12_light", "autoregression_48_dark", "attention_1024_dark", "attention_grid_12x12_light",
         "head_scores_48_light", "parameters_light"],
        "norms_12_dark", "ridges_48_dark", "attention_1024_dark",
    ),
)  # fmt: skip
def test_vectors_are_small_and_what_would_be_large_in_them_is_a_picture(name: str, tmp_path: Path) -> None:
    with pl.plot.theme(name.rsplit("_", 1)[-1]):
        figure = pictures.FIGURES[name]().get_figure()
    path = tmp_path / "figure.svg"
    figure.savefig(path)
    text = path.read_text(encoding="utf-8")
    assert "<path" in text
    assert len(text) < 600_000
    pixels = name.startswith(("attention", "head_scores", "norm_histograms_48", "norms_12"))
    assert ("<image" in text) == pixels


def test_points_as_paths_would_be_large(tmp_path: Path) -> None:
    ax = pl.plot.norms(pictures.measured(12, 1000))
    for collection in ax.collections:
        collection.set_rasterized(False)
    ax.get_figure().savefig(tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 600_000


def test_an_axes_of_pyplot_will_do() -> None:
    figure, axes = plt.subplots(1, 2)
    assert pl.plot.norms(pictures.measured(3, 50), skip=1, ax=axes[0]) is axes[0]
    assert pl.plot.norm_histograms(pictures.measured(3, 50), skip=1, ax=axes[1]) is axes[1]
    figure.draw_without_rendering()
