"""Where a program shows its values: what enters and what leaves the modules that own known parameters.

A point is a place in the program, such as "blocks.0.ln1.w<" (what enters the module that owns ln1's gain) or
"blocks.0.attn.W_Q>" (what leaves the one that owns W_Q). In a right program every point holds the value of one
checkpoint; several may hold the same one. Which module is which follows from the parameters that it owns, found by
value; which checkpoint stands where follows from the schema.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.prove.alignment import Alignment, Match
from pellucid.prove.units import HEAD, HEADS, PART, is_bias, makers_of
from pellucid.schema import Point, Schema

LOGITS = "logits"


@functools.lru_cache(maxsize=64)
def places_of(schema: Schema) -> dict[str, str]:
    """Every point of a right program -> the checkpoint that it holds, in execution order; checkpoints are points, too.

    Of one checkpoint, what leaves comes before what enters.
    """
    holds: list[tuple[str, str]] = []
    inside: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for maker in makers_of(schema):
        inside[f"blocks.{maker.block}" if maker.block >= 0 else ""].append((maker.reads, maker.makes))
        if maker.block >= 0:
            inside[maker.module].append((maker.reads, maker.makes))
    always = [point.name for point in schema.points if point.computed == "always"]
    last = {name.rsplit(".", name.count(".") - 1)[0]: name for name in always if name.startswith("blocks.")}
    wholes = {name: made for name, made in inside.items() if len(made) > 1 and name}
    holds += [(name, name) for name in schema.names]
    holds += [(f"{maker.weight}>", maker.makes) for maker in makers_of(schema)]
    holds += [(f"{name}>", last[name] if name in last else made[-1][1]) for name, made in wholes.items()]
    holds += [(f"{name}<", made[0][0]) for name, made in wholes.items()]
    holds += [(f"{maker.weight}<", maker.reads) for maker in makers_of(schema)]
    rank = {name: number for number, name in enumerate(schema.names)}
    return dict(sorted((held for held in holds if held[1]), key=lambda held: rank[held[1]]))


@functools.lru_cache(maxsize=64)
def _ranks(schema: Schema) -> dict[str, int]:
    return {point: number for number, point in enumerate((*places_of(schema), LOGITS))}


def ckpt_of(point: str, schema: Schema) -> str:
    """The checkpoint whose value a point holds in a right program; "logits" for the logits."""
    return places_of(schema).get(point, point)


def in_order(points: Iterable[str], schema: Schema) -> list[str]:
    """Points in the order in which a right program passes them, the logits last."""
    return sorted(points, key=_ranks(schema).__getitem__)


def block_of(name: str) -> int:
    """The block of a checkpoint, a parameter or a point; -1 outside of them."""
    parts = name.rstrip("<>").split(".")
    return int(parts[1]) if parts[0] == "blocks" and len(parts) > 1 and parts[1].isdigit() else -1


def with_checkpoints(values: Mapping[str, Tensor], schema: Schema) -> dict[str, Tensor]:
    """Values by point, and by the checkpoints that they stand for."""
    standing = _standing(schema)
    return {**values, **{standing[point]: value for point, value in values.items() if point in standing}}


@functools.lru_cache(maxsize=64)
def _standing(schema: Schema) -> dict[str, str]:
    """The point that stands for each checkpoint: what its maker gives, else what is read by the maker that reads it."""
    made = {maker.makes: f"{maker.weight}>" for maker in makers_of(schema)}
    read = {maker.reads: f"{maker.weight}<" for maker in makers_of(schema)}
    blocks = {name: point for point, name in places_of(schema).items() if point.count(".") == 1 and point[-1] == ">"}
    return {point: name for name, point in {**read, **blocks, **made}.items() if name}


@dataclass(frozen=True)
class ModuleSite:
    """Where a program shows one or more points."""

    module: str  # name of the module
    entering: bool  # whether it is the module's first argument or its result
    points: tuple[str, ...]  # what is shown; several if one tensor holds q, k and v
    width: int  # size of the last dimension; another one is refused
    axes: tuple[str, ...] = ()  # axes of the last dimension of the program's tensor, such as ("part", "head", "d_head")
    sizes: tuple[int, ...] = ()  # their sizes
    # which of the reference's heads comes at each place; None if they are in order
    heads: tuple[int, ...] | None = None
    # which head this is, if the program keeps heads apart, and how many there are
    head: tuple[int, int] | None = None
    counts: tuple[int, ...] = ()  # how many heads each point has, if these numbers differ

    def read(self, value: Tensor) -> dict[str, Tensor]:
        """The program's tensor [B, P, N] -> the points' values in the checkpoints' shapes; nothing if N is another.

        A module that gives another width does more than its parameters say.
        """
        if value.shape[-1] != self.width:
            return {}
        if not self.axes:
            return {self.points[0]: value}
        wanted = self._wanted()
        parts = value.unflatten(-1, self.sizes).permute(0, 1, *(2 + self.axes.index(axis) for axis in wanted))
        if self.heads is not None:
            places = torch.tensor([self.heads.index(h) for h in range(len(self.heads))], device=value.device)
            parts = parts.index_select(2 + wanted.index(HEAD), places)
        if self.counts:
            return dict(zip(self.points, parts.split(self.counts, 2), strict=True))
        return dict(zip(self.points, parts.unbind(2), strict=True)) if PART in self.axes else {self.points[0]: parts}

    def write(self, values: Mapping[str, Tensor]) -> Tensor:
        """The reference's values, by point, in the program's layout [B, P, N]."""
        if not self.axes:
            return values[self.points[0]]
        wanted = self._wanted()
        given = [values[point] for point in self.points]
        parts = torch.stack(given, dim=2) if PART in self.axes else torch.cat(given, dim=2)
        if self.head is not None:
            parts = parts.select(3 if PART in self.axes else 2, self.head[0])
        if self.heads is not None:
            parts = parts.index_select(2 + wanted.index(HEAD), torch.tensor(self.heads, device=parts.device))
        return parts.permute(0, 1, *(2 + wanted.index(axis) for axis in self.axes)).flatten(2)

    def _wanted(self) -> list[str]:
        first = [axis for axis in (PART, HEAD) if axis in self.axes]
        return [*first, *(axis for axis in self.axes if axis not in first)]


def sites_of(alignment: Alignment, module: nn.Module, schema: Schema) -> list[ModuleSite]:
    """Where a module shows which points; the innermost module comes first if several show the same."""
    finder = _Finder(alignment, schema)
    modules = dict(module.named_modules())
    sites: list[ModuleSite] = []
    for path in sorted(modules, key=lambda path: -path.count(".") - bool(path)):
        sites += [*finder.leaf(path), *finder.whole(path), *finder.named(path, modules[path])]
    return sites


class _Finder:
    """Finds what the modules of a program show, from the parameters that each of them owns."""

    def __init__(self, alignment: Alignment, schema: Schema) -> None:
        self.alignment, self.schema = alignment, schema
        self.places, self.makers = places_of(schema), makers_of(schema)
        self.owned: dict[str, list[Match]] = defaultdict(list)
        self.direct: dict[str, list[Match]] = defaultdict(list)
        for match in alignment.matches:
            for name in (match.name, *match.copies):
                parts = name.split(".")[:-1]
                self.direct[".".join(parts)].append(match)
                for length in range(len(parts), -1, -1):
                    self.owned[".".join(parts[:length])].append(match)

    def leaf(self, path: str) -> Iterator[ModuleSite]:
        """What a module shows that owns one matrix or gain, and perhaps its bias."""
        weights = [match for match in self.direct.get(path, []) if not is_bias(match.group.units[0])]
        if len(weights) == 1 and not weights[0].group.layers:
            match, units = weights[0], weights[0].group.units
            yield from self._site(path, match, (f"{units[0]}<",), entering=True)
            yield from self._site(path, match, tuple(f"{unit}>" for unit in units), entering=False)

    def whole(self, path: str) -> Iterator[ModuleSite]:
        """What a module shows that owns a whole attention, MLP or block, in however many tensors, or its beginning."""
        matches = [match for match in self.owned.get(path, []) if not is_bias(match.group.units[0])]
        units = {unit for match in matches for unit in match.group.units}
        inside = {match.name for match in matches}
        kept = [match for match in self.alignment.matches if match.name not in inside]
        if len(units) < 2 or any(m.group.layers for m in matches) or any(units & set(m.group.units) for m in kept):
            return  # it has some heads of several
        for name in dict.fromkeys((f"blocks.{block_of(min(units))}", _module_of(units))):
            rows = [m.weight for m in self.makers if m.weight.startswith(f"{name}.")]
            if units == set(rows[: len(units)]):
                yield from self._plain(path, f"{name}<", entering=True)
                if len(units) == len(rows):
                    yield from self._plain(path, f"{name}>", entering=False)

    def named(self, path: str, module: nn.Module) -> Iterator[ModuleSite]:
        """What a module shows that owns nothing and is named after a value, such as `hook_q` or `ckpt_post`.

        Only its name says what it is handed, so a site that turns out to hold something else is dropped as any other
        is.
        """
        around, _, last = path.rpartition(".")
        if any(True for _ in module.children()) or any(True for _ in module.parameters()):
            return
        matches = [match for match in self.owned.get(around, []) if not match.group.layers]
        blocks = {block_of(unit) for match in matches for unit in match.group.units} - {-1}
        ending = f".ckpt_{last.removeprefix('hook_').removeprefix('ckpt_')}"
        for point in self.schema.points if len(blocks) == 1 else ():
            here = point.name.startswith(f"blocks.{min(blocks)}.") and point.name.endswith(ending)
            if here and point.computed == "always" and point.axes != self.schema.block[0].axes:
                yield self._made(path, point)

    def _plain(self, path: str, point: str, *, entering: bool) -> Iterator[ModuleSite]:
        if name := self.places.get(point):
            width = self.schema.sizes[self.schema.axes[name][-1]]
            yield ModuleSite(path, entering, (point,), width)

    def _made(self, path: str, point: Point) -> ModuleSite:
        axes = _heads(point.axes[2:])
        sizes = tuple(self.schema.sizes[point.heads if axis == HEAD else axis] for axis in axes)
        if len(axes) == 1:
            return ModuleSite(path, False, (point.name,), sizes[0])
        return ModuleSite(path, False, (point.name,), math.prod(sizes), axes, sizes)

    def _site(self, path: str, match: Match, points: tuple[str, ...], *, entering: bool) -> Iterator[ModuleSite]:
        """What enters or leaves a module that owns a matrix, laid out as its tensor is."""
        names = [self.places.get(point, "") for point in points]
        if not all(names):
            return
        group, transform = match.group, match.transform
        axes = _heads(self.schema.axes[names[0]][2:])
        if len(axes) == 1 and len(points) == 1:
            if group.head is None or entering:  # of one head alone, what leaves is a part of a sum
                yield from self._plain(path, points[0], entering=entering)
            return
        kept = tuple(axis for axis in transform.axes if axis in (PART, *axes))
        shape = dict(zip(group.axes, match.comparison.shape, strict=True))
        sizes = tuple(shape[axis] for axis in kept)
        heads = self.schema.sizes[self.schema.parameter(group.units[0]).axes[0]]
        yield ModuleSite(
            path, entering, points, math.prod(sizes), kept, sizes, transform.heads,
            None if group.head is None else (group.head, heads), () if entering else group.heads,
        )  # fmt: skip


def _module_of(units: Iterable[str]) -> str:
    """The module of the reference that all of these units are in."""
    parts = [unit.split(".") for unit in units]
    return ".".join(part for part, *others in zip(*parts, strict=False) if all(other == part for other in others))


def _heads(axes: Iterable[str]) -> tuple[str, ...]:
    return tuple(HEAD if axis in HEADS else str(axis) for axis in axes)
