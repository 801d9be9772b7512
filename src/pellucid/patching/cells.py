"""The cells of a sweep: every combination of block, head, position and neuron that is patched by itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.check import as_whole, is_several
from pellucid.errors import InputError, ShapeError, shown
from pellucid.names import aliases
from pellucid.patching.roles import Columns, Put, Roles, of_unequal_length
from pellucid.run.region import Index, Region, entries, warn_of_pads
from pellucid.schema import NEURONS, POSITIONS, Axis, Schema
from pellucid.text.batch import Batch

OVER = ("layer", "head", "pos", "neuron")
"""What a sweep can go over, beside several checkpoints."""

_KINDS = {"head": (Axis.HEAD,), "pos": POSITIONS, "neuron": NEURONS}


EVERYTHING = Region()
"""No limit to a patch."""


@dataclass(frozen=True)
class SweepCell:
    """One combination."""

    at: tuple[int, ...]  # its place in the result, an index for each axis
    names: tuple[str, ...]  # the checkpoints that are replaced
    columns: Columns | None  # where; None for everywhere
    heads: tuple[int, ...] | None  # which heads; None for all
    neurons: tuple[int, ...] | None  # which entries of the last axis; None for all

    def puts(self, source: Mapping[str, Tensor]) -> tuple[Put, ...]:
        """What puts this part of the source's values there."""
        return tuple(Put(name, source[name], self.columns, self.heads, self.neurons) for name in self.names)


