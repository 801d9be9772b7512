"""State dicts: parameters without a program.

Two of known layouts are compared name by name. If only one layout is known, the other's tensors are found by their
values, and their names have to agree with what was found, since nothing is run that would show an exchange.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pellucid.errors import InputError
from pellucid.family.families import family_of
from pellucid.family.layout import HEAD as UNEMBED
from pellucid.numerics.dense import filled
from pellucid.prove.about import distance_of
from pellucid.prove.aligning import align
from pellucid.prove.alignment import Alignment, Match
from pellucid.prove.comparison import Comparison, Progress
from pellucid.prove.divergences import Sides, first_changed, rows_more, with_changes
from pellucid.prove.held import held_in
from pellucid.prove.report import ComparisonReport, Divergence, ParameterRow, describe_difference, relative_changes
from pellucid.prove.sides import Pair, Side, reference_of, references_of, unknown
from pellucid.prove.tensors import TensorComparison, compare_tensors, known_buffers
from pellucid.prove.units import HEAD, Group, GroupTransform, unit_axes, units_of
from pellucid.prove.verdict import doubts, notes_on, rows_of_parameters, verdict_of
from pellucid.run.model import CkptedTransformer
from pellucid.schema import Schema

ALONE = "state dicts hold parameters and no program: nothing was run, and the verdict is on the parameters alone"
BY_NAME = "both layouts are known: parameters of one name were compared"
BY_VALUE = "one layout is not known: its tensors were found by their values, and only numbers, weights, biases and " \
           "heads in their names could be checked"  # fmt: skip
Tensors = Mapping[str, Tensor]


def compare_with_dict(pair: Pair, ids: Tensor, lengths: tuple[int, ...], progress: Progress) -> ComparisonReport:
    """Compare a model with a state dict; it is run, too, if its layout is known and its sizes are the model's."""
    assert not isinstance(pair.other, torch.nn.Module)
    reference, tensors = pair.reference, pair.other
    runnable = reference_of(tensors, reference.config.replace(tie_word_embeddings=True))  # a head that differs unties
    if runnable is not None:
        made = Comparison(reference, runnable, ids, pair.swapped, tensors, progress, lengths=lengths)
        report = made.report()
        note = "the state dict was run in the layout that its names have, with the reference's configuration"
        return replace(report, notes=(note, *report.notes))
    known = reference_of(tensors)
    if known is None:
        return _by_value(reference, tensors, swapped=pair.swapped)
    sides = (reference.state_dict(), reference), (tensors, known)
    return _by_layout(*(reversed(sides) if pair.swapped else sides))


def compare_unrecognised(a: Side, b: Side) -> ComparisonReport:
    """Compare a state dict with a module that was not recognised as a GPT-2: equal parameters are no proof."""
    for tensors, module, swapped in ((a, b, False), (b, a, True)):
        if isinstance(module, torch.nn.Module) and not isinstance(tensors, torch.nn.Module):
            reference = reference_of(tensors)
            if reference is not None:
                found = {name: filled(tensor) for name, tensor in held_in(module)[0].items()}
                held = {name: tensor for name, tensor in found.items() if tensor is not None}
                report = _best_of_heads(reference, tensors, held, swapped=swapped)
                note = "the module was not recognised as a GPT-2 by what it computes: give the model that the state " \
                       "dict is of"  # fmt: skip
                return replace(
                    report, verdict="inconclusive" if report else report.verdict, notes=(note, *report.notes)
                )
    raise unknown(a, b)


def compare_dicts(a: Tensors, b: Tensors) -> ComparisonReport:
    """Compare two state dicts."""
    first, second = reference_of(a), reference_of(b)
    if first is not None and second is not None:
        return _by_layout((a, first), (b, second))
    for reference, theirs, others, swapped in ((first, a, b, False), (second, b, a, True)):
        if reference is not None:
            return _best_of_heads(reference, theirs, others, swapped=swapped)
    if set(a) == set(b):
        return _by_name(a, b)
    raise InputError(
        "compare: two state dicts of no known layout and with different names.",
        code="compare-unknown-both",
        remedy="Give the model of one of them, so that its parameters are known.",
    )


