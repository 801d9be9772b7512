"""What a report says of the place where two programs first differ, and of how B was made from A.

That place is a parameter, a checkpoint or the logits. For parameters a sentence can often say what one side's
are of the other's: rounded, with rows added, in another order, a multiple.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from pellucid.family.layout import EMBED
from pellucid.family.layout import HEAD as UNEMBED
from pellucid.html.listing import counted
from pellucid.numerics.rounding import BEYOND_ROUNDING, not_alike, relative_error, same_bits, shown_part, size_of
from pellucid.prove.alignment import Alignment
from pellucid.prove.causes import Cause
from pellucid.prove.points import LOGITS, ckpt_of, in_order
from pellucid.prove.report import Divergence, describe_difference
from pellucid.prove.runs import Runs
from pellucid.prove.units import HEAD, HEADS, N_CTX, SCORING, are_turned_alike, kind_of
from pellucid.schema import POSITIONS, Schema, in_another_order

HALVES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
"""What a model is rounded to by those who publish it."""


@dataclass(frozen=True)
class Sides:
    """Two sides whose parameters were aligned."""

    units: Mapping[str, Tensor]  # the reference's
    others: Mapping[str, Tensor]  # the other program's tensors
    alignment: Alignment  # which is which
    swapped: bool = False  # whether the reference is B

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


def with_changes(first: Divergence | None, sides: Sides) -> tuple[Divergence | None, Additions]:
    """The first divergence with what B is of A as its cause, and what else the reader should know of the two."""
    words, added = rounding(sides), additions(sides)
    if first is None:
        return None, replace(added, notes=[*added.notes, *([words] if words else [])])
    return replace(first, cause=words or relations(sides) or first.cause), added


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
    """What each parameter that differs is of the reference's: in another order, a multiple, turned; else None."""
    ways: list[tuple[str, str | None]] = []  # a tied unit may stand for two tensors
    scoring: dict[str, Tensor] = {}
    for match in sides.alignment.matches:
        if match.comparison.bit_equal:
            continue
        if match.group.head is not None or match.group.layers:
            return None
        undone = match.transform.undo(sides.others[match.name].detach(), match.group, match.comparison.shape)
        for unit, theirs in match.group.split(undone).items():
            ours, axes = sides.units[unit], match.group.inner
            if theirs.dtype == ours.dtype and torch.equal(theirs, ours):
                continue
            words = _order(ours, theirs, axes) or _multiple(ours, theirs) or _of_heads(ours, theirs, axes)
            if _placed(unit)[1] in SCORING:
                scoring[unit] = theirs
            elif words is None:
                return None
            ways.append((unit, words))
    turned = _turned(sides, scoring) if any(words is None for _, words in ways) else {}
    found: dict[str, dict[str, list[str]]] = {}
    for unit, known in ways:
        words = known or turned.get(unit)
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


AXES = {HEAD: "head", "d_mlp": "neuron", N_CTX: "row", "d_vocab": "row"}
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


def _of_heads(ours: Tensor, theirs: Tensor, axes: tuple[str, ...]) -> str | None:
    """Whether heads are read in another way, or some are multiples of what they should be, in words."""
    if HEAD not in axes or ours.shape != theirs.shape:
        return None
    at = axes.index(HEAD)
    a, b = (tensor.detach().cpu().movedim((at, axes.index("d_head")), (0, 1)) for tensor in (ours, theirs))
    if torch.equal(b.flatten(0, 1), a.transpose(0, 1).flatten(0, 1)):
        return "in the order (d_head, head), not (head, d_head)"
    if torch.equal(b.transpose(0, 1).flatten(0, 1), a.flatten(0, 1).unflatten(0, a.shape[1::-1]).flatten(0, 1)):
        return "read as (d_head, head), not (head, d_head)"
    changed = [head for head in range(len(a)) if not torch.equal(a[head], b[head])]
    factors = [_multiple(a[head], b[head]) for head in changed]
    if len(changed) == len(a) or None in factors:
        return None
    return " and ".join(f"head {head} is {words}" for head, words in zip(changed, factors, strict=True))


