"""The parameters of a model as units with named axes, and how a tensor of another program is made from them."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.family.families import FAMILIES
from pellucid.family.layout import EMBED
from pellucid.family.layout import HEAD as UNEMBED
from pellucid.family.network import Network
from pellucid.schema import Parameter, Schema

PART, LAYER, HEAD = "part", "layer", "head"

N_CTX = "n_ctx"
"""The axis of a table that has a row for each position."""


def _axes(parameter: Parameter) -> tuple[str, ...]:
    """The axes of a parameter; heads of any kind are heads."""
    return tuple(HEAD if axis in HEADS else str(axis) for axis in parameter.axes)


HEADS = (HEAD, "head_kv")
"""The axes along which a schema has heads: of queries, or of keys and values."""


@functools.lru_cache(maxsize=64)
def unit_axes(schema: Schema) -> dict[str, tuple[str, ...]]:
    """Unit -> its axes: every parameter, live views in the place of what holds them; a tied head is not a unit."""
    views = [p.stored_in for p in schema.parameters if not p.is_stored and p.stored_in != EMBED]
    units = [p for p in schema.parameters if p.name not in views and (p.name != UNEMBED or p.is_stored)]
    return {parameter.name: _axes(parameter) for parameter in units}


def units_of(model: Network) -> dict[str, Tensor]:
    """Unit -> live view, for every unit of a model."""
    return {name: operator.attrgetter(name)(model).detach() for name in unit_axes(model.schema)}


def axes_known_of(unit: str) -> list[tuple[str, ...]]:
    """The axes that a unit of this name has in each family that has one."""
    kind = ".".join(["blocks", "0", *unit.split(".")[2:]]) if unit.startswith("blocks.") else unit
    known = (parameter for family in FAMILIES for parameter in family.schema_of({LAYER: 1}).parameters)
    return [_axes(parameter) for parameter in known if parameter.name == kind]


def kind_of(unit: str) -> str:
    """The name of a unit, a checkpoint or a point without its block."""
    return re.sub(r"^blocks\.\d+\.?", "", unit)


def is_bias(unit: str) -> bool:
    """Whether a unit is added rather than multiplied."""
    return unit.rpartition(".")[2].startswith("b")


def partner(unit: str) -> str:
    """The unit that belongs in the same module: a matrix's bias, a bias's matrix, a gain's shift."""
    path, _, kind = unit.rpartition(".")
    swapped = {"w": "b", "b": "w"}.get(kind) or {"W": "b", "b": "W"}[kind[0]] + kind[1:]
    return f"{path}.{swapped}"


@dataclass(frozen=True)
class Maker:
    """What makes a checkpoint from parameters."""

    makes: str  # the checkpoint
    reads: str  # the checkpoint that is read for it; "" if that is none
    block: int  # the block; -1 outside of them
    weight: str  # the unit that multiplies
    bias: str  # the unit that is added; "" for none

    @property
    def module(self) -> str:
        """The module of the reference in which it is, such as "blocks.0.attn"."""
        return self.weight.rpartition(".")[0]


@functools.lru_cache(maxsize=64)
def makers_of(schema: Schema) -> tuple[Maker, ...]:
    """The makers of a model, in execution order.

    What a matrix reads is the last value before, inside the blocks, that has the axes which it sums over; the module of
    a gain reads the last one before it. A family says it only if that is another (`Point.reads`).
    """
    axes, found = unit_axes(schema), list[Maker]()
    before: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for point in schema.points:
        if point.computed != "always":
            continue
        block = int(point.name.split(".")[1]) if point.name.startswith("blocks.") else -1
        names = [f"blocks.{block}.{name}" if block >= 0 else name for name in point.parameters]
        made = tuple(HEAD if axis in HEADS else str(axis) for axis in point.axes[2:])
        for weight in (name for name in names if not is_bias(name)):
            summed = tuple(axis for axis in axes[weight] if axis not in made)
            beside = "" if summed else weight.rpartition(".")[0] + "."
            read = (name for name in reversed(before[summed or made]) if not beside or not name.startswith(beside))
            reads = f"blocks.{block}.{point.reads}" if point.reads else next(read, "")
            bias = next((name for name in names if is_bias(name)), "")
            found.append(Maker(point.name, reads, block, weight, bias))
        if block >= 0:
            before[made].append(point.name)
    return tuple(found)


