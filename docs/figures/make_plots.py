"""Draw the figures of `docs/plot.md` by running its examples.

    python docs/figures/make_plots.py                 # into docs/figures
    python docs/figures/make_plots.py --out FOLDER

The picture below a block of the page is the figure of the block's `ax`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl

FIGURES = Path(__file__).parent
PAGE = FIGURES.parent / "plot.md"
sys.path.insert(0, str(FIGURES.parent))

import refresh  # noqa: E402

_PICTURE = re.compile(r"!\[[^\]]*\]\(figures/([\w.]+)\)")


def pictures_below(text: str, block: refresh.Block) -> list[str]:
    """The files of the pictures between a block and the next one."""
    below = text.splitlines()[block.line + block.code.count("\n") :]
    until_next = "\n".join(below).partition("\n```")[0]
    return _PICTURE.findall(until_next)


def drawn(page: refresh.Page) -> Iterator[tuple[str, Any]]:
    """File and figure, as the page's examples make them."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in page.blocks():
        if block.language == "python" and not block.is_doctest:
            exec(compile(block.code, page.name, "exec"), names)
            for file in pictures_below(page.text, block):
                yield file, names["ax"].get_figure()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw the figures of docs/plot.md.")
    parser.add_argument("--out", type=Path, default=FIGURES)
    out = parser.parse_args(arguments).out.resolve()
    mpl.use("Agg")
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, mpl.rc_context():
        os.chdir(folder)  # the page saves a file
        try:
            for file, figure in drawn(refresh.Page.read(PAGE)):
                figure.savefig(out / file, dpi=200, metadata={"Software": None}, pil_kwargs={"optimize": True})
        finally:
            os.chdir(here)
    return 0


if __name__ == "__main__":
    sys.exit(main())
