"""A view in JupyterLab, as its users see it: drawn where a cell ends with it, in words where it is not trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from watched_page import Watched

import pellucid as pl

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CELL = 'import pellucid as pl\npl.view(pl.load(), "Once upon a time")'
TOKEN = "a-token-of-this-test"


def notebook(source: str, outputs: list[dict[str, Any]]) -> str:
    cell = {
        "cell_type": "code",
        "id": "one",
        "execution_count": None,
        "metadata": {},
        "source": source,
        "outputs": outputs,
    }
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": [cell]})


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab that knows nothing of its user, without its query."""
    pytest.importorskip("jupyterlab")
    data = {"text/html": pl.view(pl.load(), "Once upon a time")._repr_mimebundle_()["text/html"]}
    (tmp_path / "run.ipynb").write_text(notebook(CELL, []), encoding="utf-8")
    shown = {"output_type": "display_data", "data": data, "metadata": {}}
    (tmp_path / "sent.ipynb").write_text(notebook("seen", [shown]), encoding="utf-8")
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    options = ["port=0", f"root_dir={tmp_path}", "ip=127.0.0.1", "allow_root=True"]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--IdentityProvider.token={TOKEN}"]
    process = subprocess.Popen(
        [*command, *(f"--ServerApp.{option}" for option in options)],
        env={**os.environ, **folders, "IPYTHONDIR": str(tmp_path / "ipython")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield _address(process, tmp_path / "RUNTIME")
    finally:
        process.terminate()
        process.wait(30)


def _address(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Where the server is, once it has written that down."""
    for _ in range(600):
        assert process.poll() is None, "JupyterLab ended"
        for path in folder.glob("jpserver-*.json"):
            return f"http://127.0.0.1:{json.loads(path.read_text())['port']}/lab/tree"
        time.sleep(0.1)
    raise AssertionError("JupyterLab did not start within a minute")


@pytest.mark.long
def test_a_cell_of_jupyterlab_draws_its_view_and_one_that_was_sent_is_in_words(browser: Browser, lab: str) -> None:
    watched, sent = (Watched(browser, 1280, 900, "light") for _ in range(2))
    for one in (watched, sent):
        one.page.set_default_timeout(150_000)
    watched.go(f"{lab}/run.ipynb?token={TOKEN}", until=".jp-Notebook-ExecutionIndicator[data-status=idle]")
    first = watched.page.locator(".jp-Cell").first
    for _ in range(
        100
    ):  # what is run before the kernel is connected is not run at all, and says so by its empty prompt
        first.locator(".cm-content").click()
        watched.page.keyboard.press("Shift+Enter")
        watched.page.wait_for_timeout(1000)
        if first.locator(".jp-InputPrompt").inner_text().strip("[]: "):
            break
    else:
        raise AssertionError("the kernel never ran the cell")
    view = watched.page.locator("div[id^=pellucid-]")
    view.locator(".token").last.wait_for()
    assert view.locator(".token").all_inner_texts() == ["Once", "␣upon", "␣a", "␣time"]
    view.get_by_role("tab", name="Attention").click()
    assert view.locator("h1").inner_text() == "What does the model look at?"
    assert view.locator(".figure canvas").first.evaluate("(canvas) => canvas.width") > 0
    sent.go(f"{lab}/sent.ipynb?token={TOKEN}", until="text=The rest is drawn by a script")
    assert sent.page.get_by_text("Once | ·upon | ·a | ·time").is_visible()
    assert sent.page.locator(".token").count() == 0
    for one in (watched, sent):
        one.context.close()
        assert one.requests == []
