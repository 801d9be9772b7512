"""Finds which tensor of another program is which parameter, from the values and not from the names.

A reference model's parameters are units with named axes. Every tensor of the other program is matched to a
group of units by the fingerprint of its values, and the transform (axes, heads, parts) is then found and checked
on every value. Tensors that match nothing exactly are matched to the group that they are closest to, and
reported with how they differ; equal-valued ones are told apart by their neighbours and marked ambiguous.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.family.layout import EMBED
from pellucid.family.layout import HEAD as UNEMBED
from pellucid.prove.alignment import Alignment, Match
from pellucid.prove.tensors import Fingerprint, compare_tensors, fingerprint, total, what_buffer
from pellucid.prove.units import HEAD, Group, GroupTransform, groups_of, orders, partner
from pellucid.schema import Schema

SAMPLE = 509
"""How many values decide whether a transform is worth checking on all of them; a prime, so that strides vary."""

ALONG = 1 - 1e-6
"""Cosine above which a tensor is a multiple of another."""

CLEARLY = 0.7
"""What part of another order's distance one has to have, at most, to be the better one."""

NEAR = 0.5
"""Relative distance on the sample below which two tensors count as versions of one another."""

Distance = tuple[float, float]  # what orders are chosen by, and what says whether two tensors are versions
FAR: Distance = (math.inf, math.inf)


def align(
    units: Mapping[str, Tensor],
    others: Mapping[str, Tensor],
    schema: Schema,
    buffers: Collection[str] = (),
) -> Alignment:
    """Explain another program's state dict, buffers included, by a reference's units.

    Names of one memory are copies of each other; those that are known to be buffers need not be explained.
    """
    return _Aligner(units, others, schema).run(set(buffers))


_ENDS = {EMBED: UNEMBED, UNEMBED: EMBED}


