"""How a corpus is cut: numbered parts of as many rows, each run in batches that are fixed by the plan.

What a plan asks of many workers is computed; nothing is run.

A row is one token. The texts are laid end to end, in their order; part `i` holds the rows from `i * part_rows` on. A
text across a border is run for both parts. What a part holds depends on its own texts alone, so parts can be made in
any order, by anybody, twice: their bytes are the same.

Texts of a batch lie beneath one another, those of about the same length together; packed, short ones share a row.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.check import as_number, require_one_of, require_whole
from pellucid.errors import InputError, UnknownNameError, shown
from pellucid.html.listing import counted
from pellucid.names.aliases import Names, selected
from pellucid.schema import Axis, Schema

BATCH_TOKENS = 4096
"""The most tokens that run at once unless another number is asked for."""

PART_BYTES = 256 * 2**20
"""Bytes of a part, all names together. For an object store two of them are in memory, one that is filled and one that
is put; for a disk the rows of a batch."""

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
    row: int = 0  # the row of the batch that it is in
    column: int = 0  # where it begins there

    def __len__(self) -> int:
        return self.stop - self.start


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
    seconds: float | None = None  # how long it may take, measured with the first texts; None if that was not measured
    packed_rows: int | None = None  # in how many rows all texts run, if short ones share one; None if each has its own
    saved_rows: int = 0  # how many fewer these are than texts that run
    free: int | None = None  # bytes that can be written where it would lie; None if nobody asked, or knows

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
        packed = (
            "" if self.packed_rows is None else f", packed into {self.packed_rows:,} rows ({self.saved_rows:,} saved)"
        )
        free = "" if self.free is None else f"; {self.free:,} bytes are free"
        return (
            f"{counted(self.rows, 'token')} of {counted(self.texts, 'text')}, "
            f"{counted(len(self.columns), 'checkpoint')} in {self.dtype}: "
            f"{self.nbytes:,} bytes in {counted(self.parts, 'part')}{packed}{took}{free}"
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


def cut(plan: CorpusPlan) -> CorpusPlan:
    """The plan with its rows in parts; these are about equal, so that the last one wastes little."""
    most = min(plan.rows, max(PART_BYTES // plan.row_bytes, TEXTS_IN_A_PART * plan.longest))
    parts = -(-plan.rows // most)
    return replace(plan, part_rows=-(-plan.rows // parts))


def columns_of(names: Names, schema: Schema) -> tuple[StoredValue, ...]:
    """The places of some checkpoints in a store; raise an error for none, and for one without a row for each token."""
    chosen = selected(names, schema)
    if not chosen:
        raise UnknownNameError(
            f"corpus: names={shown(names)}, expected one or more.",
            code="unknown-checkpoint",
            remedy="Give a name or a pattern; `model.ckpt_names` lists all names.",
        )
    return tuple(_column_of(name, schema) for name in chosen)


def _column_of(name: str, schema: Schema) -> StoredValue:
    point = schema[name]
    batch, pos, *others = point.axes
    if (batch, pos) != (Axis.BATCH, Axis.POS):
        raise InputError(
            f"corpus: {name} has the axes {', '.join(point.axes)}, and so no row for each token alone.",
            code="corpus-axes",
            remedy="Leave out scores and patterns, whose length is that of their text; all other checkpoints can be "
            "stored.",
        )
    return StoredValue(name, tuple(map(str, others)), tuple(schema.length_of(axis, point) for axis in others))


def dtype_of(given: Any) -> str:
    """What values are stored as, given by its name or as torch's dtype."""
    stored = str(given).removeprefix("torch.")
    require_one_of("corpus: dtype", stored, ITEM_BYTES, code="corpus-dtype")
    return stored


def batches(plan: CorpusPlan, part: int, offsets: Sequence[int] | NDArray[Any], first: int) -> Iterator[list[TextSpan]]:
    """The batches of a part, longest texts first, so that one that is too large fails at the beginning."""
    end = plan.rows_of(part).stop
    spans = [TextSpan(first + i, int(start), min(int(stop), end)) for i, (start, stop) in enumerate(pairwise(offsets))]
    spans.sort(key=lambda span: (-len(span), span.text))
    yield from beneath(spans, plan.batch_tokens) if plan.packed_rows is None else _packed(spans, plan)


def is_packed(batch: Sequence[TextSpan]) -> bool:
    """Whether texts of a batch share a row."""
    return max(span.row for span in batch) + 1 < len(batch)


def beneath(spans: Sequence[TextSpan], most: int) -> Iterator[list[TextSpan]]:
    """Batches of texts, longest first, in which each has a row of its own, with pads before it."""
    batch: list[TextSpan] = []
    for span in spans:
        if batch and (len(batch) + 1) * len(batch[0]) > most:
            yield batch
            batch = []
        width = len(batch[0]) if batch else len(span)
        batch.append(replace(span, row=len(batch), column=width - len(span)))
    if batch:
        yield batch


