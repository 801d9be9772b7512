"""A page in a browser that remembers what it asked for and what went wrong."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from pellucid.cli import main
from pellucid.cli.shared.tables import FORMULA

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request

LOCAL = ("file", "data", "blob", "about")


_FREE: dict[Browser, list[Page]] = {}
"""Tabs that were closed, as far as their tests know: a new one takes a quarter of the time of a test."""


class Watched:
    """A tab of its own, with no state of another.

    Attributes:
        page: The tab.
        requests: Addresses outside this machine that were asked for.
        faults: Errors and warnings of the console, and uncaught errors.
    """

    def __init__(self, browser: Browser, width: int, height: int, theme: str) -> None:
        self._free = _FREE.setdefault(browser, [])
        self.page = self._free.pop() if self._free else browser.new_context(accept_downloads=True).new_page()
        self.context = self.page.context
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme="dark" if theme == "dark" else "light", reduced_motion="reduce")
        self.page.set_default_timeout(10_000)
        self.requests: list[str] = []
        self.faults: list[str] = []
        self._heard = {"request": self._asked, "console": self._told, "pageerror": self._failed}
        for event, hear in self._heard.items():
            self.page.on(event, hear)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def _asked(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in LOCAL and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            self.requests.append(request.url)

    def _told(self, said: ConsoleMessage) -> None:
        if said.type in ("error", "warning"):
            self.faults.append(said.text)

    def _failed(self, fault: Exception) -> None:
        self.faults.append(str(fault))

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
        selected = f"document.querySelector('#pellucid-tab-{screen}[aria-selected=true]') !== null"
        self.run(f"location.hash = '#{screen}'")
        self.wait(selected)
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
        for tried in range(220):
            if self.run(condition):
                return
            self.page.wait_for_timeout(5 if tried < 20 else 50)
        raise AssertionError(f"never true: {condition}")

    def style(self, css: str) -> None:
        """Add styles in the way that a content policy allows, in the place of those that were added before."""
        adopted = "document.adoptedStyleSheets = [...(window.ownSheets ??= [...document.adoptedStyleSheets]), sheet]"
        self.page.evaluate(f"(css) => {{ const sheet = new CSSStyleSheet(); sheet.replaceSync(css); {adopted} }}", css)

    def close(self) -> None:
        """Leave the page, so that another test may have the tab."""
        self.page.goto("about:blank")
        for event, hear in self._heard.items():
            self.page.remove_listener(event, hear)
        self.context.clear_permissions()
        self._free.append(self.page)


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


_CONTENT = """async ([title, form]) => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const titled = (one) => [...one.querySelectorAll("h2")].some((head) => head.textContent.trim() === title);
  const figures = () => [...document.querySelectorAll("section.figure")].filter(titled);
  await frame();
  await frame();
  for (let waited = performance.now(); figures().length !== 1; await frame())
    if (performance.now() - waited > 10000) throw Error(`${figures().length} figures: ${title}`);
  const button = [...figures()[0].querySelectorAll(".menu button")].find((one) => one.textContent.startsWith(form));
  const {createObjectURL} = URL, {click} = HTMLAnchorElement.prototype, made = [];
  URL.createObjectURL = (blob) => (made.push(blob), "");
  HTMLAnchorElement.prototype.click = () => {};
  try {
    document.activeElement.blur();
    button.click();
  } finally {
    URL.createObjectURL = createObjectURL;
    HTMLAnchorElement.prototype.click = click;
  }
  return made[0].text();
}"""
"""What a figure's menu would download, once the figure is there and drawn."""


def content(watched: Watched, title: str, form: str) -> str:
    """The text that a figure's menu gives, read in the page: a file and the clicks to it take a tenth of a second."""
    return watched.page.evaluate(_CONTENT, [title, form])


def rows_of(watched: Watched, title: str) -> list[list[str]]:
    """The whole table of a figure, from its CSV, as a spreadsheet shows it: behind an apostrophe anything is text."""
    return [list(map(_shown, row)) for row in csv.reader(io.StringIO(content(watched, title, "CSV"), newline=""))]


def _shown(cell: str) -> str:
    """A cell without the apostrophe that marks text; before a number none belongs, so it stays and the test fails."""
    try:
        float(cell[1:])
    except ValueError:
        return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell
    return cell


def command_of(watched: Watched, title: str) -> str:
    """What a figure's menu gives as a command line."""
    watched.context.grant_permissions(["clipboard-read", "clipboard-write"])
    watched.page.bring_to_front()
    watched.run("navigator.clipboard.writeText('')")
    figure = watched.figure(title)
    figure.locator("summary").click()
    figure.get_by_role("button", name="Copy as command line").click()
    watched.wait("navigator.clipboard.readText()")
    return watched.run("navigator.clipboard.readText()")


def ran(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    """The exit code of a command, and what it writes with --json."""
    assert words[0] == "pellucid"
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*words[1:], "--json"])
    assert isinstance(end.value.code, int)
    return end.value.code, json.loads(capsys.readouterr().out)