@dataclass(frozen=True)
class Group:
    """Units that another program may keep in one tensor."""

    # their names; stacked along a first axis "part" if there are several kinds, and along "layer" before it if
    # they span all blocks
    units: tuple[str, ...]
    inner: tuple[str, ...]  # the axes of each of them
    head: int | None = None  # one head of every unit, if the program keeps heads apart
    layers: int = 0  # how many blocks are stacked; 0 if the group belongs to one
    # How many heads each unit has, if these numbers differ; such units follow one another along the axis of heads. ()
    # if they do not differ.
    heads: tuple[int, ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes of `natural`, in order."""
        inner = self.inner if self.head is None else tuple(axis for axis in self.inner if axis != HEAD)
        parts = 1 if self.heads else len(self.units) // (self.layers or 1)
        return (*((LAYER,) if self.layers else ()), *((PART,) if parts > 1 else ()), *inner)

    def natural(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The group as one tensor with the axes `axes`."""
        chosen = [self.of_head(tensors[unit]) for unit in self.units]
        if len(chosen) == 1:
            return chosen[0]
        if self.heads:
            return torch.cat(chosen, self.inner.index(HEAD))
        stacked = torch.stack(chosen)
        parts = len(chosen) // (self.layers or 1)
        return stacked.unflatten(0, (self.layers, parts)) if self.layers and parts > 1 else stacked

    def split(self, natural: Tensor) -> dict[str, Tensor]:
        """The inverse of `natural`: unit (and head) -> its part."""
        if len(self.units) == 1:
            return {self.units[0]: natural}
        if self.heads:
            return dict(zip(self.units, natural.split(self.heads, self.inner.index(HEAD)), strict=True))
        parts = len(self.units) // (self.layers or 1)
        flat = natural.flatten(0, 1) if self.layers and parts > 1 else natural
        return dict(zip(self.units, flat, strict=True))

    def of_head(self, unit: Tensor) -> Tensor:
        """The part of a unit that belongs to the group."""
        return unit if self.head is None else unit.select(self.inner.index(HEAD), self.head)


def groups_of(units: Mapping[str, Tensor], schema: Schema) -> Iterator[Group]:
    """Every group of units that programs are known to keep in one tensor, the plainest first."""
    axes, n_layer = unit_axes(schema), len(schema.blocks)
    yield from (Group((unit,), axes[unit]) for unit in units)
    rows = [row for row in _read_together(schema) if all(unit in units for unit in row)]
    for row in rows:
        for count in range(len(row), 1, -1):
            yield from (_together(chosen, units, axes) for chosen in itertools.combinations(row, count))
    for group in [Group((unit,), axes[unit]) for unit in units] + [_together(row, units, axes) for row in rows]:
        if HEAD in group.inner and not group.heads:
            n_head = units[group.units[0]].size(group.inner.index(HEAD))
            yield from (Group(group.units, group.inner, h) for h in range(n_head) if n_head > 1)  # the only one is all
    if n_layer > 1:
        first = [(unit,) for unit in units if unit.startswith("blocks.0.")]
        first += [row for row in rows if row[0].startswith("blocks.0.") and not _together(row, units, axes).heads]
        for row in first:
            everywhere = tuple(f"blocks.{i}.{kind_of(unit)}" for i in range(n_layer) for unit in row)
            yield Group(everywhere, axes[row[0]], layers=n_layer)


def _read_together(schema: Schema) -> list[tuple[str, ...]]:
    """Units of one module that read the same value, such as W_Q, W_K and W_V; their biases."""
    rows: dict[tuple[str, str], list[Maker]] = defaultdict(list)
    for maker in makers_of(schema):
        rows[maker.module, maker.reads].append(maker)
    several = [row for row in rows.values() if len(row) > 1]
    weights = [tuple(maker.weight for maker in row) for row in several]
    return weights + [tuple(maker.bias for maker in row) for row in several if all(maker.bias for maker in row)]


def _together(row: Sequence[str], units: Mapping[str, Tensor], axes: Mapping[str, tuple[str, ...]]) -> Group:
    """Units in one tensor, side by side."""
    inner = axes[row[0]]
    heads = [units[unit].size(inner.index(HEAD)) for unit in row] if HEAD in inner else []
    return Group(tuple(row), inner, heads=tuple(heads) if len(set(heads)) > 1 else ())


@dataclass(frozen=True)
class GroupTransform:
    """How a tensor is made from a group: parts and heads in another order, axes permuted, then reshaped."""

    axes: tuple[str, ...]  # the group's axes in the order in which the tensor has them
    heads: tuple[int, ...] | None = None  # which of the group's heads comes at each place; None if they are in order

    def apply(self, natural: Tensor, group: Group, shape: Sequence[int]) -> Tensor:
        """Group's natural tensor -> the other program's tensor."""
        if self.heads is not None:
            natural = natural.index_select(group.axes.index(HEAD), torch.tensor(self.heads, device=natural.device))
        return natural.permute([group.axes.index(axis) for axis in self.axes]).reshape(tuple(shape))

    def undo(self, tensor: Tensor, group: Group, natural_shape: Sequence[int]) -> Tensor:
        """The other program's tensor -> the group's natural tensor; a view if there is one."""
        order = [group.axes.index(axis) for axis in self.axes]
        inverse = [order.index(i) for i in range(len(order))]
        natural = tensor.reshape([natural_shape[i] for i in order]).permute(inverse)
        if self.heads is None:
            return natural
        places = [self.heads.index(head) for head in range(len(self.heads))]
        return natural.index_select(group.axes.index(HEAD), torch.tensor(places, device=natural.device))

    def describe(self, group: Group) -> str:
        """Say in words how the tensor is made from the group."""
        words: list[str] = []
        if len(group.units) > 1:
            words.append(f"{len(group.units)} units in one tensor")
        if group.head is not None:
            words.append(f"head {group.head} alone")
        inner = [axis for axis in self.axes if axis not in (PART, LAYER, HEAD)]
        if inner != [axis for axis in group.axes if axis not in (PART, LAYER, HEAD)]:
            words.append("transposed")
        if self.heads is not None:
            words.append("heads permuted")
        if self.axes != group.axes and "transposed" not in words:
            words.append("axes in another order")
        return ", ".join(words) or "as it is"


def orders(group: Group, shape: Sequence[int], natural_shape: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Axis orders under which the group can be reshaped to `shape` along whole axes, the natural one first."""
    if math.prod(shape) != math.prod(natural_shape):
        return
    for order in itertools.permutations(range(len(natural_shape))):
        sizes = [natural_shape[i] for i in order]
        if _merges(sizes, [size for size in shape if size != 1] or [1]):
            yield tuple(group.axes[i] for i in order)


def _merges(sizes: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether every axis of `shape` is the product of consecutive ones of `sizes`, or the tensor is flat."""
    rest = list(sizes)
    for whole in shape:
        product = 1
        while product < whole and rest:
            product *= rest.pop(0)
        if product != whole:
            return False
    return all(size == 1 for size in rest)


def is_in_another_block(unit: str, units: Mapping[str, Tensor], missing: Collection[str]) -> bool:
    """Whether a unit's values are another block's, too, which are not missing: one module may be both blocks."""
    there = (name for name in units if kind_of(name) == kind_of(unit) and name not in missing)
    return any(torch.equal(units[unit], units[name]) for name in there)


SCORING = ("W_Q", "W_K", "b_Q", "b_K")
"""Kinds of units that q · k is computed with."""

ALIKE = 1e-5
"""Relative distance of products of matrices up to which rounding their entries to float32 explains it."""

TURNED = 1e-3
"""Relative distance of a matrix from another above which it is turned, and not rounded."""


def are_turned_alike(place: str, units: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> bool:
    """Whether both W_Q and W_K of an attention are others, by more than rounding, and no q · k is."""
    for unit in (f"{place}.W_Q", f"{place}.W_K"):
        a, b = (of[unit].detach().cpu().double() if unit in of else None for of in (units, changed))
        if a is None or b is None or float((b - a).norm()) <= TURNED * float(a.norm()):
            return False
    return _same_products(place, units, {**units, **changed})


def _same_products(place: str, units: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether two attentions have the same W_Q W_K^T in each head, b_Q and b_K as one more row, but for rounding.

    Inner products of such matrices [D + 1, D + 1] are sums over matrices [K, K], which are small.
    """

    def read(of: Mapping[str, Tensor], letter: str) -> Tensor:
        return torch.cat([of[f"{place}.W_{letter}"], of[f"{place}.b_{letter}"][:, None]], 1).cpu().double()

    def inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
        return ((one[0].mT @ other[0]) * (one[1].mT @ other[1])).sum((1, 2))

    ours, theirs = ((read(of, "Q"), read(of, "K")) for of in (units, others))
    gap = inner(ours, ours) + inner(theirs, theirs) - 2 * inner(ours, theirs)
    return bool((gap <= ALIKE**2 * inner(ours, ours)).all())