def _assuming(model: CkptedTransformer, report: ComparisonReport) -> ComparisonReport:
    note = f"with {model.schema.sizes['head']} heads, which the layout does not say"
    return replace(report, notes=(note, *report.notes)) if report else report


def _by_layout(a: tuple[Tensors, CkptedTransformer], b: tuple[Tensors, CkptedTransformer]) -> ComparisonReport:
    """Two state dicts of known layouts: parameter by parameter, under our names."""
    known = max(a[1].schema.sizes["head"], b[1].schema.sizes["head"])  # 1 if a layout does not say
    first, second, beside = _with_heads(a, known), _with_heads(b, known), _beside(a, b)
    report = _of_named(first, second, beside)
    if report or known > 1 or not _differ_within_heads(report, first.schema):
        return report
    for other in itertools.islice(references_of(a[0]), 1, None):
        found = _of_named(other, _with_heads(b, other.schema.sizes["head"]), beside)
        if found:
            return _assuming(other, found)
    return report


def _with_heads(side: tuple[Tensors, CkptedTransformer], n_head: int) -> CkptedTransformer:
    """A state dict as a model of so many heads; as it is if it cannot have them."""
    tensors, model = side
    if model.schema.sizes["head"] == n_head:
        return model
    return next((other for other in references_of(tensors) if other.schema.sizes["head"] == n_head), model)


def _beside(*sides: tuple[Tensors, CkptedTransformer]) -> tuple[str, ...]:
    """What the state dicts have beside weights that may change what a program computes."""
    return tuple(sorted(name for tensors, model in sides for name in known_buffers(tensors, model.config)[1]))


def _differ_within_heads(report: ComparisonReport, schema: Schema) -> bool:
    """Whether nothing but what heads have differs, so that they may stand in another order."""
    changed = [match for match in report.alignment.matches if not match.comparison.bit_equal]
    axes = unit_axes(schema)
    odd = (*report.alignment.missing, *(unit for match in changed for unit in match.group.units))
    return bool(odd) and all(HEAD in axes.get(unit, ()) for unit in odd)


def _of_named(first: CkptedTransformer, second: CkptedTransformer, beside: tuple[str, ...]) -> ComparisonReport:
    units, others = units_of(first), units_of(second)
    if not (first.unembed.tied and second.unembed.tied):
        units[UNEMBED], others[UNEMBED] = first.unembed.W_U.detach(), second.unembed.W_U.detach()
    axes = {UNEMBED: ("d_model", "d_vocab"), **unit_axes(first.schema)}
    shared = [name for name in units if name in others and units[name].shape == others[name].shape]
    matches = {name: _named_match(name, axes[name], units[name], others[name]) for name in shared}
    changed = {_owner(name) for name, match in matches.items() if HEAD in match.group.axes and not match.comparison}
    for layer in changed:
        held = [name for name, match in matches.items() if _owner(name) == layer and HEAD in match.group.axes]
        order = _head_order(*(torch.cat([side[name].cpu().flatten(1) for name in held], 1) for side in (units, others)))
        if order is not None:
            matches |= {name: _named_match(name, axes[name], units[name], others[name], order) for name in held}
    alignment = Alignment(
        tuple(matches.values()),
        unexplained=(*(name for name in others if name not in units), *beside),
        missing=tuple(name for name in units if name not in others),
    )
    report = _report(first, units, others, alignment, BY_NAME, swapped=False)
    misfit = next(_misfits(units, others), None)
    return report if misfit is None else replace(report, verdict="different", first_divergence=misfit)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _named_match(
    name: str, axes: tuple[str, ...], unit: Tensor, other: Tensor, order: tuple[int, ...] | None = None
) -> Match:
    group = Group((name,), axes)
    transform = GroupTransform(axes, order)
    compared = compare_tensors(unit, transform.undo(other, group, unit.shape))
    return Match(name, group, transform, tuple(other.shape), compared)


