"""What an object shows of itself: lines where it is printed, and the same as a table in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Listing:
    """A title, and rows of cells.

    Args:
        title: What is shown, in a line.
        columns: What the cells are, for the table.
        rows: One per thing.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """The title, and below it a line per row."""
        return "\n".join([self.title, *("  " + "  ".join(row) for row in self.rows)])

    def html(self) -> str:
        """The title, and below it a table."""
        style = "text-align: left; white-space: pre-wrap"
        lines = (("th", self.columns), *(("td", row) for row in self.rows))
        cells = ("".join(f"<{kind} style='{style}'>{escape(cell)}</{kind}>" for cell in row) for kind, row in lines)
        rows = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<div>{escape(self.title)}<table>{rows}</table></div>"


class Listed(ABC):
    """An object that shows itself by a `Listing`."""

    @abstractmethod
    def _listing(self) -> Listing: ...

    def __repr__(self) -> str:
        return self._listing().text()

    def _repr_html_(self) -> str:
        return self._listing().html()
