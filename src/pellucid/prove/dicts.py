"""State dicts: parameters without a program.

Two of known layouts are compared name by name. Where only one layout is known, the other's tensors are found by their
values, and their names have to agree with what was found, since nothing is run that would show an exchange.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pellucid.errors import InputError
from pellucid.model import CkptedTransformer
from pellucid.prove.aligning import align
from pellucid.prove.alignment import Alignment, Match
from pellucid.prove.comparison import Comparison, first_changed
from pellucid.prove.naming import doubts
from pellucid.prove.report import ComparisonReport, Divergence, ParameterRow, describe_difference
from pellucid.prove.sides import Pair, Side, reference_of, unknown
from pellucid.prove.tensors import TensorComparison, compare_tensors
from pellucid.prove.units import HEAD, Group, Transform, axes_of, units_of
from pellucid.prove.verdict import notes_on, rows_of_parameters, verdict_of

ALONE = "state dicts hold parameters and no program: nothing was run, and the verdict is on the parameters alone"
BY_VALUE = "one layout is not known: its tensors were found by their values, and only numbers, weights, biases and " \
           "heads in their names could be checked"  # fmt: skip
Tensors = Mapping[str, Tensor]


def compare_with_dict(pair: Pair, runnable: CkptedTransformer | None, ids: Tensor) -> ComparisonReport:
    """Compare a model with a state dict, which is also run where its layout is known.

    Args:
        pair: A reference and a state dict.
        runnable: The state dict as a model, with the reference's configuration; None where its layout is unknown.
        ids: What to run.
    """
    assert not isinstance(pair.other, torch.nn.Module)
    if runnable is None:
        return _by_value(pair.reference, pair.other, swapped=pair.swapped)
    report = Comparison(pair.reference, runnable, ids, pair.swapped, tensors=pair.other).report()
    note = "the state dict was run in the layout that its names have, with the reference's configuration"
    return replace(report, notes=(note, *report.notes))


def compare_unrecognised(a: Side, b: Side) -> ComparisonReport:
    """Compare a state dict with a module that was not recognised as a GPT-2: equal parameters are no proof.

    Raises:
        InputError: Both are such modules, or the state dict is of no known layout.
    """
    for tensors, module, swapped in ((a, b, False), (b, a, True)):
        if isinstance(module, torch.nn.Module) and not isinstance(tensors, torch.nn.Module):
            reference = reference_of(tensors)
            if reference is not None:
                report = _best_of_heads(reference, tensors, module.state_dict(), swapped=swapped)
                note = "the module was not recognised as a GPT-2 by what it computes: give the model that the state " \
                       "dict is of"  # fmt: skip
                return replace(
                    report, verdict="inconclusive" if report else report.verdict, notes=(note, *report.notes)
                )
    raise unknown(a, b)


def compare_dicts(a: Tensors, b: Tensors) -> ComparisonReport:
    """Compare two state dicts.

    Raises:
        InputError: Neither is of a known layout, and they have different names.
    """
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


def _possible_heads(width: int) -> list[int]:
    """Numbers of heads that a width allows, the likeliest first; most layouts do not say how many there are."""
    return [n for n in dict.fromkeys((width // 64, *range(2, 65))) if n > 1 and width % n == 0]


def _by_layout(a: tuple[Tensors, CkptedTransformer], b: tuple[Tensors, CkptedTransformer]) -> ComparisonReport:
    """Two state dicts of known layouts: parameter by parameter, under our names."""
    first, second = a[1], b[1]
    known = max(first.config.n_head, second.config.n_head)  # 1 where a layout does not say
    report = _of_named(*_with_heads(a, b, known))
    if report or known > 1 or not _differ_within_heads(report):
        return report
    tried = (_of_named(*_with_heads(a, b, n)) for n in _possible_heads(first.config.n_embd))
    return next((found for found in tried if found), report)


def _with_heads(
    a: tuple[Tensors, CkptedTransformer], b: tuple[Tensors, CkptedTransformer], n_head: int
) -> tuple[CkptedTransformer, CkptedTransformer]:
    """Both as models of a number of heads; as they are where that does not divide their width."""
    made = [
        reference_of(tensors, model.config.replace(n_head=n_head)) if model.config.n_embd % n_head == 0 else None
        for tensors, model in (a, b)
    ]
    return made[0] or a[1], made[1] or b[1]


def _differ_within_heads(report: ComparisonReport) -> bool:
    """Whether nothing but what heads have differs, so that they may stand in another order."""
    changed = [match for match in report.alignment.matches if not match.comparison.bit_equal]
    return report.alignment.complete and all(HEAD in match.group.axes for match in changed)


def _of_named(first: CkptedTransformer, second: CkptedTransformer) -> ComparisonReport:
    units, others = units_of(first), units_of(second)
    if not (first.unembed.tied and second.unembed.tied):
        units["unembed.W_U"], others["unembed.W_U"] = first.unembed.W_U.detach(), second.unembed.W_U.detach()
    shared = [name for name in units if name in others and units[name].shape == others[name].shape]
    orders = _head_orders(units, others, shared)
    alignment = Alignment(
        tuple(_named_match(name, units[name], others[name], orders.get(name.rpartition(".")[0])) for name in shared),
        unexplained=tuple(name for name in others if name not in units),
        missing=tuple(name for name in units if name not in others),
    )
    divergence = next(_misfits(units, others), None) or first_changed(alignment, units, others)
    dtypes = {tensor.dtype for tensor in (*first.parameters(), *second.parameters())}
    verdict = verdict_of(alignment, (), divergence, may_be_identical=len(dtypes) == 1, rounding_explains=False)
    rows = rows_of_parameters(alignment, swapped=False)
    notes = (ALONE, "both layouts are known: parameters of one name were compared", *notes_on(alignment))
    return ComparisonReport(verdict, rows, (), first.ckpt_names, divergence, alignment, notes)


def _named_match(name: str, unit: Tensor, other: Tensor, order: tuple[int, ...] | None) -> Match:
    group = Group((name,))
    transform = Transform(axes_of(name), order if HEAD in group.axes else None)
    compared = compare_tensors(unit, transform.undo(other, group, unit.shape))
    return Match(name, group, transform, tuple(other.shape), compared)


def _misfits(units: Tensors, others: Tensors) -> Iterator[Divergence]:
    for name in (*units, *(name for name in others if name not in units)):
        if name not in units or name not in others:
            yield Divergence(name, "parameter", f"only the {'first' if name in units else 'second'} has it")
        elif units[name].shape != others[name].shape:
            yield Divergence(name, "parameter", f"shapes {list(units[name].shape)} and {list(others[name].shape)}")


def _head_orders(units: Tensors, others: Tensors, names: list[str]) -> dict[str, tuple[int, ...]]:
    """An attention layer -> which of its heads stands at each place, where one order explains all it has."""
    layers: dict[str, list[str]] = {}
    for name in names:
        if HEAD in axes_of(name):
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    found: dict[str, tuple[int, ...]] = {}
    for layer, held in layers.items():
        expected, given = (torch.cat([side[name].cpu().flatten(1) for name in held], 1) for side in (units, others))
        expected = expected.to(given.dtype)
        order: list[int] = []
        for head in given:
            equal = (h for h in range(len(expected)) if h not in order and torch.equal(expected[h], head))
            order.append(next(equal, -1))
        if -1 not in order and order != sorted(order):
            found[layer] = tuple(order)
    return found


def _best_of_heads(
    reference: CkptedTransformer, theirs: Tensors, others: Tensors, *, swapped: bool
) -> ComparisonReport:
    """The comparison under the number of heads that explains most."""
    report = _by_value(reference, others, swapped=swapped)
    for n_head in _possible_heads(reference.config.n_embd) if reference.config.n_head == 1 else ():
        if report.alignment.bit_equal:
            break
        again = reference_of(theirs, reference.config.replace(n_head=n_head))
        if again is not None:
            found = _by_value(again, others, swapped=swapped)
            report = max(report, found, key=lambda r: (r.alignment.bit_equal, r.alignment.complete))
    return report


def _by_value(reference: CkptedTransformer, others: Tensors, *, swapped: bool) -> ComparisonReport:
    """A model's parameters and tensors under names that mean nothing: found by value, and the names then checked."""
    config, units = reference.config, units_of(reference)
    alignment = align(units, others, config.n_layer, config.n_head)
    dtypes = {tensor.dtype for tensor in (*reference.parameters(), *others.values()) if tensor.is_floating_point()}
    divergence = first_changed(alignment, units, others)
    verdict = verdict_of(alignment, (), divergence, may_be_identical=len(dtypes) == 1, rounding_explains=False)
    doubtful = doubts(alignment, units, others) if verdict in ("identical", "equivalent") else ()
    rows = rows_of_parameters(alignment, swapped=swapped)
    notes = (ALONE, BY_VALUE, *doubtful, *notes_on(alignment))
    return ComparisonReport(
        "inconclusive" if doubtful else verdict, rows, (), reference.ckpt_names, divergence, alignment, notes
    )


def _by_name(a: Tensors, b: Tensors) -> ComparisonReport:
    """Two state dicts of one unknown layout: tensor by tensor."""
    shapes = [name for name in a if a[name].shape != b[name].shape]
    compared: dict[str, TensorComparison] = {n: compare_tensors(a[n], b[n]) for n in a if n not in shapes}
    rows = tuple(
        ParameterRow(name, name, "as it is", found.max_abs, found.bit_equal, False) for name, found in compared.items()
    )
    divergence = next(
        (Divergence(n, "parameter", f"{n} {describe_difference(c)}") for n, c in compared.items() if not c.bit_equal),
        Divergence(shapes[0], "parameter", f"shapes {list(a[shapes[0]].shape)} and {list(b[shapes[0]].shape)}")
        if shapes
        else None,
    )
    same_dtypes = all(a[name].dtype == b[name].dtype for name in a)
    nothing = Alignment(())
    verdict = verdict_of(nothing, (), divergence, may_be_identical=same_dtypes, rounding_explains=False)
    notes = (ALONE, "their layout is not known: tensors of one name were compared")
    return ComparisonReport(verdict, rows, (), (), divergence, nothing, notes)