class Cells:
    """The cells of one sweep.

    Args:
        schema: The model's schema.
        names: One checkpoint or several, each with or without its block.
        over: The axes, of `OVER`.
        base: The texts whose run is changed.
        source: The texts whose values are put in; the base's own if they are values of another kind.
        part: What every patch is limited to.
        roles: Which columns of the two belong together; None if they are the same.

    Attributes:
        dims: The axes of the result, "checkpoint" first if several were given.
        shape: Their lengths.
        labels: Their entries.
        kinds: Each checkpoint as it was given -> block -> whole name; -1 stands for outside the blocks.
        places: The columns of each position that is gone over.
        everywhere: The columns of all of them; None for all that there are.
    """

    def __init__(
        self, schema: Schema, names: Any, over: Sequence[str], base: Batch, source: Batch,
        part: Region = EVERYTHING, roles: Roles | None = None,
    ) -> None:  # fmt: skip
        self._schema, self._base, self._source, self.part = schema, base, source, part
        several = is_several(names) and not _is_one(names)
        given: list[Any] = (list(names) if several else []) or [names]
        self.over = require_over(over)
        self.kinds = {_label(name, schema): self._by_layer(name) for name in given}
        self._roles = roles
        if roles is not None and part.pos is not None:
            raise InputError(
                "pos= with align=, which both say where.",
                code="sweep-part",
                remedy="Leave pos= out, or give align= the roles that are wanted alone.",
            )
        self._require_axes()
        self.places = self._columns()
        axes: dict[str, Sequence[Any]] = {"checkpoint": list(self.kinds)} if several else {}
        axes |= {axis: self._labels(axis) for axis in self.over}
        self.dims, self.labels = tuple(axes), axes
        self.shape = tuple(map(len, axes.values()))

    @property
    def coords(self) -> dict[str, Any]:
        """Labels along the axes; those of positions have the tokens too if there is one text."""
        labels: dict[str, Any] = dict(self.labels)
        if "pos" in labels and self._roles is None and len(self._base) == 1:
            for what, batch in (("token", self._base), ("source_token", self._source)):
                real = iter(batch.strings[0])
                tokens = [next(real) if kept else "" for kept in batch.mask[0].tolist()]
                columns = labels["pos"]
                if what == "token" or batch.shape == self._base.shape:
                    labels[what] = ("pos", [tokens[column] for column in columns])
        return labels

    @property
    def names(self) -> tuple[str, ...]:
        """Every checkpoint that is replaced in some cell."""
        return tuple(dict.fromkeys(name for by_layer in self.kinds.values() for name in by_layer.values()))

    @property
    def begin(self) -> int:
        """The first column of the base run that a cell changes."""
        return 0 if self.everywhere is None else self.everywhere.first

    def __iter__(self) -> Iterator[SweepCell]:
        """Every cell that exists: of several checkpoints, one may lack a block or a head that another has."""
        for at in itertools.product(*(range(size) for size in self.shape)):
            chosen = dict(zip(self.dims, at, strict=True))
            by_layer = list(self.kinds.values())[chosen.get("checkpoint", 0)]
            layer = None if "layer" not in chosen else self.labels["layer"][chosen["layer"]]
            names = tuple(by_layer.values()) if layer is None else (by_layer[layer],) if layer in by_layer else ()
            heads, neurons = self._chosen("head", chosen), self._chosen("neuron", chosen)
            if not names or any(not self._has(name, heads, neurons) for name in names):
                continue
            columns = self.places[chosen["pos"]] if "pos" in chosen else self.everywhere
            if columns is None or len(columns.rows):
                yield SweepCell(at, names, columns, heads, neurons)

    def _by_layer(self, name: aliases.Name) -> dict[int, str]:
        """Block -> whole name; -1 stands for outside the blocks."""
        kind, block = aliases.kind_and_block(name, self._schema)
        if block is None:
            return {-1: kind}
        found = aliases.selected(f"blocks.{block}.{kind}", self._schema)
        return {int(full.split(".")[1]): full for full in found}

    def _require_axes(self) -> None:
        """Refuse an axis or a part that a checkpoint does not have."""
        limited = {"head": self.part.heads, "pos": self.part.pos, "neuron": self.part.neurons}
        for label, by_layer in self.kinds.items():
            for axis, limit in limited.items():
                if axis in self.over or limit is not None:
                    _axis_of(self._schema, next(iter(by_layer.values())), axis, label)
            if "layer" in self.over and -1 in by_layer:
                raise InputError(
                    f"{label}: 'layer' was asked for, but it is outside the blocks.",
                    code="no-such-axis",
                    remedy="Leave 'layer' out of over=, or choose a checkpoint of every block.",
                )

    def _columns(self) -> list[Columns]:
        """For each position that is patched by itself, or for the one part that is, where it is in both batches."""
        base, source, part = self._base, self._source, self.part
        keyed = any(Axis.KEY in self._schema[n].axes for by_layer in self.kinds.values() for n in by_layer.values())
        self.everywhere: Columns | None = None
        unequal = base.shape != source.shape or not torch.equal(base.mask, source.mask)
        if len(base) != len(source):
            raise ShapeError(
                f"{len(base)} texts given beside {len(source)}, expected as many of the one as of the other.",
                code="texts-misfit",
                remedy="Give a corrupted text for each clean one.",
            )
        if keyed and base.shape[1] != source.shape[1]:
            raise InputError(
                f"scores and patterns of {base.shape[1]} keys cannot take those of {source.shape[1]}.",
                code="texts-misfit",
                remedy="Patch attn.ckpt_z instead, or give texts of equal length.",
            )
        if self._roles is not None:
            places = self._roles.columns(source, base)
            self._positions: Sequence[Any] = self._roles.names
            self.everywhere = _joined(places)
            return places
        if unequal and not _is_from_the_end(part.pos):
            remedy = "Give align=pl.patching.align(model, clean, corrupted), or pos=-1 to patch the last one."
            raise of_unequal_length(", ".join(self.kinds), base, source, remedy)
        into, taken = (_chosen_columns(part.pos, batch) for batch in (base, source))
        self._positions = into
        if part.pos is not None:
            warn_of_pads(", ".join(self.kinds), part.pos, torch.tensor(into, device="cpu"), base.mask)
        places = [_at(base, source, one, other) for one, other in zip(into, taken, strict=True)]
        if part.pos is not None:
            self.everywhere = _joined(places)
        return places

    def _labels(self, axis: str) -> Sequence[Any]:
        if axis == "layer":
            return sorted({layer for by_layer in self.kinds.values() for layer in by_layer})
        if axis == "pos":
            return list(self._positions)
        sizes = [size_of(self._schema, name, axis) for name in self.names]
        limit = self.part.heads if axis == "head" else self.part.neurons
        return list(range(max(sizes))) if limit is None else entries(limit, max(sizes), f"{axis}s").tolist()

    def _chosen(self, axis: str, chosen: Mapping[str, int]) -> tuple[int, ...] | None:
        """The heads or neurons of a cell; None for all."""
        if axis in chosen:
            return (self.labels[axis][chosen[axis]],)
        limit = self.part.heads if axis == "head" else self.part.neurons
        if limit is None:
            return None
        sizes = [size_of(self._schema, name, axis) for name in self.names]
        return tuple(entries(limit, min(sizes), f"{axis}s").tolist())

    def _has(self, name: str, heads: tuple[int, ...] | None, neurons: tuple[int, ...] | None) -> bool:
        return all(
            some is None or max(some) < size_of(self._schema, name, axis)
            for axis, some in (("head", heads), ("neuron", neurons))
        )