def _misfits(units: Tensors, others: Tensors) -> Iterator[Divergence]:
    for name in (*units, *(name for name in others if name not in units)):
        if name not in units or name not in others:
            yield Divergence(name, "parameter", f"only the {'first' if name in units else 'second'} has it")
        elif units[name].shape != others[name].shape:
            words = f"shapes {list(units[name].shape)} and {list(others[name].shape)}"
            a, b = (side[name].T if name == UNEMBED else side[name] for side in (units, others))
            longer = a.dim() == b.dim() == 2 and a.size(1) == b.size(1)
            yield Divergence(name, "parameter", f"{words}: {rows_more(a, b)}" if longer else words)


def _head_order(expected: Tensor, given: Tensor) -> tuple[int, ...] | None:
    """Which head stands at each place, of all that heads have [H, N]; None if no other order explains it."""
    coarse = max((expected.dtype, given.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    expected, given = expected.to(coarse), given.to(coarse)
    order: list[int] = []
    for head in given:
        equal = (h for h in range(len(expected)) if h not in order and torch.equal(expected[h], head))
        found = next(equal, None)
        if found is None:
            return None
        order.append(found)
    return None if order == sorted(order) else tuple(order)


def _best_of_heads(
    reference: CkptedTransformer, theirs: Tensors, others: Tensors, *, swapped: bool
) -> ComparisonReport:
    """The comparison under a number of heads that explains everything, if there is one."""
    report = _by_value(reference, others, swapped=swapped)
    if (
        report.alignment.bit_equal
        or reference.schema.sizes["head"] > 1
        or not _differ_within_heads(report, reference.schema)
    ):
        return report
    for other in itertools.islice(references_of(theirs), 1, None):
        found = _by_value(other, others, swapped=swapped)
        if found.alignment.bit_equal:
            return _assuming(other, found)
    return report


def _by_value(reference: CkptedTransformer, others: Tensors, *, swapped: bool) -> ComparisonReport:
    """A model's parameters and tensors under names that mean nothing: found by value, and the names then checked."""
    units = units_of(reference)
    alignment = align(units, others, reference.schema)
    report = _report(reference, units, others, alignment, BY_VALUE, swapped=swapped)
    found = doubts(alignment, units, others) if report else ()
    return replace(report, verdict="inconclusive", notes=(*found, *report.notes)) if found else report


def _report(
    reference: CkptedTransformer, units: Tensors, others: Tensors, alignment: Alignment, note: str, *, swapped: bool
) -> ComparisonReport:
    same = all(units[u].dtype == others[match.name].dtype for match in alignment.matches for u in match.group.units)
    unseen = family_of(reference.config).unseen
    changed = first_changed(alignment, units, others, unseen)
    changed, added = with_changes(changed, Sides(units, others, alignment, swapped))
    rows = rows_of_parameters(alignment, swapped=swapped)
    return ComparisonReport(
        verdict_of(alignment, (), changed, may_be_identical=same, rounding_explains=False),
        rows,
        (),
        reference.ckpt_names,
        changed,
        alignment,
        (ALONE, note, *added.notes, *notes_on(alignment, unseen, added.told)),
        distance=distance_of(None, (), relative_changes(rows)),
    )


def _by_name(a: Tensors, b: Tensors) -> ComparisonReport:
    """Two state dicts of one unknown layout: tensor by tensor."""
    shapes = [name for name in a if a[name].shape != b[name].shape]
    compared: dict[str, TensorComparison] = {n: compare_tensors(a[n], b[n]) for n in a if n not in shapes}
    rows = tuple(
        ParameterRow(name, name, "as it is", found.max_abs, found.bit_equal, False, found.relative)
        for name, found in compared.items()
    )
    divergence = next(
        (Divergence(n, "parameter", describe_difference(c)) for n, c in compared.items() if not c.bit_equal),
        Divergence(shapes[0], "parameter", f"shapes {list(a[shapes[0]].shape)} and {list(b[shapes[0]].shape)}")
        if shapes
        else None,
    )
    same_dtypes = all(a[name].dtype == b[name].dtype for name in a)
    nothing = Alignment(())
    verdict = verdict_of(nothing, (), divergence, may_be_identical=same_dtypes, rounding_explains=False)
    notes = (ALONE, "their layout is not known: tensors of one name were compared")
    distance = distance_of(None, (), relative_changes(rows))
    return ComparisonReport(verdict, rows, (), (), divergence, nothing, notes, distance=distance)
