"""What the tensors of another program change: some provably nothing, others from some size of a change on.

Zeros that are added and ones that are multiplied change nothing if the outputs agree, nor does what is so small that
rounding hides it. Any other tensor beside the parameters is tried: other values are put into it, and the logits of a
run without instruments stay the same to the bit, or do not. How small an error would still be seen is found by
injecting it: with the comparison of parameters switched off, one weight of each kind is changed by a power of ten of
itself, on a copy, and the smallest power that the checkpoints and the logits reveal is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.family.layout import EMBED
from pellucid.family.layout import HEAD as UNEMBED
from pellucid.numerics.dense import filled
from pellucid.numerics.rounding import BEYOND_ROUNDING, relative_error, same_bits
from pellucid.prove.aligning import NEAR, align
from pellucid.prove.alignment import Alignment, Match
from pellucid.prove.copies import is_scripted
from pellucid.prove.held import Computed, all_in, computed_in, held_in, hidden_in, with_computed
from pellucid.prove.lending import Loan, read_in
from pellucid.prove.points import LOGITS, sites_of
from pellucid.prove.program import DOUBLE, Program, WatchedModel
from pellucid.prove.tensors import compare_tensors, known_buffers
from pellucid.prove.units import N_CTX, is_in_another_block, kind_of, unit_axes, units_of
from pellucid.run.model import CkptedTransformer
from pellucid.schema import Schema

ONE_BY_ONE = 32
"""Up to how many tensors are tried alone, if all together change something."""


def without_idle(
    alignment: Alignment, program: Program, matching: Matching, batches: Sequence[Tensor], unseen: Collection[str]
) -> Alignment:
    """An alignment whose unexplained tensors and missing units are those that may change something.

    On the batches of ids [B, P] other values of the idle ones leave the logits as they are. `unseen` are parameters of
    a block that no text can show.
    """
    others = matching.others
    unexplained = [name for name in alignment.unexplained if name in others]  # and can be read
    judged = matching.tensors is None  # with everything that the other side has in its place
    found = {name: what for name in unexplained if (what := _constant(others[name], judged=judged))}
    rest = [name for name in unexplained if name not in found]
    found |= dict.fromkeys(_without_effect(rest, program, others, batches), "without effect on the logits")
    units = matching.units
    hidden = tuple(
        unit
        for unit in alignment.missing
        if kind_of(unit) in unseen
        or (judged and (is_next_to_nothing(units[unit]) or is_in_another_block(unit, units, alignment.missing)))
    )
    return replace(
        alignment,
        buffers={**alignment.buffers, **found},
        unexplained=tuple(name for name in alignment.unexplained if name not in found),
        missing=tuple(unit for unit in alignment.missing if unit not in hidden),
        unneeded=(*alignment.unneeded, *hidden),
    )


def _constant(tensor: Tensor, *, judged: bool) -> str:
    for value, word in ((0, "zeros"), (1, "ones")):
        if tensor.numel() and bool((tensor == value).all()):
            return f"{word}, which change nothing"
    if judged and is_next_to_nothing(tensor):
        return f"values up to {_largest(tensor):.1g}, which rounding hides"
    return ""


NEXT_TO_NOTHING = BEYOND_ROUNDING
"""Values up to which a tensor that one side lacks is no obstacle, as zeros are none: the outputs are judged with it."""


def is_next_to_nothing(tensor: Tensor) -> bool:
    """Whether all values are so small that rounding hides them where they are added, and not all of them are 0."""
    return tensor.is_floating_point() and tensor.numel() > 0 and 0 < _largest(tensor) <= NEXT_TO_NOTHING


def _largest(tensor: Tensor) -> float:
    return float(tensor.double().abs().max())


def _without_effect(
    names: list[str], program: Program, others: Mapping[str, Tensor], batches: Sequence[Tensor]
) -> list[str]:
    if not names or not all(isinstance(others[name], nn.Parameter) for name in names):
        return []
    try:
        expected = [program.plain(ids) for ids in batches]
        if _stays(names, program, others, batches, expected):
            return names
        tried = names if 1 < len(names) <= ONE_BY_ONE else []
        return [name for name in tried if _stays([name], program, others, batches, expected)]
    except Exception:  # whatever a foreign forward raises: then nothing is shown
        return []


def _stays(
    names: list[str], program: Program, others: Mapping[str, Tensor], batches: Sequence[Tensor], expected: list[Tensor]
) -> bool:
    """Whether the logits are the same to the bit with other values in these tensors."""
    generator = torch.Generator().manual_seed(0)
    own = {**others, **all_in(program.loan.module)[0]}  # a loan may put others in their place
    drawn = {id(own[n]): (1 + torch.randn(others[n].shape, generator=generator)).to(others[n]) for n in names}
    changed = {key: nn.Parameter(value, requires_grad=False) for key, value in drawn.items()}
    other = replace(program, loan=program.loan.replacing(changed))
    return all(same_bits(other.plain(ids), logits) for ids, logits in zip(batches, expected, strict=True))


def cropped(
    units: Mapping[str, Tensor], others: Mapping[str, Tensor], schema: Schema, *, padded: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Tables of another length, cut to the rows that both sides have: of positions alone on the reference's side.

    Returns both sides, and notes.
    """
    ours, theirs, notes = dict(units), dict(others), list[str]()
    tables = [unit for unit, axes in unit_axes(schema).items() if axes[0] == N_CTX]
    for name, tensor in others.items():
        if tensor.dim() != 2 or not tensor.is_floating_point():
            continue
        for unit in (*tables, *((EMBED, UNEMBED) if padded else ())):
            if unit not in units:
                continue
            table = units[unit].T if unit == UNEMBED else units[unit]
            turned = tensor.shape[1] != table.shape[1]
            rows = tensor.T if turned else tensor
            fewest = min(len(rows), len(table))
            if rows.shape[1] != table.shape[1] or len(rows) == len(table) or not _near(rows[:fewest], table[:fewest]):
                continue
            if len(rows) > len(table):
                theirs[name] = rows[:fewest].T if turned else rows[:fewest]
                notes.append(f"{name} has {len(rows)} rows, of which the first {fewest} are compared: no id or "
                             "position of the reference reaches the others")  # fmt: skip
                break
            if unit in tables:
                ours[unit] = table[:fewest]
                notes.append(
                    f"{name} has {fewest} rows, and the reference {len(table)}: that many positions are compared"
                )
                break
    return ours, theirs, notes


