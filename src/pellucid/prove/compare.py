"""Two models compared to the bit: parameters by value, checkpoints by role, the first divergence by name.

Both models run freely and forced (see `pellucid.prove.program`), in their own dtype and in float64. A difference
that float64 makes vanish is rounding; one that stays is an error, whatever its size. So no tolerance is chosen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, overload

from torch import Tensor, nn

from pellucid.names.calls import COMPARING, named_arguments
from pellucid.numerics.freed_memory import LITTLE, keep_freed
from pellucid.numerics.products import ordinary_tensors
from pellucid.prove.about import About
from pellucid.prove.comparison import Comparison, Progress, silently
from pellucid.prove.dicts import compare_dicts, compare_unrecognised, compare_with_dict
from pellucid.prove.report import ComparisonReport, Verdict
from pellucid.prove.sides import DEFAULT_TEXT, ids_of, opened, pairs
from pellucid.prove.tensors import TensorComparison, compare_tensors
from pellucid.prove.trial import mode_note
from pellucid.prove.valueless import require_values, with_values
from pellucid.text.batch import Inputs
from pellucid.text.tokenizer import Tokenizer

_SEVERITY: tuple[Verdict, ...] = ("identical", "equivalent", "inconclusive", "different")


@overload
def compare(a: Tensor, b: Tensor) -> TensorComparison: ...  # pyright: ignore[reportOverlappingOverload] (Any is models)
@overload
def compare(
    a: Any, b: Any, inputs: Inputs = ..., tokenizer: Tokenizer | None = None, *, progress: Progress = ...
) -> ComparisonReport: ...


@named_arguments(COMPARING)
@ordinary_tensors()
def compare(
    a: Any,
    b: Any,
    inputs: Inputs = DEFAULT_TEXT,
    tokenizer: Tokenizer | None = None,
    *,
    progress: Progress = silently,
) -> TensorComparison | ComparisonReport:
    """Compare two tensors, or two models.

    Args:
        a: A tensor; or a `CkptedTransformer`, a transformers `GPT2Model` or `GPT2LMHeadModel`, any `nn.Module`, a
            state dict, a path, an alias, a hub id, or "hf:" and one of these three. If both are modules of other
            classes, one must be recognisable as a GPT-2 by its shapes and by what it computes.
        b: The other.
        inputs: What to run both on: whatever a model takes. Not read for two state dicts. If it is left out and no side
            has a tokenizer, ids are drawn with a fixed seed.
        tokenizer: For text; else the first side's that has one.
        progress: Called with what is being done, and the share of the work that is behind.

    Returns:
        For tensors, how they differ. For models, a report whose truth value is "identical or equivalent".

    What a path or a name stands for is opened in the dtype that it is stored in.

    Raises:
        InputError: If neither side can be recognised as a GPT-2, text was given and no side has a tokenizer, or one
            has tensors without values that a run reads: on the meta device, or in a lazy module that never ran.

    Example:
        >>> import pellucid as pl
        >>> report = pl.compare(pl.load(), pl.to_hf(pl.load()), inputs="Once upon a time")
        >>> report.verdict
        'identical'
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        require_values(a)
        require_values(b)
        return compare_tensors(with_values(a, "a"), with_values(b, "b"))
    sides = opened(a), opened(b)
    first, second = (opening.side for opening in sides)
    empty = [
        f"{name}: {note}" for name, side in zip("AB", (first, second), strict=True) for note in require_values(side)
    ]
    about = About(sides[0].name, sides[1].name)
    if not isinstance(first, nn.Module) and not isinstance(second, nn.Module):
        return replace(compare_dicts(first, second), about=about)
    todo = pairs(first, second)
    if not todo:
        return replace(compare_unrecognised(first, second), about=about)
    if sum(parameter.numel() for parameter in todo[0].reference.parameters()) > LITTLE:
        keep_freed()  # each run in float64 converts every weight again, into fresh memory otherwise
    ids, ran, notes = ids_of(todo[0].reference, inputs, tokenizer, sides)
    lengths = tuple(map(len, ran.ids))
    reports: list[ComparisonReport] = []
    for pair in todo:
        if isinstance(pair.other, nn.Module):
            made = Comparison(pair.reference, pair.other, ids, pair.swapped, progress=progress, lengths=lengths)
            reports.append(made.report())
        else:
            reports.append(compare_with_dict(pair, ids, lengths))
    head = todo[0].reference.embed.W_E.detach()
    modules = [(name, side) for name, side in zip("AB", (first, second), strict=True) if isinstance(side, nn.Module)]
    notes = (*empty, *notes, *(note for name, side in modules for note in mode_note(name, side, ids, head)))
    worst = max(reports, key=lambda report: _SEVERITY.index(report.verdict))
    return replace(worst, notes=(*notes, *worst.notes), about=replace(about, inputs=ran), distance=reports[0].distance)
