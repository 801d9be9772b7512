"""What B is of A, where that can be said in a sentence: rounded, with rows added, or with a head of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pellucid.axes import in_another_order
from pellucid.layout import EMBED
from pellucid.prove.alignment import Alignment
from pellucid.prove.report import Divergence
from pellucid.prove.units import HEAD, POSITIONS

HALVES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
"""What a model is rounded to by those who publish it."""


@dataclass(frozen=True)
class Sides:
    """Two sides whose parameters were aligned.

    Args:
        units: The reference's.
        others: The other program's tensors.
        alignment: Which is which.
        swapped: Whether the reference is B.
    """

    units: Mapping[str, Tensor]
    others: Mapping[str, Tensor]
    alignment: Alignment
    swapped: bool = False

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter of A and of B, in one arrangement and in their own dtypes."""
        for match in self.alignment.matches:
            ours = match.group.natural(self.units)
            theirs = match.transform.undo(self.others[match.name].detach(), match.group, ours.shape).to(ours.device)
            yield (theirs, ours) if self.swapped else (ours, theirs)

    @property
    def names(self) -> tuple[str, str]:
        """What the reference and the other program are called."""
        return ("B", "A") if self.swapped else ("A", "B")


def with_changes(first: Divergence | None, sides: Sides) -> tuple[Divergence | None, list[str]]:
    """The first divergence with what B is of A as its cause, and what else the reader should know of the two."""
    words, notes = rounding(sides), additions(sides)
    if first is None:
        return None, [*notes, *([words] if words else [])]
    return replace(first, cause=words or relations(sides) or first.cause), notes


def rounding(sides: Sides) -> str | None:
    """Whether one side's values are the other's, rounded to half precision or as they are in another dtype; in words.

    None if they are the same in one dtype, or differ otherwise.
    """
    dtypes = {(a.dtype, b.dtype) for a, b in sides.pairs() if a.is_floating_point() and b.is_floating_point()}
    mixed = [pair for pair in dtypes if pair[0] != pair[1]]
    same = not mixed and all(match.comparison.bit_equal for match in sides.alignment.matches)
    if not dtypes or same or not sides.alignment.complete:
        return None
    if mixed and all(torch.equal(a.double(), b.double()) for a, b in sides.pairs()):
        first, second = (str(dtype).removeprefix("torch.") for dtype in mixed[0])
        return f"A and B hold the same values, A as {first} and B as {second}"
    for dtype, name in HALVES.items():
        for whole, rounded, words in ((0, 1, "B is A"), (1, 0, "A is B")):
            if all(_is_rounded(pair[whole], pair[rounded], dtype) for pair in sides.pairs()):
                return f"{words} rounded to {name}"
    return None


