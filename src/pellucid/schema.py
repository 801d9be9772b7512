"""`Schema`: what a family of models is, said once. Everything else reads it: names, axes, units, parameters, aliases.

A family builds its schema from a configuration (`pellucid.gpt2.schema`). Its points are the checkpoints, in execution
order: those before the blocks, those of each block, those after them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from pellucid.errors import UnknownNameError, nearest, shown
from pellucid.names.calls import named_methods


class Axis(StrEnum):
    """An axis of a captured value, with the letter that docstrings use for it: the one vocabulary of axis names."""

    LAYER = "layer"  # L
    BATCH = "batch"  # B
    POS = "pos"  # P, a column of the padded batch
    HEAD = "head"  # H
    QUERY = "query"  # Pq
    KEY = "key"  # Pk
    D_MODEL = "d_model"  # D
    D_HEAD = "d_head"  # K
    D_MLP = "d_mlp"  # M
    D_VOCAB = "d_vocab"  # V
    FEATURE = "feature"  # F, of a sparse autoencoder


Axes = tuple[Axis, ...]

LETTERS: dict[str, str] = {
    Axis.LAYER: "L", Axis.BATCH: "B", Axis.POS: "P", Axis.HEAD: "H", Axis.QUERY: "Pq", Axis.KEY: "Pk",
    Axis.D_MODEL: "D", Axis.D_HEAD: "K", Axis.D_MLP: "M", Axis.D_VOCAB: "V", Axis.FEATURE: "F",
}  # fmt: skip
"""Axis -> the letter that docstrings and tables use for it."""

RESIDUAL: Axes = (Axis.BATCH, Axis.POS, Axis.D_MODEL)
PER_HEAD: Axes = (Axis.BATCH, Axis.POS, Axis.HEAD, Axis.D_HEAD)
ATTENTION: Axes = (Axis.BATCH, Axis.HEAD, Axis.QUERY, Axis.KEY)
HIDDEN: Axes = (Axis.BATCH, Axis.POS, Axis.D_MLP)

POSITIONS = (Axis.POS, Axis.QUERY)
"""The axis that `pos=` selects along."""

NEURONS = (Axis.D_MODEL, Axis.D_MLP, Axis.D_HEAD, Axis.FEATURE)
"""The axis that `neurons=` selects along."""

STREAM = "residual-stream units"
HEADS = (str(Axis.HEAD), "head_kv")
"""The names of an axis of heads in a data set: of queries, and of keys and values where these have fewer."""


@dataclass(frozen=True)
class Point:
    """A checkpoint: a value of the forward pass that has a name."""

    name: str  # in a table of blocks, the name without the block ("attn.ckpt_z"); in `Schema.points`, the whole name
    axes: Axes  # the value's axes
    equation: str  # how it is computed from earlier points and parameters
    meaning: str  # what it is, in a few words
    unit: str = ""  # the unit of its numbers; "" if they have none of their own
    # "always" if it lies on the fast path, "when watched" if it is computed beside it for whoever looks
    computed: Literal["always", "when watched"] = "always"
    masked: bool = False  # True if entries that a query may not see hold the dtype's minimum
    upcast: bool = False  # True if eager attention computes it in float32 or better
    parameters: tuple[str, ...] = ()  # which parameters make it, by their names in a block or whole
    # the size that its head axis has, if it has one: of queries, or of keys and values, which may be fewer
    heads: Literal["head", "head_kv"] = "head"
    # the point of its block that is read for it, if that is not the last one before with the axes read
    reads: str = ""


@dataclass(frozen=True)
class Parameter:
    """A parameter by the field's name."""

    name: str  # in a table of blocks, the name without the block; in `Schema.parameters`, the whole name
    axes: tuple[str, ...]  # names of its axes; `Schema.sizes` has their lengths
    stored_in: str = ""  # the stored parameter that it is, or that it is a live view of
    # how a fresh one is drawn: "normal", "residual" (normal, scaled by 1/sqrt(2 n_layer)), "zeros", "ones"
    initial: Literal["normal", "residual", "zeros", "ones"] = "normal"
    # its axes in the order of its memory, as the reference stores it; () for that of `axes`
    in_memory: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.stored_in:
            object.__setattr__(self, "stored_in", self.name)

    @property
    def is_stored(self) -> bool:
        """True if the model stores it under this name; False for a live view of another."""
        return self.stored_in == self.name


@dataclass(frozen=True)
class OtherNames:
    """What other libraries call the points of a family."""

    # path of a transformers module in a block -> the point that is its output
    modules: Mapping[str, str] = field(default_factory=dict)
    modules_around: Mapping[str, str] = field(default_factory=dict)  # the same outside the blocks
    # a name whose value is close to a point's but not the same -> the reason
    refused: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""  # what transformers puts before these paths in a model with a head
    blocks: str = ""  # what it calls the list of blocks


