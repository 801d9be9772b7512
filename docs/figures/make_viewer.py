"""Take the README's picture of the viewer: the river of one sentence, as `pellucid view` writes it.

python docs/figures/make_viewer.py                              # into docs/figures/viewer.png; asks for a Chromium
python docs/figures/make_viewer.py --screen atlas --out FILE
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import pellucid as pl

OUT = Path(__file__).parent / "viewer.png"
STORY = "Lily had a red ball. One day, the red ball was lost. Lily was sad, but her mom found the red"
WIDTH, HEIGHT = 1280, 860
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def picture(page: Path, screen: str) -> bytes:
    """What a browser shows of a page's screen, as PNG."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        shown.goto(f"{page.as_uri()}#{screen}")
        shown.wait_for_selector(f"#pellucid-tab-{screen}[aria-selected=true]")
        shown.wait_for_timeout(500)  # fonts, and the frame after the last change
        taken = shown.screenshot()
        browser.close()
    return taken


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screen", default="river")
    parser.add_argument("--out", type=Path, default=OUT)
    wish = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        pl.save_view(pl.view(pl.load(), STORY), page)
        wish.out.write_bytes(picture(page, wish.screen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
