"""Tokens as labels are what they are: no formula, no missing glyph, nothing invisible; as many as there is room for."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import plot_pictures as pictures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure

import pellucid as pl
from pellucid.errors import visible
from pellucid.plot import canvas, ticks

HARD = ["$x$", " _a_ $", "\\frac{1}{2}$", "中文", "😀", "\n\n", " \t", "a" * 30, "e\u0301", "\ufffd", "مرحبا", "\x00",
        "<|endoftext|>", "\\$", "$^{2}", "", "\u202eabc", "\ud800", "\U0010ffff", "%s", "{}", "$$"]  # fmt: skip
"""Tokens that break labels."""


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" upon", "·upon"), ("\n", "↵"), ("\t", "\\t"), ("$x_1$", "$x_1$"), ("中", "□"), ("\ufffd", "\ufffd"),
     ("\x1b", "\\x1b"), ("\u202e", "\\u202e"), ("abcdefghijklm", "abcdefghijk…"), ("", ""),
     ("abcdefghijkl", "abcdefghijkl")],
)  # fmt: skip
def test_labels_of_tokens(token: str, shown: str) -> None:
    assert canvas.label_of(token) == shown


@given(st.text(max_size=canvas.LONGEST))
@settings(max_examples=100, deadline=None)
def test_tokens_look_as_they_do_on_the_command_line(token: str) -> None:
    known = canvas._characters(tuple(mpl.rcParams["font.family"]))
    expected = "".join(c if ord(c) in known else canvas.NO_GLYPH for c in visible(token))
    shown = canvas.label_of(token)
    assert shown == expected or shown == f"{expected[: canvas.LONGEST - 1]}…"


def test_every_token_is_drawn_without_a_warning(
    tmp_path: Path, logged: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warnings are errors here; matplotlib also speaks by its logger."""
    speaker = logging.getLogger("matplotlib")
    monkeypatch.setattr(speaker, "level", speaker.level)  # which is so again afterwards
    speaker.setLevel(logging.WARNING)
    speaker.warning("heard")
    assert logged.pop().getMessage() == "heard"
    count = len(HARD)
    with mpl.rc_context({"text.usetex": False, "axes.formatter.use_mathtext": True}):
        one = Figure(figsize=(5, 5)).add_subplot()
        pl.plot.attention(np.tri(count) / np.arange(1, count + 1)[:, None], tokens=HARD, ax=one)
        all_heads = pl.plot.attention_grid(np.full((2, 2, 3, 3), 1 / 3), tokens=HARD[:3])
        for suffix in ("png", "svg", "pdf"):
            one.get_figure().savefig(tmp_path / f"one.{suffix}")
        all_heads.get_figure().savefig(tmp_path / "all.svg")
    assert logged == []
    labels = one.get_yticklabels()
    assert [label.get_text().replace("\\$", "$") for label in labels] == [canvas.label_of(token) for token in HARD]
    assert not any(is_math_text(label.get_text()) or label.get_usetex() for label in labels)


def test_a_missing_glyph_and_a_formula_would_warn_or_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "_characters", lambda families: range(0x110000))
    with pytest.raises(UserWarning, match="Glyph"):
        pl.plot.attention([[1.0]], tokens=["中"]).get_figure().draw_without_rendering()
    ax = pl.plot.attention([[1.0]], tokens=["$\\frac$"])
    ax.get_figure().draw_without_rendering()
    plain = ax.xaxis.get_major_formatter()
    ax.xaxis.set_major_formatter(lambda place, at: plain(place, at).replace("\\$", "$"))
    with pytest.raises(ValueError, match="frac"):
        ax.get_figure().draw_without_rendering()


def test_a_font_that_the_reader_has_set_shows_what_dejavu_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Font:
        def __init__(self, path: str) -> None:
            self.path = path

        def get_charmap(self) -> dict[int, int]:
            return {ord("中"): 1} if self.path == "Chinese" else {ord("a"): 1}

    def find(properties: Any, fallback_to_default: bool) -> str:
        assert not fallback_to_default
        (family,) = properties.get_family()
        if family == "Nowhere":
            raise ValueError
        return family

    monkeypatch.setattr("matplotlib.font_manager.findfont", find)
    monkeypatch.setattr("matplotlib.font_manager.get_font", Font)
    known = canvas._characters.__wrapped__(("DejaVu Sans", "Nowhere", "Chinese"))
    assert known == {ord("中"), ord("a")}


@pytest.mark.parametrize(
    ("count", "room", "step"),
    [(1, 0, 1), (10, 66, 1), (11, 66, 2), (25, 66, 5), (1024, 150, 50), (1024, 66, 200), (5, 1, 5), (0, 10, 1)],
)
def test_as_many_labels_as_fit(count: int, room: float, step: int) -> None:
    assert ticks.step_for(count, room, 6.6) == step