@named_methods
@dataclass(frozen=True, eq=False)
class Schema:
    """The points, parameters and sizes of one model.

    Example:
        >>> import pellucid as pl
        >>> schema = pl.load().schema
        >>> schema["blocks.3.attn.ckpt_z"].meaning, schema.sizes["d_model"], len(schema.points)
        ('values mixed by pattern', 256, 72)
    """

    family: str  # name of the family, such as "gpt2"
    # Name of an axis -> its length; "layer" is the number of blocks. A schema read from a file of captures has "layer"
    # alone.
    sizes: Mapping[str, int]
    before: tuple[Point, ...]  # points before the blocks
    block: tuple[Point, ...]  # every point that a block of this family may have, in execution order
    blocks: tuple[tuple[Point, ...], ...]  # points of each block of the model
    after: tuple[Point, ...]  # points after the blocks
    parameters: tuple[Parameter, ...]  # stored ones and live views, in the model's order
    others: OtherNames = OtherNames()  # names of other libraries

    def __reduce__(self) -> tuple[object, ...]:
        fields = (self.before, self.block, self.blocks, self.after, self.parameters)
        tables = ("modules", "modules_around", "refused")
        others = replace(self.others, **{table: dict(getattr(self.others, table)) for table in tables})
        return (Schema, (self.family, dict(self.sizes), *fields, others))

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Every checkpoint of the model in execution order, under its whole name."""
        inside = [replace(p, name=f"blocks.{i}.{p.name}") for i, block in enumerate(self.blocks) for p in block]
        return (*self.before, *inside, *self.after)

    @cached_property
    def by_name(self) -> Mapping[str, Point]:
        """Whole name -> point, in execution order."""
        return MappingProxyType({point.name: point for point in self.points})

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Whole names of all checkpoints, in execution order."""
        return tuple(self.by_name)

    @cached_property
    def axes(self) -> Mapping[str, Axes]:
        """Whole name -> axes, in execution order."""
        return MappingProxyType({name: point.axes for name, point in self.by_name.items()})

    @cached_property
    def around(self) -> Mapping[str, Point]:
        """The points outside the blocks."""
        return MappingProxyType({point.name: point for point in (*self.before, *self.after)})

    @cached_property
    def in_blocks(self) -> Mapping[str, Point]:
        """Name in a block -> point, of every kind that a block may have, in execution order."""
        return MappingProxyType({point.name: point for point in self.block})

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Names without blocks, in execution order: of points before, in and after the blocks."""
        return (*(p.name for p in self.before), *self.in_blocks, *(p.name for p in self.after))

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding."""
        return not self.parameter("unembed.W_U").is_stored

    @cached_property
    def stored(self) -> Mapping[str, tuple[int, ...]]:
        """Every stored parameter -> its shape, in the model's order."""
        return MappingProxyType({p.name: self.shape_of(p) for p in self.parameters if p.is_stored})

    def parameter(self, name: str) -> Parameter:
        """A parameter by its whole name."""
        return self._parameters[name]

    @cached_property
    def _parameters(self) -> dict[str, Parameter]:
        return {parameter.name: parameter for parameter in self.parameters}

    def names_below(self, place: str) -> tuple[str, ...]:
        """Names of the points below a module, without its own name: of "blocks.0.attn", "ckpt_q" and so on."""
        return tuple(self._below["points"].get(place, ()))

    def stored_below(self, place: str) -> dict[str, tuple[int, ...]]:
        """Names of the stored parameters below a module, without its own name -> their shapes."""
        prefix = f"{place}." if place else ""
        return {name: self.stored[prefix + name] for name in self._below["stored"].get(place, ())}

    @cached_property
    def _below(self) -> dict[str, dict[str, list[str]]]:
        """The names below each module; made once, because a large model has hundreds of modules."""
        found: dict[str, dict[str, list[str]]] = {"points": {}, "stored": {}}
        for what, names in (("points", self.names), ("stored", self.stored)):
            for name in names:
                parts = name.split(".")
                for cut in range(len(parts)):
                    found[what].setdefault(".".join(parts[:cut]), []).append(".".join(parts[cut:]))
        return found

    def is_parallel(self, block: int) -> bool:
        """Whether the MLP of a block reads the stream that its attention reads, without what that adds."""
        return f"blocks.{block}.resid_mid" not in self

    def comes_before(self, earlier: str, later: str) -> bool:
        """Whether a value can depend on another: it comes later, and does not stand beside it in a parallel block."""
        if self.names.index(earlier) >= self.names.index(later):
            return False
        (*place, half), (*other, its_half) = (name.split(".")[:3] for name in (earlier, later))
        beside = place == other and half in ("ln1", "attn") and its_half in ("ln2", "mlp")
        return not (beside and self.is_parallel(int(place[1])))

    def length_of(self, axis: str, point: Point) -> int:
        """The length of an axis of a point, if the model decides it."""
        return self.sizes[point.heads if axis == Axis.HEAD else axis]

    def dims(self, name: str) -> list[str]:
        """A value's axes in a data set, where one name has one length: `head_kv` if keys have fewer heads."""
        heads = self[name].heads
        fewer = heads != Axis.HEAD and self.sizes.get(heads) != self.sizes.get(Axis.HEAD)
        return [heads if axis == Axis.HEAD and fewer else str(axis) for axis in self.axes[name]]

    def shape_of(self, parameter: Parameter) -> tuple[int, ...]:
        """The shape of a parameter."""
        return tuple(self.sizes[axis] for axis in parameter.axes)

    def __getitem__(self, name: str) -> Point:
        if name in self.by_name:
            return self.by_name[name]
        raise unknown_name(name, self.names)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.by_name

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{axis} {size}" for axis, size in self.sizes.items())
        rows = [("checkpoint", "shape", "value"), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {value}".rstrip() for name, shape, value in rows]
        return "\n".join([f"{self.family}: {len(self)} checkpoints; {sizes}", *lines])

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        """The rows of the printed table: name, axes by letter, equation; blocks that are alike share their rows."""

        def row(point: Point, under: str = "") -> tuple[str, str, str]:
            shape = shape_by_letters(point.axes)
            return under + point.name, shape if point.heads == "head" else shape.replace("H", "G"), point.equation

        yield from map(row, self.before)
        first = 0
        while first < len(self.blocks):
            last = first
            while last + 1 < len(self.blocks) and self.blocks[last + 1] == self.blocks[first]:
                last += 1
            yield f"blocks.{first}" if first == last else f"blocks.{first} to blocks.{last}", "", ""
            yield from (row(point, "  .") for point in self.blocks[first])
            first = last + 1
        yield from map(row, self.after)


def shape_by_letters(axes: Axes) -> str:
    """Axes as docstrings write them, such as "[B, P, H, K]"."""
    return f"[{', '.join(LETTERS[axis] for axis in axes)}]"


def coordinate(axis: str, what: str) -> str:
    """The name of what labelled arrays say of an axis's columns: "token", "position"; "query_token", "key_token" …"""
    return what if axis == Axis.POS else f"{axis}_{what}"


def in_another_order(taken: tuple[int, ...], word: str) -> str:
    """Say that parts along an axis stand in another order."""
    moved = [place for place, part in enumerate(taken) if part != place]
    if len(moved) == 2:
        return f"{word}s {moved[0]} and {moved[1]} exchanged"
    return f"{word}s in another order" + (f" ({', '.join(map(str, taken))})" if len(taken) <= 16 else "")


def select(patterns: str | Iterable[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The known names that match any of the patterns, in the order of `known`.

    In a pattern `*` stays within one dotted part and `**` crosses parts. None selects everything.
    """
    if patterns is None:
        return tuple(known)
    names, chosen = frozenset(known), set[str]()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = [pattern] if isinstance(pattern, str) and pattern in names else _glob(pattern, known)
        if not matched:
            raise unknown_name(pattern, known, _pattern_for(pattern, known))
        chosen.update(matched)
    return tuple(name for name in known if name in chosen)


def unknown_name(name: object, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """The error for a checkpoint name or pattern that does not exist among `known`; `hint` instead of near names."""
    what = "pattern matches no checkpoint" if isinstance(name, str) and "*" in name else "no such checkpoint"
    known = list(known)
    last_parts = sorted({full.rsplit(".", 1)[-1].removeprefix("ckpt_") for full in known})
    hint = hint or nearest(name, known) or nearest(name, last_parts)
    return UnknownNameError(
        f"{what}: {shown(name)}.",
        code="unknown-checkpoint",
        remedy=f"{hint} `model.ckpt_names` lists them all.".strip(),
    )


def _pattern_for(end: object, known: Sequence[str]) -> str:
    """A sentence that suggests the pattern of all names that end so, or an empty string."""
    for pattern in (f"**.{end}", f"**.ckpt_{end}") if isinstance(end, str) else ():
        if _glob(pattern, known):
            return f"Did you mean {pattern!r}?"
    return ""


def _glob(pattern: str, known: Sequence[str]) -> list[str]:
    if not isinstance(pattern, str) or "*" not in pattern:
        return []
    parts = re.split(r"(\*\*|\*)", pattern)
    expression = "".join({"**": ".*", "*": "[^.]*"}.get(part, re.escape(part)) for part in parts)
    return [name for name in known if re.fullmatch(expression, name)]
