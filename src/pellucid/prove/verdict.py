"""From evidence to words: the verdict, its notes, the rows of parameters, and what the names of tensors say against it.

If nothing is run, an exchange of two tensors would not show: their values are all there. But a number in a name,
divided by how many things of that name a block has, is the block's; weight and bias of a module belong together; its
matrices lie one way round; and the heads of a layer stand in one order.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import Tensor

from pellucid.family.layout import EMBED
from pellucid.family.layout import HEAD as UNEMBED
from pellucid.numerics.rounding import BEYOND_ROUNDING
from pellucid.prove.alignment import Alignment, Match
from pellucid.prove.points import block_of
from pellucid.prove.report import CheckpointRow, Divergence, ParameterRow, Verdict
from pellucid.prove.tensors import compare_tensors
from pellucid.prove.units import HEAD, GroupTransform, kind_of, partner


def verdict_of(
    alignment: Alignment,
    rows: Sequence[CheckpointRow],
    divergence: Divergence | None,
    *,
    may_be_identical: bool,
    rounding_explains: bool,
) -> Verdict:
    """What the evidence comes to."""
    if divergence is not None:
        return "different"
    if not alignment.complete:
        return "inconclusive"
    if all(row.bit_equal for row in rows):
        return "identical" if may_be_identical and not rearranged(alignment) else "equivalent"
    return "equivalent" if rounding_explains else "inconclusive"


def is_rounding(rows: Sequence[CheckpointRow]) -> bool:
    """Whether no error is left in float64."""
    return all(row.fp64 is not None and row.fp64 <= BEYOND_ROUNDING for row in rows)


def rearranged(alignment: Alignment) -> bool:
    """Whether heads stand in another order, so that sums are the same numbers in another order."""
    return any(match.transform.heads is not None for match in alignment.matches)


def rows_of_parameters(alignment: Alignment, *, swapped: bool) -> tuple[ParameterRow, ...]:
    """The alignment's matches as rows; `swapped` if the reference is the second model."""
    rows: list[ParameterRow] = []
    for match in alignment.matches:
        head = "" if match.group.head is None else f"[{match.group.head}]"
        units = " + ".join(unit + head for unit in match.group.units)
        rows.append(
            ParameterRow(
                a=match.name if swapped else units,
                b=units if swapped else match.name,
                transform=match.transform.describe(match.group),
                max_abs=match.comparison.max_abs,
                bit_equal=match.comparison.bit_equal,
                ambiguous=match.ambiguous,
                relative=match.comparison.relative_to_b if swapped else match.comparison.relative,
            )
        )
    return tuple(rows)