def _turned(sides: Sides, changed: Mapping[str, Tensor]) -> dict[str, str]:
    """The units that are others with the same q · k, with words for it; of a rotary model it would say nothing."""
    if not any(N_CTX in match.group.inner for match in sides.alignment.matches):
        return {}
    found: dict[str, str] = {}
    for place in (unit.removesuffix(".W_Q") for unit in changed if unit.endswith(".W_Q")):
        if are_turned_alike(place, sides.units, changed):
            units = [f"{place}.{kind}_{letter}" for letter in "QK" for kind in "Wb"]
            found |= dict.fromkeys(units, "turned alike in each head, so that no q · k changes")
    return found


@dataclass(frozen=True)
class Additions:
    """What one side has and the other has not."""

    notes: list[str] = field(default_factory=list)  # in words: rows at the end of a table, or a head
    told: set[str] = field(default_factory=set)  # the tensors and units of which these words tell


def additions(sides: Sides) -> Additions:
    """Rows at the end of tables, each told of the table of the other side that it is most like, and heads."""
    reference, other = sides.names
    alone = {name: sides.others[name].detach() for name in sides.alignment.unexplained if name in sides.others}
    # a tensor in the shape of a parameter that is missing is that one with other values, and no longer table
    shapes = {tuple(sorted(sides.units[unit].shape)) for unit in sides.alignment.missing}
    tables = {name: tensor for name, tensor in alone.items() if tuple(sorted(tensor.shape)) not in shapes}
    found = Additions()
    for unit in sides.alignment.missing:
        ours = sides.units[unit].T if unit == UNEMBED else sides.units[unit]
        near = {name: table for name, tensor in tables.items() if (table := _as_rows(tensor, ours)) is not None}
        if unit.startswith("blocks.") or not near:
            continue
        name = max(near, key=lambda name: _equal_rows(ours, near[name]))
        found.notes.append(f"{unit}: {rows_more(ours, near[name], reference, other)}")
        found.told.update((unit, name))
        del alone[name], tables[name]
    embedding = sides.units.get(EMBED)
    for name, tensor in alone.items():
        if embedding is not None and name.startswith(HEAD_NAMES) and sorted(tensor.shape) == sorted(embedding.shape):
            found.notes.append(f"{other} has a head of its own, {name}, and {reference}'s head is its embedding")
            found.told.add(name)
    return found


HEAD_NAMES = ("lm_head", "unembed", "head")
"""How names of heads begin."""


def _as_rows(table: Tensor, unit: Tensor) -> Tensor | None:
    """A table with as many columns as a unit [rows, columns] and another number of rows; None for anything else."""
    if table.dim() != 2 or unit.dim() != 2:
        return None
    ways = (way for way in (table, table.T) if way.size(1) == unit.size(1) and way.size(0) != unit.size(0))
    return next(ways, None)


