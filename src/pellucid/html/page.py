"""A page made of sections, rendered to one self-contained HTML file by Jinja2 templates.

What wants a page has a method `page()` that returns one; `save_html` writes it. On a narrow screen every row of a table
becomes a block, in which each value stands after its column's title. Cells of a map carry a sign besides their colour,
and the colours of errors run from light to dark, so that colour alone decides nothing.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pellucid import atomic
from pellucid.errors import InputError
from pellucid.names.calls import named_arguments

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Text:
    """A paragraph, optionally set apart; `see` is the anchor of what it is about."""

    text: str
    title: str = ""
    set_apart: bool = False
    see: str = ""
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class PlainTable:
    """Rows under columns; `marked` numbers the rows to draw attention to."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()
    note: str = ""
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class RowGroup:
    """Some rows of a long table, which can be folded away."""

    title: str  # what the rows are of; with the table's title it gives the anchor
    summary: str  # what they show, in a few words
    rows: Sequence[Sequence[str]]  # the rows
    marked: frozenset[int] = frozenset()  # numbers of the rows to draw attention to
    open: bool = False  # whether it is unfolded at first


@dataclass(frozen=True)
class Details:
    """A long table in groups."""

    title: str
    columns: Sequence[str]
    groups: Sequence[RowGroup]
    note: str = ""
    kind: str = field(default="folded", init=False)


@dataclass(frozen=True)
class Cell:
    """A cell of a map."""

    mark: str  # one or two characters in it
    words: str  # what it says in full, shown when one points at it
    shade: float | None = None  # how bad it is, from 0 to 1; None if nothing is wrong


@dataclass(frozen=True)
class HeatStrip:
    """A grid of cells, one row per quantity and one column per block; None is an empty cell."""

    title: str  # what is shown
    rows: Sequence[str]  # labels of the rows
    columns: Sequence[str]  # labels of the columns
    cells: Sequence[Sequence[Cell | None]]  # per row, per column
    scale: Sequence[Cell] = ()  # cells that explain the signs and colours, with their words
    legend: str = ""  # what the cells are
    kind: str = field(default="heat", init=False)

    def colour(self, shade: float | None) -> str:
        """The colour of a shade."""
        return _FINE if shade is None else _of_shade(shade)

    def ink(self, shade: float | None) -> str:
        """The colour of a sign on it."""
        return "#1c1e21" if shade is not None and shade < _DARK else "#ffffff"


@dataclass(frozen=True)
class Picture:
    """A drawing for each theme, embedded in the page."""

    title: str  # what is shown
    light: str  # SVG, for a light page and for paper
    dark: str  # SVG, for a dark page
    words: str  # what it shows, for whoever cannot see it
    note: str = ""  # below it
    kind: str = field(default="picture", init=False)

    def source(self, svg: str) -> str:
        """An SVG as an address that holds it."""
        return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


@dataclass(frozen=True)
class InnerPage:
    """Another page inside this one, in a sandbox: its scripts run, and see nothing of the page around it."""

    title: str  # what is shown
    document: str  # the page's HTML
    note: str = ""  # above it
    kind: str = field(default="frame", init=False)


Section = Text | PlainTable | Details | HeatStrip | Picture | InnerPage


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str  # the page's title
    verdict: str  # the outcome in a word or two
    good: bool | None  # whether it is the outcome one hopes for; None if that is open
    summary: str  # one or two sentences below the verdict
    sections: Sequence[Section]  # in order
    facts: Sequence[tuple[str, str]] = ()  # what the page is about, each with its name

    def render(self, *, whole: bool = True) -> str:
        """The page as HTML; without `whole`, only what goes inside another page, such as a notebook's."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters["anchor"] = anchor
        return environment.get_template("page.html" if whole else "inside.html").render(page=self)


class Paged(Protocol):
    """What can be shown as a page."""

    def page(self) -> Page:
        """The page."""
        ...


@named_arguments()
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
    if not callable(getattr(report, "page", None)):
        raise InputError(
            f"save_html: {type(report).__name__} has no page.",
            code="no-page",
            remedy="Give a report, such as what pl.compare returns for two models.",
        )
    atomic.write_text(path, report.page().render())


def anchor(title: str) -> str:
    """The address of a title within its page, such as "checkpoints-block-3"."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


_FINE = "#1f7a5c"
_SHADES = ((254, 217, 118), (253, 141, 60), (206, 38, 38), (103, 0, 31))
"""From a light yellow to a dark red (after ColorBrewer's YlOrRd, Harrower and Brewer 2003)."""
_DARK = 0.5
"""The shade from which a white sign is read better than a dark one."""


def _of_shade(shade: float) -> str:
    place = min(max(shade, 0.0), 1.0) * (len(_SHADES) - 1)
    low = min(math.floor(place), len(_SHADES) - 2)
    part = place - low
    mixed = (round(a + (b - a) * part) for a, b in zip(_SHADES[low], _SHADES[low + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
