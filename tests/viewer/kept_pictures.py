"""Small pictures of the screens that were looked at and kept, and how far another picture is from one.

Browsers and fonts differ between machines, and no text is drawn to the same dot twice. So pictures are compared at a
thirtieth of their size, where a letter is less than a dot and what is left is the layout and the colours; a picture may
also be a few dots shifted, because lines of text are not equally wide everywhere.

`python tests/viewer/kept_pictures.py` draws them all anew.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

KEPT = Path(__file__).parent / "pictures"
WIDTHS = {1280: 64, 375: 32}
"""Width of the page -> of its kept picture."""
TALLEST = 1600
TOLERANCE = 9.0
"""Mean difference in 255 levels; another font made up to 8, another layout or palette 10 to 100."""


def small(png: bytes, width: int) -> Image.Image:
    """The upper part of a page as a picture of few dots."""
    with Image.open(io.BytesIO(png)) as whole:
        upper = whole.convert("RGB").crop((0, 0, whole.width, TALLEST))
    to = WIDTHS[width]
    return upper.resize((to, round(TALLEST * to / width)), Image.Resampling.BOX)


def distance(found: Image.Image, kept: Image.Image) -> float:
    """Mean difference of two pictures, the least over shifts up or down by as much as three lines of text."""
    a, b = (np.asarray(one, dtype="f4") for one in (found, kept))
    assert a.shape == b.shape
    rows = len(a)
    most = round(70 * rows / TALLEST)
    shifts = range(-most, most + 1)
    return min(float(abs(a[max(0, s) : rows + min(0, s)] - b[max(0, -s) : rows - max(0, s)]).mean()) for s in shifts)


def path_of(screen: str, width: int, theme: str) -> Path:
    return KEPT / f"{screen}_{width}_{theme}.png"


def keep(png: bytes, screen: str, width: int, theme: str) -> None:
    KEPT.mkdir(exist_ok=True)
    small(png, width).save(path_of(screen, width, theme), optimize=True)


if __name__ == "__main__":
    from playwright.sync_api import sync_playwright
    from watched_page import Watched, screens
    from written_traces import page_of, written

    from conftest import ARGUMENTS, CHROMIUM

    page = Path(sys.argv[1] if len(sys.argv) > 1 else "/tmp") / "pellucid-kept.html"
    page.write_text(page_of(written()), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for width in WIDTHS:
            for theme in ("light", "dark"):
                watched = Watched(browser, width, 900, theme)
                watched.go(page.as_uri())
                for screen in screens(watched):
                    watched.show(screen)
                    keep(watched.page.screenshot(full_page=True), screen, width, theme)
                watched.close()
        browser.close()