SAMPLE = 64
"""How many rows, from all of a table, say whether it is worth looking at whole."""


def _near(rows: Tensor, table: Tensor) -> bool:
    """Whether a table is a version of another of its shape."""
    for step, limit in ((max(len(table) // SAMPLE, 1), 2 * NEAR), (1, NEAR)):
        some = (side[::step].detach() for side in (table, rows))  # eight bits have no norm, sixteen overflow
        one, other = ((each.float() if each.element_size() < 4 else each).nan_to_num() for each in some)
        if not float((other - one).norm()) <= limit * float(one.norm()):
            return False
    return True


FINEST = 16
"""Powers of ten that are tried: from 1e-1 to 1e-16, which is float64's own rounding."""


@dataclass(frozen=True)
class Sensitivity:
    """What has to be kept to measure it later."""

    reference: CkptedTransformer  # neither side is written to
    other: nn.Module
    ids: Tensor  # what to run
    alignment: Alignment | None  # which parameter is which; None if the other side's own tensors were not aligned
    turned: bool = False  # whether the other side is given ids [P, B]

    def measure(self) -> dict[str, float | None]:
        """Kind of parameter -> smallest relative change of one weight that is revealed; None if not even 0.1 is."""
        if any(map(is_scripted, self.other.modules())):
            return {}  # nothing can be put into a compiled program
        with Loan(self.other).taken() as module:
            computed, held = computed_in(module), held_in(module)[0]
        if self.alignment is not None and any(match.name not in held for match in self.alignment.matches):
            held |= hidden_in(self.other)
        readable = {name: made for name, tensor in held.items() if (made := filled(tensor)) is not None}
        tensors = with_computed(readable, computed)
        alignment = self.alignment or align(units_of(self.reference), tensors, self.reference.schema)
        kinds = self._one_of_each_kind(alignment)
        lent = {**tensors, **held, **all_in(self.other)[0]}  # a loan may put others in the place of the caller's
        places = {match.name: id(lent[match.name]) for match, _ in kinds.values()}
        own = {places[name]: _double(tensors[name]) for name in places}  # to be written to
        sites = sites_of(alignment, self.other, self.reference.schema)
        constants = {name: own.get(id(tensors[name]), tensors[name]) for name in computed}
        loan = Loan(self.other, computed=constants).replacing(own)
        program = Program(loan, sites, self.reference.embed.W_E.detach(), turned=self.turned)
        try:
            base = program.run(self.ids, None, DOUBLE)
        except Exception:  # whatever a foreign forward raises in a dtype that it was not written for
            return {}
        found: dict[str, float | None] = {}
        for kind, (match, unit) in kinds.items():
            within = own[places[match.name]][tuple(map(slice, match.shape))]  # of a longer table, its first rows
            injection = _Injection(match, unit, within, self.ids)
            found[kind] = _smallest(injection, program, base, self.ids)
        return found

    def _one_of_each_kind(self, alignment: Alignment) -> dict[str, tuple[Match, str]]:
        """A match and a unit in it for each kind, from the block in the middle if there are several."""
        chosen: dict[str, tuple[Match, str]] = {}
        middle = f"blocks.{len(self.reference.schema.blocks) // 2}."
        for match in alignment.matches:
            for unit in match.group.units:
                kind = kind_of(unit)
                if kind not in chosen or (unit.startswith(middle) and not chosen[kind][1].startswith(middle)):
                    chosen[kind] = (match, unit)
        return chosen


@dataclass(frozen=True)
class _Injection:
    match: Match
    unit: str
    tensor: Tensor
    ids: Tensor

    def inject(self, size: float) -> None:
        """Multiply the largest weight of the unit (in a row that the ids use) by 1 + size."""
        group, transform = self.match.group, self.match.transform
        natural = transform.undo(self.tensor.detach(), group, self.match.comparison.shape).clone()
        part = group.split(natural)[self.unit]  # a view of it
        if self.unit == EMBED:
            part = part[int(self.ids[0, 0])]
        elif group.inner[0] == N_CTX:
            part = part[0]
        place = tuple(map(int, np.unravel_index(int(part.abs().argmax()), part.shape)))  # torch's own imports SymPy
        part[place] = part[place] * (1 + size) if part[place] != 0 else size
        with torch.no_grad():
            self.tensor.copy_(transform.apply(natural, group, self.match.shape))


def _double(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().double().clone(), requires_grad=False)


def _smallest(injection: _Injection, program: WatchedModel, base: Mapping[str, Tensor], ids: Tensor) -> float | None:
    """Find by bisection the smallest power of ten whose change of a weight is revealed; None if not even 0.1 is."""
    original = injection.tensor.detach().clone()
    forced = {point: value for point, value in base.items() if point != LOGITS}

    def revealed(power: int) -> bool:
        injection.inject(10.0**-power)
        values = program.run(ids, forced, DOUBLE)
        with torch.no_grad():
            injection.tensor.copy_(original)
        return any(relative_error(values[point], base[point]) > BEYOND_ROUNDING for point in base if point in values)

    low, high = 0, FINEST + 1  # revealed at 10^-low (or not at all), not at 10^-high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if revealed(middle) else (low, middle)
    return 10.0**-low if low else None


@dataclass
class Matching:
    """The tensors of both sides, and how they are matched."""

    reference: CkptedTransformer
    other: nn.Module
    tensors: Mapping[str, Tensor] | None = None
    # the reference's parameters; of a table of positions the rows that both sides have
    units: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)  # the other program's tensors by name
    buffers: set[str] = field(default_factory=set)  # those of them that are no parameters
    computed: dict[str, Computed] = field(default_factory=dict)  # those of them that are computed from others
    notes: list[str] = field(default_factory=list)  # what the reader should know
    unread: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read both sides' tensors, the other's as they evaluate, and cut tables to the rows that both sides have."""
        self.units = units_of(self.reference)
        if self.tensors is not None:
            self.others, self.buffers = dict(self.tensors), known_buffers(self.tensors, self.reference.config)[0]
            return
        with Loan(self.other).taken() as module:  # as it evaluates: adapters merge themselves there
            held, self.buffers = held_in(module)
            self.computed = computed_in(module)
        held = with_computed(self._readable(held), self.computed)
        padded = not isinstance(self.other, CkptedTransformer)  # a model of ours says which vocabulary it has
        self.units, self.others, self.notes = cropped(self.units, held, self.reference.schema, padded=padded)

    def alignment(self) -> Alignment:
        """Which tensor is which; a weight that is computed from what stands for the reference's is the reference's."""
        return self._without_rounding(self._aligned())

    def _readable(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors with every value in memory; what cannot be read so is kept as unexplained."""
        found = {name: filled(tensor) for name, tensor in held.items()}
        self.unread += [name for name, tensor in found.items() if tensor is None]
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _aligned(self) -> Alignment:
        """Which tensor is which parameter; if some are missing, among those that torch does not know of, too."""
        schema = self.reference.schema
        alignment = self._without_unread(align(self.units, self.others, schema, self.buffers))
        if alignment.missing and self.tensors is None and (hidden := self._readable(hidden_in(self.other))):
            more = align(self.units, {**self.others, **hidden}, schema, self.buffers | set(hidden))
            if len(more.missing) < len(alignment.missing):
                names = [match.name for match in more.matches if match.name in hidden]
                alignment, self.others, self.buffers = more, self.others | hidden, self.buffers | set(hidden)
                self.notes.append(f"{len(names)} tensors that torch does not know as parameters were read, "
                                  f"such as {names[0]}")  # fmt: skip
        return replace(alignment, unexplained=(*alignment.unexplained, *self.unread))

    def _without_unread(self, alignment: Alignment) -> Alignment:
        """An alignment in which a tensor that the program reads comes before an equal one that it does not read.

        A module may keep another model beside the one that runs: an average, or the one that its training began with.
        """
        read = read_in(self.other) if self.tensors is None and alignment.unexplained else None
        if read is None:
            return alignment
        idle = [name for name, t in self.others.items() if isinstance(t, nn.Parameter) and name not in read]
        kept = {name: tensor for name, tensor in self.others.items() if name not in idle}
        made = align(self.units, kept, self.reference.schema, self.buffers)
        if not idle or len(made.missing) > len(alignment.missing):
            return alignment
        return replace(made, unexplained=(*made.unexplained, *idle))

    def _without_rounding(self, alignment: Alignment) -> Alignment:
        matches, said = list(alignment.matches), dict[str, list[str]]()
        for number, match in enumerate(matches):
            weight = self.computed.get(match.name)
            if weight is None:
                continue
            natural = match.group.natural(self.units)
            wanted, words = match.transform.apply(natural, match.group, match.shape), f"computed ({weight.how})"
            if not match.comparison.bit_equal and weight.comes_from(wanted):
                words += " from what stands for the reference's values, but for rounding"
                self.others[match.name] = wanted
                matches[number] = replace(match, comparison=compare_tensors(natural, natural))
            said.setdefault(words, []).append(match.name)
        for words, names in said.items():
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            self.notes.append(f"{words}: {', '.join(names[:4])}{more}")
        return replace(alignment, matches=tuple(matches))
