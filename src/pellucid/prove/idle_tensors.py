"""What another program has beside a GPT-2's parameters, and what of it provably changes nothing.

Zeros that are added and ones that are multiplied change nothing where the outputs agree. Of any other tensor it is
tried: other values are put into it, and the logits of a run without instruments stay the same to the bit, or do not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pellucid.layout import EMBED
from pellucid.layout import HEAD as UNEMBED
from pellucid.prove.aligning import NEAR
from pellucid.prove.alignment import Alignment
from pellucid.prove.program import Program
from pellucid.prove.runs import same_bits
from pellucid.prove.units import POSITIONS, kind_of, unit_axes
from pellucid.schema import Schema

ONE_BY_ONE = 32
"""Up to how many tensors are tried alone, where all together change something."""


def without_idle(
    alignment: Alignment,
    program: Program,
    others: Mapping[str, Tensor],
    batches: Sequence[Tensor],
    unseen: Collection[str],
) -> Alignment:
    """An alignment whose unexplained tensors are those that may change something.

    Args:
        alignment: The program's alignment.
        program: As the caller runs it.
        others: Its tensors by name.
        batches: Ids [B, P] on which other values must leave the logits as they are.
        unseen: Parameters of a block that no text can show.
    """
    found = {name: what for name in alignment.unexplained if (what := _constant(others[name]))}
    rest = [name for name in alignment.unexplained if name not in found and others[name].is_floating_point()]
    found |= dict.fromkeys(_without_effect(rest, program, others, batches), "without effect on the logits")
    hidden = tuple(unit for unit in alignment.missing if kind_of(unit) in unseen)
    return replace(
        alignment,
        buffers={**alignment.buffers, **found},
        unexplained=tuple(name for name in alignment.unexplained if name not in found),
        missing=tuple(unit for unit in alignment.missing if unit not in hidden),
        unneeded=(*alignment.unneeded, *hidden),
    )


def _constant(tensor: Tensor) -> str:
    for value, word in ((0, "zeros"), (1, "ones")):
        if tensor.numel() and bool((tensor == value).all()):
            return f"{word}, which change nothing"
    return ""


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
    drawn = {id(others[n]): torch.randn(others[n].shape, generator=generator).to(others[n]) for n in names}
    changed = {key: nn.Parameter(value + 1, requires_grad=False) for key, value in drawn.items()}
    other = replace(program, loan=program.loan.replacing(changed))
    return all(same_bits(other.plain(ids), logits) for ids, logits in zip(batches, expected, strict=True))


def cropped(
    units: Mapping[str, Tensor], others: Mapping[str, Tensor], schema: Schema, *, padded: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Tables of another length, cut to the rows that both sides have.

    Args:
        units: The reference's.
        others: The other program's tensors.
        schema: The reference's.
        padded: Whether its vocabulary may be longer than it says, with rows that no id reaches.

    Returns:
        Both sides: of longer tables the first rows, on the reference's side of those of positions alone; and notes.
    """
    ours, theirs, notes = dict(units), dict(others), list[str]()
    tables = [unit for unit, axes in unit_axes(schema).items() if axes[0] == POSITIONS]
    taken = {tuple(tensor.shape) for tensor in units.values()}
    for name, tensor in others.items():
        if tensor.dim() != 2 or not tensor.is_floating_point() or tuple(tensor.shape) in taken:
            continue
        for unit in (*tables, *((EMBED, UNEMBED) if padded else ())):
            if unit not in units:
                continue
            table = units[unit].T if unit == UNEMBED else units[unit]
            turned = tensor.shape[1] != table.shape[1]
            rows = tensor.T if turned else tensor
            if rows.shape[1] != table.shape[1]:
                continue
            fewest = min(len(rows), len(table))
            one, other = table[:fewest].nan_to_num(), rows[:fewest].detach().nan_to_num()
            if not float((other - one).norm()) <= NEAR * float(one.norm()):
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
