"""Part of a checkpoint's value: some rows of the batch, some positions, some heads, some neurons."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pellucid.check import as_whole
from pellucid.errors import InputError, shown, warn
from pellucid.schema import NEURONS, POSITIONS, Axes, Axis, Schema

Index = int | slice | Iterable[int] | None
"""Which entries along an axis: one, a slice, several, or all (None). Negative ones count from the end."""


@dataclass(frozen=True)
class Region:
    """A selection along the axes of a checkpoint's value; every axis stays, even if one entry is chosen."""

    pos: Index = None  # columns of the batch, pads counted (queries, for scores and patterns)
    heads: Index = None  # attention heads
    neurons: Index = None  # entries of the last axis: d_model, d_mlp or d_head
    rows: Index = None  # rows of the batch

    def __post_init__(self) -> None:
        for name in ("pos", "heads", "neurons", "rows"):
            index = getattr(self, name)
            if isinstance(index, Iterator):  # it is read at every checkpoint
                object.__setattr__(self, name, list(index))

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return self.pos is None and self.heads is None and self.neurons is None and self.rows is None

    def with_heads_of(self, schema: Schema, names: Collection[str]) -> Region:
        """The same part, its heads by their numbers in the values of these names."""
        if self.heads is None:
            return self
        points = [schema[name] for name in schema.names if name in names]
        counts = dict.fromkeys(schema.sizes[point.heads] for point in points if Axis.HEAD in point.axes)
        several = [entries(self.heads, count, "heads").tolist() for count in counts or (schema.sizes["head"],)]
        if several.count(several[0]) != len(several):
            fewer, more = sorted(counts)[0], sorted(counts)[-1]
            raise InputError(
                f"heads={shown(self.heads)} means other heads where there are {fewer} than where there are {more}.",
                code="index-out-of-range",
                remedy="Capture queries apart from keys and values, which have heads of their own.",
            )
        return replace(self, heads=several[0])

    def columns(self, count: int) -> Tensor:
        """The chosen columns of so many."""
        every = torch.arange(count, device="cpu")
        return take(every, Region(self.pos).indices("batch", every.shape, (Axis.POS,), strict=True))

    def within(self, start: int, columns: int) -> tuple[list[int], list[int]] | None:
        """Which of the chosen positions lie in the columns from `start` on; None if all columns are chosen.

        Returns their columns, counted from `start`, and the place that each has among the positions that were chosen.
        """
        if self.pos is None:
            return None
        if isinstance(self.pos, slice):
            _require_slice(self.pos, "pos")
            first, last, step = self.pos.start or 0, self.pos.stop, self.pos.step or 1
            _require_absolute((first, 0 if last is None else last, min(step, 0)), self.pos)
            wanted = list(range(first, start + columns if last is None else last, step))
        else:
            wanted = [_whole(i, -1) for i in _given(self.pos)]
            _require_absolute(wanted, self.pos)
        inside = [(i - start, place) for place, i in enumerate(wanted) if start <= i < start + columns]
        return [column for column, _ in inside], [place for _, place in inside]

    def indices(self, name: str, shape: Iterable[int], axes: Axes, *, strict: bool) -> dict[int, Tensor]:
        """Axis number -> chosen entries, for a value of this shape."""
        chosen: dict[int, Tensor] = {}
        for what, index, candidates in (
            ("rows", self.rows, (Axis.BATCH,)), ("pos", self.pos, POSITIONS), ("heads", self.heads, (Axis.HEAD,)),
            ("neurons", self.neurons, NEURONS),
        ):  # fmt: skip
            if index is None:
                continue
            axis = next((i for i, a in enumerate(axes) if a in candidates), None)
            if axis is not None:
                chosen[axis] = entries(index, tuple(shape)[axis], f"{name}: {what}")
            elif strict:
                raise InputError(
                    f"{name}: {what}= was given, but its axes are ({', '.join(axes)}).",
                    code="no-such-axis",
                    remedy=f"Leave {what}= out, or choose a checkpoint that has that axis.",
                )
        return chosen


def _require_absolute(positions: Iterable[int], given: Index) -> None:
    if any(i < 0 for i in positions):
        raise InputError(
            f"pos={shown(given)}, expected whole numbers, counted from the beginning.",
            code="negative-position",
            remedy="The text grows while it is generated: count from 0.",
        )


def take(value: Tensor, indices: dict[int, Tensor]) -> Tensor:
    """The chosen entries, with every axis kept; a new tensor if anything was left out."""
    for axis, entries in indices.items():
        value = value.index_select(axis, entries.to(value.device))
    return value


def put(value: Tensor, indices: dict[int, Tensor], part: Tensor) -> Tensor:
    """A copy of `value` in which the chosen entries are `part`."""
    if not indices:
        return part.expand_as(value).clone()
    axes = sorted(indices)
    front = range(len(axes))
    out = value.clone()
    grid = torch.meshgrid(*(indices[axis].to(value.device) for axis in axes), indexing="ij")
    out.movedim(axes, tuple(front))[grid] = part.movedim(axes, tuple(front))
    return out


def _require_slice(index: slice, where: str) -> None:
    """Refuse what Python's own sequences refuse."""
    try:
        index.indices(0)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}={shown(index)}: {error}.",
            code="index-out-of-range",
            remedy="Give whole numbers; a step is not 0.",
        ) from error


def entries(index: Index, size: int, where: str) -> Tensor:
    """The entries of an axis that an index names, counted from 0."""
    if isinstance(index, slice):
        _require_slice(index, where)
    found = list(range(size)[index]) if isinstance(index, slice) else [_whole(i, size) for i in _given(index)]
    if not found or any(not -size <= i < size for i in found):
        raise InputError(
            f"{where}={shown(index)}, expected indices from 0 to {size - 1}.",
            code="index-out-of-range",
            remedy="Choose entries that exist; negative ones count from the end.",
        )
    return torch.tensor([i % size for i in found], device="cpu")


def warn_of_pads(where: str, pos: Index, columns: Tensor, mask: Tensor) -> None:
    """Warn of chosen columns if one of them is a pad of a text that is changed: there, nothing that is read changes.

    Args:
        where: What was asked for, for the message.
        pos: What chose the columns.
        columns: The columns of the batch.
        mask: [B, P] of the texts that are changed.
    """
    real = mask.cpu()
    pads = ~real[:, columns]
    if len(set(columns.tolist())) == real.size(1) or not bool(pads.any()):
        return
    text, place = (int(i) for i in pads.nonzero()[0])
    tokens = real[text].nonzero().flatten().tolist()
    side, end = ("right", "first") if int(columns[place]) < tokens[0] else ("left", "last")
    warn(
        f"{where}: pos={shown(pos)} chooses column {int(columns[place])} of the batch, which is a pad in text {text}: "
        f"its tokens are in columns {tokens[0]} to {tokens[-1]}. With model.tokenize(texts, padding_side={side!r}) "
        f"columns count from the {end} token of every text; rows= chooses texts."
    )


def _given(index: Index) -> list[object]:
    """What an index other than a slice names; booleans stay booleans."""
    read = index.tolist() if isinstance(index, (Tensor, np.ndarray)) else index
    return list(read) if isinstance(read, Iterable) else [read]


def _whole(i: object, otherwise: int) -> int:
    """An index as an int; `otherwise`, which is out of range, for what is no index."""
    found = as_whole(i)
    return otherwise if found is None else found
