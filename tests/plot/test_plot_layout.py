"""Every figure can be read: nothing is cut off, no labels overlap, no legend covers data, no text is too small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import plot_pictures as pictures
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import pellucid as pl
import support
from pellucid.plot import canvas, summaries, themes, ticks

COLUMN = 3.3
SMALLEST = 6.0
"""Points; smaller print is hard to read."""

LONG = 200

STAGES = ("model", "repetition_penalty", "frequency_penalty", "presence_penalty", "no_repeat_ngram_size",
          "min_new_tokens", "suppress_tokens", "begin_suppress_tokens", "temperature", "top_k", "top_p", "min_p",
          "typical_p")  # fmt: skip


def on_wide_axes() -> Axes:
    """A square on axes that are twice as wide."""
    ax = Figure((COLUMN, 1.8)).add_axes((0.2, 0.4, 0.6, 0.5))
    return pl.plot.attention(pictures.patterns(1, 1, 40)[0, 0], tokens=pictures.tokens(40), ax=ax)


def long_name() -> Any:
    """A regression with a further regressor of a long name."""
    fit, name = pictures.fitted(12, 3), {"lag3": "log_frequency_of_token"}
    return SimpleNamespace(**{key: table.rename(columns=name) for key, table in vars(fit).items()})


def odd_tokens() -> Any:
    """One head of a model with a long name, over tokens that no font, line or label expects."""
    tokens = ["W" * 80, "\\n", " $x$", "\\x00", "中", "\\u202eb", "", "שלום", "\\t"]
    model = support.glass()
    model.provenance["source"] = "transformers GPT2LMHeadModel"
    found = model.run_with_ckpts([[1] * 9])[1].to_xarray()["attn.ckpt_pattern"].sel(batch=0, layer=1, head=0)
    return found.assign_coords(query_token=("query", tokens), key_token=("key", tokens))


LONG_NAMES = pl.ParameterCount(
    unique=1000, by_name=1500, bytes=4000, components={"a_component_with_a_very_long_name": 600, "b": 400},
    tied={"a_component_with_a_very_long_name": 0, "b": 500},
)  # fmt: skip


MORE: dict[str, Callable[[], Axes]] = {
    "attention_2": lambda: pl.plot.attention(pictures.patterns(1, 1, 2)[0, 0], tokens=pictures.tokens(2)),
    "attention_48": lambda: pl.plot.attention(pictures.patterns(1, 1, 48)[0, 0], tokens=pictures.tokens(48)),
    "attention_last_query": lambda: pl.plot.attention(pictures.patterns(1, 1, 9)[0, 0, -1:], tokens=pictures.tokens(9)),
    "attention_odd": lambda: pl.plot.attention(odd_tokens()),
    "attention_wide": on_wide_axes,
    "attention_grid_1": lambda: pl.plot.attention_grid(pictures.patterns(1, 1, 1), tokens=pictures.tokens(1)),
    "attention_grid_4x4_11": lambda: pl.plot.attention_grid(pictures.patterns(4, 4, 11), tokens=pictures.tokens(11)),
    "attention_grid_1x12": lambda: pl.plot.attention_grid(pictures.patterns(1, 12, 10)[0], tokens=pictures.tokens(10)),
    "attention_grid_long": lambda: pl.plot.attention_grid(pictures.patterns(2, 12, LONG), tokens=pictures.tokens(LONG)),
    "attention_grid_48x25": lambda: pl.plot.attention_grid(pictures.patterns(48, 25, 8), tokens=pictures.tokens(8)),
    "autoregression_1": lambda: pl.plot.autoregression(pictures.fitted(1)),
    "autoregression_5_lags": lambda: pl.plot.autoregression(pictures.fitted(12, 5)),
    "autoregression_7_lags": lambda: pl.plot.autoregression(pictures.fitted(12, 7)),
    "head_scores_1": lambda: pl.plot.head_scores([[0.5]]),
    "circuit_edges": lambda: pl.plot.circuit(pictures.circuit(4, 4)),
    "circuit_nodes": lambda: pl.plot.circuit(pl.circuits.Circuit(nodes=[(0, 2), (9, 11), "blocks.3.mlp"])),
    "circuit_one": lambda: pl.plot.circuit(pl.circuits.Circuit(nodes=["embeddings"])),
    "heatmap_1": lambda: pl.plot.heatmap([[0.5]]),
    "heatmap_effects": lambda: pl.plot.heatmap(pictures.effects(4, 30)),
    "heatmap_odd": lambda: pl.plot.heatmap(odd_tokens().fillna(0.0)),
    "heatmap_names": lambda: pl.plot.heatmap(pictures.edges(21, 53)),
    "attribution_1": lambda: pl.plot.attribution(pictures.parts(1)),
    "attribution_loss": lambda: pl.plot.attribution(-abs(pictures.parts(9))),
    "attribution_zero": lambda: pl.plot.attribution(0 * pictures.parts(9)),
    "lens_1": lambda: pl.plot.lens(pictures.said(1, 1)),
    "lens_48": lambda: pl.plot.lens(pictures.said(48, 300)),
    "next_tokens_greedy": lambda: pl.plot.next_tokens(dict(list(pictures.stages(40).items())[:2]), most=30),
    "next_tokens_one": lambda: pl.plot.next_tokens({"model": [1.0]}),
    "next_tokens_many": lambda: pl.plot.next_tokens(dict.fromkeys(STAGES, np.full(9, 1 / 9))),
    "neuron_1": lambda: pl.plot.neuron(pictures.captured(1, 1), 0, 0),
    "neuron_long": lambda: pl.plot.neuron(pictures.captured(1, 150), 0, 0),
    "normalization_1": lambda: pl.plot.normalization(pictures.captured(1, 1), "ln2"),
    "normalization_12": lambda: pl.plot.normalization(pictures.captured(12, 9), "ln2"),
    "normalization_48": lambda: pl.plot.normalization(pictures.captured(48, 9), "ln2"),
    "scatter_1": lambda: pl.plot.scatter(pictures.vectors(1)),
    "scatter_long": lambda: pl.plot.scatter(pictures.vectors(LONG)),
    "tokens_1": lambda: pl.plot.tokens([0.5], tokens=["one"]),
    "tokens_hard": lambda: pl.plot.tokens(np.arange(60.0), tokens=["W" * 40, "\n", " $x$", "\x00", "中", ""] * 10),
    "norm_histograms_1": lambda: pl.plot.norm_histograms(pictures.measured(1, 1)),
    "norms_48_few": lambda: pl.plot.norms(pictures.measured(48, 20)),
    "residual_growth_1": lambda: pl.plot.residual_growth(pictures.measured(12, 1, log=False)),
    "autoregression_long_name": lambda: pl.plot.autoregression(long_name()),
    "parameters_long_names": lambda: pl.plot.parameters(LONG_NAMES),
    "ridges_1": lambda: pl.plot.ridges(pictures.measured(12, 1)),
}  # fmt: skip

EVERY = {**pictures.FIGURES, **MORE}


def texts(figure: Figure) -> Iterator[Text]:
    """What is written on a figure and seen: labels of ticks beyond the axes are kept, and not drawn."""
    beyond: set[Text] = set()
    for axes in figure.findobj(Axes):
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            room = 1e-9 * (high - low)
            ticks = [tick for tick in axis.get_major_ticks() if not low - room <= tick.get_loc() <= high + room]
            beyond |= {label for tick in ticks for label in (tick.label1, tick.label2)}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text() and text not in beyond:
            yield text


def box(text: Any) -> Bbox:
    return text.get_window_extent(text.get_figure(root=True).canvas.get_renderer())


def cut_off(figure: Figure) -> list[str]:
    """Texts that reach over the edge by more than a dot."""
    whole = figure.bbox
    return [
        text.get_text()
        for text in texts(figure)
        for at in [box(text)]
        if at.x0 < whole.x0 - 1 or at.y0 < whole.y0 - 1 or at.x1 > whole.x1 + 1 or at.y1 > whole.y1 + 1
    ]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Neighbours along an axis whose labels share more than a dot."""
    found = []
    seen = set(texts(figure))
    for axes in figure.findobj(Axes):
        for axis in (axes.xaxis, axes.yaxis):
            boxes = [(label.get_text(), box(label)) for label in axis.get_ticklabels() if label in seen]
            for (text, one), (next_text, two) in pairwise(boxes):
                wide = min(one.x1, two.x1) - max(one.x0, two.x0)
                high = min(one.y1, two.y1) - max(one.y0, two.y0)
                if wide > 1 and high > 1:
                    found.append((text, next_text))
    return found


