"""A page in a browser that remembers what it asked for and what went wrong."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

LOCAL = ("file", "data", "blob", "about")


class Watched:
    """A tab of its own, with no state of another.

    Attributes:
        page: The tab.
        requests: Addresses outside this machine that were asked for.
        faults: Errors and warnings of the console, and uncaught errors.
    """

    def __init__(self, browser: Browser, width: int, height: int, theme: str) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
            reduced_motion="reduce",
            accept_downloads=True,
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on("console", lambda said: self._told(said.type, said.text))
        self.page.on("pageerror", lambda fault: self.faults.append(str(fault)))

    def _asked(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in LOCAL and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            self.requests.append(address)

    def _told(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.faults.append(text)

    def go(self, address: str, until: str = "[role=tabpanel]") -> None:
        """Open an address, and wait until an element is there."""
        self.page.goto(address)
        self.page.wait_for_selector(until)

    def figure(self, title: str) -> Locator:
        """The figure with this title."""
        return self.page.locator("section.figure").filter(has=self.page.get_by_role("heading", name=title, exact=True))

    def canvas(self, title: str) -> Locator:
        """The canvas of a figure."""
        return self.figure(title).locator("canvas").first

    def show(self, screen: str) -> None:
        """Go to a screen, and wait until it is drawn."""
        self.run(f"location.hash = '#{screen}'")
        self.page.wait_for_selector(f"#pellucid-tab-{screen}[aria-selected=true]")
        self.drawn()

    def drawn(self) -> None:
        """Wait until what was changed is drawn: that takes a frame, and the second begins after it."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def said(self) -> str:
        """What a screen reader was told last."""
        return self.page.locator("[aria-live=polite].sr").inner_text()

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)

    def wait(self, condition: str) -> None:
        """Wait until an expression is true; Playwright's own way evaluates strings, which the policy forbids."""
        for _ in range(200):
            if self.run(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never true: {condition}")

    def style(self, css: str) -> None:
        """Add styles in the way that a content policy allows, in the place of those that were added before."""
        adopted = "document.adoptedStyleSheets = [...(window.ownSheets ??= [...document.adoptedStyleSheets]), sheet]"
        self.page.evaluate(f"(css) => {{ const sheet = new CSSStyleSheet(); sheet.replaceSync(css); {adopted} }}", css)

    def close(self) -> None:
        self.context.close()


def screens(watched: Watched) -> list[str]:
    """The ids of all screens."""
    return watched.run("[...document.querySelectorAll('[role=tab]')].map((tab) => tab.id.replace('pellucid-tab-', ''))")


def taken(watched: Watched, title: str, form: str) -> Path:
    """The file that a figure's menu gives."""
    figure = watched.figure(title)
    figure.locator("summary").click()
    with watched.page.expect_download() as download:
        figure.get_by_role("button", name=form, exact=False).first.click()
    return Path(download.value.path())


def rows_of(watched: Watched, title: str) -> list[list[str]]:
    """The whole table of a figure, from its CSV."""
    return list(csv.reader(io.StringIO(taken(watched, title, "CSV").read_text(encoding="utf-8"))))
