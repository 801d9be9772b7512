"""What B is of A, where that can be said in a sentence: rounded, with rows added, or with a head of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pellucid.prove.alignment import Alignment
from pellucid.prove.report import Divergence

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
    return replace(first, cause=words or first.cause), notes


def rounding(sides: Sides) -> str | None:
    """Whether one side's values are the other's, rounded to half precision or as they are in another dtype; in words.

    None where they are the same in one dtype, or differ otherwise.
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


def additions(sides: Sides) -> list[str]:
    """What one side has and the other has not, in words: rows at the end of a table, or a head."""
    reference, other = sides.names
    alone = {name: sides.others[name].detach() for name in sides.alignment.unexplained if name in sides.others}
    found = [
        f"{unit}: {_rows(sides.units[unit], table, reference, other)}"
        for unit in sides.alignment.missing
        for tensor in alone.values()
        if (table := _as_rows(tensor, sides.units[unit])) is not None
    ]
    embedding = sides.units.get("embed.W_E")
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