class _Aligner:
    def __init__(self, units: Mapping[str, Tensor], others: Mapping[str, Tensor], schema: Schema) -> None:
        dtypes = {tensor.dtype for tensor in [*units.values(), *others.values()] if tensor.is_floating_point()}
        coarse = max((d for d in dtypes if d.itemsize > 1), key=lambda dtype: torch.finfo(dtype).eps)
        self.exact = units, others  # what is found among coarse copies is compared as it is given
        self.units = {name: tensor.to("cpu", coarse) for name, tensor in units.items()}
        self.names, self.others = _by_memory(others, coarse)
        self.sizes = {name: tensor.numel() for name, tensor in units.items()}
        self.groups = list(groups_of(self.units, schema))
        self.heads = {group.units[0]: _heads_of(group, self.units) for group in self.groups if len(group.units) == 1}
        self.place = {unit: number for number, unit in enumerate(units)}
        # the groups of each fingerprint and size
        self.by_print: dict[tuple[Fingerprint, int], list[Group]] = defaultdict(list)
        prints, heads = self._prints()
        for group in self.groups:
            parts = [prints[unit] if group.head is None else heads[unit, group.head] for unit in group.units]
            self.by_print[total(parts), self._size(group)].append(group)
        # unit -> the heads of it that are found, None for all at once
        self.taken: dict[str, set[int | None]] = defaultdict(set)
        self.found: dict[str, Match] = {}

    def _prints(self) -> tuple[dict[str, Fingerprint], dict[tuple[str, int], Fingerprint]]:
        """The fingerprint of every unit, and of each head of those that have several."""
        single = [group for group in self.groups if len(group.units) == 1]
        heads = {(g.units[0], g.head): fingerprint(g.natural(self.units)) for g in single if g.head is not None}
        prints = {
            name: total(heads[name, head] for head in range(self.heads[name]))
            if self.heads[name] > 1
            else fingerprint(tensor)
            for name, tensor in self.units.items()
        }
        return prints, heads

    def run(self, buffers: set[str]) -> Alignment:
        known = {name: what for name, tensor in self.others.items() if (what := what_buffer(tensor, name in buffers))}
        unknown = [name for name in self.others if name not in known]
        parameters = {name: self.others[name] for name in unknown if self.others[name].is_floating_point()}
        uncertain: dict[str, list[Group]] = {}
        for name, tensor in parameters.items():
            candidates = self.by_print.get((fingerprint(tensor), tensor.numel()), [])
            if len(candidates) == 1 and not self._overlaps(candidates[0]):
                self._accept(name, tensor, candidates[0], ambiguous=False)
            elif len(candidates) > 1:
                uncertain[name] = candidates
        for name, candidates in uncertain.items():
            free = [group for group in candidates if not self._overlaps(group)]
            if free:
                best = min(free, key=self._unlikeliness(name))
                self._accept(name, parameters[name], best, ambiguous=True)
        for again in (False, True):  # what is left may be the other end, untied
            for name, tensor in parameters.items():
                if name not in self.found:
                    self._nearest(name, tensor, again=again)
        unexplained = [name for name in unknown if name not in self.found]
        known |= {name: "a buffer of its own" for name in unexplained if name in buffers}
        covered = self._covered()
        missing = [unit for unit in self.units if unit not in covered]
        unneeded = tuple(u for u in missing if _changes_nothing(u, self.units[u]) or self._is_at_other_end(u, covered))
        return Alignment(
            matches=tuple(self.found[name] for name in parameters if name in self.found),
            buffers=known,
            unexplained=tuple(name for name in unexplained if name not in buffers),
            missing=tuple(unit for unit in missing if unit not in unneeded),
            unneeded=unneeded,
        )

    def _covered(self) -> set[str]:
        return {u for u, heads in self.taken.items() if None in heads or len(heads) == self.heads[u]}

    def _is_at_other_end(self, unit: str, covered: set[str]) -> bool:
        """Whether a unit is one of an untied pair of equal ends, of which the other program has one for both."""
        units, end = self.exact[0], _ENDS.get(unit)
        return end in covered and compare_tensors(units[unit], units[end].T).bit_equal

    def _size(self, group: Group) -> int:
        heads = 1 if group.head is None else self.heads[group.units[0]]
        return sum(self.sizes[unit] for unit in group.units) // heads

    def _overlaps(self, group: Group) -> bool:
        taken = [heads for unit in group.units if (heads := self.taken.get(unit))]
        return any(group.head is None or not heads.isdisjoint((group.head, None)) for heads in taken)

    def _accept(self, name: str, tensor: Tensor, group: Group, *, ambiguous: bool) -> None:
        group, transform, _ = self._best(name, tensor, group)
        if transform is None:
            return
        units, others = self.exact
        natural = group.natural(units)
        compared = compare_tensors(natural, transform.undo(others[name].detach(), group, natural.shape))
        self.found[name] = Match(name, group, transform, tuple(tensor.shape), compared, ambiguous, self.names[name])
        for unit in group.units:
            self.taken[unit].add(group.head)

    def _nearest(self, name: str, tensor: Tensor, *, again: bool) -> None:
        """Match a tensor that equals nothing to the group of its size that it is closest to.

        With `again` an end may be what another tensor is already; nothing else has a second place in a GPT-2.
        """
        scored: list[tuple[float, float, int]] = []
        unlikeliness = self._unlikeliness(name)
        for number, group in enumerate(self.groups):
            if self._size(group) != tensor.numel():
                continue
            if self._overlaps(group) and not (again and group.units[0] in _ENDS):
                continue
            arranged, transform, distance = self._best(name, tensor, group)
            if transform is None:
                continue
            if distance[1] < NEAR or self._is_version(tensor, arranged, transform, distance):
                scored.append((distance[0], unlikeliness(group), number))
        if scored:
            self._accept(name, tensor, self.groups[min(scored)[2]], ambiguous=False)

    def _best(self, name: str, tensor: Tensor, group: Group) -> tuple[Group, GroupTransform | None, Distance]:
        """A group's parts in the order, and the transform, under which a tensor is closest to it; and how far it is.

        If several orders are about as close, as for biases of zeros and for parts that are far off, the parts stand as
        in what is beside the tensor, else in the usual order; unless another order alone is near.
        """
        owner = name.rpartition(".")[0]
        beside = {
            tuple(map(partner, match.group.units)) for other, match in self.found.items()
            if other.rpartition(".")[0] == owner
        }  # fmt: skip
        best: tuple[Group, GroupTransform | None, Distance] = (group, None, FAR)
        nearest = best
        for arranged in sorted(_arrangements(group), key=lambda arranged: arranged.units not in beside):
            transform, distance = _best_transform(arranged, arranged.natural(self.units), tensor)
            if distance[0] < CLEARLY * best[2][0]:
                best = arranged, transform, distance
            if distance[1] < nearest[2][1]:
                nearest = arranged, transform, distance
            if distance[0] == 0.0:
                break
        return nearest if nearest[2][1] < NEAR <= best[2][1] else best

    def _is_version(self, tensor: Tensor, group: Group, transform: GroupTransform, distance: Distance) -> bool:
        """Whether a tensor that is far off has a part that is equal, no constant, or is made of multiples."""
        if min(distance[0] / NEAR, distance[1]) >= 1.0:
            return False
        natural = group.natural(self.units)
        ours, theirs = group.split(natural), group.split(transform.undo(tensor, group, natural.shape))
        if len(ours) > 1 and any(torch.equal(part, theirs[unit]) and _varies(part) for unit, part in ours.items()):
            return True
        return distance[1] < 1.0 and all(
            float(
                nn.functional.cosine_similarity(ours[unit].flatten().double(), theirs[unit].flatten().double(), dim=0)
            )
            > ALONG
            for unit in ours
        )

    def _unlikeliness(self, name: str) -> Callable[[Group], float]:
        """How badly a group fits a name's neighbourhood: the modules around it and the order of registration."""
        owner = name.rpartition(".")[0]
        siblings = [m for n, m in self.found.items() if n.rpartition(".")[0] == owner]
        wanted = {partner(unit) for match in siblings for unit in match.group.units}
        block, expected = self._block_around(name), self._place_of(name)
        kind = {"weight": "w", "bias": "b"}.get(name.rpartition(".")[2], "")

        def unlikeliness(group: Group) -> float:
            first = group.units[0]
            penalty = 0.0 if wanted and set(group.units) <= wanted else 1.0
            penalty += 2.0 if block is not None and not first.startswith(f"blocks.{block}.") else 0.0
            penalty += 0.5 if kind and kind != first.rpartition(".")[2][0].lower() else 0.0
            return penalty + 1e-4 * abs(self.place[first] - expected)

        return unlikeliness

    def _place_of(self, name: str) -> int:
        """Where a tensor should stand in the reference: behind the tensor that was registered before it."""
        before = None
        for other in self.others:
            if other == name:
                break
            before = self.found.get(other, before)
        return self.place[before.group.units[-1]] + 1 if before is not None else 0

    def _block_around(self, name: str) -> str | None:
        """The block that the nearest certain neighbours belong to, by the longest common prefix of dotted names."""
        parts = name.split(".")
        for length in range(len(parts) - 1, 0, -1):
            prefix = ".".join(parts[:length]) + "."
            blocks = {
                m.group.units[0].split(".")[1]
                for n, m in self.found.items()
                if n.startswith(prefix) and m.group.units[0].startswith("blocks.") and not m.group.layers
            }
            if blocks:
                return blocks.pop() if len(blocks) == 1 else None
        return None


