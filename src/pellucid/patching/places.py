"""Where a patch goes: some columns, heads and entries of a value, and the tensor that they are taken from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from pellucid.axes import NEURONS, POSITIONS, Axes, Axis


@dataclass(frozen=True)
class Columns:
    """Which columns of some texts take which columns of another run."""

    rows: torch.Tensor  # [N], the text
    into: torch.Tensor  # [N], the column of the base run
    taken: torch.Tensor  # [N], the column of the source

    @property
    def first(self) -> int:
        """The first column of the base run that changes."""
        return int(self.into.min())

    @property
    def in_place(self) -> Columns:
        """The same columns of the base run, from a source that has the base's columns."""
        return replace(self, taken=self.into)


@dataclass(frozen=True)
class Put:
    """A part of one value that is replaced."""

    name: str
    source: Tensor  # what holds the new numbers: the whole value of another run of the same number of texts
    columns: Columns | None = None  # which columns; None for all
    heads: Sequence[int] | None = None  # which heads; None for all
    neurons: Sequence[int] | None = None  # which entries of the last axis; None for all

    def write(self, value: Tensor, axes: Axes, begin: int) -> None:
        """Write the part into a value [B, ...] of a run whose first column is `begin`."""
        _write(value, self.source, [
            (next(i for i, a in enumerate(axes) if a in kinds), list(entries))
            for kinds, entries in (((Axis.HEAD,), self.heads), (NEURONS, self.neurons))
            if entries is not None
        ], self._at(axes, begin))  # fmt: skip

    def _at(self, axes: Axes, begin: int) -> tuple[int, Columns] | None:
        if self.columns is None:
            return None
        axis = next(i for i, a in enumerate(axes) if a in POSITIONS)
        return axis, Columns(self.columns.rows, self.columns.into - begin, self.columns.taken)


def _write(value: Tensor, source: Tensor, parts: list[tuple[int, list[int]]], at: tuple[int, Columns] | None) -> None:
    """Copy a part of `source` into `value`: entries along axes, each run of neighbours at once, at some columns."""
    if parts:
        (axis, entries), *rest = parts
        for first, length in _stretches(entries):
            _write(value.narrow(axis, first, length), source.narrow(axis, first, length), rest, at)
    elif at is None:
        value.copy_(source)
    else:
        axis, columns = at
        given = source.movedim(axis, 1)[columns.rows, columns.taken]
        value.movedim(axis, 1)[columns.rows, columns.into] = given


def _stretches(entries: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First entry and length of each run of neighbours."""
    for _, run in groupby(enumerate(sorted(entries)), lambda pair: pair[1] - pair[0]):
        found = [entry for _, entry in run]
        yield found[0], len(found)
