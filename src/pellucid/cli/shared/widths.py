"""Tables, lists and paragraphs for any width: what does not fit is set otherwise, never cut.

On a terminal a table that is too wide becomes a block of lines for each row, and lines break between words. In a pipe
no screen limits a line, so nothing is broken there, and no line ends in blanks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from pellucid.errors import printable

PIPE_WIDTH = 80
"""Columns for lists in what is not a terminal; tables and sentences have as many as they need."""

GAP = 2
"""Columns between two things that stand side by side."""

NARROWEST = 24
"""Columns that a cell of prose needs at least to be set beside others."""


@dataclass(frozen=True)
class Column:
    """One column of a grid."""

    title: str = ""  # its heading; it goes before each value if a row becomes a block
    right: bool = False  # whether its values end at one place, as numbers do
    style: str = ""  # how its values are styled
    label: bool = False  # whether it says what the row is about, and so heads the block
    prose: bool = False  # whether its values may be broken between words
    picture: bool = False  # whether its values are drawn under the heading, column by column


class Grid:
    """Rows under columns, a bare title being a column of text; without a style of the `heading` there are no titles."""

    def __init__(self, *columns: Column | str, heading: str | None = "bold") -> None:
        self.columns = [Column(one) if isinstance(one, str) else one for one in columns]
        self.heading = heading
        self.rows: list[list[Text]] = []

    def add(self, *cells: str | Text) -> None:
        """Add a row; text is shown without what would act on a terminal."""
        made = [Text(printable(cell)) if isinstance(cell, str) else cell.copy() for cell in cells]
        for cell, column in zip(made, self.columns, strict=True):
            cell.stylize_before(column.style)
        self.rows.append(made)

    def lines(self, width: int | None) -> list[Text]:
        """The grid in at most `width` columns, as far as its words allow; None for any width."""
        natural = self._widths()
        whole = sum(natural) + GAP * (len(natural) - 1)
        if width is None or whole <= width:
            return list(self._aligned(natural))
        prose = next((n for n, column in enumerate(self.columns) if column.prose), None)
        if prose is not None and width - (whole - natural[prose]) >= NARROWEST:
            natural[prose] -= whole - width
            return list(self._aligned(natural))
        return [line for row in self.rows for line in self._block(row, width)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.lines(options.max_width if console.is_terminal else None)

    def _widths(self) -> list[int]:
        cells = [[row[n] for row in self.rows] for n in range(len(self.columns))]
        titles = [0 if self.heading is None else cell_len(column.title) for column in self.columns]
        return [max([title, *map(_width, column)]) for title, column in zip(titles, cells, strict=True)]

    def _aligned(self, widths: Sequence[int]) -> Iterator[Text]:
        if self.heading is not None:
            yield self._line([Text(column.title, self.heading) for column in self.columns], widths)
        for row in self.rows:
            broken = [
                wrapped(cell, width) if column.prose else [cell]
                for cell, column, width in zip(row, self.columns, widths, strict=True)
            ]
            for number in range(max(map(len, broken))):
                yield self._line([cell[number] if number < len(cell) else Text() for cell in broken], widths)

    def _line(self, cells: Sequence[Text], widths: Sequence[int]) -> Text:
        line = Text()
        for cell, column, width in zip(cells, self.columns, widths, strict=True):
            blank = " " * (width - _width(cell))
            line.append_text(Text(blank) + cell if column.right else cell + Text(blank))
            line.append(" " * GAP)
        line.rstrip()
        return line

    def _block(self, row: Sequence[Text], width: int) -> Iterator[Text]:
        """A row alone: its labels, then every other value after its title."""
        labels, values, below = Text(), list[Text](), list[Text]()
        for cell, column in zip(row, self.columns, strict=True):
            titled = Text.assemble((f"{column.title} ", "dim"), cell) if column.title and self.heading else cell
            if not cell.plain.strip():
                continue
            if column.label:
                labels.append_text(titled if cell.plain.strip().isdigit() else cell).append("  ")
            elif column.picture:
                below += [Text(column.title, "dim"), cell] if column.title else [cell]
            elif column.prose:
                below += wrapped(titled, width - GAP)
            else:
                values.append(titled)
        labels.rstrip()
        indent = GAP if labels.plain else 0
        yield from [labels] if labels.plain else []
        for line in (*flowing(values, width - indent), *below):
            yield Text(" " * indent) + line


class Flow:
    """Things in reading order, as many in a line as fit, each at one of few places."""

    def __init__(self, things: Iterable[Text]) -> None:
        self.things = list(things)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width if console.is_terminal else PIPE_WIDTH
        each = max(map(_width, self.things), default=1) + GAP
        columns = max(1, (width + GAP) // each)
        for start in range(0, len(self.things), columns):
            line = Text()
            for thing in self.things[start : start + columns]:
                line.append_text(thing).append(" " * (each - _width(thing)))
            line.rstrip()
            yield line


class Beside:
    """Two things side by side, or one below the other if they do not fit."""

    def __init__(self, left: Sequence[Grid | Text], right: Grid) -> None:
        self.left, self.right = left, right

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width if console.is_terminal else PIPE_WIDTH
        left = [
            line for part in self.left for line in (part.lines(width) if isinstance(part, Grid) else part.split("\n"))
        ]
        right = self.right.lines(width)
        edge = max(map(_width, left)) + GAP + 1
        if edge + max(map(_width, right)) > width:
            yield from (*left, Text(), *right)
            return
        for number in range(max(len(left), len(right))):
            line = left[number].copy() if number < len(left) else Text()
            if number < len(right):
                line.append(" " * (edge - _width(line))).append_text(right[number])
            yield line


def flowing(things: Sequence[Text], width: int) -> Iterator[Text]:
    """Things in lines, none of them broken."""
    line = Text()
    for thing in things:
        if line.plain and _width(line) + GAP + _width(thing) > width:
            yield line
            line = Text()
        line = line + Text(" " * GAP) + thing if line.plain else thing.copy()
    if line.plain:
        yield line


def wrapped(text: Text, width: int) -> list[Text]:
    """A text in lines of at most `width` columns, broken between words only; a longer word has a line of its own."""
    lines: list[Text] = []
    for paragraph in text.split("\n", allow_blank=True):
        breaks: list[int] = []
        used = 0
        for word in re.finditer(r"\s*\S+\s*", paragraph.plain):
            if used and used + cell_len(word[0].rstrip()) > width:
                breaks.append(word.start())
                used = 0
            used += cell_len(word[0])
        for line in paragraph.divide(breaks):
            line.rstrip()
            lines.append(line)
    return lines


def shown_in(part: RenderableType, console: Console) -> RenderableType:
    """A part as it is printed: paragraphs are broken on a terminal, and nowhere else."""
    if isinstance(part, Text) and console.is_terminal:
        return Text("\n").join(wrapped(part, console.width))
    return part


def _width(text: Text) -> int:
    return cell_len(text.plain)