def _equal_rows(unit: Tensor, table: Tensor) -> int:
    common = min(unit.size(0), table.size(0))
    dtype = max((unit.dtype, table.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    ours, theirs = (rows[:common].detach().to("cpu", dtype).contiguous().view(torch.uint8) for rows in (unit, table))
    return int((ours == theirs).all(1).sum())


def rows_more(unit: Tensor, table: Tensor, reference: str = "A", other: str = "B") -> str:
    """What a table of another length [rows, columns] is of a unit, in words."""
    common, equal = min(unit.size(0), table.size(0)), _equal_rows(unit, table)
    more = abs(unit.size(0) - table.size(0))
    which = "the first " if equal == common else f"{equal:,} of the first "
    longer = other if table.size(0) > unit.size(0) else reference
    return f"{which}{common:,} rows are equal to the bit, and {longer} has {counted(more, 'row')} more"


def first_changed(
    alignment: Alignment, units: Mapping[str, Tensor], others: Mapping[str, Tensor], unseen: Mapping[str, str]
) -> Divergence | None:
    """The first parameter that is not equal to the bit; of those that share its tensor, the ones that differ.

    Of kinds of parameters that no text can show, `unseen` has the reasons.
    """
    changed = next((match for match in alignment.matches if not match.comparison.bit_equal), None)
    if changed is None:
        return None
    undone = changed.transform.undo(others[changed.name].detach(), changed.group, changed.comparison.shape)
    differing = [
        unit
        for unit, part in changed.group.split(undone).items()
        if not same_bits(changed.group.of_head(units[unit]), part)
    ]
    head = "" if changed.group.head is None else f"[{changed.group.head}]"
    where = " + ".join(unit + head for unit in differing)
    theirs = "" if changed.name == where else f"{changed.name} "
    reasons = dict.fromkeys(unseen.get(kind_of(unit), "") for unit in differing)
    hidden = f"; no text can show it: {'; '.join(reasons)}" if all(reasons) else ""
    return Divergence(where, "parameter", theirs + describe_difference(changed.comparison) + hidden)


def divergence_at(runs: Runs, point: str, cause: Cause | None) -> Divergence:
    """What a report says of a point that differs."""
    name = runs.ckpt(point)
    expected = runs.expected[name]
    given = runs.forced.get(point)
    if given is None or not runs.is_wrong(runs.forced, point):
        given = runs.free[point]
    expected = shown_part(expected, given)
    words = None if cause is None else f"{cause.words} ({cause.extent})"
    if given.shape != expected.shape:
        return Divergence(name, _what(name), f"shapes {list(expected.shape)} and {list(given.shape)}", words)
    error = relative_error(given, expected)
    detail = f"its own relative error in float64 is {error:.3g}, which is not rounding"
    if point != LOGITS and not runs.is_wrong(runs.free, LOGITS):
        detail += "; the logits agree all the same"
    gap = ~((given - expected).abs() <= BEYOND_ROUNDING * size_of(expected))
    return Divergence(name, _what(name), detail, words, *_places(runs, name, gap))


def not_finite_at(runs: Runs, point: str, values: tuple[Tensor, Tensor], *, wrong: bool) -> Divergence:
    """What a report says of a point at which one side only is finite, in the program's own dtype."""
    name, given = runs.ckpt(point), values[1]
    expected = shown_part(values[0], given)
    odd = not_alike(given, expected)
    theirs, ours = _kind(given[odd]), _kind(expected.to(given.device)[odd])
    dtype = str(given.dtype).removeprefix("torch.")
    later = "" if wrong else "; in float64 both agree, so that the arithmetic leaves the range of its dtype"
    detail = f"{theirs} where the reference has {ours}, at {int(odd.sum())} of {odd.numel()} values in {dtype}{later}"
    return Divergence(name, _what(name), detail, None, *_places(runs, name, odd))


def _kind(values: Tensor) -> str:
    kinds = {"NaN": values.isnan(), "infinity": values.isinf(), "finite numbers": values.isfinite()}
    return " and ".join(word for word, where in kinds.items() if bool(where.any()))


def is_before(first: str, second: str, schema: Schema) -> bool:
    """Whether a right program passes one point before another that is not of the same checkpoint."""
    return in_order((first, second), schema)[0] == first and ckpt_of(first, schema) != ckpt_of(second, schema)


def positions_note(runs: Runs) -> list[str]:
    """What a program that leaves out positions leaves unseen."""
    given, expected = runs.free[LOGITS], runs.expected[LOGITS]
    shown, of = given.size(1), expected.size(1)
    if shown >= of:
        return []
    first = shown > 1 and shown_part(expected, given).data_ptr() == expected.data_ptr()
    which = f"{counted(shown, 'position')}, read as the {'first' if first else 'last'}"
    return [f"the program gives the logits of {which}: of {of} positions it shows no more"]


def _places(runs: Runs, name: str, gap: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The positions (of patterns, the queries'), and the heads if there are some, at which two values differ."""
    axes = runs.schema.axes.get(name, ("batch", "pos"))
    position = next(place for place, axis in enumerate(axes) if axis in POSITIONS)
    head = next((place for place, axis in enumerate(axes) if axis in HEADS), None)
    return _along(gap, position), () if head is None else _along(gap, head)


def _along(gap: Tensor, axis: int) -> tuple[int, ...]:
    """Where along an axis anything is set."""
    return tuple(gap.transpose(0, axis).flatten(1).any(-1).nonzero().flatten().tolist())


def _what(name: str) -> Literal["checkpoint", "logits"]:
    return "logits" if name == LOGITS else "checkpoint"
