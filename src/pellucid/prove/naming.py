"""Whether the names of another program's tensors agree with what their values say that they are.

Where nothing is run, an exchange of two tensors would not show: their values are all there. But numbers in names count
blocks or stages, a "weight" is no bias, and the heads of a layer stand in one order.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from pellucid.prove.alignment import Alignment, Match
from pellucid.prove.tensors import compare_tensors
from pellucid.prove.units import HEAD, Transform

Order = tuple[int, ...] | None


def doubts(alignment: Alignment, units: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What speaks against an alignment that was found by value, in words; nothing where the names agree with it.

    Args:
        alignment: Of tensors that equal the units.
        units, others: What was aligned.
    """
    certain = [match for match in alignment.matches if not match.ambiguous]
    place = {unit: number for number, unit in enumerate(units)}
    return (
        *(f"names and values disagree: {_words(match)}" for match in certain if _is_misnamed(match)),
        *_of_numbers(certain, place),
        *_of_heads(certain, alignment.matches, units, others),
    )


def _is_misnamed(match: Match) -> bool:
    """Whether a weight is called a bias, or a bias a weight."""
    kind = {"weight": "w", "bias": "b"}.get(match.name.rpartition(".")[2])
    return kind is not None and any(unit.rpartition(".")[2][0].lower() != kind for unit in match.group.units)


def _of_numbers(matches: Sequence[Match], place: Mapping[str, int]) -> Iterator[str]:
    """Two tensors for every family of names whose numbers count nothing: neither blocks nor stages.

    A family has one beginning, such as "blocks."; in all of its names one and the same number is the block's, or
    their numbers go through what a block has, and then through what the next one has.
    """
    families: dict[str, dict[str, list[Match]]] = defaultdict(lambda: defaultdict(list))
    for match in sorted(matches, key=_numbers):
        if _numbers(match):
            families[re.split(r"\d", match.name)[0]][_pattern(match)].append(match)
    for patterns in families.values():
        held = list(patterns.values())
        if all(_layer(match) < 0 for alike in held for match in alike):
            continue
        readings = [partial(_order_disagrees, place=place)]
        readings += [partial(_block_disagrees, at=at) for at in range(min(len(_numbers(alike[0])) for alike in held))]
        found = [next((pair for alike in held if (pair := reading(alike))), None) for reading in readings]
        if None not in found:
            yield "names and values disagree: " + ", and ".join(map(_words, found[-1] or ()))


def _order_disagrees(matches: Sequence[Match], place: Mapping[str, int]) -> tuple[Match, Match] | None:
    """Two tensors that speak against it that numbers go through a block's tensors, and then through the next one's."""
    for last, match in itertools.pairwise(matches):
        if place[last.group.units[0]] > place[match.group.units[0]]:
            return last, match
    in_block = {layer: list(held) for layer, held in itertools.groupby(matches, key=_layer) if layer >= 0}
    for last, held in itertools.pairwise(in_block.values()):
        if list(map(_kind, last)) != list(map(_kind, held)):
            return last[-1], held[0]
    n_layer = 1 + max(int(unit.split(".")[1]) for unit in place if unit.startswith("blocks."))
    return None if not in_block or len(in_block) == n_layer else (matches[0], matches[-1])


def _block_disagrees(matches: Sequence[Match], at: int) -> tuple[Match, Match] | None:
    """Two tensors that speak against it that the number at this place of their names counts the blocks."""
    before: dict[tuple[int, ...], Match] = {}
    for match in matches:
        others = _numbers(match)[:at] + _numbers(match)[at + 1 :]
        last = before.get(others)
        if last is not None and (_kind(last) != _kind(match) or _layer(last) >= _layer(match)):
            return last, match
        before[others] = match
    return None


def _pattern(match: Match) -> str:
    return re.sub(r"\d+", "#", match.name)


def _numbers(match: Match) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", match.name))


def _layer(match: Match) -> int:
    """The block that a tensor is of; -1 outside of them and for tensors of all blocks."""
    unit = match.group.units[0]
    return int(unit.split(".")[1]) if unit.startswith("blocks.") and not match.group.layers else -1


def _kind(match: Match) -> tuple[object, ...]:
    """What a tensor is, whichever block and head it is of, and how it is laid out."""
    kinds = tuple(unit.split(".", 2)[2] if unit.startswith("blocks.") else unit for unit in match.group.units)
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
    """A layer and the tensors of one name in it, where they hold a head each."""
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
    undone = Transform(match.transform.axes, order).undo(others[match.name].detach(), match.group, natural.shape)
    return compare_tensors(natural, undone).bit_equal


def _words(match: Match) -> str:
    return f"{match.name} holds {' + '.join(match.group.units)} ({match.transform.describe(match.group)})"