def _label(name: aliases.Name, schema: Schema) -> str:
    kind, block = aliases.kind_and_block(name, schema)
    return kind if block in (None, "*") else f"blocks.{block}.{kind}"


def _is_one(names: Iterable[Any]) -> bool:
    """Whether a tuple is one name, such as ("pattern", 0)."""
    return isinstance(names, tuple) and not all(isinstance(part, (str, tuple)) for part in names)


def require_over(over: Any) -> tuple[str, ...]:
    """Read the axes that are gone over."""
    given = tuple(over) if is_several(over) else (over,)
    if any(axis not in OVER for axis in given) or len(set(given)) < len(given):
        raise InputError(
            f"over={shown(over)}, expected some of {', '.join(OVER)}, each once.",
            code="sweep-over",
            remedy="Give over=('layer', 'pos'), for example; () patches each value whole.",
        )
    return given


def _is_from_the_end(pos: Index) -> bool:
    """Whether positions were given, each counted from the end."""
    if (one := as_whole(pos)) is not None:
        return one < 0
    several = list(pos) if is_several(pos) else []
    return bool(several) and all((number := as_whole(i)) is not None and number < 0 for i in several)


def _chosen_columns(pos: Index, batch: Batch) -> list[int]:
    columns = batch.shape[1]
    if pos is None:
        return list(range(columns))
    return Region(pos).indices("pos", (columns,), (Axis.POS,), strict=True)[0].tolist()


def _at(base: Batch, source: Batch, into: int, taken: int) -> Columns:
    """One column of every text that has a token there."""
    rows = base.mask[:, into].cpu().nonzero().flatten()
    if not bool(source.mask[:, taken].cpu()[rows].all()):
        raise InputError(
            f"column {into}: a text has a token there where its source has a pad.",
            code="texts-of-unequal-length",
            remedy="Give align=pl.patching.align(model, clean, corrupted).",
        )
    return Columns(rows, torch.full_like(rows, into), torch.full_like(rows, taken))


def _joined(places: Sequence[Columns]) -> Columns:
    rows, into, taken = (torch.cat([getattr(place, name) for place in places]) for name in ("rows", "into", "taken"))
    return Columns(rows, into, taken)


def size_of(schema: Schema, name: str, axis: str) -> int:
    """How many heads or neurons a checkpoint has."""
    return schema.length_of(_axis_of(schema, name, axis, name), schema[name])


def _axis_of(schema: Schema, name: str, axis: str, label: str) -> Axis:
    """The axis of a checkpoint that a sweep goes over; messages call the checkpoint by its label."""
    axes = schema[name].axes
    if (found := next((a for a in axes if a in _KINDS[axis]), None)) is None:
        raise InputError(
            f"{label}: {axis!r} was asked for, but its axes are ({', '.join(axes)}).",
            code="no-such-axis",
            remedy="Choose a checkpoint that has that axis, or leave it out.",
        )
    return found
