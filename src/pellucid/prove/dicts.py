"""State dicts: parameters without a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pellucid.errors import InputError
from pellucid.model import CkptedTransformer
from pellucid.prove.aligning import align
from pellucid.prove.alignment import Alignment
from pellucid.prove.comparison import Comparison, first_changed
from pellucid.prove.report import ComparisonReport, Divergence, ParameterRow, describe_difference
from pellucid.prove.sides import Pair, reference_of
from pellucid.prove.tensors import TensorComparison, compare_tensors
from pellucid.prove.units import units_of
from pellucid.prove.verdict import notes_on, rows_of_parameters, verdict_of

ALONE = "state dicts hold parameters and no program: nothing was run, and the verdict is on the parameters alone"
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
        return _of_parameters(pair.reference, pair.other, swapped=pair.swapped)
    report = Comparison(pair.reference, runnable, ids, pair.swapped, tensors=pair.other).report()
    note = "the state dict was run in the layout that its names have, with the reference's configuration"
    return replace(report, notes=(note, *report.notes))


def compare_dicts(a: Tensors, b: Tensors) -> ComparisonReport:
    """Compare two state dicts.

    Raises:
        InputError: Neither is of a known layout, and they have different names.
    """
    for theirs, others, swapped in ((a, b, False), (b, a, True)):
        reference = reference_of(theirs)
        if reference is not None:
            return _best_of_heads(reference, theirs, others, swapped=swapped)
    if set(a) == set(b):
        return _by_name(a, b)
    raise InputError(
        "compare: two state dicts of no known layout and with different names.",
        code="compare-unknown-both",
        remedy="Give the model of one of them, so that its parameters are known.",
    )


def _best_of_heads(
    reference: CkptedTransformer, theirs: Tensors, others: Tensors, *, swapped: bool
) -> ComparisonReport:
    """The comparison under the number of heads that explains most; most layouts do not say how many there are."""
    report = _of_parameters(reference, others, swapped=swapped)
    width = reference.config.n_embd
    candidates = [n for n in (width // 64, *range(2, 65)) if n > 1 and width % n == 0]
    for n_head in candidates if reference.config.n_head == 1 else ():
        if report.alignment.bit_equal:
            break
        again = reference_of(theirs, reference.config.replace(n_head=n_head))
        if again is not None:
            found = _of_parameters(again, others, swapped=swapped)
            report = max(report, found, key=lambda r: (r.alignment.bit_equal, r.alignment.complete))
    return report


def _of_parameters(reference: CkptedTransformer, others: Tensors, *, swapped: bool) -> ComparisonReport:
    config = reference.config
    alignment = align(units_of(reference), others, config.n_layer, config.n_head)
    dtypes = {tensor.dtype for tensor in (*reference.parameters(), *others.values()) if tensor.is_floating_point()}
    divergence = first_changed(alignment, units_of(reference), others)
    verdict = verdict_of(alignment, (), divergence, may_be_identical=len(dtypes) == 1, rounding_explains=False)
    rows = rows_of_parameters(alignment, swapped=swapped)
    notes = (ALONE, *notes_on(alignment))
    return ComparisonReport(verdict, rows, (), reference.ckpt_names, divergence, alignment, notes)


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