def _arrangements(group: Group) -> Iterator[Group]:
    """A group with its parts in every order, such as q|k|v and k|q|v; the usual one first."""
    each = len(group.units) // (group.layers or 1)
    for order in itertools.permutations(range(each)):
        units = tuple(group.units[start + i] for start in range(0, len(group.units), each) for i in order)
        yield replace(group, units=units, heads=tuple(group.heads[i] for i in order if group.heads))


def _heads_of(group: Group, units: Mapping[str, Tensor]) -> int:
    """How many heads the unit of a group has; 1 if it has no axis of heads."""
    unit = units[group.units[0]]
    return unit.size(group.inner.index(HEAD)) if HEAD in group.inner else 1


def _by_memory(
    others: Mapping[str, Tensor], coarse: torch.dtype
) -> tuple[dict[str, tuple[str, ...]], dict[str, Tensor]]:
    """First name of each memory -> its other names, and -> the tensor in the common dtype on the CPU."""
    seen: dict[tuple[object, ...], str] = {}
    copies: dict[str, tuple[str, ...]] = {}
    for name, tensor in others.items():
        memory = tensor.untyped_storage().data_ptr() or id(tensor)
        first = seen.setdefault((memory, tensor.storage_offset(), tensor.shape, tensor.stride()), name)
        copies[first] = (*copies[first], name) if first != name else ()
    kept = {name: others[name].detach() for name in copies}
    return copies, {n: t.to("cpu", coarse) if t.is_floating_point() else t.cpu() for n, t in kept.items()}


