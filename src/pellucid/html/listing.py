"""What an object shows of itself: lines where it is printed, the same as a table in a notebook, and numbers in JSON."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, cast


def counted(count: int, noun: str) -> str:
    """A number of things in words: "1 part", "1,200 batches"."""
    return f"{count:,} {noun}{('es' if noun.endswith('ch') else 's') * (count != 1)}"


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


def finite(value: Any) -> Any:
    """A value for JSON, which has neither nan nor inf: None stands in their places, however deep."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in cast(Sequence[Any], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