def covering(figure: Figure) -> list[str]:
    """Legends that lie on the axes' data, neither above nor below."""
    found = []
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend is not None:
            found += [
                text.get_text() for text in legend.get_texts()
                if box(text).y0 < axes.bbox.y1 - 1 and box(text).y1 > axes.bbox.y0 + 1
            ]  # fmt: skip
    return found


def drawn(name: str) -> Figure:
    """A figure laid out and drawn, at the resolution of print."""
    with pl.plot.theme("dark" if name.endswith("dark") else "light"):
        figure = EVERY[name]().get_figure(root=True)
    assert isinstance(figure, Figure)
    FigureCanvasAgg(figure).draw()
    return figure


def as_drawn(figure: Figure, dots: int) -> Figure:
    """A figure that was drawn at so many dots an inch, to be looked at as it was."""
    figure.set_dpi(dots)
    FigureCanvasAgg(figure)
    return figure


READ = ("attention_last_query", "attention_odd", "attention_wide", "attention_grid_4x4_11", "heatmap_odd",
        "autoregression_long_name", "circuit_edges", "circuit_nodes", "heatmap_names", "attribution_1",
        "attribution_zero", "next_tokens_one", "next_tokens_many", "neuron_1", "scatter_1", "tokens_1", "tokens_hard",
        "parameters_long_names", "ridges_1", "heatmap_1", "lens_1", "residual_growth_1")  # fmt: skip
