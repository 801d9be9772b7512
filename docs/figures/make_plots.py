"""Draw the figures of `docs/plot.md` and of the readings by running their examples.

    python docs/figures/make_plots.py                 # into the folder `figures` beside each page
    python docs/figures/make_plots.py --out FOLDER    # those of all pages

The picture below a block of a page is the figure of the block's `ax`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

FIGURES = Path(__file__).parent
PAGES = (FIGURES.parent / "plot.md", *sorted(FIGURES.parent.glob("readings/*.md")))
sys.path.insert(0, str(FIGURES.parent))

import refresh  # noqa: E402

DOTS = 200
"""Of an inch."""

_PICTURE = re.compile(r"!\[[^\]]*\]\(figures/([\w.]+)\)")


def pictures_below(text: str, block: refresh.Block) -> list[str]:
    """The files of the pictures between a block and the next one."""
    below = text.splitlines()[block.line + block.code.count("\n") :]
    until_next = "\n".join(below).partition("\n```")[0]
    return _PICTURE.findall(until_next)


def run(page: refresh.Page, see: Callable[[str, Any], None]) -> None:
    """Run the examples of a page; `see` is called with the file of each picture and its figure."""

    def after(block: refresh.Block, names: dict[str, Any]) -> None:
        for file in pictures_below(page.text, block):
            see(file, names["ax"].get_figure())

    page.run(after)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw the figures of docs/plot.md and of the readings.")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args(arguments).out
    mpl.use("Agg")
    here, out = Path.cwd(), given and given.resolve()
    with tempfile.TemporaryDirectory() as folder, mpl.rc_context():
        os.chdir(folder)  # a page saves a file
        try:
            for page in PAGES:
                into = out or page.parent / "figures"
                run(refresh.Page.read(page), lambda file, figure, into=into: save(figure, into / file))
        finally:
            os.chdir(here)
    return 0


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DOTS, metadata={"Software": None}, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    sys.exit(main())