def notes_on(alignment: Alignment, unseen: Mapping[str, str], told: Collection[str] = ()) -> list[str]:
    """What the reader should know of an alignment."""
    notes: list[str] = []
    if alignment.buffers:
        named = [f"{name} ({what})" for name, what in list(alignment.buffers.items())[:4]]
        more = len(alignment.buffers) - len(named)
        notes.append("no parameters: " + ", ".join(named) + (f" and {more} more" if more else ""))
    for what, names in (
        ("unexplained by the reference", alignment.unexplained),
        ("missing, and the reference has them", alignment.missing),
        (
            "missing, which changes nothing (about 0, ones, k's bias, the other end, a block again)",
            alignment.unneeded,
        ),
    ):
        if names := [name for name in names if name not in told]:
            notes.append(f"{what}: {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else ""))
    if hidden := [unit for unit in alignment.unneeded if kind_of(unit) in unseen]:
        notes.append(f"no text can show {hidden[0]} or whether it is there: {unseen[kind_of(hidden[0])]}")
    ends = [match.name for match in alignment.matches if match.group.units == (EMBED,)]
    if len(ends) > 1:
        notes.append(f"ties: {ends[1]} is a tensor of its own, and the reference's head is the embedding; equal now, "
                     "they part when one is trained")  # fmt: skip
    if UNEMBED in alignment.unneeded:
        notes.append("ties: the reference's head is a tensor of its own, and the other program's is its embedding")
    if rearranged(alignment):
        notes.append("heads stand in another order, so that the same numbers are added in another order")
    ambiguous = [match.name for match in alignment.matches if match.ambiguous]
    if ambiguous:
        notes.append(f"equal-valued, told apart by their neighbours: {', '.join(ambiguous[:4])}"
                     + (f" and {len(ambiguous) - 4} more" if len(ambiguous) > 4 else ""))  # fmt: skip
    return notes


Order = tuple[int, ...] | None

MOST_IN_A_BLOCK = 8
"""Things of one name that a block may have."""


def doubts(alignment: Alignment, units: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What speaks against an alignment that was found by value, in words; nothing if the names agree with it."""
    certain = [match for match in alignment.matches if not match.ambiguous]
    return (
        *(f"names and values disagree: {found}" for found in (*_of_numbers(certain), *_of_modules(certain))),
        *_of_heads(certain, alignment.matches, units, others),
    )


def _of_numbers(matches: Sequence[Match]) -> Iterator[str]:
    """The families of names, those with one beginning, in which no number says which block a tensor is of."""
    families: dict[str, list[Match]] = defaultdict(list)
    for match in matches:
        if _numbers(match):
            families[re.split(r"\d", match.name)[0]].append(match)
    for family in families.values():
        inside = [match for match in family if _layer(match) >= 0]
        beside = {_pattern(match) for match in inside} & {_pattern(match) for match in family if _layer(match) < 0}
        places = range(min((len(_numbers(match)) for match in inside), default=0))
        readings = itertools.product(places, range(1, MOST_IN_A_BLOCK + 1))
        if beside or (inside and not any(_says_the_block(inside, place, each) for place, each in readings)):
            yield f"no number in {_some(family)} says which block it is of"


def _says_the_block(matches: Sequence[Match], place: int, each: int) -> bool:
    """Whether the number at this place of names, divided by `each`, is the block, and the rest says what it is."""
    first = min(_numbers(match)[place] - each * _layer(match) for match in matches)
    kinds: dict[tuple[object, ...], object] = {}
    rests: dict[tuple[object, ...], int] = {}
    for match in matches:
        numbers, kind = _numbers(match), _kind(match)
        block, rest = divmod(numbers[place] - first, each)
        name = (_pattern(match), numbers[:place], numbers[place + 1 :])
        one_to_one = kinds.setdefault((name, rest), kind) == kind and rests.setdefault((name, kind), rest) == rest
        if block != _layer(match) or not one_to_one:
            return False
    return True


def _of_modules(matches: Sequence[Match]) -> Iterator[str]:
    """Weights that are no weights, biases of other weights, and matrices that do not lie as others do."""
    weights = {match.name.rpartition(".")[0]: match for match in matches if _leaf(match) == "weight"}
    for match in matches:
        kind = {"weight": "w", "bias": "b"}.get(_leaf(match))
        weight = weights.get(match.name.rpartition(".")[0])
        if kind is not None and any(unit.rpartition(".")[2][0].lower() != kind for unit in match.group.units):
            yield _words(match)
        elif kind == "b" and weight is not None and match.group.units != tuple(map(partner, weight.group.units)):
            yield f"{_words(weight)}, and {_words(match)}"
    turned = {_is_turned(match): match for match in weights.values() if _is_turned(match) is not None}
    if len(turned) > 1:
        yield ", and ".join(map(_words, turned.values()))


def _is_turned(match: Match) -> bool | None:
    """Whether a matrix of a block has its outputs before its inputs, unlike ours; None of what is no such matrix."""
    matrix = [axis for axis in match.group.inner if axis != HEAD]
    if len(matrix) != 2 or not match.group.units[0].startswith("blocks."):
        return None
    return match.transform.axes.index(matrix[1]) < match.transform.axes.index(matrix[0])


def _leaf(match: Match) -> str:
    return match.name.rpartition(".")[2]


def _pattern(match: Match) -> str:
    return re.sub(r"\d+", "#", match.name)


def _numbers(match: Match) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", match.name))


def _layer(match: Match) -> int:
    """The block that a tensor is of; -1 outside of them and for tensors of all blocks."""
    return -1 if match.group.layers else block_of(match.group.units[0])


def _kind(match: Match) -> tuple[object, ...]:
    """What a tensor is, whichever block and head it is of, and how it is laid out."""
    kinds = tuple(map(kind_of, match.group.units))
    return kinds, match.group.head is None, match.transform.axes


def _of_heads(
    certain: Sequence[Match], matches: Sequence[Match], units: Mapping[str, Tensor], others: Mapping[str, Tensor]
) -> Iterator[str]:
    """The layers in which no one order of heads explains all that they have."""
    together: dict[int, list[Match]] = defaultdict(list)
    apart: dict[int, set[Order]] = defaultdict(set)
    for match in matches:
        if HEAD in match.group.axes:
            together[_layer(match)].append(match)
    for layer, rows in _one_by_one(certain):
        heads = tuple(match.group.head or 0 for match in sorted(rows, key=_numbers))
        apart[layer].add(None if list(heads) == sorted(heads) else heads)
    for layer in {**together, **apart}:
        tried = {match.transform.heads for match in together[layer]} | apart[layer]
        if not any(
            apart[layer] <= {order} and all(_holds(match, order, units, others) for match in together[layer])
            for order in tried
        ):
            yield f"the heads of {'all blocks' if layer < 0 else f'blocks.{layer}'} stand in more than one order"


def _one_by_one(matches: Sequence[Match]) -> Iterator[tuple[int, list[Match]]]:
    """A layer and the tensors of one name in it, if they hold a head each."""
    rows: dict[tuple[int, str], list[Match]] = defaultdict(list)
    for match in matches:
        if match.group.head is not None:
            rows[_layer(match), _pattern(match)].append(match)
    most = max(map(len, rows.values()), default=0)
    yield from ((layer, held) for (layer, _), held in rows.items() if len(held) == most)


def _holds(match: Match, order: Order, units: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    natural = match.group.natural(units)
    if order is not None and len(order) != natural.shape[match.group.axes.index(HEAD)]:
        return False
    undone = GroupTransform(match.transform.axes, order).undo(others[match.name].detach(), match.group, natural.shape)
    return compare_tensors(natural, undone).bit_equal


def _some(matches: Sequence[Match]) -> str:
    names = [match.name for match in matches]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _words(match: Match) -> str:
    return f"{match.name} holds {' + '.join(match.group.units)} ({match.transform.describe(match.group)})"