"""What is odd, and some of the smallest; of each kind one is read beside its kept picture, too (test_plot_pictures.py).

`make test-all` reads the others."""


@pytest.mark.parametrize("name", support.few_of(MORE, *READ))
def test_it_can_be_read(name: str) -> None:
    assert_readable(name, drawn(name))


def test_a_label_takes_the_room_that_it_is_drawn_in() -> None:
    assert float(EVERY["heatmap_odd"]().get_figure(root=True).get_size_inches()[1]) < 4.5


def assert_readable(name: str, figure: Figure) -> None:
    """That a figure, laid out and drawn, can be read and says what it shows."""
    assert any(axes.get_title("left") for axes in figure.axes), "every figure has a title"
    assert cut_off(figure) == []
    assert overlapping(figure) == []
    assert covering(figure) == []
    assert min(text.get_fontsize() for text in texts(figure)) >= SMALLEST
    width = round(float(figure.get_size_inches()[0]), 6)
    as_wide_as_needed = name.startswith(("lens", "next_tokens")) or name == "attention_grid_48x25"  # up to a page
    assert width == COLUMN or (name.startswith("attention") and width < COLUMN) or as_wide_as_needed
    assert width <= 6.9


def test_panels_can_be_read_whatever_a_layout_leaves_of_their_axes() -> None:
    """Labels are chosen for the room that axes have when they are drawn, and patterns keep their cells."""
    figure = Figure(figsize=(9.6, 5.8), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    tokens = ["supercalifragilistic", " internationalization"] * 6
    pl.plot.ridges(pictures.measured(12, 60), ax=panels[0])
    pl.plot.norm_histograms(pictures.measured(12, 60), ax=panels[1])
    pl.plot.autoregression(long_name(), ax=panels[2])
    pl.plot.attention(pictures.patterns(1, 1, 12)[0, 0], tokens=tokens, ax=panels[3])
    pl.plot.attention_grid(pictures.patterns(3, 4, 5), tokens=tokens[:5], ax=panels[4])
    pl.plot.head_scores(pictures.scores(12, 12), ax=panels[5])
    FigureCanvasAgg(figure).draw()
    assert overlapping(figure) == []
    assert cut_off(figure) == []
    assert all(image.get_array().shape == (5, 5) for image in panels[4].images)


# What reads the layout notices what breaks it


def every_label(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ticks, "step_for", lambda *_: 1)


def short_figure(patch: pytest.MonkeyPatch) -> None:
    plain = canvas._new_figure

    def cramped(size: Any) -> Figure:
        figure = plain(size)
        figure.set_layout_engine("none")
        return figure

    patch.setattr(canvas, "_new_figure", cramped)


def legend_inside(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(summaries, "legend_above", lambda ax, handles, columns: ax.legend(handles=handles))


@pytest.mark.parametrize(
    ("check", "name", "breaks"),
    [
        pytest.param(overlapping, "attention_48", every_label, marks=pytest.mark.long),
        (overlapping, "norms_48_light", every_label),
        pytest.param(overlapping, "head_scores_48_light", every_label, marks=pytest.mark.long),
        pytest.param(cut_off, "attention_20_light", short_figure, marks=pytest.mark.long),
        (cut_off, "parameters_light", short_figure),
        (covering, "autoregression_12_light", legend_inside),
    ],
)
def test_the_check_notices(
    check: Callable[[Figure], list[Any]],
    name: str,
    breaks: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breaks(monkeypatch)
    assert check(drawn(name))


def test_small_print_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "SMALL", 4.0)
    assert min(text.get_fontsize() for text in texts(drawn("attention_20_light"))) < SMALLEST
    assert themes.COLUMN == COLUMN
