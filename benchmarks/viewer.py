"""Pages that show attention: bytes, time to the first paint and to the first figure, memory of the tab, frames.

    .venv-bench/bin/python benchmarks/viewer.py --tokens 16 128 256 1024

One run of GPT-2 small's shape with random weights, 144 heads. pellucid's page shows all of them, the lens, the
prediction and the attribution; CircuitsVis's shows the heads of one layer. BertViz's shows all heads and loads its
scripts from other machines, so offline only its bytes can be measured. Browsers are opened anew for each page, and
times are the median of three. CircuitsVis's page of 1,024 tokens takes gigabytes and many minutes. The script needs a
Chromium, and prints a table.
"""

from __future__ import annotations

import argparse
import html
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Spread  # before torch: it pins the threads

if TYPE_CHECKING:
    import torch

    import pellucid as pl

VOCABULARY = 50257
HOVERED = 3.0
"""Seconds in which the pointer moves over a figure."""

# As root Chromium has no sandbox; the rest keeps it from asking its makers for things in the background.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]

_WATCH = """
window.drawn = 0; window.frames_ = [];
new MutationObserver(() => {
  if (!window.drawn && document.querySelector("canvas, .attention-heads img, .attention-patterns img"))
    requestAnimationFrame(() => requestAnimationFrame(() => (window.drawn ||= performance.now())));
}).observe(document, {childList: true, subtree: true});
"""
_FIRST = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
_COUNT = "window.frames_ = []; (function next(t) { window.frames_.push(t); requestAnimationFrame(next); })(0)"


@cache
def model() -> pl.CkptedTransformer:
    import torch

    import pellucid as pl

    torch.manual_seed(0)
    shape = pl.TransformerConfig(n_layer=12, n_head=12, n_embd=768, n_positions=1024, vocab_size=VOCABULARY)
    return pl.CkptedTransformer(shape).eval()


def pellucid_page(ids: list[int], _: Any) -> str:
    import pellucid as pl

    return pl.view(model(), [ids]).html()


def circuitsvis_page(ids: list[int], patterns: torch.Tensor) -> str:
    shown = import_module("circuitsvis.attention").attention_heads(attention=patterns[0], tokens=[f"t{i}" for i in ids])
    return f"<!doctype html><meta charset='utf-8'><body>{shown.local_src}"


def bertviz_page(ids: list[int], patterns: torch.Tensor) -> str:
    shown = import_module("bertviz").model_view(
        [layer[None] for layer in patterns], [f"t{i}" for i in ids], html_action="return"
    )
    return f"<!doctype html><meta charset='utf-8'><body>{shown.data}"


PAGES: dict[str, Callable[[list[int], torch.Tensor], str]] = {
    "pellucid, 144 heads": pellucid_page, "CircuitsVis, 12 heads": circuitsvis_page, "BertViz, 144 heads": bertviz_page,
}  # fmt: skip


def opened(playwright: Any, path: Path) -> tuple[float, float, float, float]:
    """Milliseconds to the first paint and to the figure, megabytes of the heap, frames a second while hovering."""
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
    page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
    page.add_init_script(_WATCH)
    page.goto(path.as_uri() + "#attention")
    page.wait_for_function("window.drawn > 0", timeout=120_000)
    painted, taken = page.evaluate(_FIRST), page.evaluate("window.drawn")
    figure = page.locator("canvas, .attention-heads img, .attention-patterns img").nth(0)
    box = figure.bounding_box()
    page.evaluate(_COUNT)
    begin = step = 0
    while box and (begin := page.evaluate("window.frames_.at(-1) - window.frames_[1] || 0")) < 1000 * HOVERED:
        x, y = (0.1 + 0.8 * (step * pace % 97) / 97 for pace in (7, 3))
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + min(box["height"], 800) * y)
        step += 1
    frames = page.evaluate("window.frames_.length") / max(begin / 1000, 1e-3)
    heap = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
    browser.close()
    return painted, taken, heap, frames


def row(playwright: Any | None, name: str, tokens: int, folder: Path) -> str:
    import torch

    ids = torch.randint(VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(tokens)).tolist()
    _, ckpts = model().run_with_ckpts([ids], names="attn.ckpt_pattern")
    try:
        page = PAGES[name](ids, ckpts.stack("attn.ckpt_pattern")[:, 0])
    except ImportError as missing:
        return f"| {tokens:,} | {name} | not installed: {html.escape(str(missing))} | | | | |"
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    size = f"{path.stat().st_size / 1e6:.2f}"
    if playwright is None:
        return f"| {tokens:,} | {name} | {size} |"
    if "cdnjs.cloudflare.com" in page:
        return f"| {tokens:,} | {name} | {size} | nothing: its scripts are on other machines | | | |"
    found = zip(*(opened(playwright, path) for _ in range(3)), strict=True)
    painted, drawn, heap, rate = (Spread.of(values).median for values in found)
    return f"| {tokens:,} | {name} | {size} | {painted:,.0f} | {drawn:,.0f} | {heap:.0f} | {rate:.0f} |"


def main(arguments: Sequence[str] | None = None) -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description="Measure pages that show attention.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 128, 256, 1024])
    parser.add_argument("--bytes", action="store_true", help="measure the pages alone, and open none")
    parser.add_argument("--pages", nargs="+", default=list(PAGES), help="whose: names, or how they begin")
    asked = parser.parse_args(arguments)
    opening = ["ms to the first paint", "ms to the first figure", "MB of the tab's heap", "frames a second"]
    measured = ["MB", *([] if asked.bytes else opening)]
    print(f"| tokens | page | {' | '.join(measured)} |\n| --- | --- {'| --- ' * len(measured)}|", flush=True)
    browsers = nullcontext() if asked.bytes else sync_playwright()
    with browsers as playwright, tempfile.TemporaryDirectory() as folder:
        for tokens in asked.tokens:
            for name in (one for one in PAGES if one.startswith(tuple(asked.pages))):
                print(row(playwright, name, tokens, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
