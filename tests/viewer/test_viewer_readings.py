"""The readings within the viewer are the pages of the documentation, with nothing left to be fetched."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import pellucid as pl
from pellucid.viewer import views

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "viewer"))

import make_readings  # noqa: E402

READINGS = json.loads(str(views.readings()))


class Tags(HTMLParser):
    """Which tags are open, and what stands in them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "img"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "math" not in self.open:
            self.words += data


def test_they_are_those_of_the_pages_and_lead_to_most_screens() -> None:
    assert make_readings.made() == READINGS
    assert len(READINGS) == 6
    screens = [set(re.findall(r'data-screen="(\w+)"', reading["html"])) for reading in READINGS]
    assert all(screens)
    assert len(set.union(*screens)) >= 9


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading["slug"])
def test_nothing_is_fetched_and_nothing_is_lost(reading: dict[str, str]) -> None:
    html = reading["html"]
    assert "http" not in html
    assert set(re.findall(r'(?:src|href)="([^"]{1,10})', html)) <= {"data:image", "#"}
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert "$" not in tags.words
    assert "HELD" not in html
    text = (ROOT / "docs" / "readings" / f"{reading['slug']}.md").read_text(encoding="utf-8")
    assert html.count("<math") == len(re.findall(r"\$\$.+?\$\$|\$[^$\n]+?\$", text, re.DOTALL)) > 0
    assert html.count("<img") == text.count("](figures/")
    assert set(re.findall(r'data-reading="(\w+)"', html)) <= {one["slug"] for one in READINGS}


def test_a_saved_page_has_the_words_and_the_server_the_figures(bundled: pl.CkptedTransformer, tmp_path: Path) -> None:
    pl.save_view(bundled.run_with_ckpts("Once upon a time")[1], tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    held = re.search(r'id="pellucid-readings">(.*?)</script>', page, re.DOTALL)
    assert held is not None
    saved = json.loads(held[1])
    assert [one["title"] for one in saved] == [one["title"] for one in READINGS]
    for one, whole in zip(saved, READINGS, strict=True):
        assert "<img" not in one["html"]
        assert one["html"].count("Figure, which `pellucid serve` shows: ") == whole["html"].count("<img") > 0
