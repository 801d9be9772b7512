"""The page builder: self-contained, escaped, whole."""

import base64
import re

import pytest

import pellucid as pl
from pages import balanced
from pellucid.report.page import HeatStrip, Page, Picture, Table, Text, save_html

PAGE = Page(
    title="A <script>alert(1)</script> title",
    verdict="different",
    good=False,
    summary="one & two",
    sections=[
        Text("set apart", "First", set_apart=True),
        Table("Rows", ("a", "b"), [("<b>1</b>", "2"), ("3", "4")], frozenset({1})),
        HeatStrip("Strip", ["row"], ["0", "1"], [[(0.5, "half"), None]], "legend"),
        Picture("Drawing", "<svg>light</svg>", "<svg>dark</svg>", "a & b", "below"),
    ],
)


class Paged:
    def page(self) -> Page:
        return PAGE


def test_a_page_is_self_contained_and_well_formed():
    html = PAGE.render()
    assert html.startswith("<!doctype html>")
    assert balanced(html)
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert 'name="viewport"' in html


def test_the_balance_check_can_fail():
    with pytest.raises(AssertionError):
        balanced("<p><b>one</p></b>")


def test_what_is_shown_is_escaped():
    html = PAGE.render()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<b>1</b>" not in html
    assert "one &amp; two" in html


def test_marked_rows_and_cells_are_drawn():
    html = PAGE.render()
    assert html.count('<tr class="marked">') == 1
    assert html.count("<rect") == 2
    assert html.count('class="empty"') == 1
    assert "<title>half</title>" in html


def test_pictures_are_inside_and_follow_the_theme():
    html = PAGE.render()
    inside = [base64.b64decode(part).decode() for part in re.findall(r"base64,([\w+/=]+)", html)]
    assert inside == ["<svg>dark</svg>", "<svg>light</svg>"]
    assert re.search(r'<source media="screen and \(prefers-color-scheme: dark\)"', html)
    assert 'alt="a &amp; b"' in html


def test_shades_run_from_dark_to_light():
    strip = PAGE.sections[2]
    assert isinstance(strip, HeatStrip)
    colours = [strip.colour(shade) for shade in (0.0, 0.25, 0.5, 0.75, 1.0)]
    lightness = [sum(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in colours]
    assert lightness == sorted(lightness)
    assert strip.colour(-1) == colours[0]
    assert strip.colour(2) == colours[-1]


def test_a_notebook_gets_only_the_inside():
    inside = PAGE.render(whole=False)
    assert "<html" not in inside
    assert "<main" in inside


def test_save_html_writes_whole_files_and_refuses_what_has_no_page(tmp_path):
    save_html(Paged(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == PAGE.render()
    with pytest.raises(pl.InputError) as caught:
        save_html(object(), tmp_path / "other.html")  # type: ignore[arg-type]
    assert caught.value.code == "no-page"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
