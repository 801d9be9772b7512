"""How a corpus is cut: numbered parts of as many rows, each run in batches that are fixed by the plan.

A row is one token. The texts are laid end to end, in their order; part `i` holds the rows from `i * part_rows` on. A
text across a border is run for both parts. What a part holds depends on its own texts alone, so parts can be made in
any order, by anybody, twice: their bytes are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

PART_BYTES = 256 * 2**20
"""Bytes of a part, all names together; two of them are in memory, one that is filled and one that is written."""

TEXTS_IN_A_PART = 16
"""A part has at least the rows of so many of the longest texts, so that running one twice costs little."""


@dataclass(frozen=True)
class StoredValue:
    """One checkpoint's place in a store."""

    name: str
    axes: tuple[str, ...]  # the axes of a row, those after positions
    shape: tuple[int, ...]  # their lengths

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class TextSpan:
    """What one batch runs of one text."""

    text: int  # its number among the texts of the store
    start: int  # its first row in the store
    # the row after the last one that is run; a text is cut where its part ends, since what comes later in a text
    # changes nothing before
    stop: int


@dataclass(frozen=True)
class CorpusPlan:
    """What a store holds and how it is made."""

    columns: tuple[StoredValue, ...]
    rows: int  # tokens, all texts together
    texts: int  # how many texts
    longest: int  # tokens of the longest
    part_rows: int  # rows of each part; the last one may have fewer
    batch_tokens: int  # the most tokens that run at once, pads counted; a longer text runs alone
    dtype: str  # what values are stored as: "float32", "float64", "float16" or "bfloat16"
    seconds: float | None = None  # how long it may take, measured with one batch; None if that was not measured

    @property
    def names(self) -> tuple[str, ...]:
        """The checkpoints, in execution order."""
        return tuple(column.name for column in self.columns)

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-self.rows // self.part_rows)

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return ITEM_BYTES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, all checkpoints together."""
        return sum(column.width for column in self.columns) * self.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all values; the last part takes as much as the others."""
        return self.row_bytes * self.part_rows * self.parts

    def rows_of(self, part: int) -> range:
        """The rows of a part."""
        return range(part * self.part_rows, min((part + 1) * self.part_rows, self.rows))

    def __repr__(self) -> str:
        took = "" if self.seconds is None else f", about {lasting(self.seconds)}"
        return (
            f"{self.rows:,} tokens of {self.texts:,} texts, {len(self.columns)} checkpoints in {self.dtype}: "
            f"{self.nbytes:,} bytes in {self.parts:,} part{'s' * (self.parts != 1)}{took}"
        )


ITEM_BYTES: Mapping[str, int] = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
"""The dtypes of stored values -> bytes of a number."""


def lasting(seconds: float) -> str:
    """A time in words, such as "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def part_rows_for(row_bytes: int, rows: int, longest: int) -> int:
    """Rows of a part, for rows of so many bytes; parts are about equal, so that the last one wastes little."""
    most = min(rows, max(PART_BYTES // row_bytes, TEXTS_IN_A_PART * longest))
    parts = -(-rows // most)
    return -(-rows // parts)


def batches(rows: range, offsets: Sequence[int] | NDArray[Any], first: int, most: int) -> Iterator[list[TextSpan]]:
    """The batches of a part, longest texts first, so that one that is too large fails at the beginning.

    Args:
        rows: The part's.
        offsets: Where the texts that share these rows begin, and where the last of them ends.
        first: The number of the first of these texts.
        most: The most tokens of a batch, pads counted.
    """
    spans = [
        TextSpan(first + i, int(start), min(int(stop), rows.stop)) for i, (start, stop) in enumerate(pairwise(offsets))
    ]
    spans.sort(key=lambda span: (span.start - span.stop, span.text))
    batch: list[TextSpan] = []
    for span in spans:
        if batch and (len(batch) + 1) * (batch[0].stop - batch[0].start) > most:
            yield batch
            batch = []
        batch.append(span)
    if batch:
        yield batch