def _changes_nothing(unit: str, tensor: Tensor) -> bool:
    kind = unit.rpartition(".")[2]
    return (kind.startswith("b") and not bool(tensor.any())) or (kind == "w" and bool((tensor == 1).all()))


def _varies(tensor: Tensor) -> bool:
    return bool((tensor != tensor.flatten()[0]).any())


def _best_transform(group: Group, natural: Tensor, tensor: Tensor) -> tuple[GroupTransform | None, Distance]:
    """The transform under which a tensor is closest to a group on a sample, and the relative distance there."""
    best: tuple[GroupTransform | None, Distance] = (None, FAR)
    where = _sample(natural.shape, group)
    expected = natural[where].double().nan_to_num()  # [H or 1, SAMPLE]
    for axes in orders(group, tensor.shape, natural.shape):
        given = GroupTransform(axes).undo(tensor, group, natural.shape)[where].double().nan_to_num()
        heads, distance = _match_heads(expected, given)
        if distance < best[1]:
            best = GroupTransform(axes, heads), distance
        if distance[0] == 0.0:
            break
    return best


def _sample(shape: torch.Size, group: Group) -> tuple[Tensor, ...]:
    """Index tensors that pick, for every head, the same places along the other axes."""
    at = group.axes.index(HEAD) if HEAD in group.axes else None
    others = [size for axis, size in enumerate(shape) if axis != at]
    count = math.prod(others)
    flat = np.arange(0, count, max(1, count // SAMPLE))
    rest = map(torch.from_numpy, np.unravel_index(flat, others) if others else ())  # torch's own imports SymPy
    head = torch.arange(shape[at])[:, None] if at is not None else torch.zeros(1, 1, dtype=torch.long)
    return tuple(head if axis == at else next(rest)[None, :] for axis in range(len(shape)))


def _match_heads(expected: Tensor, given: Tensor) -> tuple[tuple[int, ...] | None, Distance]:
    """Which expected head each given head is, None if they are in order; and the relative distance then."""
    if torch.equal(expected, given):
        return None, (0.0, 0.0)
    in_order = _distance(expected, given)
    if len(expected) > 1:
        gaps = torch.cdist(given, expected, compute_mode="donot_use_mm_for_euclid_dist")
        order: list[int] = []
        for gap in gaps:  # the nearest that is left: heads may be equal
            gap[order] = torch.inf
            order.append(int(gap.argmin()))
        permuted = _distance(expected[order], given)
        if permuted < in_order:
            return tuple(order), permuted
    return None, in_order


def _distance(expected: Tensor, given: Tensor) -> Distance:
    """Relative distance times the share of unequal values, since equal bits are no coincidence: first a power of it.

    By the power a part of a fused tensor that is equal outweighs others that are far off, such as the bias of k.
    """
    unequal = 1 - float(((expected == given) & (expected != 0)).double().mean())
    far = float((expected - given).norm()) / (float(expected.norm()) or 1.0)
    return far * unequal**8, far * unequal
