"""How small an error would still be seen: found by injecting it.

With the comparison of parameters switched off, one weight of each kind is changed by a power of ten of itself, on a
copy, and the smallest power that the checkpoints and the logits reveal is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.layout import EMBED
from pellucid.numerics.rounding import BEYOND_ROUNDING, relative_error
from pellucid.prove.aligning import align
from pellucid.prove.alignment import Alignment, Match
from pellucid.prove.computed import computed_in, with_computed
from pellucid.prove.copies import is_scripted
from pellucid.prove.lending import Loan
from pellucid.prove.points import LOGITS, sites_of
from pellucid.prove.program import DOUBLE, Program, WatchedModel
from pellucid.prove.units import POSITIONS, kind_of, units_of
from pellucid.run.model import CkptedTransformer

FINEST = 16
"""Powers of ten that are tried: from 1e-1 to 1e-16, which is float64's own rounding."""


@dataclass(frozen=True)
class Sensitivity:
    """What has to be kept to measure it later.

    Args:
        reference, other: The two sides, never written to.
        ids: What to run.
        alignment: Which parameter is which; None if the other side's own tensors were not aligned.
    """

    reference: CkptedTransformer
    other: nn.Module
    ids: Tensor
    alignment: Alignment | None

    def measure(self) -> dict[str, float | None]:
        """Kind of parameter -> smallest relative change of one weight that is revealed; None if not even 0.1 is."""
        if any(map(is_scripted, self.other.modules())):
            return {}  # nothing can be put into a compiled program
        with Loan(self.other).taken() as module:
            held, computed = dict(module.state_dict(keep_vars=True)), computed_in(module)
        tensors = with_computed(held, computed)
        alignment = self.alignment or align(units_of(self.reference), tensors, self.reference.schema)
        kinds = self._one_of_each_kind(alignment)
        own = {id(tensors[m.name]): _double(tensors[m.name]) for m, _ in kinds.values()}  # to be written to
        sites = sites_of(alignment, self.other, self.reference.schema)
        constants = {name: own.get(id(tensors[name]), tensors[name]) for name in computed}
        program = Program(Loan(self.other, replaced=own, computed=constants), sites, self.reference.embed.W_E.detach())
        base = program.run(self.ids, None, DOUBLE)
        found: dict[str, float | None] = {}
        for kind, (match, unit) in kinds.items():
            injection = _Injection(match, unit, own[id(tensors[match.name])], self.ids)
            found[kind] = _smallest(injection, program, base, self.ids)
        return found

    def _one_of_each_kind(self, alignment: Alignment) -> dict[str, tuple[Match, str]]:
        """A match and a unit in it for each kind, from the block in the middle where there are several."""
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
        elif group.inner[0] == POSITIONS:
            part = part[0]
        place = torch.unravel_index(part.abs().argmax(), part.shape)
        part[place] = part[place] * (1 + size) if part[place] != 0 else size
        with torch.no_grad():
            self.tensor.copy_(transform.apply(natural, group, self.match.shape))


def _double(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().double().clone(), requires_grad=False)


def _smallest(injection: _Injection, program: WatchedModel, base: Mapping[str, Tensor], ids: Tensor) -> float | None:
    """By bisection over the powers of ten."""
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
