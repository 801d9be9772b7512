"""Colours: seen on their paper, told apart by colour-blind readers, ordered in lightness; settings left alone."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import matplotlib as mpl
import numpy as np
import plot_pictures as pictures
import pytest
from matplotlib.colors import to_rgb

import pellucid as pl
from pellucid.plot import themes

THEMES = list(themes.THEMES.values())

DEFICIENCIES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3),
}
"""On linear RGB, for full severity: Machado, Oliveira and Fernandes (2009, doi:10.1109/TVCG.2009.113)."""

APART = 6 * 2.3
"""CIE 1976 distance of colours of categories: 2.3 is just noticeable (Mahy et al. 1994), and lines are thin."""


def linear(colour: Any) -> np.ndarray:
    channels = np.array(to_rgb(colour))
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear sRGB under D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    scaled = to_xyz @ np.clip(rgb, 0, 1) / to_xyz.sum(1)
    f = np.where(scaled > (6 / 29) ** 3, np.cbrt(scaled), scaled / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest_pair(colours: Any) -> float:
    """The smallest distance of two colours, for the reader to whom it is smallest."""
    seen = [[lab(np.array(matrix) @ linear(colour)) for colour in colours] for matrix in DEFICIENCIES.values()]
    return min(float(np.linalg.norm(a - b)) for of_reader in seen for a, b in combinations(of_reader, 2))


def contrast(a: Any, b: Any) -> float:
    low, high = sorted((themes.luminance(a), themes.luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("look", THEMES, ids=lambda look: look.name)
def test_what_carries_data_is_seen_on_the_paper(look: themes.Theme) -> None:
    assert contrast(look.ink, look.paper) > 12
    for colour in (*look.marks, *look.layer_colours(12)):
        assert contrast(colour, look.paper) >= 3, colour
    assert contrast(look.heat[0], look.paper) > 1.1  # zero is told from where nothing can be
    assert contrast(look.heat[-1], look.paper) > 7


@pytest.mark.parametrize("look", THEMES, ids=lambda look: look.name)
def test_categories_are_told_apart(look: themes.Theme) -> None:
    assert nearest_pair(look.marks) > APART
    assert nearest_pair((look.marks[0], look.marks[1], look.paper)) > 2 * APART


def test_colours_that_are_not_told_apart_are_noticed() -> None:
    assert nearest_pair(("#d62728", "#2ca02c", "#1f77b4")) < APART  # red and green of matplotlib's own cycle
    assert contrast("#F0E442", "#ffffff") < 3


@pytest.mark.parametrize("look", THEMES, ids=lambda look: look.name)
def test_magnitudes_are_ordered_in_lightness_for_everybody(look: themes.Theme) -> None:
    away = 1 if look.name == "dark" else -1
    for matrix in DEFICIENCIES.values():
        ramp = [lab(np.array(matrix) @ linear(colour))[0] for colour in look.heat_map()(np.linspace(0, 1, 64))]
        assert (np.diff(ramp) * away > 0).all()
    layers = [lab(linear(colour))[0] for colour in look.layer_colours(48)]
    assert (np.diff(layers) > 0).all()


@pytest.mark.parametrize("look", THEMES, ids=lambda look: look.name)
def test_signs_are_told_apart(look: themes.Theme) -> None:
    colours = look.heat_map(signed=True)
    assert nearest_pair([colours(0.1), colours(0.9)]) > APART
    assert contrast(colours(0.5), look.paper) < 1.3
    assert contrast(colours(0.0), look.paper) > 3
    assert contrast(colours(1.0), look.paper) > 3


def test_settings_are_as_before_when_the_block_ends() -> None:
    before = dict(mpl.rcParams)
    with pl.plot.theme("dark") as look:
        assert mpl.rcParams["text.color"] == look.ink
    assert dict(mpl.rcParams) == before
    with pytest.raises(RuntimeError), pl.plot.theme("dark"):
        raise RuntimeError
    assert dict(mpl.rcParams) == before
    pl.plot.head_scores([[0.5]])
    assert dict(mpl.rcParams) == before
    assert themes.theme_for(None) is themes.LIGHT


def test_blocks_nest() -> None:
    with pl.plot.theme("dark"):
        with pl.plot.theme("light"):
            assert themes.theme_for(None).name == "light"
        assert themes.theme_for(None).name == "dark"


def test_a_new_figure_suits_the_ground_of_matplotlibs_settings() -> None:
    assert pl.plot.head_scores([[0.5]]).get_figure().get_facecolor() == mpl.colors.to_rgba("#ffffff")
    with mpl.rc_context({"figure.facecolor": "#383838"}):
        assert pl.plot.head_scores([[0.5]]).get_figure().get_facecolor() == mpl.colors.to_rgba(themes.DARK.paper)


@pytest.mark.parametrize(
    ("ground", "name"), [("white", "light"), ("black", "dark"), ("#383838", "dark"), ("none", "light")]
)
def test_marks_suit_the_ground_of_given_axes_and_the_axes_keep_their_look(ground: str, name: str) -> None:
    figure = mpl.figure.Figure()
    ax = figure.add_subplot(facecolor=ground)
    look = themes.theme_for(ax)
    assert (look.name, look.paper) == (name, mpl.colors.to_hex("white" if ground == "none" else ground))
    face, label = ax.get_facecolor(), ax.xaxis.label.get_color()
    assert pl.plot.norms(pictures.measured(2, 30), ax=ax) is ax
    assert (ax.get_facecolor(), ax.xaxis.label.get_color()) == (face, label)


def test_transparent_axes_take_the_ground_of_their_figure() -> None:
    ax = mpl.figure.Figure(facecolor="black").add_subplot(facecolor="none")
    assert themes.theme_for(ax).name == "dark"


def test_fonts_that_the_reader_has_set_stand_behind_dejavu() -> None:
    with mpl.rc_context({"font.family": ["serif", "DejaVu Sans"]}):
        assert themes.LIGHT.rc()["font.family"] == ["DejaVu Sans", "serif"]
    assert themes.LIGHT.rc()["font.family"] == ["DejaVu Sans"]