def _packed(spans: Sequence[TextSpan], plan: CorpusPlan) -> Iterator[list[TextSpan]]:
    """Batches of rows that are as long as the corpus' longest text, each of one text or several.

    A text goes where it leaves least room (best fit, the longest first).
    """
    room: list[tuple[int, int]] = []  # (columns that are free, row), the fullest row first
    placed: list[TextSpan] = []
    rows = 0
    for span in spans:
        at = bisect_left(room, (len(span), -1))
        free, row = room.pop(at) if at < len(room) else (plan.longest, rows)
        rows += row == rows
        placed.append(replace(span, row=row, column=plan.longest - free))
        insort(room, (free - len(span), row))
    each = max(plan.batch_tokens // plan.longest, 1)
    placed.sort(key=lambda span: (span.row, span.column))
    for number, group in groupby(placed, lambda span: span.row // each):
        batch = [replace(span, row=span.row - number * each) for span in group]
        yield from [batch] if is_packed(batch) else beneath(batch, plan.batch_tokens)


class HasSchema(Protocol):
    """A model, or the configuration of one."""

    @property
    def schema(self) -> Schema:
        """Its checkpoints."""
        ...


@dataclass(frozen=True)
class Simulation:
    """How a plan goes on workers that are equally fast, each of which takes the next part when it has written one."""

    plan: CorpusPlan  # what is stored
    workers: int  # how many there are
    tokens_per_second: float  # how many tokens each of them runs and writes in a second

    @property
    def rounds(self) -> int:
        """Parts that the busiest worker makes."""
        return math.ceil(self.plan.parts / self.workers)

    @property
    def seconds(self) -> float:
        """The time until the last part is written."""
        return self.rounds * self.plan.part_rows / self.tokens_per_second

    @property
    def idle(self) -> float:
        """The share of all workers' time in which there is no part left for them."""
        return 1 - self.plan.parts / (self.rounds * self.workers)

    @property
    def bytes_per_worker(self) -> int:
        """What the busiest worker writes."""
        return self.rounds * self.plan.part_rows * self.plan.row_bytes

    @property
    def bytes_per_second(self) -> float:
        """What all workers write in a second as long as each has a part."""
        return min(self.workers, self.plan.parts) * self.tokens_per_second * self.plan.row_bytes

    @property
    def objects(self) -> int:
        """Files, or objects of an object store, of all parts: a chunk for each checkpoint, and an entry."""
        return self.plan.parts * (len(self.plan.columns) + 1)

    def __repr__(self) -> str:
        return (
            f"{counted(self.plan.parts, 'part')} for {counted(self.workers, 'worker')}: "
            f"at most {self.rounds:,} each, "
            f"{lasting(self.seconds)}, {self.idle:.1%} idle; {self.bytes_per_worker:,} bytes each, "
            f"{self.bytes_per_second / 1e9:,.2f} GB/s together, {self.objects:,} objects"
        )


def simulate(
    model: HasSchema, names: Names, tokens: int, workers: int, tokens_per_second: float, *, dtype: str = "float32"
) -> Simulation:
    """How long workers take to capture so many tokens, and what they write; nothing is run, and no text is read.

    Args:
        model: A model, or the configuration of one.
        names: What would be stored, as in `pl.corpus.capture`.
        tokens: How many, in texts of the context's length at most.
        workers: How many workers there are.
        tokens_per_second: How many tokens each of them runs and writes in a second.
        dtype: What values are stored as.

    Raises:
        InputError: If a number is out of range, or the checkpoint has no row for each token.
        UnknownNameError: If there is no such checkpoint.

    Example:
        >>> import pellucid as pl
        >>> pl.corpus.simulate(pl.load(), "blocks.3.resid_post", 1_000_000, workers=2, tokens_per_second=10_000)
        4 parts for 2 workers: at most 2 each, 50 s, 0.0% idle; 512,000,000 bytes each, 0.02 GB/s together, 8 objects
    """
    stored, columns = dtype_of(dtype), columns_of(names, model.schema)
    rows, count = (require_whole(what, n, at_least=1) for what, n in (("tokens", tokens), ("workers", workers)))
    speed = as_number(tokens_per_second)
    if speed is None or not 0 < speed < math.inf:
        raise InputError(
            f"corpus: tokens_per_second={shown(tokens_per_second)}, expected a number above 0.",
            code="corpus-speed",
            remedy="Give what was measured, such as plan.rows / plan.seconds of pl.corpus.estimate.",
        )
    longest = min(rows, model.schema.sizes["n_ctx"])
    plan = CorpusPlan(columns, rows, math.ceil(rows / longest), longest, 1, BATCH_TOKENS, stored)
    return Simulation(cut(plan), count, speed)