def _is_rounded(whole: Tensor, rounded: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(whole.to(dtype).double(), rounded.double())


def relations(sides: Sides) -> str | None:
    """What every parameter that differs is of the reference's: in another order, or a multiple; None of any other."""
    found: dict[str, dict[str, list[str]]] = {}
    for match in sides.alignment.matches:
        if match.comparison.bit_equal:
            continue
        if match.group.head is not None or match.group.layers:
            return None
        undone = match.transform.undo(sides.others[match.name].detach(), match.group, match.comparison.shape)
        for unit, theirs in match.group.split(undone).items():
            ours = sides.units[unit]
            if theirs.dtype == ours.dtype and torch.equal(theirs, ours):
                continue
            words = _order(ours, theirs, match.group.inner) or _multiple(ours, theirs)
            if words is None:
                return None
            block, name = _placed(unit)
            found.setdefault(words, {}).setdefault(name, []).append(block)
    told: dict[tuple[str, str], list[str]] = {}
    for words, names in found.items():
        for name, blocks in names.items():
            told.setdefault((words, _in_blocks(blocks)), []).append(name)
    return "; ".join(f"{' and '.join(names)}: {words}{where}" for (words, where), names in told.items()) or None


def _placed(unit: str) -> tuple[str, str]:
    """The number of a unit's block, "" outside of them, and its name there."""
    parts = unit.split(".")
    return (parts[1], parts[-1]) if parts[0] == "blocks" else ("", parts[-1])


def _in_blocks(blocks: list[str]) -> str:
    return f", in block{'s' * (len(blocks) > 1)} {', '.join(blocks)}" if blocks[0] else ""


AXES = {HEAD: "head", "d_mlp": "neuron", POSITIONS: "row", "d_vocab": "row"}
"""Axes along which a tensor's parts may be exchanged, and what such a part is called."""


def _order(ours: Tensor, theirs: Tensor, axes: tuple[str, ...]) -> str | None:
    """Whether one tensor has the parts of another along one axis in another order, in words."""
    for axis, word in AXES.items():
        if axis in axes and theirs.dtype == ours.dtype:
            at = axes.index(axis)
            places = {part.numpy().tobytes(): number for number, part in enumerate(_parts(ours, at))}
            taken = tuple(places.get(part.numpy().tobytes(), -1) for part in _parts(theirs, at))
            if sorted(taken) == list(range(ours.size(at))) and taken != tuple(sorted(taken)):
                return in_another_order(taken, word)
    return None


def _parts(tensor: Tensor, axis: int) -> Tensor:
    return tensor.detach().cpu().movedim(axis, 0).reshape(tensor.size(axis), -1).contiguous().view(torch.uint8)


UNIT = 1e-5
"""How near 1 a factor is that is no factor but rounding."""


def _multiple(ours: Tensor, theirs: Tensor) -> str | None:
    """Whether one tensor is a multiple of another but for rounding, in words."""
    a, b = ours.detach().double(), theirs.detach().to(ours.device).double()
    size = float((a * a).sum())
    factor = float((a * b).sum()) / size if size else 0.0
    rounding = 2 * torch.finfo(theirs.dtype).eps
    if (
        not factor
        or abs(factor - 1) < UNIT
        or not bool(((b - factor * a).abs() <= rounding * (factor * a).abs()).all())
    ):
        return None
    return f"{factor:.6g} times the reference's values"


def additions(sides: Sides) -> list[str]:
    """What one side has and the other has not, in words: rows at the end of a table, or a head."""
    reference, other = sides.names
    alone = {name: sides.others[name].detach() for name in sides.alignment.unexplained if name in sides.others}
    found = [
        f"{unit}: {_rows(sides.units[unit], table, reference, other)}"
        for unit in sides.alignment.missing
        for tensor in (() if unit.startswith("blocks.") else alone.values())
        if (table := _as_rows(tensor, sides.units[unit])) is not None
    ]
    embedding = sides.units.get(EMBED)
    for name, tensor in alone.items():
        if embedding is not None and name.startswith(HEADS) and sorted(tensor.shape) == sorted(embedding.shape):
            found.append(f"{other} has a head of its own, {name}, and {reference}'s head is its embedding")
    return found


HEADS = ("lm_head", "unembed", "head")
"""How names of heads begin."""


def _as_rows(table: Tensor, unit: Tensor) -> Tensor | None:
    """A table with as many columns as a unit [rows, columns] and another number of rows; None for anything else."""
    if table.dim() != 2 or unit.dim() != 2:
        return None
    return table if table.size(1) == unit.size(1) and table.size(0) != unit.size(0) else None


def _rows(unit: Tensor, table: Tensor, reference: str, other: str) -> str:
    common = min(unit.size(0), table.size(0))
    dtype = max((unit.dtype, table.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    ours, theirs = (rows[:common].to("cpu", dtype).contiguous().view(torch.uint8) for rows in (unit, table))
    equal = int((ours == theirs).all(1).sum())
    more = abs(unit.size(0) - table.size(0))
    which = "the first " if equal == common else f"{equal:,} of the first "
    longer = other if table.size(0) > unit.size(0) else reference
    return f"{which}{common:,} rows are equal to the bit, and {longer} has {more:,} row{'s' * (more != 1)} more"
