"""A page made of sections, rendered to one self-contained HTML file by Jinja2 templates.

What wants a page has a method `page()` that returns one; `save_html` writes it. Colours of heat strips follow
the viridis map (van der Walt and Smith 2015), which is ordered in lightness and safe for colour-blind readers.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pellucid import atomic
from pellucid.errors import InputError

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Text:
    """A paragraph, optionally set apart."""

    text: str
    title: str = ""
    set_apart: bool = False
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Table:
    """Rows under columns; `marked` numbers the rows to draw attention to."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()
    note: str = ""
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class HeatStrip:
    """A grid of cells, one row per quantity and one column per block; None is an empty cell.

    Attributes:
        title: What is shown.
        rows: Labels of the rows.
        columns: Labels of the columns.
        cells: Per row, per column: (shade from 0 to 1, words), or None.
        legend: What the shades mean.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[tuple[float, str] | None]]
    legend: str = ""
    kind: str = field(default="heat", init=False)

    def colour(self, shade: float) -> str:
        """The colour of a shade."""
        return _viridis(shade)


@dataclass(frozen=True)
class Picture:
    """A drawing for each theme, embedded in the page.

    Attributes:
        title: What is shown.
        light: SVG, for a light page and for paper.
        dark: SVG, for a dark page.
        words: What it shows, for whoever cannot see it.
        note: Below it.
    """

    title: str
    light: str
    dark: str
    words: str
    note: str = ""
    kind: str = field(default="picture", init=False)

    def source(self, svg: str) -> str:
        """An SVG as an address that holds it."""
        return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


Section = Text | Table | HeatStrip | Picture


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: Of the page.
        verdict: The outcome in a word or two.
        good: Whether it is the outcome one hopes for; None where that is open.
        summary: One or two sentences below the verdict.
        sections: In order.
    """

    title: str
    verdict: str
    good: bool | None
    summary: str
    sections: Sequence[Section]

    def render(self, *, whole: bool = True) -> str:
        """The page as HTML; without `whole`, only what goes inside another page, such as a notebook's."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        return environment.get_template("page.html" if whole else "inside.html").render(page=self)


class Paged(Protocol):
    """What can be shown as a page."""

    def page(self) -> Page:
        """The page."""
        ...


def save_html(report: Paged, path: str | Path) -> None:
    """Write a report as one self-contained HTML file.

    Args:
        report: Anything with a `page()`, such as what `pellucid.compare` returns for two models.
        path: Where; an existing file is replaced whole or not at all.

    Raises:
        InputError: `report` has no page.

    Example:
        >>> import pellucid as pl
        >>> report = pl.compare(pl.load(), pl.to_hf(pl.load()), inputs="Once upon a time")
        >>> pl.save_html(report, "report.html")
    """
    make = getattr(report, "page", None)
    if make is None:
        raise InputError(
            f"save_html: {type(report).__name__} has no page.",
            code="no-page",
            remedy="Give a report, such as what pl.compare returns for two models.",
        )
    text = make().render()
    atomic.write_text(path, text)


_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def _viridis(shade: float) -> str:
    place = min(max(shade, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    low = min(math.floor(place), len(_VIRIDIS) - 2)
    part = place - low
    mixed = (round(a + (b - a) * part) for a, b in zip(_VIRIDIS[low], _VIRIDIS[low + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
