"""Which tensor of another program is which parameter of the reference, as both evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from pellucid.prove.aligning import align
from pellucid.prove.alignment import Alignment
from pellucid.prove.held import Computed, computed_in, filled, held_in, hidden_in, with_computed
from pellucid.prove.influence import cropped
from pellucid.prove.lending import Loan
from pellucid.prove.tensors import compare_tensors, known_buffers
from pellucid.prove.units import units_of
from pellucid.run.model import CkptedTransformer


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
        alignment = align(self.units, self.others, schema, self.buffers)
        if alignment.missing and self.tensors is None and (hidden := self._readable(hidden_in(self.other))):
            more = align(self.units, {**self.others, **hidden}, schema, self.buffers | set(hidden))
            if len(more.missing) < len(alignment.missing):
                names = [match.name for match in more.matches if match.name in hidden]
                alignment, self.others, self.buffers = more, self.others | hidden, self.buffers | set(hidden)
                self.notes.append(f"{len(names)} tensors that torch does not know as parameters were read, "
                                  f"such as {names[0]}")  # fmt: skip
        return replace(alignment, unexplained=(*alignment.unexplained, *self.unread))

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
