"""Tables and figures that a verb writes into files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.text import Text

import pellucid as pl
from pellucid import atomic
from pellucid.cli.shared.options import Wish
from pellucid.cli.shared.screen import show
from pellucid.errors import InputError
from pellucid.extras import need

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a cell begins that spreadsheets compute."""

PANEL = (3.3, 2.5)
"""Inches of one panel of a figure."""


def write_csv(path: Path, table: Any) -> None:
    """Write a table as CSV in which no spreadsheet takes a cell of text for a formula."""
    texts = table.select_dtypes(include=["object", "string"])
    atomic.write_text(path, table.assign(**{name: texts[name].map(_no_formula) for name in texts}).to_csv(index=False))


def _no_formula(cell: Any) -> Any:
    """A cell that begins like a formula, behind an apostrophe, as spreadsheets mark text (OWASP, CSV injection)."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def require_format(path: Path | None) -> None:
    """Check that a figure's name ends in a format that can be written, if a figure is wanted."""
    if path is None:
        return
    kinds = need("matplotlib.figure", "--figure").Figure().canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in kinds:
        raise InputError(
            f"--figure {path}: it ends in {path.suffix or 'nothing'!r}, expected one of {', '.join(sorted(kinds))}.",
            code="figure-format",
            remedy="Name a file that ends in .svg, .pdf or .png.",
        )


def panels(columns: int) -> tuple[Any, Any]:
    """Make a figure of several panels side by side; returns it and its axes."""
    size = (PANEL[0] * columns, PANEL[1])
    return need("matplotlib.pyplot", "--figure").subplots(1, columns, figsize=size, layout="constrained")


def write_figure(path: Path, draw: Callable[[], Any]) -> None:
    """Write a figure that is drawn in the light theme."""
    pyplot = need("matplotlib.pyplot", "--figure")
    with pl.plot.theme("light"):
        figure = draw()
        atomic.write_file(path, lambda part: figure.savefig(part, format=path.suffix[1:].lower()))
        pyplot.close(figure)


def say_written(wish: Wish) -> None:
    """Name the files that a verb wrote."""
    for path in wish.outputs().values():
        if path is not None:
            show(Text.assemble("\nwritten: ", (str(path), "bold")))
