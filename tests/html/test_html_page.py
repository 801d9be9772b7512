"""The page builder: self-contained, escaped, whole."""

import base64
import re
from types import SimpleNamespace

import pytest

import pellucid as pl
from pages import balanced
from pellucid.html.page import Cell, Details, HeatStrip, Page, Picture, PlainTable, RowGroup, Text, save_html

PAGE = Page(
    title="A <script>alert(1)</script> title",
    verdict="different",
    good=False,
    summary="one & two",
    sections=[
        Text("set apart", "First", set_apart=True),
        PlainTable("Rows", ("a", "b"), [("<b>1</b>", "2"), ("3", "4")], frozenset({1})),
        HeatStrip("Strip", ["row"], ["0", "1"], [[Cell("-3", "half", 0.5), None]], (Cell("=", "fine"),), "legend"),
        Details(
            "Long",
            ("name", "value"),
            [RowGroup("one", "1 row", [("x", "1")]), RowGroup("b", "", [("y", "2")], open=True)],
        ),
        Picture("Drawing", "<svg>light</svg>", "<svg>dark</svg>", "a & b", "below"),
    ],
    facts=[("A", "<one>"), ("B", "two")],
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
    assert html.count("<rect") == 3
    assert html.count('class="empty"') == 1
    assert "<title>half</title>" in html


def test_pictures_are_inside_and_follow_the_theme():
    html = PAGE.render()
    inside = [base64.b64decode(part).decode() for part in re.findall(r"base64,([\w+/=]+)", html)]
    assert inside == ["<svg>dark</svg>", "<svg>light</svg>"]
    assert re.search(r'<source media="screen and \(prefers-color-scheme: dark\)"', html)
    assert 'alt="a &amp; b"' in html


def lightness(colour: str) -> float:
    """Relative luminance (WCAG 2.1)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_shades_run_from_light_to_dark_and_their_signs_can_be_read():
    strip = PAGE.sections[2]
    assert isinstance(strip, HeatStrip)
    shades = [n / 20 for n in range(21)]
    colours = [strip.colour(shade) for shade in shades]
    assert [lightness(c) for c in colours] == sorted(map(lightness, colours), reverse=True)
    for shade in (None, *shades):
        low, high = sorted((lightness(strip.colour(shade)), lightness(strip.ink(shade))))
        assert (high + 0.05) / (low + 0.05) >= 3, shade
    assert strip.colour(-1) == colours[0]
    assert strip.colour(2) == colours[-1]


def test_rows_are_folded_in_groups_that_can_be_addressed():
    html = PAGE.render()
    assert '<details id="long-one">' in html
    assert '<details id="long-b" open>' in html
    assert 'id="strip"' in html
    assert '<a href="#strip">Strip</a>' in html


def test_on_a_narrow_screen_each_value_stands_after_its_title():
    html = PAGE.render()
    assert '<td data-of="b">2</td>' in html
    assert "<td>&lt;b&gt;1&lt;/b&gt;</td>" in html, "the first cell heads the row"
    assert re.search(r"max-width: 40rem.*?content: attr\(data-of\)", html, re.DOTALL)


def test_the_facts_are_listed():
    assert "<dt>A</dt><dd>&lt;one&gt;</dd>" in PAGE.render()


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
    with pytest.raises(pl.InputError, match="no page"):
        save_html(SimpleNamespace(page="text"), tmp_path / "other.html")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_comparison_links_to_what_it_names():
    """The first divergence is one click from its row, which is unfolded and marked."""
    model = pl.load()
    wrong = pl.CkptedTransformer(model.config.replace(layer_norm_epsilon=1e-6), model.state_dict()).eval()
    page = pl.compare(model, wrong, inputs="Once upon a time").page()
    html = page.render()
    (target,) = re.findall(r'<a href="#([\w-]+)">Show it in the table', html)
    opened = re.search(rf'<details id="{target}" open>(.*?)</details>', html, re.DOTALL)
    assert opened is not None
    assert '<tr class="marked"><td>blocks.0.ln1.ckpt_scaled</td>' in opened[1]
    assert html.count("<details") == 2 * (model.config.n_layer + 1)
