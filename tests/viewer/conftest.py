"""One browser for all tests, and pages whose traces are made of random numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from watched_page import Watched
from written_traces import page_of, written

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# As root Chromium has no sandbox; the rest keeps it from asking its makers for things in the background.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a small run, as a file."""
    path = tmp_path_factory.mktemp("viewer") / "page.html"
    path.write_text(page_of(written()), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Browser, saved: Path) -> Iterator[Callable[..., Watched]]:
    """Open a page and watch it; at the end nothing was asked of any other machine, and nothing failed."""
    watched: list[Watched] = []

    def open_page(path: Path = saved, state: str = "", width: int = 1280, theme: str = "light", **how: str) -> Watched:
        watched.append(Watched(browser, width, 900, theme))
        watched[-1].go(path.as_uri() + state, **how)
        return watched[-1]

    yield open_page
    for one in watched:
        one.close()
        assert one.requests == []
        assert one.faults == []