@given(st.integers(1, 5000), st.floats(7, 500))
@settings(max_examples=200, deadline=None)
def test_labels_never_take_more_than_the_room(count: int, room: float) -> None:
    shown = -(-count // ticks.step_for(count, room, 6.6))
    assert shown == 1 or shown * 6.6 <= room


def test_some_of_the_tokens_are_labelled_with_their_positions() -> None:
    ax = Figure(figsize=(5, 5)).add_axes((0, 0, 1, 1))
    pl.plot.attention(np.tri(3) / np.arange(1, 4)[:, None], tokens=["a", " b", "c"], ax=ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "·b", "c"]
    pl.plot.attention(np.tri(200) / np.arange(1, 201)[:, None], tokens=[" t"] * 200, ax=ax)
    assert [label.get_text() for label in ax.get_yticklabels()[:3]] == ["·t 0", "·t 5", "·t 10"]


@pytest.mark.parametrize("inches", [0.8, 2.0, 8.0])
def test_as_many_labels_as_fit_at_the_size_that_a_figure_has_when_it_is_drawn(inches: float) -> None:
    """Also if axes were made smaller after the labels were set, by a layout or by hand."""
    figure = Figure(figsize=(6, 6))
    ax = figure.add_axes((0, 0, 1, 1))
    pl.plot.ridges(pictures.measured(48, 20), ax=ax)
    figure.set_size_inches(6, inches)
    figure.draw_without_rendering()
    labels = ax.get_yticklabels()
    shown = [int(label.get_text()) for label in labels]
    step = shown[1] - shown[0]
    assert shown == list(range(0, 48, step))
    assert len(shown) * labels[0].get_fontsize() <= 72 * inches
    assert step == 1 or inches < 8


def test_warnings_are_errors_here() -> None:
    with pytest.raises(UserWarning):
        warnings.warn("noticed", stacklevel=1)


def test_a_figure_says_what_it_shows(tmp_path: Path) -> None:
    """What, of which layer and head of which model, and of how much."""
    _, ckpts = pl.load().run_with_ckpts("Once upon a time", names=["blocks.*.attn.ckpt_pattern", "resid_post"])
    pattern = ckpts.to_xarray()["attn.ckpt_pattern"].sel(batch=0, layer=2, head=1)
    norms = pl.measure.norms(ckpts, "resid_post")
    parts = pl.attribution.direct(pl.load().run_with_ckpts("Once upon a")[1], " time").isel(batch=0, pos=-1)
    swept = pl.patching.sweep(
        pl.load(), "Once upon a", "Once upon the", "resid_pre", over=("layer", "pos"), metric=pl.metrics.logit(" time")
    )
    post = "blocks.1.mlp.ckpt_post"
    store = pl.corpus.capture(pl.load(), ["Once upon a time"], post, tmp_path / "acts.zarr")
    active = pl.corpus.densities(store, post)
    dead = int((active["density"] == 0).sum())
    said = {
        "attention, layer 2, head 1 of bundled, 4 tokens": pl.plot.attention(pattern),
        "attention, 4 tokens": pl.plot.attention(ckpts["pattern", 2][0, 1]),
        "attention of every head, bundled, 4 tokens": pl.plot.attention_grid(
            ckpts.to_xarray()["attn.ckpt_pattern"].sel(batch=0)
        ),
        "induction of each head, bundled": pl.plot.head_scores(pl.measure.induction(pl.load(), texts=2)),
        "norm of resid_post by layer, bundled, 3 values a layer": pl.plot.norms(norms, skip=1),
        "norm of resid_post from layer to layer, bundled, 4 values a layer": pl.plot.residual_growth(norms),
        "norm of resid_post, bundled": pl.plot.heatmap(norms.isel(batch=0)),
        "what each part of the model adds, bundled, at ' a', position 2": pl.plot.attribution(parts),
        "likeliest next token read from resid_post, bundled, 4 tokens": pl.plot.lens(pl.lens.logit(ckpts)),
        "parameters of each component, bundled": pl.plot.parameters(pl.load()),
        "parameters of each component": pl.plot.parameters(pl.count_parameters(pl.load())),
        "resid_pre, clean into corrupted, bundled logit of ' time' at -1": pl.plot.heatmap(swept),
        f"1,024 units of {post}, bundled, 4 tokens, {dead:,} active nowhere": pl.plot.densities(active),
        f"unit 7 of {post}, bundled, 1 example": pl.plot.examples(pl.corpus.examples(store, post, [7], count=1)),
    }
    for title, ax in said.items():
        assert ax.get_title("left").replace("\n", " ") == title


def test_the_callers_title_stays() -> None:
    axes = plt.figure().add_subplot()
    axes.set_title("mine")
    assert pl.plot.attention([[1.0]], ax=axes).get_title("left") == ""
    assert axes.get_title() == "mine"


def test_a_title_is_drawn_whatever_the_model_is_called(tmp_path: Path) -> None:
    for name in ("$x_1$ 中\x1b[31m\u202e", "a" * 300, "hf:some one/model 1.0\\"):
        norms = pictures.measured(3, 20).assign_attrs(model=name)
        ax = pl.plot.norms(norms)
        ax.get_figure().savefig(tmp_path / "titled.png")
        assert not is_math_text(ax.get_title("left"))


def test_a_title_stands_above_a_legend() -> None:
    ax = pl.plot.norm_histograms(pictures.measured(4, 60))
    ax.set_title("a title set afterwards")
    ax.figure.canvas.draw()
    assert ax.title.get_window_extent().y0 >= ax.get_legend().get_window_extent().y1
